"""Others' weights, and one's own, in stage 1: what --finetune and a --resume of weights alone load of them."""
import json
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import main_pretrain
from tests.checkpoints import write_again, write_classifier, write_mae
from tests.conftest import DECODER, TINY
from tests.foreign import WRITERS, as_bare, as_folder, as_published, as_safetensors, small, small_mae
from tests.test_resume import Cut, cut_after  # noqa: F401 (a fixture)
from util.checkpoint import load_checkpoint
from util.start import start_autoencoder

pytestmark = pytest.mark.usefixtures("no_pictures")
MODEL = ["--model", "mae_vit_tiny_patch16"]
SHAPE = ["--dataset", "folder", "--mean", ".3", ".3", ".3", "--std", ".2", ".2", ".2", *MODEL, *TINY, *DECODER]
# The shapes that tests.checkpoints writes: 16 x 24 pixels.
WRITTEN = ["--input_size", 16, 24, "--embed_dim", 16, "--decoder_embed_dim", 8, "--mean", .4, .5, .3, "--std", .2, .3, .25]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def started(path, *flags, shape=SHAPE):
    """-> stage 1's model as it starts from the weights, words, and what args.json keeps."""
    args = main_pretrain.get_args_parser().parse_args([*shape, "--finetune", str(path), *map(str, flags)])
    model = main_pretrain.build_model(args, 3).eval()
    return model, *start_autoencoder(args, vars(args), model)


def shaken():
    """An autoencoder whose biases and tokens are far from where they begin."""
    model = small_mae().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0
    return model


def same_loss(one, other, size=(16, 16)):
    images, noise = torch.randn(2, 3, *size), torch.rand(2, size[0] * size[1] // 16)
    with torch.no_grad():
        a, b = (float(model(images, 0.75, noise, loss_only=True)) for model in (one, other))
    return abs(a - b) < 1e-6 and a > 0.1


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_brings_encoder_and_decoder(tmp_path, capsys, form):
    source = shaken()
    path = WRITERS[form](source.state_dict(), tmp_path / "weights.dat")
    model, words, kept = started(path)
    assert same_loss(model, source) and words == f"encoder and decoder of {path}" and kept == {"finetune_epochs": None}
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"weights of {path}, .*: {len(source.state_dict())} tensors loaded", first)
    assert second == "left out: nothing; new, with their start values: nothing"
    assert third == "positions not resampled: the patch grid is the same"


def test_hugging_faces_own_model_brings_its_loss(tmp_path):
    transformers = pytest.importorskip("transformers", reason="its ViTMAE is what is compared with, and is not installed")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=16, patch_size=4,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64,
        norm_pix_loss=True, layer_norm_eps=1e-6, initializer_range=0.2)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    model, *_ = started(tmp_path / "hf", "--norm_pix_loss")
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        assert abs(float(theirs(images, noise=noise).loss - model(images, 0.75, noise)[0])) < 1e-6
    with pytest.raises(ValueError, match="2 heads in the decoder, not 4.: use --decoder_num_heads 2"):
        started(tmp_path / "hf", "--decoder_num_heads", 4)


@pytest.mark.parametrize("ema", [False, True])
def test_own_stage_1_goes_on_elsewhere_from_the_average_that_it_kept(tmp_path, capsys, ema):
    source = write_mae(tmp_path / "last.pth")
    if ema:
        state = load_checkpoint(tmp_path / "last.pth")
        state["ema"] = {key: 2 * value if "blocks" in key else value for key, value in state["model"].items()}
        source.load_state_dict(state["ema"])
        write_again(tmp_path / "last.pth", state)
    model, words, kept = started(tmp_path / "last.pth", *WRITTEN, "--std", .2, .2, .2, "--norm_pix_loss")
    model.patch_loss.norm_pix = False
    assert same_loss(model, source, (16, 24)) and kept == {"finetune_epochs": [7, 400]}
    said = capsys.readouterr().out
    assert "images are prepared otherwise than for" in said and "--norm_pix_loss True (False there)" in said
    assert "--std [0.2, 0.2, 0.2] ([0.2, 0.3, 0.25] there)" in said and "--mean" not in said
    assert "is of an encoder with 7 of 400 epochs behind it: its run has not ended" in said
    with pytest.raises(ValueError, match="2 heads in the decoder, not 4.: use --decoder_num_heads 2"):
        started(tmp_path / "last.pth", *WRITTEN, "--decoder_num_heads", 4)
    with pytest.raises(ValueError, match="2 heads, not 4.: use --num_heads 2"):
        started(tmp_path / "last.pth", *WRITTEN, "--num_heads", 4)


