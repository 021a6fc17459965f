"""Weights that others trained: every form opens, ours or theirs, and gives the same numbers; what would run code does not."""
import argparse
import json
import os
import pickle
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import main_finetune
from datasets import build_dataset
from datasets.loading import eval_loader
from datasets.transforms import Normalize
from models_mae import build_mae
from models_vit import build_vit, load_classifier, load_resampled
from tests.checkpoints import write_classifier, write_mae
from util import export
from util.checkpoint import load_checkpoint
from util.weights import by_official_ids, open_weights
from util.weights_hf import from_hf, to_hf

SMALL = ["--model", "vit_tiny_patch16", "--input_size", "16", "--patch_size", "4", "--embed_dim", "32", "--depth", "2",
         "--num_heads", "2", "--dataset", "folder", "--mean", ".3", ".3", ".3", "--std", ".2", ".2", ".2"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def small(classes=3, size=16, pool="avg"):
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", classes, size, patch_size=4, embed_dim=32, depth=2, num_heads=2, global_pool=pool)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def small_mae(size=16):
    torch.manual_seed(1)
    return build_mae("mae_vit_tiny_patch16", size, 3, 4, 32, 2, 2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def as_published(state, path):
    """As MAE and LiVT save: a pickled Namespace beside the weights."""
    args = argparse.Namespace(lr=1e-3, input_size=16, distributed=False, betas=(0.9, 0.95))
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 799, "scaler": {}, "args": args}, path)
    return path


def as_bare(state, path):
    torch.save(state, path)
    return path


def as_wrapped(state, path):
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "arch": "vit"}, path)
    return path


def as_safetensors(state, path):
    save_file(state, path)
    return path


def as_folder(state, path):
    path.mkdir()
    save_file(to_hf(state), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"num_attention_heads": 2, "image_size": 16}))
    return path


WRITERS = {"published": as_published, "bare": as_bare, "wrapped": as_wrapped, "safetensors": as_safetensors, "hf": as_folder}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_weights_whatever_the_file_is_called(tmp_path, form):
    state = small_mae().state_dict()
    weights = open_weights(WRITERS[form](state, tmp_path / "weights.dat"))
    assert set(weights.tensors) == set(state) and weights.checkpoint is None
    assert all(torch.equal(weights.tensors[key], value) for key, value in state.items())
    assert weights.epochs == (800 if form == "published" else None) and weights.heads == (2 if form == "hf" else None)


def test_half_precision_becomes_float32(tmp_path):
    half = {key: value.half() for key, value in small().state_dict().items()}
    tensors = open_weights(as_bare(half, tmp_path / "half.pth")).tensors
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["head.weight"].half(), half["head.weight"])


@pytest.fixture
def finetune(finetune, monkeypatch):
    """Stage 2 without the figures, which take most of its time here."""
    monkeypatch.setattr(main_finetune, "write_results", lambda *_: None)
    monkeypatch.setattr("util.figures.training_curves", lambda *_: None)
    return finetune


