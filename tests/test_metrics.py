"""Metrics against cases worked out by hand, a plain float64 loop, torchmetrics and scikit-learn."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch

from util import metrics

COUNTS = np.array([101, 100, 20, 19])  # one class on each side of both borders of the groups


def random_case(seed, images=400, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += rng.uniform(0, 3, images)
    return (logits * rng.uniform(0.3, 3)).astype(np.float32), labels


def tied_case(seed, images=300, classes=6):
    """Logits out of three values only, so that most rows hold ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (images, classes)).astype(np.float32), rng.integers(0, classes, images)


def plain_calibration(confidence, correct, bins):
    """The definition, one image after the other: bin b is (b / bins, (b + 1) / bins], 0 is in the first."""
    members = [[] for _ in range(bins)]
    for score, hit in zip(confidence.tolist(), correct.tolist(), strict=True):
        b = next(b for b in range(bins) if score <= (b + 1) / bins)
        members[b].append((score, hit))
    gaps = []
    for rows in members:
        if rows:
            score, hit = sum(row[0] for row in rows) / len(rows), sum(row[1] for row in rows) / len(rows)
            gaps.append((len(rows) / len(confidence), abs(hit - score)))
    return 100 * sum(share * gap for share, gap in gaps), 100 * max(gap for _, gap in gaps)


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
    assert result["group_classes"] == {"many": 1, "medium": 2, "few": 1}
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


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(20))
def test_calibration_equals_a_plain_loop(seed, bins):
    rng = np.random.default_rng(seed)
    if seed % 2:  # every edge of the bins many times, both ends among them
        confidence = rng.integers(0, bins + 1, 200) / bins
    else:  # a few filled bins only
        confidence = 1 - rng.beta(1, 8 + seed, 200)
    correct = rng.random(200) < confidence**2
    result = metrics.calibration(confidence, correct, bins)
    assert (result.ece, result.mce) == pytest.approx(plain_calibration(confidence, correct, bins), abs=1e-10)


def test_calibration_bins():
    result = metrics.calibration([0.0, 1 / 15, 0.07, 0.2, 1.0], [False, True, False, True, True])
    assert result.count.tolist() == [2, 1, 1] + [0] * 11 + [1]
    assert result.accuracy[[0, 1, 2, 14]].tolist() == [50, 0, 100, 100]
    assert result.confidence[[0, 1, 2, 14]].tolist() == pytest.approx([100 / 30, 7, 20, 100])
    assert np.isnan(result.accuracy[3:14]).all() and np.isnan(result.confidence[3:14]).all()
    assert result.mce == pytest.approx(80)
    assert result.ece == pytest.approx((2 * (50 - 100 / 30) + 7 + 80) / 5)
    # Each edge closes its bin, and the next larger number is in the next one, which a product with 15 rounds away.
    edges = np.arange(1, 16) / 15
    assert metrics.calibration(edges, np.ones(15)).count.tolist() == [1] * 15
    assert metrics.calibration(np.nextafter(edges[:-1], 1), np.ones(14)).count.tolist() == [0] + [1] * 14


def test_confidence():
    logits = np.array([[1000.0, 0.0], [-1000.0, -1001.0], [0.3, 0.1]])
    softmax = metrics.confidence(logits, "softmax")
    assert softmax.tolist() == pytest.approx([1, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.2))], abs=1e-15)
    with np.errstate(over="raise"):
        sigmoid = metrics.confidence(logits, "sigmoid")
    assert sigmoid.tolist() == pytest.approx([1, 0, 1 / (1 + math.exp(-0.3))], abs=1e-15)
    assert softmax.dtype == sigmoid.dtype == np.float64


@pytest.mark.parametrize("seed", range(10))
def test_calibration_equals_torchmetrics(seed):
    classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    logits, labels = random_case(seed, images=1000)
    wide = torch.from_numpy(logits).double()
    correct = logits.argmax(axis=1) == labels
    for name, scores in (("softmax", wide.softmax(dim=1)), ("sigmoid", wide.sigmoid())):
        ours = metrics.calibration(metrics.confidence(logits, name), correct)
        for norm, value in (("l1", ours.ece), ("max", ours.mce)):
            theirs = classification.MulticlassCalibrationError(num_classes=logits.shape[1], n_bins=15, norm=norm)
            theirs.set_dtype(torch.float64)
            assert value == pytest.approx(100 * theirs(scores, torch.from_numpy(labels)).item(), abs=1e-4)


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


def test_blocks_change_nothing(monkeypatch):
    logits, labels = random_case(3)
    whole = metrics.evaluate_logits(logits, labels, np.arange(1, 8) * 30)
    monkeypatch.setattr(metrics, "BLOCK_VALUES", 50)  # seven rows a block
    assert metrics.evaluate_logits(logits, labels, np.arange(1, 8) * 30) == whole


def test_memory_of_many_classes():
    logits = np.random.default_rng(0).normal(size=(4000, 8142)).astype(np.float32)  # 130 MB
    tracemalloc.start()
    metrics.evaluate_logits(logits, np.arange(4000), np.full(8142, 50))
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
