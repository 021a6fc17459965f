"""Stage 2's network against timm's own, and an encoder loaded into it."""
import pytest
import timm
import torch

from models_mae import build_mae
from models_vit import MODELS, build_vit, load_classifier, load_encoder, load_resampled, resample_positions
from util.seed import seeded

SMALL = dict(patch_size=4, embed_dim=16, depth=2, num_heads=2)
DECODER = dict(decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)


def test_published_number_of_parameters():
    assert sum(p.numel() for p in build_vit("vit_base_patch16", 1000).parameters()) == 86_567_656


@pytest.mark.parametrize(("size", "classes", "number"), [(384, 1000, 86_859_496), (224, 8142, 92_059_854),
                                                         (384, 8142, 92_351_694)])
def test_parameters_of_the_released_models(size, classes, number):
    with torch.device("meta"):
        model = timm.models.VisionTransformer(img_size=size, num_classes=classes, global_pool="avg")
    with torch.device("meta"):
        ours = build_vit("vit_base_patch16", classes, size)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == number


def test_names_shapes_and_outputs_equal_timms_vit_base():
    theirs = timm.create_model("vit_base_patch16_224", num_classes=1000, global_pool="avg", class_token=True).eval()
    ours = build_vit("vit_base_patch16", 1000).eval()
    load_classifier(ours, theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert (ours(images) - theirs(images)).abs().max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_every_named_model_trains_at_reduced_depth(name, pool):
    model = build_vit(name, 5, img_size=32 if "16" in name else 28, depth=1, global_pool=pool)
    out = model(torch.randn(2, 3, *model.patch_embed.img_size))
    (out + torch.randn(2, 5)).square().sum().backward()
    assert out.shape == (2, 5)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def dropped_by_hand(model, images, paths):
    """Logits in training by the definition of stochastic depth: a branch is left out, or counts 1 / (1 - rate) times."""
    x, column = model._pos_embed(model.patch_embed(images)), 0
    for index, block in enumerate(model.blocks):
        rate = .4 * index / (len(model.blocks) - 1)
        for norm, branch in ((block.norm1, block.attn), (block.norm2, block.mlp)):
            out = branch(norm(x))
            if rate:
                dropped = paths[:, column] < rate
                out, column = torch.where(dropped[:, None, None], torch.zeros_like(out), out / (1 - rate)), column + 1
            x = x + out
    assert column == paths.shape[1]
    return model.head(model.forward_head(x, pre_logits=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_paths_are_dropped_by_the_draws_that_are_given(checkpointing):
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", 3, 16, drop_path=.4, head_std=1, **{**SMALL, "depth": 3}).double().train()
    model.set_grad_checkpointing(checkpointing)
    images, paths = torch.randn(5, 3, 16, 16).double(), torch.rand(5, len(model.drop_paths)).double()
    paths[0] = 0  # all are dropped
    outputs = [model(images, paths=paths), dropped_by_hand(model, images, paths)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in outputs]
    torch.testing.assert_close(*gradients)
    other = model(images, paths=1 - paths)
    assert not torch.allclose(other[0], outputs[0][0])
    torch.testing.assert_close(model.eval()(images, paths=paths), model(images))


def test_draws_of_paths_come_from_the_generator_where_none_are_given():
    model = build_vit("vit_tiny_patch16", 3, 16, drop_path=.4, head_std=1, **SMALL).train()
    images = torch.randn(5, 3, 16, 16)
    with seeded(0):
        paths = torch.rand(5, 2)
    outputs = [model(images, paths=paths)]
    for seed in (0, 1):
        with seeded(seed):
            outputs.append(model.forward_head(model.forward_features(images)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])


def test_encoder_gives_the_same_features_in_the_classifier():
    torch.manual_seed(0)
    mae = build_mae("mae_vit_tiny_patch16", 16, **SMALL, **DECODER)
    vit = build_vit("vit_tiny_patch16", 3, 16, global_pool="token", **SMALL)
    report = load_encoder(vit, mae.state_dict())
    images = torch.randn(2, 3, 16, 16)
    latent = mae.forward_encoder(mae.patchify(images), torch.arange(16).expand(2, 16))
    torch.testing.assert_close(vit.forward_features(images), latent, atol=1e-5, rtol=1e-5)
    assert report["new"] == ["head.bias", "head.weight"] and report["resampled"] is None
    assert all(key.startswith("decoder_") or key == "mask_token" for key in report["left_out"])


def test_average_pooling_leaves_the_final_norm_out_and_starts_fc_norm_fresh():
    vit = build_vit("vit_tiny_patch16", 3, 16, **SMALL)
    report = load_encoder(vit, build_mae("mae_vit_tiny_patch16", 16, **SMALL, **DECODER).state_dict())
    assert {"norm.weight", "norm.bias", "mask_token"} <= set(report["left_out"])
    assert report["new"] == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]


def test_positions_are_resampled_to_another_grid_also_not_square():
    mae = build_mae("mae_vit_tiny_patch16", (16, 24), **SMALL, **DECODER)
    vit = build_vit("vit_tiny_patch16", 3, (32, 24), **SMALL)
    report = load_encoder(vit, mae.state_dict(), grid=(4, 6))
    assert report["resampled"] == ((4, 6), (8, 6))
    assert torch.equal(vit.pos_embed[:, 0], mae.pos_embed[:, 0])
    # Independent reference: bicubic interpolation of the grid alone.
    grid = mae.pos_embed[:, 1:].reshape(1, 4, 6, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(8, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(vit.pos_embed[0, 1:], expected[0].flatten(1).T)


def test_same_grid_is_untouched():
    positions = torch.randn(1, 17, 8)
    assert resample_positions(positions, (4, 4), (4, 4)) is positions


def broken(state, change):
    state = dict(state)
    change(state)
    return state


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("blocks.1.attn.qkv.weight"), "missing: blocks.1.attn.qkv.weight"),
    (lambda s: s.update({"blocks.2.attn.qkv.weight": torch.zeros(1)}), "unexpected: blocks.2.attn.qkv.weight"),
    (lambda s: s.update({"patch_embed.proj.weight": torch.zeros(16, 3, 8, 8)}),
     r"wrong shape: patch_embed.proj.weight \(16, 3, 8, 8\) instead of \(16, 3, 4, 4\)"),
    (lambda s: s.pop("pos_embed"), "holds no `pos_embed`"),
    (lambda s: s.update({"pos_embed": torch.zeros(1, 8, 16)}), "7 positions, which is no square grid")])
def test_weights_of_another_architecture_are_refused_by_name(change, words):
    vit = build_vit("vit_tiny_patch16", 3, 16, **SMALL)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    state = broken(build_mae("mae_vit_tiny_patch16", 16, **SMALL, **DECODER).state_dict(), change)
    with pytest.raises(ValueError, match=words):
        load_encoder(vit, state)
    assert all(torch.equal(before[key], value) for key, value in vit.state_dict().items())


def test_wider_encoder_is_refused():
    vit = build_vit("vit_tiny_patch16", 3, 16, **SMALL)
    wide = build_mae("mae_vit_tiny_patch16", 16, **{**SMALL, "embed_dim": 32}, **DECODER)
    with pytest.raises(ValueError, match="weights of another architecture .wrong shape: cls_token .*and .* more"):
        load_encoder(vit, wide.state_dict())


@pytest.mark.parametrize("grown", [7, 8])
def test_patches_of_another_size_give_what_they_gave(grown):
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", 3, 16, **SMALL).eval()
    larger = build_vit("vit_tiny_patch16", 3, 4 * grown, **{**SMALL, "patch_size": grown}).eval()
    torch.nn.init.normal_(model.head.weight)
    report = load_resampled(larger, model.state_dict(), patches=True)
    assert report["patches"] == (4, grown) and report["resampled"] is None
    # Independent reference: every patch of the picture resized by itself.
    images = torch.randn(2, 3, 4, 4, 4, 4)  # (N, C, h, p, w, p)
    patches = images.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
    resized = torch.nn.functional.interpolate(patches, size=(grown, grown), mode="bicubic", antialias=True)
    resized = resized.reshape(2, 4, 4, 3, grown, grown).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 4 * grown, 4 * grown)
    with torch.no_grad():
        expected = model(images.reshape(2, 3, 16, 16))
        assert (larger(resized) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_patches_of_another_size_are_refused_unless_asked_for():
    vit = build_vit("vit_tiny_patch16", 3, 32, **{**SMALL, "patch_size": 8})
    mae = build_mae("mae_vit_tiny_patch16", 16, **SMALL, **DECODER)
    with pytest.raises(ValueError, match=r"wrong shape: patch_embed.proj.weight \(16, 3, 4, 4\) instead of \(16, 3, 8, 8\)"):
        load_encoder(vit, mae.state_dict())
    assert load_encoder(vit, mae.state_dict(), patches=True)["patches"] == (4, 8)