class Runs:
    """A pickle that would call os.system when opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_would_call_os_system_is_refused_and_nothing_ran(tmp_path):
    path, marker = tmp_path / "mae.pth", tmp_path / "ran"
    for state in ({"model": small_mae().state_dict(), "args": Runs(marker)},
                  {"model": small_mae().state_dict(), "args": argparse.Namespace(lr=Runs(marker))}):
        torch.save(state, path)
        with pytest.raises(ValueError, match="mae.pth is refused: .*could run code"):
            open_weights(path)
    path.write_bytes(pickle.dumps(Runs(marker), protocol=2))
    with pytest.raises(ValueError, match="mae.pth is refused"):
        open_weights(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(marker)))  # it does run where it is allowed to
    assert marker.exists()


@pytest.mark.parametrize("wrong", [argparse.ArgumentParser, np.float64, pytest.Item])
def test_the_namespace_alone_is_allowed(tmp_path, wrong):
    before = torch.serialization.get_safe_globals()  # torch's own: exceptions, nested tensors
    torch.save({"model": small().state_dict(), "args": wrong}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="is refused"):
        open_weights(tmp_path / "mae.pth")
    open_weights(as_published(small().state_dict(), tmp_path / "mae.pth"))
    assert set(torch.serialization.get_safe_globals()) == set(before) and argparse.Namespace not in before


def test_what_holds_no_vit_is_named(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="resnet.pth holds no weights of a ViT .* the keys conv1.weight, fc.weight"):
        open_weights(tmp_path / "resnet.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no weights in the folder .*empty: expected model.safetensors or"):
        open_weights(tmp_path / "empty")
    save_file(small().state_dict(), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut.safetensors is damaged"):
        open_weights(tmp_path / "cut.safetensors")
    lost = to_hf(small_mae().state_dict())
    del lost["vit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ValueError, match="q, v alone of q, k, v for blocks.1.attn.qkv.weight"):
        open_weights(as_bare(lost, tmp_path / "lost.pth"))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224"])
def test_timms_models_open_with_their_head_and_give_its_outputs(tmp_path, name):
    theirs = timm.create_model(name, num_classes=11, img_size=32, depth=2).eval()
    ours = build_vit(name.removesuffix("_224"), 11, 32, depth=2, global_pool="token").eval()
    load_classifier(ours, open_weights(as_safetensors(theirs.state_dict(), tmp_path / "w")).tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (ours(images) - theirs(images)).abs().max() < 1e-5


def three_lines(capsys):
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("weights of "))
    assert not any(line.startswith("weights of ") for line in lines[start + 1:])
    return lines[start:start + 3]


@pytest.mark.parametrize("headless", [True, False])
def test_finetuning_starts_from_timms_weights(finetune, tmp_path, capsys, headless):
    state = {key: value for key, value in small(pool="token").state_dict().items() if not (headless and "head" in key)}
    path = as_safetensors(state, tmp_path / "vit.safetensors")
    finetune(tmp_path / "run", "--finetune", path, "--lr", 0, "--min_lr", 0, "--epochs", 1, "--warmup_epochs", 0)
    first, second, third = three_lines(capsys)
    assert re.fullmatch(rf"weights of {path}, timm's form: 28 tensors loaded", first)
    assert second == ("left out: " + "head (2 tensors), " * (not headless) + "norm (2 tensors); new, with their start values: "
                      "fc_norm (2 tensors), head (2 tensors)")
    assert third == "positions not resampled: the patch grid is the same"
    trained = load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    assert all(torch.equal(trained[key], state[key]) for key in state if not key.startswith(("norm.", "head.")))
    assert not torch.equal(trained["head.weight"], state.get("head.weight", torch.zeros(3, 32)))


def test_finetuning_starts_from_a_published_autoencoder_at_another_size(finetune, tmp_path, capsys):
    path = as_published(small_mae(24).state_dict(), tmp_path / "mae.pth")
    finetune(tmp_path / "run", "--finetune", path, "--input_size", 8, 16, "--epochs", 1, "--warmup_epochs", 0)
    first, second, third = three_lines(capsys)
    assert "the published form of MAE and LiVT: 28 tensors loaded" in first
    assert "decoder_blocks (12 tensors)" in second and "mask_token" in second
    assert third == "positions resampled (6, 6) -> (2, 4)"


def test_finetuning_starts_from_a_classifier_of_this_project(finetune, tmp_path, capsys):
    finetune(tmp_path / "a", "--epochs", 1, "--warmup_epochs", 0)
    finetune(tmp_path / "b", "--finetune", tmp_path / "a" / "last.pth", "--lr", 0, "--min_lr", 0, "--epochs", 1,
             "--warmup_epochs", 0)
    assert "left out: head (2 tensors); new, with their start values: head (2 tensors)" in capsys.readouterr().out
    a, b = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a if not key.startswith("head."))


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("blocks.1.attn.qkv.weight"), "missing: blocks.1.attn.qkv.weight"),
    (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(32)}), "unexpected: blocks.0.ls1.gamma"),
    (lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.ones(64, 32)}), r"wrong shape: blocks.0.mlp.fc1.weight \(64, 32\)")])
def test_another_architecture_is_refused_with_the_first_differing_keys(finetune, tmp_path, change, words):
    state = small_mae().state_dict()
    change(state)
    with pytest.raises(ValueError, match=f"weights of another architecture .*{words}"):
        finetune(tmp_path / "run", "--finetune", as_published(state, tmp_path / "mae.pth"))


def test_another_number_of_heads_is_refused_where_a_config_tells_it(finetune, tmp_path):
    folder = as_folder(small_mae().state_dict(), tmp_path / "hf")
    (folder / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(ValueError, match="4 heads, not 2.*--num_heads 4"):
        finetune(tmp_path / "run", "--finetune", folder)


def string_sorted(classes):
    """Official ids in the order of a tree of folders."""
    return sorted(range(classes), key=str)


def test_rows_in_the_order_of_strings_are_put_into_that_of_ids():
    rows = torch.tensor(string_sorted(8142), dtype=torch.float32)
    assert rows[:4].tolist() == [0, 1, 10, 100]
    head = by_official_ids({"head.weight": rows[:, None].expand(-1, 5), "head.bias": rows, "norm.bias": torch.ones(3)})
    assert torch.equal(head["head.bias"], torch.arange(8142.0)) and torch.equal(head["head.weight"][:, 3], torch.arange(8142.0))


@pytest.fixture(scope="module")
def numbered_classes(picture_folder, tmp_path_factory):
    """The small folder with twelve classes 0 to 11, of which string order is not numeric order."""
    root = tmp_path_factory.mktemp("numbered")
    for split in ("train", "test"):
        for label in range(12):
            (root / split / str(label)).mkdir(parents=True)
            for i in range(2):
                source = picture_folder / split / ("cat", "dog", "elk")[label % 3] / f"{label // 3 + i:02}.png"
                (root / split / str(label) / f"{i}.png").symlink_to(source)
    return root


def evaluate(*flags):
    argv = ["--eval", "--device", "cpu", "--amp", "off", "--num_workers", "0", *map(str, flags)]
    return main_finetune.main(main_finetune.get_args_parser().parse_args(argv))


@pytest.mark.parametrize("loss", ["ce", "bal_bce"])
def test_a_published_classifier_is_scored_by_flags_alone(numbered_classes, tmp_path, capsys, loss):
    model, out = small(12), tmp_path / "out"
    order, state = torch.tensor(string_sorted(12)), model.state_dict()
    state |= {key: state[key][order] for key in ("head.weight", "head.bias")}
    path = as_published(state, tmp_path / "livt.pth")
    result = evaluate("--resume", path, *SMALL, "--data_path", numbered_classes, "--loss", loss, "--head_order",
                      "string_sorted", "--output_dir", out)
    said = capsys.readouterr().out
    assert said.count("assumed:") == 1 and "pooling over the patches" in said and "labels sorted as strings" in said
    assert result["activation"] == {"ce": "softmax", "bal_bce": "sigmoid"}[loss] and f"trained with --loss {loss}" in said
    assert json.loads((out / "metrics.json").read_text())["epoch"] == 799
    # The same images through the model as it was before its head was sorted.
    found = np.load(out / "predictions.npz")
    images = build_dataset("folder", "test", str(numbered_classes), (.3,) * 3, (.2,) * 3)
    batch, _ = next(iter(eval_loader(images, (16, 16), 64, num_workers=0)))
    with torch.no_grad():
        logits = model(Normalize(images.record, torch.device("cpu"))(batch))
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="give --dataset, --model, --input_size, --loss .which decides how"):
        evaluate("--resume", path)


def test_a_head_of_other_classes_and_no_head_are_refused(numbered_classes, tmp_path):
    flags = [*SMALL, "--data_path", numbered_classes, "--loss", "ce"]
    with pytest.raises(ValueError, match="has a head of 3 classes, but .* has 12"):
        evaluate("--resume", as_bare(small(3).state_dict(), tmp_path / "three.pth"), *flags)
    with pytest.raises(ValueError, match="has no head: give it to --finetune"):
        evaluate("--resume", as_bare(small_mae().state_dict(), tmp_path / "mae.pth"), *flags)


def test_head_order_loads_the_head_for_finetuning_and_is_refused_for_own_checkpoints(finetune, encoder, tmp_path):
    state = small().state_dict()
    path = as_published(state, tmp_path / "livt.pth")
    flags = ["--finetune", path, "--lr", 0, "--min_lr", 0, "--epochs", 1, "--warmup_epochs", 0, "--head_order", "official"]
    finetune(tmp_path / "run", *flags)
    assert torch.equal(load_checkpoint(tmp_path / "run" / "last.pth")["model"]["head.weight"], state["head.weight"])
    with pytest.raises(ValueError, match="is a checkpoint of this project and names its classes, so --head_order"):
        finetune(tmp_path / "other", "--finetune", encoder, "--head_order", "string_sorted")
    with pytest.raises(ValueError, match="so --head_bias prior would do nothing"):
        finetune(tmp_path / "other", *flags, "--head_bias", "prior")
    with pytest.raises(ValueError, match="is of a head that is loaded: use it with --finetune"):
        finetune(tmp_path / "other", "--head_order", "official")


def test_only_own_checkpoints_are_continued(finetune, tmp_path):
    with pytest.raises(ValueError, match="is no checkpoint of this project"):
        finetune(tmp_path / "run", "--resume", as_bare(small().state_dict(), tmp_path / "timm.pth"))


def test_a_classifier_is_scored_at_another_size_with_its_positions_resampled(tmp_path):
    model = write_classifier(tmp_path / "last.pth")
    larger = build_vit("vit_tiny_patch16", 3, (32, 24), patch_size=4, embed_dim=16, depth=2, num_heads=2)
    report = load_resampled(larger, model.state_dict(), (4, 6))
    assert report["resampled"] == ((4, 6), (8, 6)) and torch.equal(larger.head.weight, model.head.weight)
    grid = model.pos_embed[:, 1:].reshape(1, 4, 6, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(8, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(larger.pos_embed[0, 1:], expected[0].flatten(1).T)


TRANSFORMERS = "Hugging Face's models are compared with ours, and transformers is not installed"


@pytest.mark.parametrize(("name", "grid"), [("tiny", 4), ("base", 3)])
def test_hugging_faces_autoencoder_gives_our_loss_and_comes_back(tmp_path, name, grid):
    transformers = pytest.importorskip("transformers", reason=TRANSFORMERS)
    size = 16 * grid
    shape = {"tiny": (192, 12, 3), "base": (768, 12, 12)}[name]
    flags = ["--model", f"mae_vit_{name}_patch16", "--patch_size", 16, "--input_size", size, "--norm_pix_loss",
             "--embed_dim", shape[0], "--depth", shape[1], "--num_heads", shape[2]]
    ours = write_mae(tmp_path / "last.pth", *flags)
    export.main(export.get_args_parser().parse_args([str(tmp_path / "last.pth"), "--format", "hf", "--out",
                                                     str(tmp_path / "hf")]))
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    images, noise = torch.randn(2, 3, size, size), torch.rand(2, grid**2)
    with torch.no_grad():
        loss, pred, mask = ours(images, 0.75, noise)
        found = theirs(images, noise=noise)
    assert torch.equal(found.mask, mask) and abs(float(found.loss - loss)) < 1e-5
    assert (found.logits - pred).abs().max() < 1e-5 * max(1, pred.abs().max())
    theirs.save_pretrained(tmp_path / "back")
    for weights in (open_weights(tmp_path / "hf"), open_weights(tmp_path / "back")):
        assert weights.form == "Hugging Face's form" and weights.heads == shape[2] and weights.grid == (grid, grid)
        load_classifier(ours, weights.tensors)
        with torch.no_grad():
            again = ours(images, 0.75, noise)[0]
        assert abs(float(again - loss)) < 1e-5


def test_hugging_faces_classifier_opens(tmp_path):
    transformers = pytest.importorskip("transformers", reason=TRANSFORMERS)
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                                    image_size=16, patch_size=4, num_labels=3, layer_norm_eps=1e-6, initializer_range=0.2)
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    ours = small(3, pool="token")
    for tensors in (open_weights(tmp_path / "hf").tensors, from_hf(theirs.state_dict())):  # names of files, and of modules
        load_classifier(ours, tensors)
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            assert (ours(images) - theirs(images).logits).abs().max() < 1e-5