def bare_tokens(model, images):
    """Tokens of all patches, before any norm."""
    model.norm = nn.Identity()
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            return model.forward_features(images)
        patches = model.patchify(images)
        return model.forward_encoder(patches, torch.arange(patches.shape[1]).expand(len(images), -1))


@pytest.mark.parametrize(("kind", "out"), [
    ("timm", "head (2 tensors), norm (2 tensors)"), ("livt", "fc_norm (2 tensors), head (2 tensors)"),
    ("own", "fc_norm (2 tensors), head (2 tensors)")])
def test_a_classifier_brings_its_encoder_and_its_learned_positions(tmp_path, capsys, kind, out):
    size, flags = ((16, 24), WRITTEN) if kind == "own" else ((16, 16), [])
    if kind == "own":
        source = write_classifier(tmp_path / "w")
        source.pos_embed.data += 0.01
        state = load_checkpoint(tmp_path / "w")
        write_again(tmp_path / "w", {**state, "model": source.state_dict()})
    elif kind == "timm":
        source = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=16, patch_size=4, embed_dim=32, depth=2,
                                   num_heads=2).eval()
        as_safetensors(source.state_dict(), tmp_path / "w")
    else:
        source = small()
        as_published(source.state_dict(), tmp_path / "w")
    model, words, _ = started(tmp_path / "w", *flags)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning: ")]
    assert words == f"encoder of {tmp_path / 'w'}" and len(lines) == 4
    assert lines[1] == (f"left out: {out}; new, with their start values: decoder_blocks (12 tensors), decoder_embed (2 "
                        "tensors), decoder_norm (2 tensors), decoder_pos_embed, decoder_pred (2 tensors), mask_token, norm (2 "
                        "tensors)")
    assert lines[2] == "learned positions not resampled: the patch grid is the same"
    assert lines[3] == f"note: {tmp_path / 'w'} has no decoder, so the decoder starts from random weights"
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(bare_tokens(model, images), bare_tokens(source, images), rtol=0, atol=1e-5)


def test_an_encoder_alone_brings_its_norm(tmp_path, capsys):
    """As MAE publishes its encoders."""
    state = {key: value for key, value in shaken().state_dict().items() if not key.startswith(("decoder", "mask"))}
    model, *_ = started(as_published(state, tmp_path / "mae.pth"))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items()) and "norm.weight" in state
    assert "left out: nothing; new, with their start values: decoder_blocks" in capsys.readouterr().out


def test_on_another_grid_fixed_positions_are_those_of_that_grid(tmp_path, capsys):
    path = as_published({key: value.half() for key, value in shaken().state_dict().items()}, tmp_path / "mae.pth")
    model, *_ = started(path, "--input_size", 24, 16)
    third = capsys.readouterr().out.splitlines()[2]
    assert third == "positions not resampled: the fixed sin-cos ones, (4, 4) -> (6, 4)"
    for positions in (model.pos_embed, model.decoder_pos_embed):
        row, column, D = 4, 2, positions.shape[-1]
        frequencies = 10000.0 ** -(torch.arange(D // 4) / (D // 4))
        expected = torch.cat([torch.sin(column * frequencies), torch.cos(column * frequencies),
                              torch.sin(row * frequencies), torch.cos(row * frequencies)])
        torch.testing.assert_close(positions[0, 1 + 4 * row + column], expected, rtol=0, atol=1e-6)


def test_on_another_grid_learned_positions_are_resampled(tmp_path, capsys):
    state = shaken().state_dict()
    for name in ("pos_embed", "decoder_pos_embed"):
        state[name] = state[name] + 0.1 * torch.randn_like(state[name])
    model, *_ = started(as_bare(state, tmp_path / "mae.pth"), "--input_size", 24, 16)
    assert capsys.readouterr().out.splitlines()[2] == "learned positions resampled (4, 4) -> (6, 4)"
    for name in ("pos_embed", "decoder_pos_embed"):
        found, D = getattr(model, name), state[name].shape[-1]
        grid = state[name][:, 1:].reshape(1, 4, 4, D).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, size=(6, 4), mode="bicubic", antialias=True)[0].flatten(1).T
        torch.testing.assert_close(found[0, 1:], expected)
        assert torch.equal(found[:, 0], state[name][:, 0])


def test_another_patch_size_that_was_asked_for_sees_and_predicts_the_same_resized(tmp_path, capsys):
    def enlarged(patches):
        maps = patches.reshape(-1, 4, 4, 3).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, size=(8, 8), mode="bicubic", antialias=True)
        return maps.permute(0, 2, 3, 1).reshape(2, 16, -1)

    source, images, noise = shaken(), torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    path = as_bare(source.state_dict(), tmp_path / "mae.pth")
    model, *_ = started(path, "--patch_size", 8, "--input_size", 32)
    assert "patch embedding resampled 4 x 4 -> 8 x 8 pixels; positions not resampled" in capsys.readouterr().out
    with torch.no_grad():
        expected = enlarged(source(images, 0.75, noise)[1])
        found = model(model.unpatchify(enlarged(source.patchify(images))), 0.75, noise)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    implied = [word for word in SHAPE if word not in ("--patch_size", "4")]  # the named model's, 16
    with pytest.raises(ValueError, match=r"wrong shape: patch_embed.proj.weight \(32, 3, 4, 4\).*: use the .*--patch_size"):
        started(path, "--input_size", 64, shape=implied)


