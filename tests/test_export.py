"""Exports: what other programs open gives the numbers of the model, names and preparation of images included."""
import importlib.util
import json
import os

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import main_finetune
from models_vit import build_vit, load_classifier
from tests.checkpoints import COUNTS, NAMES, write_again, write_classifier, write_mae
from util import export
from util.trained import encode, load_classifier_model, load_encoder_model
from util.weights import open_weights


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def run(path, form, out):
    export.main(export.get_args_parser().parse_args([str(path), "--format", form, "--out", str(out)]))
    return out


@pytest.fixture
def classifier(tmp_path):
    """(checkpoint, model): positions that are not square, three classes."""
    return tmp_path / "last.pth", write_classifier(tmp_path / "last.pth")


def from_folder(folder, **options):
    """What timm makes of an export by itself."""
    pytest.importorskip("timm", "1.0.16", reason="this timm does not know local-dir: yet")
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


def logits(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("flags", [[], ["--cls_token", "--loss", "ce"], ["--mean", ".5", "--std", ".2"],
                                   ["--layer_scale", ".1"]], ids=["average", "token", "gray", "layer scale"])
def test_own_to_timm_and_back(tmp_path, flags):
    path = tmp_path / "last.pth"
    ours = write_classifier(path, *flags)
    folder = run(path, "timm", tmp_path / "timm")
    theirs = from_folder(folder)
    images = torch.randn(2, 1 if "--mean" in flags else 3, 16, 24)
    assert (logits(theirs, images) - logits(ours, images)).abs().max() < 1e-5
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    pool, scale = ("token" if "--cls_token" in flags else "avg"), (.1 if "--layer_scale" in flags else None)
    back = build_vit("vit_tiny_patch16", 3, (16, 24), images.shape[1], patch_size=4, embed_dim=16, depth=2, num_heads=2,
                     global_pool=pool, layer_scale=scale).eval()
    load_classifier(back, open_weights(tmp_path / "timm.pth").tensors)
    assert torch.equal(logits(back, images), logits(ours, images))
    assert torch.equal(logits(load_classifier_model(folder).model, images), logits(load_classifier_model(path).model, images))


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_named_sizes_are_timms_own(tmp_path, name):
    path = tmp_path / "last.pth"
    shape = {"tiny": (192, 12, 3), "base": (768, 4, 12)}[name]
    flags = ["--embed_dim", shape[0], "--depth", shape[1], "--num_heads", shape[2]]
    ours = write_classifier(path, "--model", f"vit_{name}_patch16", "--patch_size", 16, "--input_size", 32, *flags)
    folder = run(path, "timm", tmp_path / "timm")
    assert json.loads((folder / "config.json").read_text())["architecture"] == f"vit_{name}_patch16_224"
    theirs = from_folder(folder)
    images = torch.randn(1, 3, 32, 32)
    assert (logits(theirs, images) - logits(ours, images)).abs().max() < 1e-5


def test_timms_folder_knows_names_and_preparation(classifier, tmp_path):
    theirs = from_folder(run(classifier[0], "timm", tmp_path / "timm"))
    cfg = theirs.pretrained_cfg
    assert cfg["label_names"] == NAMES and theirs.num_classes == 3
    resolved = timm.data.resolve_model_data_config(theirs)
    assert [*resolved["mean"], *resolved["std"]] == [.4, .5, .3, .2, .3, .25] and list(resolved["input_size"]) == [3, 16, 24]
    assert resolved["crop_pct"] == .875 and resolved["interpolation"] == "bicubic"


def test_an_encoder_of_stage_1_is_timms_without_a_head(tmp_path):
    path = tmp_path / "last.pth"
    write_mae(path)
    theirs = from_folder(run(path, "timm", tmp_path / "timm"))
    images = torch.randn(2, 3, 16, 24)
    expected = encode(load_encoder_model(path).model, images, "mean")
    assert (logits(theirs, images) - expected).abs().max() < 1e-5
    assert from_folder(tmp_path / "timm", num_classes=7).head.out_features == 7


def test_an_export_is_opened_like_the_checkpoint(finetune, picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("util.figures.training_curves", lambda *_: None)
    result = finetune(tmp_path / "run", "--loss", "ldam")
    folder = run(tmp_path / "run" / "last.pth", "safetensors", tmp_path / "out")
    flags = ["--eval", "--resume", str(folder), "--data_path", str(picture_folder), "--device", "cpu", "--amp", "off"]
    assert main_finetune.main(main_finetune.get_args_parser().parse_args(flags)) == result
    assert set(load_file(folder / "model.safetensors")) == set(open_weights(tmp_path / "run" / "last.pth").tensors)
    text = (folder / "config.json").read_text() + (folder / "README.md").read_text()
    assert str(tmp_path) not in text and str(picture_folder) not in text


def test_the_moving_average_is_what_leaves(tmp_path):
    path = tmp_path / "last.pth"
    model = write_classifier(path)
    state = torch.load(path, weights_only=True)
    state["ema"] = {key: value + 1 for key, value in model.state_dict().items()}
    write_again(path, state)
    weights = load_file(run(path, "timm", tmp_path / "timm") / "model.safetensors")
    assert torch.equal(weights["head.bias"], model.head.bias + 1)


def test_the_model_card_tells_results_settings_and_data(classifier, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"epoch": 6, "overall": 61.25, "few": None, "num_samples": 21,
                                                       "split": "test"}))
    card = (run(classifier[0], "timm", tmp_path / "a") / "README.md").read_text()
    for words in ("| top-1 % | 61.25 |", "21 images, split test", "| `--loss` | bal_bce |", "from 24 of the largest down to 5",
                  "sigmoid of them are probabilities", "# license: choose one", "library_name: timm"):
        assert words in card, words
    assert "few-shot %" not in card
    (tmp_path / "metrics.json").write_text(json.dumps({"epoch": 5, "overall": 61.25}))
    assert "None: there was no metrics.json of this epoch" in (run(classifier[0], "timm", tmp_path / "b") /
                                                               "README.md").read_text()


