"""95 % intervals of an evaluation, by resampling its test images.

What other test images of the same kind would have given: images are drawn with replacement, as many as there are, and every
metric is taken of the draw; the interval lies between the 2.5th and the 97.5th percentile. What another seed of training
would have given is not in it (util/compare.py looks at seeds).

Accuracies need only the label of an image and whether its answer is right. Group accuracies are means of per-class
accuracies; a class that a draw leaves out does not count in it. Resampling adds noise to every bin of ECE, whose absolute
values turn it into a surplus, so the percentiles of `ece` are shifted by mean(resamples) - ece (and cut off at 0): simulated,
with a true ECE of 2 % and 2,000 images, 64 % of the shifted intervals hold it and 7 % of the plain ones; with 5 %, 94 and 85.
An ECE near 0 on few images is overestimated, and its interval with it. A group of which no image is right, or every one, gives
an interval without width: resampling knows only what it has seen.
"""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from util.arrays import BLOCK_VALUES, as_labels, as_logits, check_counts, check_pair, percent
from util.calibration import CALIBRATION_BINS, bin_index, confidence
from util.metrics import groups, label_rank

COLUMNS = ("overall", "many", "medium", "few", "balanced_accuracy", "ece")
RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)


class Outcomes(NamedTuple):
    """What the intervals need of N images: label, whether the answer is right, confidence of the answer; each (N,)."""
    labels: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray


def outcomes(logits, labels, activation="softmax") -> Outcomes:
    """Those of logits (N, C) and labels (N,). ValueError as `util.metrics.evaluate_logits`."""
    logits, labels = as_logits(logits), as_labels(labels)
    check_pair(logits, labels)
    return Outcomes(labels, label_rank(logits, labels) == 0, confidence(logits, activation))


def draws(images: int, classes: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Indices of the drawn images, (R, N) int64, in blocks of rows that keep what is made of them small.

    The numbers are a function of images, resamples and seed. ValueError for fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; expected at least 1 (1,000 for an interval)")
    draw, step = np.random.default_rng(seed), max(1, BLOCK_VALUES // max(images, 2 * classes))
    for start in range(0, resamples, step):
        yield draw.integers(images, size=(min(step, resamples - start), images))


def class_masks(class_counts) -> np.ndarray:
    """Members (4, C) bool of many, medium, few and all classes, in the order of COLUMNS; class_counts (C,)."""
    masks = groups(class_counts)
    return np.array([masks["many"], masks["medium"], masks["few"], np.ones(len(class_counts), dtype=bool)])


def resampled(of: Outcomes, index, masks) -> np.ndarray:
    """Metrics (R, 6) in percent, in the order of COLUMNS, of the draws index (R, N); nan where a draw has none of a group.

    masks: see `class_masks`. One row 0 .. N - 1 gives the metrics of the images as they are.
    """
    (draws, images), classes = index.shape, masks.shape[1]
    row = np.arange(draws)[:, None]
    # Wrong and right answers of each class in one count.
    cell = of.labels + classes * of.correct
    counted = np.bincount((row * (2 * classes) + cell[index]).ravel(), minlength=draws * 2 * classes).reshape(draws, 2, classes)
    present = counted.sum(axis=1)
    right = np.divide(counted[:, 1], present, out=np.zeros(present.shape), where=present > 0)
    members = masks.T.astype(np.float64)
    means = percent(right @ members, (present > 0) @ members)
    # Confidence less correctness, summed by bin: what ECE is the absolute value of.
    gap, bins = of.correct - of.confidence, bin_index(of.confidence)
    gaps = np.bincount((row * CALIBRATION_BINS + bins[index]).ravel(), gap[index].ravel(), draws * CALIBRATION_BINS)
    ece = 100.0 * np.abs(gaps.reshape(draws, CALIBRATION_BINS)).sum(axis=1) / images
    overall = 100.0 * counted[:, 1].sum(axis=1) / images
    return np.column_stack([overall, means, ece])


def interval(values) -> list[float] | None:
    """The 95 % percentile interval [low, high] of resampled values (R,), without the nan ones; None where all are."""
    values = values[~np.isnan(values)]
    return [float(bound) for bound in np.percentile(values, PERCENTILES)] if len(values) else None


def intervals(logits, labels, class_counts, activation="softmax", resamples=RESAMPLES, seed=0) -> dict:
    """{column: [low, high] in percent} of COLUMNS; None for a group without classes that have test images.

    logits (N, C), labels (N,), class_counts (C,) as `util.metrics.evaluate_logits` takes them, whose results they belong
    to (key "intervals"). 1,000 resamples of 50,000 images take seconds.
    """
    of, masks = outcomes(logits, labels, activation), class_masks(class_counts)
    check_counts(masks[0], np.shape(logits)[1])
    values = np.concatenate([resampled(of, index, masks)
                             for index in draws(len(of.labels), masks.shape[1], resamples, seed)])
    found = {column: interval(values[:, place]) for place, column in enumerate(COLUMNS)}
    surplus = values[:, -1].mean() - resampled(of, np.arange(len(of.labels))[None], masks)[0, -1]
    found["ece"] = [float(max(0.0, bound - surplus)) for bound in found["ece"]]
    return found
