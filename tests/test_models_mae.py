"""Stage 1's network: shapes, masks, what the encoder sees and what the loss counts."""
import math

import numpy as np
import pytest
import torch

from models_mae import MODELS, MaskedAutoencoderViT, build_mae, patch_grid, random_masking
from util.pos_embed import sincos_2d

SMALL = dict(img_size=(16, 24), patch_size=4, in_chans=2, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=8,
             decoder_depth=1, decoder_num_heads=2)


def small_model(**changes):
    torch.manual_seed(0)
    return MaskedAutoencoderViT(**{**SMALL, **changes})


def test_patchify_and_unpatchify_invert_each_other():
    model, images = small_model(), torch.randn(3, 2, 16, 24)
    patches = model.patchify(images)
    assert patches.shape == (3, 24, 32)
    assert torch.equal(model.unpatchify(patches), images)
    # Row order of patches, and within a patch row, column, channel: the layout of MAE's decoder_pred weights.
    assert torch.equal(patches[1, 7], images[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())


@pytest.mark.parametrize(("L", "ratio", "kept"), [(196, 0.75, 49), (100, 0.9, 10), (16, 0.75, 4), (64, 0.6, 26),
                                                  (4, 0.99, 1), (4, 0.01, 3)])
def test_exactly_the_promised_number_is_kept(L, ratio, kept):
    noise = torch.rand(5, L)
    ids_keep, ids_removed, mask = random_masking(noise, ratio)
    assert ids_keep.shape == (5, kept)
    assert torch.equal(mask.sum(1), torch.full((5,), float(L - kept)))
    assert (mask.gather(1, ids_keep) == 0).all() and (mask.gather(1, ids_removed) == 1).all()
    assert torch.equal(torch.cat([ids_keep, ids_removed], dim=1).sort(dim=1)[0], torch.arange(L).expand(5, L))


def test_masks_differ_between_samples():
    _, _, mask = random_masking(torch.rand(8, 64), 0.75)
    assert len({tuple(row.tolist()) for row in mask}) == 8


def test_the_encoder_sees_visible_patches_only():
    model, images, noise = small_model(), torch.randn(2, 2, 16, 24), torch.rand(2, 24)
    ids_keep, _, mask = random_masking(noise, 0.75)
    removed = model.unpatchify(mask.unsqueeze(-1).expand(-1, -1, 32)).bool()
    latent = model.forward_encoder(model.patchify(images), ids_keep)
    assert latent.shape == (2, 1 + 6, 16)
    elsewhere = model.forward_encoder(model.patchify(torch.where(removed, 1e3, images)), ids_keep)
    assert torch.equal(latent, elsewhere)
    visible = model.forward_encoder(model.patchify(torch.where(removed, images, images + 1)), ids_keep)
    assert not torch.equal(latent, visible)


def test_embedding_after_the_gather_equals_the_patch_convolution():
    model, images = small_model(), torch.randn(2, 2, 16, 24)
    ids = torch.arange(24).expand(2, 24)
    tokens = model.patch_embed(images) + model.pos_embed[:, 1:]
    x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), tokens], dim=1)
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(model.forward_encoder(model.patchify(images), ids), model.norm(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_loss_equals_its_formula_over_the_removed_patches(norm_pix):
    model, images = small_model(norm_pix_loss=norm_pix).double(), torch.randn(2, 2, 16, 24, dtype=torch.float64)
    noise = torch.rand(2, 24)
    loss, pred, mask = model(images, 0.75, noise)
    target, pred, total = model.patchify(images).numpy(), pred.detach().numpy(), 0.0
    for n, m in np.argwhere(mask.numpy() == 1):
        t = target[n, m]
        if norm_pix:
            t = (t - t.mean()) / np.sqrt(t.var(ddof=1) + 1e-6)
        total += ((pred[n, m] - t) ** 2).mean()
    assert loss.item() == pytest.approx(total / mask.sum().item(), rel=1e-6)
    assert model(images, 0.75, noise, loss_only=True).item() == pytest.approx(loss.item(), rel=1e-7)


def test_the_decoder_puts_every_token_at_its_place():
    """Against the decoder written out in image order: mask tokens scattered among the visible ones, fixed positions added."""
    model, images, noise = small_model().double(), torch.randn(3, 2, 16, 24, dtype=torch.float64), torch.rand(3, 24)
    with torch.no_grad():
        model.mask_token.normal_()
        ids_keep, _, mask = random_masking(noise, 0.75)
        latent = model.forward_encoder(model.patchify(images), ids_keep)
        x = model.mask_token.repeat(3, 25, 1)
        x[:, 0] = model.decoder_embed(latent[:, 0])
        for n in range(3):
            x[n, 1 + ids_keep[n]] = model.decoder_embed(latent[n, 1:])
        x = x + model.decoder_pos_embed
        for block in model.decoder_blocks:
            x = block(x)
        expected = model.decoder_pred(model.decoder_norm(x))[:, 1:]
        torch.testing.assert_close(model(images, 0.75, noise)[1], expected, atol=1e-10, rtol=1e-10)


def test_every_trainable_parameter_gets_a_gradient():
    model = small_model(norm_pix_loss=True)
    model(torch.randn(4, 2, 16, 24), 0.5, loss_only=True).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed", "decoder_pos_embed"]


@pytest.mark.parametrize("norm_pix", [False, True])
def test_reconstruct_gives_the_picture_back_in_its_own_scale(norm_pix, monkeypatch):
    model, images = small_model(norm_pix_loss=norm_pix), 3 * torch.randn(2, 2, 16, 24) + 5
    patches = model.patchify(images)
    perfect = patches
    if norm_pix:
        std, mean = torch.std_mean(patches, dim=-1, keepdim=True)
        perfect = (patches - mean) / std
    monkeypatch.setattr(model, "forward_decoder", lambda latent, ids_keep, ids_removed, removed_only: perfect)
    picture, mask = model.reconstruct(images, 0.75, torch.rand(2, 24))
    torch.testing.assert_close(picture, images, atol=1e-4, rtol=1e-4)
    assert mask.shape == images.shape and mask.mean() == 0.75


def test_noise_decides_the_mask():
    model, images = small_model().eval(), torch.randn(2, 2, 16, 24)
    noise = torch.rand(2, 24)
    first, second = model(images, 0.75, noise), model(images, 0.75, noise)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])
    assert not torch.equal(first[2], model(images, 0.75, torch.rand(2, 24))[2])


