"""`python -m util.metrics` and what it reads: the numbers of a run folder once more, its table, its CSV, damaged folders."""
import csv
import json
import runpy
import sys
import zipfile

import numpy as np
import pytest
import torch

from util import compare, metrics_command, temperature
from util.args import run_command
from util.bootstrap import intervals
from util.metrics import evaluate_logits
from util.metrics_command import class_rows, differences, format_results, short_name
from util.predictions import read_predictions
from util.run import RunFolder

COUNTS = [500, 130, 20, 19]
NAMES = ["ant", "bee, wild", "cat", "dée"]


def write_run(folder, seed=0, activation="sigmoid", **more):
    """A run folder as main_finetune.py writes it: 80 images, the last class without one; class 2 is never answered."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 80)
    logits = rng.normal(size=(80, 4)) - [0, 0, 50, 1]
    logits[np.arange(80), labels] += 1
    run = RunFolder(folder)
    run.create({"seed": seed}, {})
    run.write_predictions(torch.from_numpy(logits), torch.from_numpy(labels), np.arange(80) * 2)
    result = evaluate_logits(logits.astype(np.float32), labels, COUNTS, activation)
    run.write_json("metrics.json", {**result, "split": "test", "class_names": NAMES, "class_counts": COUNTS, **more})
    return folder


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "bft")


def command(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["metrics.py", *map(str, argv)])
    run_command(metrics_command.get_args_parser(), metrics_command.main)


def test_the_module_is_the_command(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["metrics.py", str(run_folder), "--intervals"])
    monkeypatch.delitem(sys.modules, "util.metrics")
    runpy.run_module("util.metrics", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run_folder}: 80 test images, 4 classes (2 many, 1 medium, 1 few); equal to its metrics.json"
    result = json.loads((run_folder / "metrics.json").read_text())
    table = {line[:19].strip(): line[19:].strip() for line in lines[4:]}
    assert table["medium %"] == "0.0 [0.0, 0.0]" and table["few %"] == "-" and table["activation"] == "sigmoid"
    run = read_predictions(run_folder)
    low, high = intervals(run.logits, run.labels, COUNTS, "sigmoid")["overall"]
    assert table["overall %"] == f"{result['overall']:.1f} [{low:.1f}, {high:.1f}]"
    assert table["NLL nats"] == f"{result['nll_sigmoid']:.3f}" and table["ECE softmax %"] == f"{result['ece_softmax']:.1f}"


def test_everything_comes_again_from_the_predictions(run_folder):
    results = metrics_command.main(metrics_command.get_args_parser().parse_args([str(run_folder)]))
    stored = json.loads((run_folder / "metrics.json").read_text())
    assert results[run_folder] == {key: stored[key] for key in results[run_folder]} and "intervals" not in results[run_folder]


def test_csv(run_folder, monkeypatch, capsys):
    command(monkeypatch, run_folder, "--csv")
    assert f"wrote {run_folder / 'per_class.csv'}" in capsys.readouterr().out
    with open(run_folder / "per_class.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    run, result = read_predictions(run_folder), json.loads((run_folder / "metrics.json").read_text())
    answers = run.logits.argmax(axis=1)
    assert [row["name"] for row in rows] == NAMES and [row["group"] for row in rows] == ["many", "many", "medium", "few"]
    assert [int(row["training_images"]) for row in rows] == COUNTS
    assert [int(row["test_images"]) for row in rows] == np.bincount(run.labels, minlength=4).tolist()
    assert [float(row["accuracy"]) if row["accuracy"] else None for row in rows] == [
        None if value is None else round(value, 4) for value in result["per_class_accuracy"]]
    for k, row in enumerate(rows[:3]):
        own = run.labels == k
        score = 100 / (1 + np.exp(-run.logits[own].astype(float).max(axis=1)))
        assert float(row["mean_confidence"]) == round(score.mean(), 4)
        wrong = np.bincount(answers[own & (answers != k)], minlength=4)
        assert int(row["most_frequent_error"]) == wrong.argmax() and int(row["most_frequent_error_images"]) == wrong.max()
        assert row["most_frequent_error_name"] == NAMES[wrong.argmax()]
    assert rows[2]["precision"] == "" and rows[2]["accuracy"] == rows[2]["f1"] == "0.0"  # never answered
    assert rows[3]["most_frequent_error"] == rows[3]["mean_confidence"] == rows[3]["accuracy"] == ""  # no test image


def test_of_equally_frequent_errors_the_lowest_class_is_named(run_folder):
    run = read_predictions(run_folder)._replace(logits=np.eye(4)[[3, 2, 1, 3, 2, 1, 0]], labels=np.zeros(7, dtype=int))
    row = class_rows(run)[0]
    assert [row["most_frequent_error" + end] for end in ("", "_name", "_images")] == [1, "bee, wild", 2]


def test_precision_and_f1_of_a_class_equal_scikit_learn(run_folder):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    run = read_predictions(run_folder)
    values = theirs.precision_recall_fscore_support(run.labels, run.logits.argmax(axis=1), labels=range(4),
                                                    zero_division=np.nan)
    for name, expected in zip(("precision", "accuracy", "f1"), values, strict=False):
        ours = [np.nan if row[name] is None else row[name] for row in class_rows(run)]
        expected = np.where(np.isin(range(4), [2]) & (name == "f1"), 0, expected)  # nan of a precision that is none, there
        np.testing.assert_allclose(ours, 100 * expected, rtol=1e-13)


def test_a_metrics_json_of_other_predictions_is_told(run_folder, tmp_path, monkeypatch, capsys):
    other = write_run(tmp_path / "other", seed=3)
    overall = json.loads((run_folder / "metrics.json").read_text())["overall"]
    spoil(run_folder / "metrics.json", {"overall": overall + 1})
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, run_folder, other)
    printed = capsys.readouterr()
    assert f"differs from its metrics.json: overall {overall:.8g} here, {overall + 1:.8g} there\n" in printed.out
    assert stop.value.code == 2 and f"disagree in {run_folder}: " in printed.err and printed.err.count("\n") == 1
    assert printed.out.splitlines()[3].split() == ["bft", "other"]  # both columns all the same


def test_differences():
    here = {"a": 1.0, "b": [1, 2, None], "c": {"x": 1, "y": 2}, "d": "sigmoid", "e": [[0, 1], [2, 3]], "new": 3}
    assert differences(here, {**here, "a": 1 + 5e-7, "c": {"x": 1}, "old": 4}) == differences(here, {"e": here["e"]}) == []
    assert differences(here, {**here, "a": 1 + 5e-6}) == ["a 1 here, 1.000005 there"]
    assert differences(here, {**here, "b": [1, 2, 3.0]}) == ["b[2] None here, 3 there"]
    assert differences(here, {**here, "b": [1, 2]}) == ["b [1, 2, None] here, [1, 2] there"]
    assert differences(here, {"d": "softmax", "c": {"y": 3}}) == ["c.y 2 here, 3 there", "d sigmoid here, softmax there"]
    assert differences(here, {**here, "e": [[9, 9], [9, 9]]}) == ["e[0][0] 0 here, 9 there", "1 more in e"]


def test_many_runs_stand_in_blocks_under_short_names(tmp_path):
    result = evaluate_logits(np.eye(4), range(4), COUNTS)
    text = format_results({f"run{k}": result for k in range(10)})
    titles = [line.split() for line in text.splitlines() if "run" in line]
    assert titles == [[f"run{k}" for k in range(8)], ["run8", "run9"]]
    folders = [tmp_path / "seed0" / "bce", tmp_path / "seed1" / "bce"]
    assert [short_name(folder, folders) for folder in folders] == ["seed0/bce", "seed1/bce"]
    assert short_name(folders[0], folders[:1]) == "bce"


def spoil(path, how):
    if callable(how):
        how(path)
    elif path.suffix == ".json" and isinstance(how, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | how))
    elif isinstance(how, bytes):
        path.write_bytes(how)
    else:
        path.unlink()
        if how:
            np.savez(path, **how)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    """One byte within the compressed logits."""
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("logits.npy").header_offset + 90
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


EYE = {"logits": np.eye(4), "labels": np.arange(4)}


@pytest.mark.parametrize("name, how, message", [
    ("predictions.npz", None, "no predictions.npz in"), ("predictions.npz", b"PK", "cannot read logits and labels"),
    ("predictions.npz", cut, "cannot read logits and labels"), ("predictions.npz", flip, "cannot read logits and labels"),
    ("predictions.npz", {"labels": np.arange(4)}, "cannot read logits and labels"),
    ("predictions.npz", EYE | {"logits": np.zeros((4, 5))}, "4 class counts for logits of 5 classes"),
    ("predictions.npz", EYE | {"labels": np.arange(5)}, "5 labels for 4 rows of logits"),
    ("predictions.npz", EYE | {"logits": np.full((4, 4), np.nan)}, "4 of 4 rows of logits hold nan or inf"),
    ("predictions.npz", EYE | {"ids": np.arange(3)}, "ids of shape (3,) for 4 images"),
    ("metrics.json", None, "metrics.json (No such file"), ("metrics.json", b"{", "metrics.json (no JSON)"),
    ("metrics.json", {"activation": "relu"}, "unknown activation 'relu'"),
    ("metrics.json", {"class_counts": "many"}, "not of one evaluation, or damaged"),
    ("metrics.json", {"class_names": ["ant"]}, "class names that are no list of 4")])
def test_bad_runs_end_in_one_line(run_folder, monkeypatch, capsys, name, how, message):
    spoil(run_folder / name, how)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, run_folder)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.err.count("\n") == 1 and message in printed.err, printed.err
    assert str(run_folder) in printed.err and not printed.out


def test_bad_commands_end_in_one_line(run_folder, monkeypatch, capsys, tmp_path):
    for argv, message in [((tmp_path / "none",), "no run folder at"), ((), "RUN"), ((run_folder, "--cvs"), "--cvs")]:
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *argv)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and message in printed and printed.count("\n") == 1, printed
    (run_folder / ".per_class.csv.part").mkdir()  # nothing can be written there
    with pytest.raises(SystemExit):
        command(monkeypatch, run_folder, "--csv")
    assert "make its folder writable" in capsys.readouterr().err


def test_a_trained_model_through_every_command(finetune, tmp_path, capsys):
    """What main_finetune.py writes, after training and after a correction in float64, comes again and can be compared; a
    temperature is fitted on its val images."""
    test, bayes, val = (tmp_path / name for name in ("bft", "bayes", "val"))
    finetune(test, "--loss", "bce", "--epochs", 1, "--warmup_epochs", 0, "--head_bias", "prior")
    finetune(bayes, "--eval", "--resume", test / "last.pth", "--posthoc", "bayes")
    finetune(val, "--eval", "--resume", test / "last.pth", "--split", "val")
    capsys.readouterr()
    results = metrics_command.main(metrics_command.get_args_parser().parse_args([str(test), str(bayes), "--intervals"]))
    for folder, result in results.items():
        stored = json.loads((folder / "metrics.json").read_text())
        assert {key: stored[key] for key in result} == result and len(stored["intervals"]) == 6
    assert capsys.readouterr().out.count("equal to its metrics.json") == 2
    (rows,) = compare.main(compare.get_args_parser().parse_args([str(test), str(bayes)]))
    assert rows[0].difference == pytest.approx(results[bayes]["overall"] - results[test]["overall"], abs=1e-12)
    argv = ["--fit", str(val), "--apply", str(test)]
    found = temperature.main(temperature.get_args_parser().parse_args(argv))
    assert found["activation"] == "sigmoid" and found["fitted_on"]["split"] == "val"
    assert json.loads((test / "metrics.json").read_text())["temperature"] == found
    metrics_command.main(metrics_command.get_args_parser().parse_args([str(test)]))  # still the same numbers
