"""Others' weights in stage 2: what --finetune loads of them and --eval scores with them, told in three lines."""
import contextlib
import json
import re
from signal import SIGTERM

import numpy as np
import pytest
import torch

import main_finetune
from datasets import build_dataset
from datasets.loading import eval_loader
from datasets.transforms import Normalize
from tests.foreign import as_bare, as_folder, as_published, as_safetensors, small, small_mae, string_sorted
from util.checkpoint import load_checkpoint
from util.session import Session
from util.signals import Stopped

SMALL = ["--model", "vit_tiny_patch16", "--input_size", "16", "--patch_size", "4", "--embed_dim", "32", "--depth", "2",
         "--num_heads", "2", "--dataset", "folder", "--mean", ".3", ".3", ".3", "--std", ".2", ".2", ".2"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def finetune(finetune, monkeypatch):
    """Stage 2 without the figures, which take most of its time here."""
    monkeypatch.setattr(main_finetune, "write_results", lambda *_: None)
    monkeypatch.setattr("util.figures.training_curves", lambda *_: None)
    return finetune


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


def test_finetuning_from_a_classifier_of_the_same_classes_keeps_its_head(finetune, tmp_path, capsys):
    finetune(tmp_path / "a", "--epochs", 1, "--warmup_epochs", 0)
    finetune(tmp_path / "b", "--finetune", tmp_path / "a" / "last.pth", "--lr", 0, "--min_lr", 0, "--epochs", 1,
             "--warmup_epochs", 0)
    assert "left out: nothing; new, with their start values: nothing" in capsys.readouterr().out
    a, b = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


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


@pytest.mark.parametrize(("epochs", "kept"), [(1, [1, 3]), (3, [3, 3])])
def test_an_encoder_in_training_is_told_of_and_recorded(pretrain, finetune, tmp_path, capsys, monkeypatch, epochs, kept):
    def stop(session):
        if session.epoch == epochs < 3:
            raise Stopped("told to stop", SIGTERM)

    with monkeypatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(Session, "listen", stop)
        pretrain(tmp_path / "mgp", "--model", "mae_vit_tiny_patch16", "--epochs", 3)
    capsys.readouterr()

    def save_and_stop(session):
        session.save()
        raise Stopped("told to stop", SIGTERM)

    start = tmp_path / "mgp" / "last.pth"
    with monkeypatch.context() as patch, contextlib.suppress(Stopped):  # within its first epoch
        patch.setattr(Session, "listen", save_and_stop)
        finetune(tmp_path / "bft", "--finetune", start)
    warning = f"warning: {start} is of an encoder with 1 of 3 epochs behind it: its run has not ended"
    assert (warning in capsys.readouterr().out.splitlines()) == (epochs < 3)
    assert json.loads((tmp_path / "bft" / "args.json").read_text())["finetune_epochs"] == kept
    finetune(tmp_path / "bft", "--finetune", start)
    record = json.loads((tmp_path / "bft" / "args.json").read_text())
    assert record["finetune_epochs"] == kept and [one["after_epochs"] for one in record["continued"]] == [0]
