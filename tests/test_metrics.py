"""Metrics against cases worked out by hand and scikit-learn."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch

from datasets.longtail import longtail_counts
from tests.cases import random_case
from util import arrays, metrics

COUNTS = np.array([101, 100, 20, 19])  # one class on each side of both borders of the groups


def tied_case(seed, images=300, classes=6):
    """Logits out of three values only, so that most rows hold ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (images, classes)).astype(np.float32), rng.integers(0, classes, images)


def test_group_borders():
    masks = metrics.groups(COUNTS)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "many": [True, False, False, False],
        "medium": [False, True, True, False],
        "few": [False, False, False, True],
    }
    with pytest.raises(ValueError, match="class counts"):
        metrics.groups([3, -1])


def test_evaluate_by_hand():
    # Predicted classes 0 1 2 3 0 1 against labels 0 0 1 3 0 1: class 0 has 2 of 3, class 1 1 of 2, class 3 1 of 1.
    logits = np.log(np.full((6, 4), 0.1)) + np.eye(4)[[0, 1, 2, 3, 0, 1]] * math.log(7)
    result = metrics.evaluate_logits(logits, [0, 0, 1, 3, 0, 1], COUNTS)
    assert result["num_samples"] == 6 and result["activation"] == "softmax"
    assert result["overall"] == pytest.approx(400 / 6, abs=1e-12)
    assert result["many"] == pytest.approx(200 / 3, abs=1e-12)
    assert result["medium"] == pytest.approx(50, abs=1e-12)  # class 2 has no test image and does not count
    assert result["few"] == 100
    assert result["per_class_accuracy"] == [pytest.approx(200 / 3), 50, None, 100]
    assert result["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert result["group_classes"] == {"many": 1, "medium": 2, "few": 1, "medium_gt20": 1, "few_le20": 2}
    assert result["medium_gt20"] == 50 and result["few_le20"] == 100
    assert result["balanced_accuracy"] == pytest.approx((200 / 3 + 50 + 100) / 3, abs=1e-12)
    # Class 2 has no test image but a wrong prediction, so its F1 is 0 and counts.
    assert result["macro_f1"] == pytest.approx(100 * (4 / 5 + 1 / 2 + 0 + 1) / 4, abs=1e-12)
    assert result["nll"] == result["nll_softmax"] == pytest.approx(-(4 * math.log(0.7) + 2 * math.log(0.1)) / 6)
    assert result["brier"] == pytest.approx((4 * (0.09 + 3 * 0.01) + 2 * (0.81 + 0.49 + 2 * 0.01)) / 6)
    assert result["top5"] == 100  # there are only four classes
    # Softmax confidence is .7 throughout, sigmoid confidence .7 / 1.7; four of six are right.
    assert result["ece"] == result["ece_softmax"] == pytest.approx(100 * (0.7 - 4 / 6))
    assert result["ece_sigmoid"] == result["mce_sigmoid"] == pytest.approx(100 * (4 / 6 - 0.7 / 1.7))
    sigmoid = metrics.evaluate_logits(logits, [0, 0, 1, 3, 0, 1], COUNTS, activation="sigmoid")
    assert (sigmoid["ece"], sigmoid["mce"]) == (result["ece_sigmoid"], result["mce_sigmoid"])


def test_result_is_plain_json():
    logits, labels = random_case(0)
    result = metrics.evaluate_logits(logits, labels, [500, 400, 300, 200, 150, 120, 110])
    assert result["few"] is None and result["medium"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    wide = np.eye(101)
    assert "confusion_matrix" not in metrics.evaluate_logits(wide, np.arange(101), np.ones(101))
    assert "confusion_matrix" in metrics.evaluate_logits(wide[:100, :100], np.arange(100), np.ones(100))


def test_group_mean_is_over_classes_and_not_rounded():
    accuracy = np.array([100 / 3, 200 / 3, np.nan, 100 / 7])
    assert metrics.group_accuracy(accuracy, [True, False, True, True]) == (100 / 3 + 100 / 7) / 2
    assert metrics.group_accuracy(accuracy, [False, False, True, False]) is None
    assert metrics.group_accuracy(accuracy, [False] * 4) is None
    # 90 images of class 0, 10 of class 1, both medium: over images it would be 90 %.
    logits, labels = np.zeros((100, 2)), np.repeat([0, 1], [90, 10])
    result = metrics.evaluate_logits(logits, labels, [50, 30])
    assert result["overall"] == 90 and result["medium"] == 50


@pytest.mark.parametrize("case", [random_case, tied_case])
@pytest.mark.parametrize("seed", range(5))
def test_rank_is_the_place_in_a_stable_sort(case, seed):
    logits, labels = case(seed)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert np.array_equal(metrics.label_rank(logits, labels), np.argmax(order == labels[:, None], axis=1))
    right = logits.argmax(axis=1) == labels
    assert metrics.topk_accuracy(logits, labels, 1) == 100 * right.mean()
    assert metrics.topk_accuracy(logits, labels, 3) == 100 * np.mean((order[:, :3] == labels[:, None]).any(axis=1))
    assert metrics.topk_accuracy(logits, labels, 99) == 100


def test_ties_earn_no_credit():
    labels = np.arange(10)
    assert metrics.topk_accuracy(np.zeros((10, 10)), labels, 1) == 10
    assert metrics.topk_accuracy(np.zeros((10, 10)), labels, 5) == 50
    with pytest.raises(ValueError, match="k = 0"):
        metrics.topk_accuracy(np.zeros((10, 10)), labels, 0)


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_equal_scikit_learn(seed):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    logits, labels = random_case(seed)
    predictions = logits.argmax(axis=1)
    matrix = metrics.confusion_matrix(predictions, labels, 7)
    assert np.array_equal(matrix, theirs.confusion_matrix(labels, predictions, labels=range(7)))
    per_class = metrics.per_class_accuracy(matrix)
    balanced = metrics.group_accuracy(per_class, np.ones(7))
    assert balanced == pytest.approx(100 * theirs.balanced_accuracy_score(labels, predictions), abs=1e-10)
    result = metrics.evaluate_logits(logits, labels, [500, 200, 101, 100, 20, 19, 2])
    assert result["per_class_accuracy"] == per_class.tolist()
    assert result["overall"] == pytest.approx(100 * theirs.accuracy_score(labels, predictions), abs=1e-10)
    assert result["top5"] == pytest.approx(100 * theirs.top_k_accuracy_score(labels, logits, k=5), abs=1e-10)
    groups = {"many": per_class[:3].mean(), "medium": per_class[3:5].mean(), "few": per_class[5:].mean()}
    assert {name: result[name] for name in groups} == pytest.approx(groups, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_means_over_classes_equal_scikit_learn(seed):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    logits, labels = random_case(seed, classes=12)
    logits[:, 3 + seed] -= 30  # a class that is never answered
    kept = (labels != 3 + seed) | (seed % 2 == 0)  # and that in some cases has no image either
    kept &= labels != 0  # one that is answered and has none
    logits, labels = logits[kept], labels[kept]
    result, predictions = metrics.evaluate_logits(logits, labels, np.arange(12) * 15), logits.argmax(axis=1)
    assert (predictions == 0).any()
    f1 = theirs.f1_score(labels, predictions, average="macro", zero_division=0)
    assert result["macro_f1"] == pytest.approx(100 * f1, abs=1e-11)
    recalls = theirs.recall_score(labels, predictions, labels=np.unique(labels), average=None)
    assert result["balanced_accuracy"] == pytest.approx(100 * recalls.mean(), abs=1e-11)


def test_the_two_few_shot_conventions_differ_in_the_class_of_twenty():
    counts = np.array([101, 100, 21, 20, 19, 1])
    one, other = metrics.groups(counts), metrics.groups_le20(counts)
    assert np.array_equal(one["medium"] ^ other["medium_gt20"], counts == 20)
    assert np.array_equal(one["few"] ^ other["few_le20"], counts == 20)
    assert (one["many"].astype(int) + other["medium_gt20"] + other["few_le20"]).tolist() == [1] * 6


def test_cifar_10_lt_has_no_few_shot_class():
    counts = longtail_counts(5000, 100, 10)
    result = metrics.evaluate_logits(*random_case(2, classes=10), counts)
    assert [result["few"], result["few_le20"], result["group_classes"]["few"]] == [None, None, 0] and result["medium"] > 0
    lines = metrics.format_table({"run": result}, ("many", "few", "few_le20")).splitlines()
    assert lines[2].split() == ["run", f"{result['many']:.1f}", "-", "-"]


def test_blocks_change_nothing(monkeypatch):
    logits, labels = random_case(3)
    whole = metrics.evaluate_logits(logits, labels, np.arange(1, 8) * 30)
    monkeypatch.setattr(arrays, "BLOCK_VALUES", 50)  # seven rows a block
    assert len(arrays.row_blocks(logits)) == 58
    blocks = metrics.evaluate_logits(logits, labels, np.arange(1, 8) * 30)
    for key, value in whole.items():  # sums over the images of a class run over the blocks
        assert blocks[key] == (pytest.approx(value, rel=1e-13) if key.startswith("classwise") else value)


def test_memory_of_many_classes():
    logits = np.random.default_rng(0).normal(size=(2500, 8142)).astype(np.float32)  # 81 MB
    tracemalloc.start()
    metrics.evaluate_logits(logits, np.arange(2500), np.full(8142, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits.nbytes  # one float64 copy alone would take twice that


def test_torch_tensors_and_narrow_types():
    logits, labels = random_case(1)
    counts = np.array([300, 90, 80, 70, 60, 15, 5])
    logits = torch.from_numpy(logits).bfloat16()  # also exact as float32, so all three must agree
    wide = metrics.evaluate_logits(logits.float().numpy(), labels, counts)
    tensors = (logits.requires_grad_(), torch.from_numpy(labels), torch.from_numpy(counts))
    assert metrics.evaluate_logits(*tensors) == wide
    half = random_case(1)[0].astype(np.float16)
    assert metrics.evaluate_logits(half, labels.astype(np.uint8), counts) == metrics.evaluate_logits(
        half.astype(np.float64), labels, counts
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros(4)}, r"logits of shape \(4,\)"),
        ({"logits": np.zeros((0, 4)), "labels": np.zeros(0, dtype=int)}, r"shape \(0, 4\)"),
        ({"logits": np.zeros((4, 4), dtype=complex)}, "complex"),
        ({"labels": [0, 1, 2]}, "3 labels for 4 rows"),
        ({"labels": [0, 1, 2, 4]}, "labels from 0 to 4; expected 0 to 3"),
        ({"labels": [0, 1, 2, -1]}, "labels from -1 to 2"),
        ({"labels": [0.0, 1.0, 2.0, 3.0]}, "float64; expected"),
        ({"class_counts": [5, 5, 5]}, "3 class counts for logits of 4 classes"),
        ({"class_counts": [5, 5, 5, np.nan]}, "class counts"),
        ({"activation": "relu"}, "'relu'; expected one of softmax, sigmoid"),
    ],
)
def test_bad_input_ends_in_one_line(change, message):
    arguments = {"logits": np.eye(4), "labels": [0, 1, 2, 3], "class_counts": COUNTS, "activation": "softmax"}
    with pytest.raises(ValueError, match=message) as error:
        metrics.evaluate_logits(**arguments | change)
    assert "\n" not in str(error.value)


def test_broken_logits_are_counted_by_row():
    logits = np.zeros((5, 4), dtype=np.float32)
    logits[1, :2] = np.nan
    logits[4, 0] = -np.inf
    with pytest.raises(ValueError, match="2 of 5 rows"):
        metrics.evaluate_logits(logits, np.zeros(5, dtype=int), COUNTS)


def test_calibration_and_confusion_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="outside"):
        metrics.calibration([0.5, 1.2], [True, False])
    with pytest.raises(ValueError, match=r"\(2,\), correct \(1,\)"):
        metrics.calibration([0.5, 0.2], [True])
    with pytest.raises(ValueError, match="N at least 1"):
        metrics.calibration([], [])
    with pytest.raises(ValueError, match="2 predictions for 1 labels"):
        metrics.confusion_matrix([0, 1], [0], 2)
    with pytest.raises(ValueError, match="predictions from 0 to 2"):
        metrics.confusion_matrix([0, 2], [0, 1], 2)


def test_table():
    rows = {
        "BCE": {"many": 92.34, "few": None, "ece": 3.0, "num_samples": 5000},
        "a longer name": {"many": 100.0, "few": 46.96, "ece": 12.25},
    }
    lines = metrics.format_table(rows, ("many", "few", "ece", "num_samples")).splitlines()
    assert lines == [
        "               many %  few %  ECE %  num samples",
        "-------------  ------  -----  -----  -----------",
        "BCE              92.3      -    3.0         5000",
        "a longer name   100.0   47.0   12.2            -",
    ]
    with pytest.raises(ValueError, match="unknown column 'manny'; expected one of ece, few, many"):
        metrics.format_table(rows, ("manny",))
    result = metrics.evaluate_logits(*random_case(0), np.arange(7) * 18)
    columns = ("few_le20", "medium_gt20", "macro_f1", "nll", "brier_sigmoid", "classwise_ece", "activation")
    titles, _, row = metrics.format_table({"": result}, columns).splitlines()
    assert titles.split("  ")[1:] == ["few (<=20) %", "medium (>20) %", "macro F1 %", "NLL nats", "Brier sigmoid",
                                      "classwise ECE %", "activation"]
    assert row.split()[3:] == [f"{result['nll']:.3f}", f"{result['brier_sigmoid']:.3f}", f"{result['classwise_ece']:.1f}",
                               "softmax"]
