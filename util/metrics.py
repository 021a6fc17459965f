"""Metrics of long-tailed recognition, as pure functions of numpy arrays (torch tensors are taken too).

Shapes: logits (N, C) real, labels (N,) integer, class_counts (C,) training images of each class in label order.
Units: accuracies, ECE and MCE in percent, the unit of the paper; float64, nothing rounded.
Predictions are `argmax`: of equal logits the lowest class index wins, as in numpy and torch.
"""

from dataclasses import dataclass

import numpy as np

# Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (OLTR), as the LiVT paper uses it:
# many-shot classes have more than 100 training images, few-shot classes fewer than 20, medium-shot 20 to 100.
MANY_ABOVE = 100
FEW_BELOW = 20

CALIBRATION_BINS = 15
MATRIX_MAX_CLASSES = 100  # 8,142 classes would put 66 million numbers into a metrics.json
BLOCK_VALUES = 2**22  # 32 MB of float64: logits are widened a block of rows at a time, never as a whole


def groups(class_counts):
    """Boolean masks (C,) of the many-, medium- and few-shot classes; each class is in exactly one.

    A ValueError where a count is negative or not finite.
    """
    counts = _as_counts(class_counts)
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def label_rank(logits, labels):
    """How many classes stand before the true one in each row: (N,) int64, 0 where the prediction is right.

    Before it stand the classes with a larger logit, and those with an equal logit and a lower index. So rank 0 is
    `argmax == label` with ties too, and a model that answers all classes alike earns k / C at top-k, not 100 %.
    """
    logits, labels = _as_logits(logits), _as_labels(labels)
    _check_pair(logits, labels)
    columns = np.arange(logits.shape[1])
    rank = np.empty(len(labels), dtype=np.int64)
    for rows in _row_blocks(logits):
        block, own = logits[rows], labels[rows, None]
        value = np.take_along_axis(block, own, axis=1)
        rank[rows] = ((block > value) | ((block == value) & (columns < own))).sum(axis=1)
    return rank


def topk_accuracy(logits, labels, k):
    """Share of images, in percent, whose true class is among the k first; k above C counts as C.

    Ties are ordered by class index (see `label_rank`), so k = 1 agrees with argmax.
    """
    if k < 1:
        raise ValueError(f"top-k accuracy with k = {k}; expected k of at least 1")
    return 100.0 * float(np.mean(label_rank(logits, labels) < k))


