"""util/temperature.py against scipy, exact cases, and the command: only held-out images fit a temperature."""
import json
import sys

import numpy as np
import pytest
import torch

from util import arrays, temperature
from util.args import run_command
from util.calibration import probability_metrics
from util.metrics import evaluate_logits
from util.run import RunFolder
from util.temperature import fit_temperature, slope


def random_case(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 300)
    logits = rng.normal(size=(300, 6)) - seed % 3
    logits[np.arange(300), labels] += 1.2
    return logits * scale, labels


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed, scale", [(0, 1), (1, 0.02), (2, 40), (3, 5), (4, 0.3)])
def test_minimum_equals_scipy(seed, scale, activation):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    logits, labels = random_case(seed, scale)
    found = fit_temperature(logits, labels, activation)

    def loss(log_t):
        return probability_metrics(logits, labels, activation, np.exp(log_t))["nll"]

    theirs = optimize.minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-10})
    # A minimum is flat: its place is known to the root of the rounding of the loss, its slope to all digits.
    assert found.temperature == pytest.approx(np.exp(theirs.x), rel=2e-6)
    assert loss(np.log(found.temperature)) <= theirs.fun * (1 + 1e-14)
    first, second = slope(logits, labels, activation, 1 / found.temperature)
    assert abs(first / second * found.temperature) < 1e-12 and found.steps < 20


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_slopes_are_the_derivatives_of_the_loss(monkeypatch, activation):
    logits, labels = random_case(5)
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z, y = torch.from_numpy(logits) * beta, torch.from_numpy(labels)
    loss = torch.nn.functional.cross_entropy(z, y)
    if activation == "sigmoid":
        one_hot = torch.nn.functional.one_hot(y, 6).double()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, one_hot, reduction="sum") / len(y)
    first, = torch.autograd.grad(loss, beta, create_graph=True)
    second, = torch.autograd.grad(first, beta)
    for block in (50, 2**20):
        monkeypatch.setattr(arrays, "BLOCK_VALUES", block)
        assert slope(logits, labels, activation, 0.7) == pytest.approx((first.item(), second.item()), rel=1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_temperature_that_is_known_is_found(activation):
    """Labels in the shares that the scores say, exactly; the logits are 3.7 times those."""
    shares = np.array([[6, 2, 2], [2, 5, 3], [1, 1, 8]]) / 10
    labels = np.concatenate([np.repeat(range(3), (10 * row).round().astype(int)) for row in shares])
    z = np.log(shares) if activation == "softmax" else np.log(shares / (1 - shares))
    assert fit_temperature(3.7 * z.repeat(10, axis=0), labels, activation).temperature == pytest.approx(3.7, rel=1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_no_minimum_is_an_error_of_one_line(activation):
    logits, labels = random_case(6)
    right = np.where(np.eye(6)[labels] > 0, 3.0, -2.0)
    for z, message in ((right, "as the temperature goes to 0"), (-right, "tell nothing of the labels"),
                       (np.zeros((300, 6)), "goes to 0")):
        with pytest.raises(ValueError, match=message) as error:
            fit_temperature(z, labels, activation)
        assert "\n" not in str(error.value)
    for arguments, message in (((logits, labels, "relu"), "unknown activation"), ((logits, labels[1:]), "299 labels")):
        with pytest.raises(ValueError, match=message):
            fit_temperature(*arguments)


def write_run(folder, split, seed, checkpoint=None, **more):
    """A run folder as main_finetune.py writes it: --eval of a checkpoint, or a training with its own last.pth."""
    logits, labels = random_case(seed, scale=4)
    run = RunFolder(folder)
    run.create({}, {"checkpoint": str(checkpoint)} if checkpoint else {})
    if not checkpoint:
        run.last.touch()
    run.write_predictions(torch.from_numpy(logits), torch.from_numpy(labels), np.arange(300))
    result = evaluate_logits(logits.astype(np.float32), labels, [9] * 6, "softmax")
    run.write_json("metrics.json", {**result, "split": split, "data_source": f"pictures/{split}", "class_names": list("abcdef"),
                                    "class_counts": [9] * 6, **more})
    return folder


@pytest.fixture
def runs(tmp_path):
    test = write_run(tmp_path / "bft", "test", 0)
    return write_run(tmp_path / "bft_val", "val", 3, test / "last.pth"), test


def command(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["temperature.py", *map(str, argv)])
    run_command(temperature.get_args_parser(), temperature.main)


def test_command(runs, monkeypatch, capsys):
    fit, test = runs
    before = json.loads((test / "metrics.json").read_text())
    command(monkeypatch, "--fit", fit, "--apply", test)
    after = json.loads((test / "metrics.json").read_text())
    kept, predictions = after.pop("temperature"), np.load(test / "predictions.npz")
    assert after == before  # what was measured without a temperature stays
    assert kept["fitted_on"] == {"run": str(fit), "split": "val", "data_source": "pictures/val", "num_samples": 300,
                                 "class_distance": kept["fitted_on"]["class_distance"]}
    assert 0 < kept["fitted_on"]["class_distance"] < 0.1  # by chance
    held_out = np.load(fit / "predictions.npz")
    assert kept["temperature"] == fit_temperature(held_out["logits"], held_out["labels"]).temperature
    assert kept["before"] == {key: before[key] for key in kept["before"]}
    scaled = predictions["logits"].astype(float) / kept["temperature"]
    assert kept["after"] == probability_metrics(scaled, predictions["labels"])
    assert kept["after"]["ece"] < kept["before"]["ece"] / 2 and kept["after"]["nll"] < kept["before"]["nll"]
    printed = capsys.readouterr().out
    assert "warning" not in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("T =")]
    for row, title, name in zip(rows, ("1", f"{kept['temperature']:.4f}"), ("before", "after"), strict=True):
        numbers = kept[name]
        assert row[:3] == ["T", "=", title]
        assert row[3:] == [f"{numbers[key]:.{3 if key in ('nll', 'brier') else 1}f}" for key in temperature.COLUMNS]


def test_a_slice_of_other_classes_is_told_in_one_line(runs, monkeypatch, capsys):
    fit, test = runs
    stored = np.load(fit / "predictions.npz")
    keep = (stored["labels"] < 2) | (np.arange(300) % 20 == 0)  # a long tail: few images of the other four classes
    logits, labels = stored["logits"][keep], stored["labels"][keep]
    shares, there = (np.bincount(k, minlength=6) / len(k) for k in (labels, np.load(test / "predictions.npz")["labels"]))
    np.savez(fit / "predictions.npz", logits=logits, labels=labels, ids=stored["ids"][keep])
    command(monkeypatch, "--fit", fit, "--apply", test)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"has {100 * shares.max():.1f} % of the images of --fit and {100 * there.max():.1f} % of those of --apply" in line
    assert f"distributions {sum(abs(shares - there)) / 2:.2f})" in line


def test_a_temperature_that_makes_it_worse_is_told(runs, monkeypatch, capsys):
    fit, test = runs
    stored = np.load(fit / "predictions.npz")
    np.savez(fit / "predictions.npz", logits=stored["logits"] / 20, labels=stored["labels"], ids=stored["ids"])
    command(monkeypatch, "--fit", fit, "--apply", test)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "the log-loss on" in line and "is larger than without" in line and "do not use it there" in line


@pytest.mark.parametrize("change, message", [
    ({"split": "test"}, "are of the same split (test)"),
    ({"data_source": "pictures/test"}, "same list of images (pictures/test)"),
    ({"split": None}, "names no split"), ({"activation": "sigmoid"}, "differ in activation"),
    ({"class_names": list("abcdeg")}, "differ in class_names"), ({"class_counts": [8] * 6}, "differ in class_counts"),
    ({"corrected": "posthoc bayes"}, "differ in corrected")])
def test_what_is_not_held_out_or_of_another_model_is_refused(runs, monkeypatch, capsys, change, message):
    fit, test = runs
    path, before = fit / "metrics.json", (test / "metrics.json").read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "--fit", fit, "--apply", test)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert (test / "metrics.json").read_text() == before


def test_the_same_run_predictions_or_another_checkpoint_are_refused(runs, tmp_path, monkeypatch, capsys):
    fit, test = runs
    copied = write_run(tmp_path / "copied", "val", 0, test / "last.pth")
    (tmp_path / "other.pth").touch()
    other = write_run(tmp_path / "other", "val", 3, tmp_path / "other.pth")
    for run, message in ((test, "same split"), (copied, "hold the same predictions"), (other, "same checkpoint")):
        with pytest.raises(SystemExit):
            command(monkeypatch, "--fit", run, "--apply", test)
        assert message in capsys.readouterr().err
    moved = write_run(tmp_path / "moved", "val", 3, tmp_path / "gone.pth")  # a checkpoint that is gone proves nothing
    command(monkeypatch, "--fit", moved, "--apply", test)
    assert capsys.readouterr().out
