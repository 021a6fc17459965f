"""How far the probabilities of a classifier can be trusted: calibration errors, log-loss, Brier score.

Two readings of logits (N, C) stand side by side, whatever the loss: "softmax", one distribution over the classes, and
"sigmoid", C yes-or-no answers. With y the label and Y its one-hot row:

    ece, mce        percent; of the predicted class's score against whether it is right (Guo et al., ICML 2017)
    classwise_ece   percent; mean over all C classes of the ECE of the class's score, over all images, against its indicator
                    Y_k (Kull et al., NeurIPS 2019; Nixon et al., CVPR workshops 2019, with bins of equal width). Most scores
                    of many classes are close to 0, so it falls with C: compare it within one data set only
    nll             nats (natural logarithm), mean over images; softmax: -log p_y; sigmoid: the binary log-losses summed over
                    the classes, -log s_y - sum_{k != y} log(1 - s_k)
    brier           mean over images of sum_k (p_k - Y_k)^2, from 0 to 2 by softmax (to C by sigmoid); not halved

float64, nothing rounded; logits are widened a block of rows at a time.
"""
from dataclasses import dataclass

import numpy as np

from util.arrays import as_array, as_labels, as_logits, check_pair, percent, row_blocks

CALIBRATION_BINS = 15


def confidence(logits, activation="softmax") -> np.ndarray:
    """Score of the predicted class, (N,) float64 in [0, 1], by "softmax" or "sigmoid" of the logits."""
    check_activation(activation)
    logits = as_logits(logits)
    score = np.empty(len(logits), dtype=np.float64)
    for rows in row_blocks(logits):
        score[rows] = CONFIDENCES[activation](logits[rows].astype(np.float64))
    return score


def _softmax_confidence(block):
    # The largest exponential is exp(0) = 1, so the predicted class' share is one over the sum.
    block -= block.max(axis=1, keepdims=True)
    return 1.0 / np.exp(block, out=block).sum(axis=1)


def _sigmoid_confidence(block):
    # By logaddexp, since exp(-z) overflows for very negative logits.
    return np.exp(-np.logaddexp(0.0, -block.max(axis=1)))


CONFIDENCES = {"softmax": _softmax_confidence, "sigmoid": _sigmoid_confidence}


def check_activation(activation) -> None:
    """ValueError for another activation than those of the losses."""
    if activation not in CONFIDENCES:
        raise ValueError(f"unknown activation {activation!r}; expected one of {', '.join(CONFIDENCES)}")


@dataclass(frozen=True)
class Calibration:
    """ece and mce in percent; by bin (B,): images (int64), mean confidence and accuracy in percent, nan if empty."""

    ece: float
    mce: float
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def bin_index(score, bins=CALIBRATION_BINS) -> np.ndarray:
    """Bin of each score in [0, 1]: bin b is (b / bins, (b + 1) / bins], 0 is in the first."""
    # Compared with the edges themselves, since score * bins rounds some numbers across them.
    return np.maximum(np.searchsorted(np.arange(bins + 1) / bins, score, side="left") - 1, 0)


def calibration(confidence, correct, bins=CALIBRATION_BINS) -> Calibration:
    """Expected and maximum calibration error over `bins` equal bins of the confidence (Guo et al., ICML 2017).

    confidence (N,) in [0, 1], correct (N,) boolean. Bin b is (b / bins, (b + 1) / bins]; confidence 0 is in the first.
    ECE weighs each bin's |accuracy - mean confidence| by its share of the images, MCE is the largest of them; empty
    bins add nothing to ECE and do not take part in MCE. The bins are filled once over all images, not batch by batch.
    """
    confidence = np.asarray(as_array(confidence), dtype=np.float64)
    correct = as_array(correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence {confidence.shape}, correct {correct.shape}; expected (N,) of both, N at least 1")
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("confidence holds values outside [0, 1]; expected softmax or sigmoid scores, not logits")
    if bins < 1:
        raise ValueError(f"{bins} calibration bins; expected at least 1")
    index = bin_index(confidence, bins)
    count = np.bincount(index, minlength=bins)
    score = percent(np.bincount(index, weights=confidence, minlength=bins), count)
    accuracy = percent(np.bincount(index, weights=correct.astype(np.float64), minlength=bins), count)
    filled = count > 0
    gap = np.abs(accuracy - score)[filled]
    ece = float(np.sum(count[filled] / len(confidence) * gap))
    return Calibration(ece, float(gap.max()), count, score, accuracy)


def _softmax_block(block, own):
    """Probabilities (n, C), -log p_y (n,) and confidence (n,); overwrites the block. own: labels (n, 1)."""
    margin = block.max(axis=1) - np.take_along_axis(block, own, axis=1)[:, 0]
    score = _softmax_confidence(block)  # leaves exp(z - max z) in the block
    block *= score[:, None]
    return block, margin - np.log(score), score


def _sigmoid_block(block, own):
    """Scores (n, C), summed binary log-losses (n,) and confidence (n,). own: labels (n, 1)."""
    score, own_logit = _sigmoid_confidence(block), np.take_along_axis(block, own, axis=1)[:, 0]
    small = np.exp(-np.abs(block))  # never overflows
    whole = 1.0 + small
    # -log(1 - s(z)) = log(1 + e^z) = max(z, 0) + log(1 + e^-|z|) for every class, and -log s(z) is z less for the true one.
    # log1p is several times slower, and what log loses below 1e-16 a class is nothing beside the sum.
    loss = np.maximum(block, 0.0).sum(axis=1) + np.log(whole).sum(axis=1) - own_logit
    np.copyto(small, 1.0, where=block >= 0)
    return np.divide(small, whole, out=small), loss, score


BLOCKS = {"softmax": _softmax_block, "sigmoid": _sigmoid_block}


def probability_metrics(logits, labels, activation="softmax", temperature=1.0, bins=CALIBRATION_BINS) -> dict:
    """{"ece", "mce", "classwise_ece", "nll", "brier"} of the scores of logits / temperature; defined above.

    logits (N, C), labels (N,). A ValueError for an unknown activation, a temperature that is not positive and finite,
    shapes that do not fit, nan or inf.
    """
    check_activation(activation)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}; expected a positive finite number")
    logits, labels = as_logits(logits), as_labels(labels)
    check_pair(logits, labels)
    images, classes = logits.shape
    loss, brier, score = np.empty(images), np.empty(images), np.empty(images)
    gaps = np.zeros((classes, bins))  # by class and bin: sum of score less indicator
    for rows in row_blocks(logits):
        own = labels[rows, None]
        scores, loss[rows], score[rows] = BLOCKS[activation](logits[rows].astype(np.float64) / temperature, own)
        flat, true = scores.reshape(-1), np.arange(len(own)) * classes + own[:, 0]
        # Nearly all scores lie in the first bin, so only the others are looked up.
        above = np.flatnonzero(flat > 1 / bins)
        cell = above % classes * bins + bin_index(flat[above], bins)
        flat[true] -= 1.0
        brier[rows] = np.einsum("ij,ij->i", scores, scores)
        gaps += np.bincount(cell, weights=flat[above], minlength=gaps.size).reshape(gaps.shape)
        flat[above] = 0.0
        gaps[:, 0] += scores.sum(axis=0)
    top = calibration(score, np.argmax(logits, axis=1) == labels, bins)
    return {"ece": top.ece, "mce": top.mce, "classwise_ece": float(100.0 * np.abs(gaps).sum(axis=1).mean() / images),
            "nll": float(loss.mean()), "brier": float(brier.mean())}