def confusion_matrix(predictions, labels, num_classes):
    """Numbers of images (C, C) int64: row = true class, column = predicted class."""
    predictions, labels = _as_labels(predictions, "predictions"), _as_labels(labels)
    if predictions.shape != labels.shape:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels; expected as many of both")
    _check_range(predictions, num_classes, "predictions")
    _check_range(labels, num_classes, "labels")
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(confusion):
    """Accuracy of each class (C,) in percent from a confusion matrix; nan where a class has no test image."""
    confusion = _as_array(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix of shape {confusion.shape}; expected (C, C)")
    return _percent(confusion.diagonal(), confusion.sum(axis=1))


def group_accuracy(accuracy, members):
    """Mean (percent) of per-class accuracies (C,) over the classes of the boolean mask `members` (C,).

    Classes without a test image (nan) do not count; None where nothing is left to average.
    """
    accuracy, members = np.asarray(accuracy, dtype=np.float64), np.asarray(members, dtype=bool)
    if accuracy.shape != members.shape:
        raise ValueError(f"{accuracy.shape} accuracies for a mask of shape {members.shape}; expected the same shape")
    values = accuracy[members & ~np.isnan(accuracy)]
    return float(values.mean()) if len(values) else None


def confidence(logits, activation="softmax"):
    """Score of the predicted class, (N,) float64 in [0, 1], by "softmax" or "sigmoid" of the logits."""
    if activation not in CONFIDENCES:
        raise ValueError(f"unknown activation {activation!r}; expected one of {', '.join(CONFIDENCES)}")
    logits = _as_logits(logits)
    score = np.empty(len(logits), dtype=np.float64)
    for rows in _row_blocks(logits):
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


@dataclass(frozen=True)
class Calibration:
    """ece and mce in percent; by bin (B,): images (int64), mean confidence and accuracy in percent, nan if empty."""

    ece: float
    mce: float
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(confidence, correct, bins=CALIBRATION_BINS):
    """Expected and maximum calibration error over `bins` equal bins of the confidence (Guo et al., ICML 2017).

    confidence (N,) in [0, 1], correct (N,) boolean. Bin b is (b / bins, (b + 1) / bins]; confidence 0 is in the first.
    ECE weighs each bin's |accuracy - mean confidence| by its share of the images, MCE is the largest of them; empty
    bins add nothing to ECE and do not take part in MCE. The bins are filled once over all images, not batch by batch.
    """
    confidence = np.asarray(_as_array(confidence), dtype=np.float64)
    correct = _as_array(correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence {confidence.shape}, correct {correct.shape}; expected (N,) of both, N at least 1")
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("confidence holds values outside [0, 1]; expected softmax or sigmoid scores, not logits")
    if bins < 1:
        raise ValueError(f"{bins} calibration bins; expected at least 1")
    # Compared with the edges themselves, since confidence * bins rounds some numbers across them.
    edges = np.arange(bins + 1) / bins
    index = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    count = np.bincount(index, minlength=bins)
    score = _percent(np.bincount(index, weights=confidence, minlength=bins), count)
    accuracy = _percent(np.bincount(index, weights=correct.astype(np.float64), minlength=bins), count)
    filled = count > 0
    gap = np.abs(accuracy - score)[filled]
    ece = float(np.sum(count[filled] / len(confidence) * gap))
    return Calibration(ece, float(gap.max()), count, score, accuracy)


def evaluate_logits(logits, labels, class_counts, activation="softmax"):
    """All metrics of one evaluation as plain Python values, ready for JSON.

    `activation` is that of the loss ("sigmoid" for BCE) and decides what `ece` and `mce` are; both kinds stand beside
    them. `overall` and `top5` are over images; `many`, `medium`, `few` are means over the classes of the group, None
    where it is empty. `per_class_accuracy` is None for a class without test images. `confusion_matrix` (rows = true
    class) is there only for C <= 100. Errors are ValueErrors of one line: nan or inf in the logits, shapes that do not
    fit, a label outside 0 .. C - 1, no images.
    """
    logits, labels, counts = _as_logits(logits), _as_labels(labels), _as_counts(class_counts)
    _check_pair(logits, labels)
    classes = logits.shape[1]
    if len(counts) != classes:
        raise ValueError(f"{len(counts)} class counts for logits of {classes} classes; expected one count a class")
    if activation not in CONFIDENCES:
        raise ValueError(f"unknown activation {activation!r}; expected one of {', '.join(CONFIDENCES)}")
    rank = label_rank(logits, labels)
    correct = rank == 0
    by_score = {name: calibration(confidence(logits, name), correct) for name in CONFIDENCES}
    # Not from a confusion matrix, which takes half a gigabyte for the classes of iNaturalist.
    accuracy = _percent(np.bincount(labels[correct], minlength=classes), np.bincount(labels, minlength=classes))
    masks = groups(counts)
    result = {"num_samples": len(labels), "overall": 100.0 * float(correct.mean())}
    result["top5"] = 100.0 * float(np.mean(rank < 5))
    result |= {name: group_accuracy(accuracy, members) for name, members in masks.items()}
    result |= {"ece": by_score[activation].ece, "mce": by_score[activation].mce, "activation": activation}
    for name, value in by_score.items():
        result |= {f"ece_{name}": value.ece, f"mce_{name}": value.mce}
    result["group_classes"] = {name: int(members.sum()) for name, members in masks.items()}
    result["per_class_accuracy"] = [None if np.isnan(value) else float(value) for value in accuracy]
    if classes <= MATRIX_MAX_CLASSES:
        result["confusion_matrix"] = confusion_matrix(np.argmax(logits, axis=1), labels, classes).tolist()
    return result


def format_table(rows, columns=("many", "medium", "few", "overall", "ece", "mce")):
    """Aligned plain text of {row name: result of evaluate_logits}: floats with one decimal, "-" for None or absent.

    A ValueError where no row knows a column, since that is a misspelt name.
    """
    for column in columns:
        if rows and not any(column in row for row in rows.values()):
            known = sorted({key for row in rows.values() for key in row})
            raise ValueError(f"unknown column {column!r}; expected one of {', '.join(known)}")
    lines = [["", *(_header(column) for column in columns)]]
    lines += [[name, *(_cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _header(column):
    title = column.replace("_", " ").replace("ece", "ECE").replace("mce", "MCE")
    return title if column in ("num_samples", "activation") else f"{title} %"


def _cell(value):
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _percent(part, whole):
    """100 * part / whole in float64, nan where whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return 100.0 * np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _row_blocks(logits):
    step = max(1, BLOCK_VALUES // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _as_array(values):
    if hasattr(values, "detach"):  # a torch tensor, wherever it lies; numpy knows no bfloat16
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def _as_logits(logits):
    logits = _as_array(logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits of shape {logits.shape}; expected (N, C) with at least one image and one class")
    if logits.dtype.kind not in "fiu":
        raise ValueError(f"logits of type {logits.dtype}; expected real numbers")
    broken = sum(int((~np.isfinite(logits[rows]).all(axis=1)).sum()) for rows in _row_blocks(logits))
    if broken:
        raise ValueError(f"{broken} of {len(logits)} rows of logits hold nan or inf; expected finite numbers")
    return logits


def _as_labels(labels, name="labels"):
    labels = _as_array(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{name} of shape {labels.shape} and type {labels.dtype}; expected (N,) integers")
    return labels.astype(np.int64)


def _as_counts(class_counts):
    counts = np.asarray(_as_array(class_counts), dtype=np.float64)
    if counts.ndim != 1 or not np.all(np.isfinite(counts) & (counts >= 0)):
        raise ValueError(f"class counts of shape {counts.shape}; expected (C,) finite numbers of at least 0")
    return counts


def _check_pair(logits, labels):
    if len(logits) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(logits)} rows of logits; expected one label a row")
    _check_range(labels, logits.shape[1], "labels")


def _check_range(values, num_classes, name):
    if len(values) and (values.min() < 0 or values.max() >= num_classes):
        raise ValueError(f"{name} from {values.min()} to {values.max()}; expected 0 to {num_classes - 1}")