@pytest.mark.parametrize(("flags", "words"), [
    (["--decoder_embed_dim", 32], r"wrong shape: mask_token \(1, 1, 16\) instead of \(1, 1, 32\), .*: use the "
                                  "--decoder_embed_dim and --decoder_depth that"),
    (["--decoder_depth", 2], "missing: decoder_blocks.1.norm1.weight, .*: use the --decoder_embed_dim and --decoder_depth"),
    (["--decoder_num_heads", 4], "2 heads in the decoder, not 4.: use --decoder_num_heads 2"),
    (["--embed_dim", 48], "wrong shape: cls_token .*: use the --model, --patch_size, --embed_dim, --depth and --input_size"),
    (["--num_heads", 4], "2 heads, not 4.: use --num_heads 2")])
def test_another_network_is_refused_with_the_flags_that_decide_it(tmp_path, flags, words):
    folder = as_folder(small_mae().state_dict(), tmp_path / "hf")
    (folder / "config.json").write_text('{"num_attention_heads": 2, "decoder_num_attention_heads": 2}')
    with pytest.raises(ValueError, match=f"weights of another architecture .*{words}"):
        started(folder, *flags)


def test_layer_scale_has_no_place_in_stage_1(tmp_path):
    write_classifier(tmp_path / "last.pth", "--layer_scale", .1)
    with pytest.raises(ValueError, match="weights with LayerScale .blocks.0.ls1.gamma., which the network of stage 1 does not"):
        started(tmp_path / "last.pth", *WRITTEN)


def test_a_run_begins_with_the_weights_and_says_so(pretrain, tmp_path, capsys):
    source = shaken().state_dict()
    path = as_published(source, tmp_path / "mae.pth")
    pretrain(tmp_path / "run", *MODEL, "--finetune", path, "--lr", 0, "--min_lr", 0)
    assert f"from scratch, encoder and decoder of {path}; run folder" in capsys.readouterr().out
    trained = load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    assert all(torch.equal(trained[key], value) for key, value in source.items())
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["finetune_epochs"] is None and record["args"]["finetune"] == str(path)


STAGES = pytest.mark.parametrize(("stage", "flags"), [("pretrain", MODEL), ("finetune", [])])


@STAGES
def test_resume_of_weights_alone_is_finetune_and_the_same_command_goes_on(request, tmp_path, capsys, cut_after,  # noqa: F811
                                                                          stage, flags):
    run, path = request.getfixturevalue(stage), as_published(shaken().state_dict(), tmp_path / "mae.pth")
    run(tmp_path / "whole", *flags, "--finetune", path)
    assert "note: --resume" not in capsys.readouterr().out
    patch = cut_after(1)
    with pytest.raises(Cut):
        run(tmp_path / "cut", *flags, "--resume", path)
    patch.undo()
    note = (f"note: --resume {path} holds weights alone (the published form of MAE and LiVT), so training starts at epoch 0 "
            "from them, as with --finetune\n")
    assert note in capsys.readouterr().out
    with pytest.raises(ValueError, match="already holds a last.pth, so --resume .*other.pth would overwrite another run"):
        run(tmp_path / "cut", *flags, "--resume", as_bare(small_mae().state_dict(), tmp_path / "other.pth"))
    path.unlink()
    capsys.readouterr()
    run(tmp_path / "cut", *flags, "--resume", path)
    said = capsys.readouterr().out
    assert f"continuing {tmp_path / 'cut' / 'last.pth'} after epoch 1" in said and "note: --resume" not in said
    whole, cut = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@STAGES
def test_resume_of_weights_beside_finetune_is_refused(request, tmp_path, stage, flags):
    path = as_bare(small_mae().state_dict(), tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="holds weights alone .timm's form., to start from like those of --finetune x.pth: "):
        request.getfixturevalue(stage)(tmp_path / "run", *flags, "--resume", path, "--finetune", "x.pth")
    assert not (tmp_path / "run").exists()