@pytest.mark.parametrize("loss", ["bal_bce", "ldam"])
def test_torch_export_takes_any_batch_and_knows_cosine_heads(tmp_path, loss):
    path = tmp_path / "last.pth"
    ours = write_classifier(path, "--loss", loss)
    program = torch.export.load(run(path, "torch_export", tmp_path / "out") / "model.pt2").module()
    scale = load_classifier_model(path).criterion.logit_scale
    assert (scale != 1) == (loss == "ldam")
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 24)
        assert (logits(program, images) - logits(ours, images) * scale).abs().max() < 1e-5


@pytest.mark.parametrize("loss", ["bal_bce", "ldam"])
def test_onnx_gives_the_same_logits_for_any_batch(tmp_path, loss):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"ONNX files are written and read by packages of which {name} is not installed")
    import onnxruntime
    path = tmp_path / "last.pth"
    ours = write_classifier(path, "--loss", loss)
    file = run(path, "onnx", tmp_path / "out") / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    scale = load_classifier_model(path).criterion.logit_scale
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 24)
        found = session.run(["logits"], {"images": images.numpy()})[0]
        assert np.abs(found - (logits(ours, images) * scale).numpy()).max() < 1e-4


def test_without_the_exporters_packages_the_command_to_install_is_said(classifier, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest))
    with pytest.raises(ValueError, match="--format onnx needs onnx and onnxscript: pip install onnx onnxscript onnxruntime"):
        run(classifier[0], "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hugging_faces_names_are_there_and_come_back(tmp_path):
    path = tmp_path / "last.pth"
    ours = write_mae(path, "--input_size", 16, "--norm_pix_loss")
    folder = run(path, "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ViTMAEForPreTraining"] and config["norm_pix_loss"] is True
    assert config["num_attention_heads"] == 2 and config["decoder_hidden_size"] == 8 and config["layer_norm_eps"] == 1e-6
    names = load_file(folder / "model.safetensors")
    width = ours.pos_embed.shape[-1]
    key = names["vit.encoder.layer.1.attention.attention.key.weight"]
    assert torch.equal(key, ours.blocks[1].attn.qkv.weight[width:2 * width])
    back = open_weights(folder)
    assert all(torch.equal(back.tensors[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(("form", "flags", "words"), [
    ("timm", ["--loss", "ldam"], "has the cosine head of --loss ldam.* no such head: use --format onnx or torch_export"),
    ("hf", [], "is a classifier, and --format hf writes the autoencoder")])
def test_what_a_format_cannot_hold_is_refused(tmp_path, form, flags, words):
    write_classifier(tmp_path / "last.pth", *flags)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "last.pth", form, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth"]


def test_places_that_are_taken_and_weights_that_say_too_little_are_refused(classifier, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full is there and not empty"):
        run(classifier[0], "timm", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert run(classifier[0], "safetensors", tmp_path / "empty").is_dir()
    torch.save(classifier[1].state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="timm's form and does not say its classes and images"):
        run(tmp_path / "bare.pth", "timm", tmp_path / "out")
    write_mae(tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="takes images of 16 x 24, and Hugging Face's ViTMAE takes squares"):
        run(tmp_path / "mae.pth", "hf", tmp_path / "out")


def test_counts_and_names_come_back(classifier, tmp_path):
    trained = load_classifier_model(run(classifier[0], "timm", tmp_path / "timm"))
    assert trained.class_names == NAMES and trained.class_counts == COUNTS and trained.epochs == 7
    assert trained.size == (16, 24) and trained.record.mean == (.4, .5, .3)


@pytest.mark.parametrize("form", ["timm", "torch_export"])
def test_an_export_that_differs_from_the_model_gets_no_name(classifier, tmp_path, monkeypatch, form):
    monkeypatch.setattr(export, "difference", lambda *_: 0.5)
    with pytest.raises(AssertionError, match="the export differs from the model by 0.5, more than 1e-05: nothing is written"):
        run(classifier[0], form, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_the_working_folder_is_written_where_it_is_empty(classifier, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(classifier[0], "safetensors", ".")
    assert sorted(os.listdir(".")) == ["README.md", "config.json", "model.safetensors"]
    assert load_classifier_model(tmp_path / "here").class_names == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "last.pth"]


def test_the_card_counts_one_of_a_thing(tmp_path):
    write_classifier(tmp_path / "last.pth", "--mean", ".5", "--std", ".2")
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    state["progress"]["epoch"] = 1
    write_again(tmp_path / "last.pth", state)
    card = (run(tmp_path / "last.pth", "safetensors", tmp_path / "out") / "README.md").read_text()
    assert ", 1 epoch.\n" in card and "Images: 1 channel in [0, 1]" in card


@pytest.mark.parametrize(("form", "relative"), [("timm", True), ("safetensors", False)])
def test_what_a_difference_is_measured_by_is_said(classifier, tmp_path, capsys, form, relative):
    run(classifier[0], form, tmp_path / "out")
    assert ("(of the largest output, where that is above 1)" in capsys.readouterr().out) == relative
