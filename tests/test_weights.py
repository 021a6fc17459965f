"""Weights that others trained: every form opens, ours or theirs, and gives the same numbers; what would run code does not."""
import argparse
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from models_vit import build_vit, load_classifier, load_resampled
from tests.checkpoints import write_classifier, write_mae
from tests.foreign import WRITERS, as_bare, as_published, as_safetensors, small, small_mae, string_sorted
from util import export
from util.weights import by_official_ids, open_weights
from util.weights_hf import from_hf, to_hf


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


def test_rows_in_the_order_of_strings_are_put_into_that_of_ids():
    rows = torch.tensor(string_sorted(8142), dtype=torch.float32)
    assert rows[:4].tolist() == [0, 1, 10, 100]
    head = by_official_ids({"head.weight": rows[:, None].expand(-1, 5), "head.bias": rows, "norm.bias": torch.ones(3)})
    assert torch.equal(head["head.bias"], torch.arange(8142.0)) and torch.equal(head["head.weight"][:, 3], torch.arange(8142.0))


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
