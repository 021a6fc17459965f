"""util/bootstrap.py against a plain loop over the same draws, the exact binomial, and simulated evaluations."""
import math
import time

import numpy as np
import pytest

from util import bootstrap
from util.bootstrap import COLUMNS, Outcomes, class_masks, draws, interval, intervals, outcomes, resampled
from util.calibration import calibration
from util.metrics import evaluate_logits

COUNTS = np.array([500, 200, 100, 30, 20, 19, 4, 0])  # the last class has no test image


def random_case(seed, images=90):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, images)
    logits = rng.normal(size=(images, 8))
    logits[np.arange(images), labels] += 1
    return logits, labels


def plain_metrics(of, index):
    """The six metrics of one draw, class by class and image by image; nan where the draw has no image of the group."""
    labels, correct, score = of.labels[index].tolist(), of.correct[index], of.confidence[index]
    accuracy = {}
    for k in set(labels):
        hits = [bool(hit) for label, hit in zip(labels, correct, strict=True) if label == k]
        accuracy[k] = 100 * sum(hits) / len(hits)
    groups = [[0, 1], [2, 3, 4], [5, 6, 7], range(8)]
    means = [[accuracy[k] for k in group if k in accuracy] for group in groups]
    means = [sum(values) / len(values) if values else math.nan for values in means]
    return [100 * correct.mean(), *means, calibration(score, correct).ece]


@pytest.mark.parametrize("block", [200, 2**20])  # two draws at a time, and all of them
def test_resampling_equals_a_plain_loop(monkeypatch, block):
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", block)
    logits, labels = random_case(0)
    labels[labels == 6] = 5
    labels[:40] = 0
    labels[40:] = np.where(labels[40:] == 5, 1, labels[40:])
    labels[-1] = 5  # the only image of the few-shot group, which a third of the draws leaves out
    of, masks = outcomes(logits, labels, "sigmoid"), class_masks(COUNTS)
    index = np.concatenate(list(draws(len(labels), 8, 60, seed=3)))
    assert index.shape == (60, 90) and len(list(draws(len(labels), 8, 60, seed=3))) == (30 if block == 200 else 1)
    assert np.array_equal(index, np.random.default_rng(3).integers(90, size=(60, 90)))
    values = resampled(of, index, masks)
    expected = np.array([plain_metrics(of, row) for row in index])
    assert 10 < np.isnan(expected[:, COLUMNS.index("few")]).sum() < 40
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_images_as_they_are_give_the_metrics_themselves(activation):
    logits, labels = random_case(1)
    result = evaluate_logits(logits, labels, COUNTS, activation)
    values = resampled(outcomes(logits, labels, activation), np.arange(90)[None], class_masks(COUNTS))[0]
    assert values.tolist() == pytest.approx([result[column] for column in COLUMNS], rel=1e-13)


def test_intervals_are_those_of_the_draws():
    logits, labels = random_case(2)
    found = intervals(logits, labels, COUNTS, resamples=200, seed=5)
    of, index = outcomes(logits, labels), np.concatenate(list(draws(90, 8, 200, seed=5)))
    values = np.array([plain_metrics(of, row) for row in index])
    surplus = values[:, -1].mean() - plain_metrics(of, np.arange(90))[-1]
    for place, column in enumerate(COLUMNS):
        low, high = np.nanpercentile(values[:, place], [2.5, 97.5]) - surplus * (column == "ece")
        assert found[column] == pytest.approx([low, high], abs=1e-9), column
    assert surplus > 0.5  # what the draws add to ECE
    assert found == intervals(logits, labels, COUNTS, resamples=200, seed=5) != intervals(logits, labels, COUNTS, resamples=200)


def test_a_group_without_images_has_no_interval():
    logits, labels = random_case(3)
    found = intervals(logits, labels, np.full(8, 500))
    assert found["medium"] is found["few"] is None and found["many"] == found["balanced_accuracy"]
    assert interval(np.full(5, np.nan)) is None and interval(np.array([3.0, np.nan])) == [3, 3]
    assert min(found["ece"]) >= 0


def binomial(n, p):
    """Probabilities (n + 1,) of 0 .. n successes, by logarithms of factorials."""
    k = np.arange(n + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k])
    return np.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p))


def test_the_interval_of_an_accuracy_is_the_exact_one_of_the_binomial():
    """Right answers in a draw are Binomial(N, hits / N), whose quantiles are known."""
    correct = np.arange(400) < 290
    of, masks = Outcomes(np.zeros(400, dtype=int), correct, np.full(400, 0.5)), class_masks([500])
    values = np.concatenate([resampled(of, index, masks)[:, 0] for index in draws(400, 1, 20_000)])
    below = np.cumsum(binomial(400, 290 / 400))
    exact = [np.searchsorted(below, q) / 4 for q in (0.025, 0.975)]
    # A quantile's own error: the share below it has a deviation of 0.0011, which is less than half an image here.
    assert interval(values) == pytest.approx(exact, abs=0.25 + 1e-9)
    assert values.std() == pytest.approx(100 * math.sqrt(290 * 110 / 400**3), rel=0.02)  # four deviations


def test_ninety_five_of_a_hundred_intervals_hold_the_accuracy():
    """Simulated evaluations of known accuracy; how many intervals should hold it is summed over the exact binomial."""
    images, truth, trials, hold = 150, 0.7, 300, 0
    rng, masks = np.random.default_rng(0), class_masks([500])
    blank = np.zeros(images, dtype=int)
    for trial in range(trials):
        of = Outcomes(blank, rng.random(images) < truth, np.full(images, 0.7))
        low, high = interval(np.concatenate([resampled(of, index, masks)[:, 0] for index in draws(images, 1, 400, trial)]))
        hold += low <= 100 * truth <= high
    coverage = 0.0
    for hits, chance in enumerate(binomial(images, truth)):
        if chance > 1e-9:
            below = np.cumsum(binomial(images, hits / images)) if 0 < hits < images else np.arange(images + 1) >= hits
            low, high = np.searchsorted(below, 0.025), np.searchsorted(below, 0.975)
            coverage += chance * (low <= truth * images <= high)
    assert 0.93 < coverage < 0.97
    deviation = math.sqrt(coverage * (1 - coverage) / trials)
    assert abs(hold / trials - coverage) < 3.3 * deviation + 0.01  # 0.01: an end that 400 draws put an image off


def test_a_large_evaluation_takes_seconds_and_little_memory():
    rng = np.random.default_rng(0)
    of = Outcomes(rng.integers(0, 8142, 50_000), rng.random(50_000) < 0.6, rng.random(50_000))
    masks, start = class_masks(rng.integers(2, 300, 8142)), time.process_time()
    blocks = [resampled(of, index, masks) for index in draws(50_000, 8142, 100)]
    assert time.process_time() - start < 3 and max(map(len, blocks)) == 2**20 // 50_000
    values = np.concatenate(blocks)
    assert values.shape == (100, 6) and not np.isnan(values).any()
    assert values[:, 0].std() == pytest.approx(100 * math.sqrt(0.24 / 50_000), rel=0.3)


@pytest.mark.parametrize("change, message", [
    ({"resamples": 0}, "0 resamples"), ({"class_counts": [3, 4]}, "2 class counts for logits of 8 classes"),
    ({"labels": [9] * 90}, "expected 0 to 7"), ({"activation": "relu"}, "unknown activation 'relu'")])
def test_bad_input_ends_in_one_line(change, message):
    logits, labels = random_case(4)
    with pytest.raises(ValueError, match=message):
        intervals(**{"logits": logits, "labels": labels, "class_counts": COUNTS} | change)