def test_positions_equal_their_formula_column_first_as_in_maes_weights():
    table = sincos_2d(16, (3, 5))
    assert table.shape == (1, 16, 16) and torch.equal(table[0, 0], torch.zeros(16))
    for row in range(3):
        for column in range(5):
            rates = [10000 ** (-k / 4) for k in range(4)]
            expected = [f(position * rate) for position in (column, row) for f in (math.sin, math.cos) for rate in rates]
            assert table[0, 1 + row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_builds_and_trains_at_reduced_depth(name):
    model = build_mae(name, img_size=32 if "16" in name else 28, depth=1, decoder_depth=1, decoder_embed_dim=32,
                      decoder_num_heads=4)
    assert (model.patch_size, model.pos_embed.shape[-1]) == MODELS[name][:2]
    size = model.img_size
    loss, pred, mask = model(torch.randn(2, 3, *size), 0.5)
    loss.backward()
    assert pred.shape == (2, 4, model.patch_size**2 * 3) and mask.shape == (2, 4) and loss.isfinite()


def test_base_has_maes_number_of_parameters():
    # 85,798,656 encoder (timm's vit_base_patch16_224 without head) + MAE's decoder of 8 blocks, 512 wide.
    model = build_mae("mae_vit_base_patch16")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    decoder = 8 * (12 * 512**2 + 13 * 512) + 2 * 512 + 512 * (768 + 1) + 512 + 768 * 512 + 768
    assert trainable == 85_798_656 - 197 * 768 + decoder


@pytest.mark.parametrize(("changes", "words"), [
    (dict(img_size=(16, 25)), "16 x 25 is no multiple of the patch size 4"),
    (dict(num_heads=3), "16 is no multiple of 3 heads"),
    (dict(decoder_num_heads=3), "change --decoder_embed_dim or --decoder_num_heads"),
    (dict(embed_dim=18, num_heads=2), "multiple of 4, not 18")])
def test_impossible_shapes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        small_model(**changes)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_mask_ratios_outside_0_and_1_are_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio must lie between 0 and 1"):
        random_masking(torch.rand(2, 16), ratio)


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match="unknown model 'mae_vit_giant'; known: mae_vit_tiny_patch16"):
        build_mae("mae_vit_giant")


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="images of 3 x 16 x 24 .* built for 2 x 16 x 24"):
        small_model()(torch.randn(1, 3, 16, 24))


def test_grid_of_any_size():
    assert patch_grid((28, 42), 7) == (4, 6)
