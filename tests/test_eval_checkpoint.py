"""--eval takes what it needs out of the checkpoint, scores every image once, and --val_fraction holds images out."""
import json

import numpy as np
import pytest

import main_finetune
from datasets.longtail import hold_out
from tests.checkpoints import write_again
from util.checkpoint import load_checkpoint
from util.metrics import groups


@pytest.fixture(scope="module")
def trained(finetune, tmp_path_factory):
    """A finished stage 2 with settings that differ from every default."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--cls_token", "--crop_pct", .9, "--seed", 3, "--eval_every", 2, "--head_bias", "prior",
             "--device", "cpu"]
    return folder, finetune(folder, *flags)


def evaluate(*flags):
    return main_finetune.main(main_finetune.get_args_parser().parse_args(["--eval", "--device", "cpu", *map(str, flags)]))


def test_the_printed_number_comes_back_from_the_file_alone(trained, tmp_path):
    folder, result = trained
    # fp32 and batches as in training: of other sizes products may round otherwise.
    again = evaluate("--resume", folder / "last.pth", "--output_dir", tmp_path / "eval", "--batch_size", 8)
    assert again == result
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (folder, tmp_path / "eval"))
    assert one["epoch_chosen_by"] == "nothing, the last one" and one["split"] == other["split"] == "test"
    assert {key for key in one if one[key] != other[key]} == {"epoch_chosen_by"} and other.keys() - one.keys() == {"corrected"}
    one, other = (np.load(run / "predictions.npz") for run in (folder, tmp_path / "eval"))
    assert np.array_equal(one["logits"], other["logits"])


def test_every_image_once_whatever_the_batch(trained, tmp_path):
    results = [evaluate("--resume", trained[0] / "last.pth", "--amp", "off", "--batch_size", n, "--num_workers", 0)
               for n in (1, 7, 256)]
    exact = ("num_samples", "overall", "top5", "many", "medium", "few", "per_class_accuracy", "confusion_matrix")
    for result in results[1:]:
        assert [result[key] for key in exact] == [results[0][key] for key in exact]
        for key, value in results[0].items():
            if key.startswith(("ece", "mce", "nll", "brier", "classwise")):
                assert result[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    assert results[0]["num_samples"] == 21


def test_a_batch_of_none_is_refused(trained):
    with pytest.raises(ValueError, match="--batch_size must be at least 1, not 0"):
        evaluate("--resume", trained[0] / "last.pth", "--batch_size", 0)


def test_a_checkpoint_of_an_earlier_version_is_named(trained, tmp_path):
    state = load_checkpoint(trained[0] / "last.pth")
    del state["progress"]["group_counts"]
    write_again(tmp_path / "last.pth", state)
    with pytest.raises(ValueError, match="is of an earlier version"):
        evaluate("--resume", tmp_path / "last.pth")


def test_flags_override_the_checkpoint(trained, capsys):
    evaluate("--resume", trained[0] / "last.pth", "--crop_pct", 1, "--split", "val")
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "nothing is written: --output_dir DIR keeps metrics, predictions and figures"
    assert "--crop_pct 1.0 (0.9 there)" in out and "--input_size" not in out and "last.pth, val" in out


def test_another_size_of_image_and_of_patch_is_resampled_and_told(trained, capsys):
    evaluate("--resume", trained[0] / "last.pth", "--input_size", 32, "--patch_size", 8)
    assert "patch embedding resampled 4 x 4 -> 8 x 8 pixels; positions not resampled: the" in capsys.readouterr().out
    evaluate("--resume", trained[0] / "last.pth", "--input_size", 32)
    assert "\npositions resampled (4, 4) -> (8, 8)\n" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [
    ["--model", "vit_small_patch16"], ["--num_heads", 4], ["--model", "vit_tiny_patch16", "--depth", 3],
    ["--model", "vit_small_patch16", "--embed_dim", 64, "--depth", 2, "--num_heads", 2]])
def test_another_network_than_the_checkpoints_is_refused(trained, flags):
    with pytest.raises(ValueError, match=rf"patch 4, width 32, depth 2, 2 heads, class token, not of .*: leave {flags[0]}"):
        evaluate("--resume", trained[0] / "last.pth", *flags)


def test_a_network_that_is_not_pooled_alike_is_refused(trained, tmp_path):
    state = load_checkpoint(trained[0] / "last.pth")
    state["args"]["cls_token"] = False
    write_again(tmp_path / "last.pth", state)
    with pytest.raises(ValueError, match="2 heads, not of .* 2 heads, class token: leave --cls_token out"):
        evaluate("--resume", tmp_path / "last.pth", "--cls_token")


@pytest.mark.parametrize("flags", [
    ["--model", "vit_tiny_patch16"], ["--depth", 2], [], ["--model", "vit_small_patch16", "--patch_size", 4, "--embed_dim", 32,
                                                           "--depth", 2, "--num_heads", 2]])
def test_the_record_of_an_evaluation_is_what_was_scored(trained, tmp_path, flags):
    evaluate("--resume", trained[0] / "last.pth", "--output_dir", tmp_path / "eval", *flags)
    there, here = (json.loads((run / "args.json").read_text())["args"] for run in (trained[0], tmp_path / "eval"))
    names = ("model", "patch_size", "embed_dim", "depth", "num_heads", "cls_token", "seed", "input_size", "mean", "dataset")
    assert {name: here[name] for name in names} == {name: there[name] for name in names}


def test_classes_in_another_order_are_put_into_the_checkpoints(trained, picture_folder, tmp_path, capsys):
    (tmp_path / "test").symlink_to(picture_folder / "test")
    (tmp_path / "classes.txt").write_text("elk\ncat\ndog\n")
    assert evaluate("--resume", trained[0] / "last.pth", "--data_path", tmp_path, "--amp", "off",
                    "--batch_size", 8) == trained[1]
    assert "note: classes are in the order of" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("elk\ncat\ndog\nyak\n")
    with pytest.raises(ValueError, match="a head of 3 classes .cat, dog, elk, ...., but .*test has 4 .* such as yak"):
        evaluate("--resume", trained[0] / "last.pth", "--data_path", tmp_path)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.99])
def test_a_slice_has_its_share_of_every_class(fraction):
    counts = np.array([200, 31, 5, 2, 1, 0])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), counts))
    rest, held = hold_out(labels, counts, fraction)
    assert sorted([*rest, *held]) == list(range(len(labels)))
    expected = [min(max(1, int(n * fraction + 0.5)), n - 1) if n > 1 else 0 for n in counts.tolist()]
    assert np.bincount(labels[held], minlength=6).tolist() == expected
    assert set(hold_out(labels, counts, fraction / 2)[1]) <= set(held)


def test_a_run_with_a_slice_trains_on_the_rest_and_keeps_the_groups(finetune, tmp_path):
    folder = tmp_path / "run"
    result = finetune(folder, "--val_fraction", .2, "--epochs", 1, "--warmup_epochs", 0)
    assert result["num_samples"] == 5 + 2 + 1
    settings, scored = (json.loads((folder / name).read_text()) for name in ("args.json", "metrics.json"))
    # 24 images are medium-shot, the 19 that are left would be few-shot: the groups must not move
    assert settings["class_counts"] == [19, 10, 4] and settings["full_class_counts"] == scored["class_counts"] == [24, 12, 5]
    expected = {name: int(mask.sum()) for name, mask in groups(np.array([24, 12, 5])).items()}
    assert {name: result["group_classes"][name] for name in expected} == expected
    assert scored["split"] == "held-out 0.2 of train"
    state = load_checkpoint(folder / "last.pth")
    assert state["class_counts"] == [19, 10, 4] and state["progress"]["group_counts"] == [24, 12, 5]
    assert evaluate("--resume", folder / "last.pth", "--val_fraction", .2, "--amp", "off") == result
    assert evaluate("--resume", folder / "last.pth", "--amp", "off")["num_samples"] == 21
    with pytest.raises(ValueError, match="trained with --val_fraction 0.2, so a slice of 0.3 holds images that it has seen"):
        evaluate("--resume", folder / "last.pth", "--val_fraction", .3)
    with pytest.raises(ValueError, match="so --split val would do nothing"):
        evaluate("--resume", folder / "last.pth", "--val_fraction", .2, "--split", "val")
    with pytest.raises(ValueError, match="--val_fraction is 0; expected a share"):
        finetune(tmp_path / "other", "--val_fraction", 0)
