"""Calibration errors, log-loss and Brier score against plain float64 loops, torchmetrics and scikit-learn."""
import math

import numpy as np
import pytest
import torch

from tests.cases import random_case
from util import arrays
from util.calibration import calibration, confidence, probability_metrics


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


def drawn_scores(case):
    """Scores and hits of one of 1,000 cases, and the number of bins: all kinds of ties, edges and empty bins."""
    rng = np.random.default_rng(case)
    images, bins = int(rng.integers(1, 60)), int(rng.choice([1, 2, 8, 16, 15, 10]))
    kind = case % 4
    if kind == 0:  # every edge of the bins many times, both ends among them
        scores = rng.integers(0, bins + 1, images) / bins
    elif kind == 1:  # few different scores in few bins
        scores = rng.choice(rng.random(3), images)
    elif kind == 2:  # nearly all in the last bin
        scores = 1 - rng.beta(1, 20, images)
    else:
        scores = rng.random(images)
    return scores, rng.random(images) < scores**2, bins


def test_a_thousand_cases_equal_a_plain_loop():
    empty = 0
    for case in range(1000):
        scores, hits, bins = drawn_scores(case)
        result = calibration(scores, hits, bins)
        assert (result.ece, result.mce) == pytest.approx(plain_calibration(scores, hits, bins), abs=1e-10), case
        empty += (result.count == 0).any()
    assert empty > 300


def test_a_thousand_cases_equal_torchmetrics():
    """Its bins are closed on the left, so it gets the mirror image, 1 - score and 1 - hit, whose gaps are the same.

    It computes in float32, which holds multiples of 1 / 256 and their sums exactly.
    """
    theirs = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    ties = empty = 0
    for case in range(1000):
        rng = np.random.default_rng(case)
        images, bins = int(rng.integers(1, 60)), int(rng.choice([1, 2, 4, 8, 16]))
        scores = rng.integers(1, 257, images) / 256 if case % 2 else rng.integers(1, bins + 1, images) / bins
        hits = rng.random(images) < scores
        result = calibration(scores, hits, bins)
        ties, empty = ties + np.isin(scores, np.arange(1, bins) / bins).any(), empty + (result.count == 0).any()
        mirror = torch.from_numpy(1 - scores).float(), torch.from_numpy(~hits).long()
        for norm, value in (("l1", result.ece), ("max", result.mce)):
            other = theirs.binary_calibration_error(*mirror, bins, norm, validate_args=False)
            assert value == pytest.approx(100 * float(other), abs=2e-5), case
    assert ties > 500 and empty > 250


def test_calibration_bins():
    result = calibration([0.0, 1 / 15, 0.07, 0.2, 1.0], [False, True, False, True, True])
    assert result.count.tolist() == [2, 1, 1] + [0] * 11 + [1]
    assert result.accuracy[[0, 1, 2, 14]].tolist() == [50, 0, 100, 100]
    assert result.confidence[[0, 1, 2, 14]].tolist() == pytest.approx([100 / 30, 7, 20, 100])
    assert np.isnan(result.accuracy[3:14]).all() and np.isnan(result.confidence[3:14]).all()
    assert result.mce == pytest.approx(80)
    assert result.ece == pytest.approx((2 * (50 - 100 / 30) + 7 + 80) / 5)
    # Each edge closes its bin, and the next larger number is in the next one, which a product with 15 rounds away.
    edges = np.arange(1, 16) / 15
    assert calibration(edges, np.ones(15)).count.tolist() == [1] * 15
    assert calibration(np.nextafter(edges[:-1], 1), np.ones(14)).count.tolist() == [0] + [1] * 14


def test_confidence():
    logits = np.array([[1000.0, 0.0], [-1000.0, -1001.0], [0.3, 0.1]])
    softmax = confidence(logits, "softmax")
    assert softmax.tolist() == pytest.approx([1, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.2))], abs=1e-15)
    with np.errstate(over="raise"):
        sigmoid = confidence(logits, "sigmoid")
    assert sigmoid.tolist() == pytest.approx([1, 0, 1 / (1 + math.exp(-0.3))], abs=1e-15)
    assert softmax.dtype == sigmoid.dtype == np.float64


@pytest.mark.parametrize("seed", range(10))
def test_calibration_equals_torchmetrics(seed):
    classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    logits, labels = random_case(seed, images=1000)
    wide = torch.from_numpy(logits).double()
    correct = logits.argmax(axis=1) == labels
    for name, scores in (("softmax", wide.softmax(dim=1)), ("sigmoid", wide.sigmoid())):
        ours = calibration(confidence(logits, name), correct)
        for norm, value in (("l1", ours.ece), ("max", ours.mce)):
            theirs = classification.MulticlassCalibrationError(num_classes=logits.shape[1], n_bins=15, norm=norm)
            theirs.set_dtype(torch.float64)
            assert value == pytest.approx(100 * theirs(scores, torch.from_numpy(labels)).item(), abs=1e-4)


def scores_of(logits, activation):
    """By torch, in float64."""
    wide = torch.from_numpy(logits).double()
    return (wide.softmax(dim=1) if activation == "softmax" else wide.sigmoid()).numpy()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(5))
def test_log_loss_and_brier_equal_scikit_learn(seed, activation):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    logits, labels = random_case(seed)
    scores, ours = scores_of(logits, activation), probability_metrics(logits, labels, activation)
    binary = [(labels == k, scores[:, k]) for k in range(7)]
    loss = sum(theirs.log_loss(*one, labels=[False, True]) for one in binary)
    if activation == "softmax":
        loss = theirs.log_loss(labels, scores, labels=range(7))
    assert ours["nll"] == pytest.approx(loss, rel=1e-12)
    assert ours["brier"] == pytest.approx(sum(theirs.brier_score_loss(*one) for one in binary), rel=1e-12)
    assert (ours["ece"], ours["mce"]) == pytest.approx(
        plain_calibration(scores.max(axis=1), logits.argmax(axis=1) == labels, 15), abs=1e-10)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(5))
def test_classwise_ece_is_the_mean_of_binary_ones(seed, activation):
    logits, labels = random_case(seed, images=150)
    logits[:20] = np.log(np.arange(1, 8) // 2 + 1)  # scores on the edges of bins, and ties
    scores, ours = scores_of(logits, activation), probability_metrics(logits, labels, activation)
    by_class = [plain_calibration(scores[:, k], labels == k, 15)[0] for k in range(7)]
    assert ours["classwise_ece"] == pytest.approx(np.mean(by_class), abs=1e-10)
    coarse = [plain_calibration(scores[:, k], labels == k, 4)[0] for k in range(7)]
    assert probability_metrics(logits, labels, activation, bins=4)["classwise_ece"] == pytest.approx(np.mean(coarse), abs=1e-10)


def test_classwise_ece_equals_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    logits, labels = random_case(8)
    for activation in ("softmax", "sigmoid"):
        scores = torch.from_numpy(scores_of(logits, activation)).T.contiguous()
        hits = torch.from_numpy(labels) == torch.arange(7)[:, None]
        by_class = [float(theirs.binary_calibration_error(scores[k], hits[k].long(), 15)) for k in range(7)]
        ours = probability_metrics(logits, labels, activation)["classwise_ece"]
        assert ours == pytest.approx(100 * np.mean(by_class), abs=2e-5)


def test_extreme_logits_stay_finite_and_exact():
    logits, labels = np.array([[900.0, -900.0], [-800.0, -800.0]]), np.array([1, 0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        softmax, sigmoid = (probability_metrics(logits, labels, name) for name in ("softmax", "sigmoid"))
    assert softmax["nll"] == pytest.approx((1800 + math.log(2)) / 2, rel=1e-15) and softmax["brier"] == (2 + 0.5) / 2
    assert sigmoid["nll"] == pytest.approx((1800 + 800) / 2, rel=1e-15) and sigmoid["brier"] == (2 + 1) / 2
    sure = probability_metrics(np.eye(3) * 1e4, [0, 1, 2])
    assert sure == {"ece": 0, "mce": 0, "classwise_ece": 0, "nll": 0, "brier": 0}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_temperature_divides_the_logits(monkeypatch, activation):
    logits, labels = random_case(4)
    whole = probability_metrics(logits.astype(np.float64) / 2.5, labels, activation)
    assert probability_metrics(logits, labels, activation, 2.5) == whole
    monkeypatch.setattr(arrays, "BLOCK_VALUES", 50)
    assert probability_metrics(logits, labels, activation, 2.5) == pytest.approx(whole, rel=1e-13)
    for temperature in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            probability_metrics(logits, labels, activation, temperature)
