"""Metrics of long-tailed recognition, as pure functions of numpy arrays (torch tensors are taken too).

    python -m util.metrics RUN [RUN ...] [--intervals] [--csv]      recomputes a run's numbers from its predictions

Shapes: logits (N, C) real, labels (N,) integer, class_counts (C,) training images of each class in label order.
Units: accuracies, F1 and calibration errors in percent, the unit of the paper; log-loss in nats; the Brier score as it is
(util/calibration.py defines these two). float64, nothing rounded.
Predictions are `argmax`: of equal logits the lowest class index wins, as in numpy and torch.
"""
import numpy as np

from util.arrays import (
    as_array,
    as_counts,
    as_labels,
    as_logits,
    check_counts,
    check_pair,
    check_range,
    percent,
    row_blocks,
)
from util.calibration import CONFIDENCES, calibration, check_activation, confidence, probability_metrics

__all__ = ["calibration", "confidence", "confusion_matrix", "evaluate_logits", "format_table", "group_accuracy", "groups",
           "groups_le20", "label_rank", "macro_f1", "per_class_accuracy", "topk_accuracy"]

# Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (OLTR), as the LiVT paper uses it:
# many-shot classes have more than 100 training images, few-shot classes fewer than 20, medium-shot 20 to 100.
MANY_ABOVE = 100
FEW_BELOW = 20

MATRIX_MAX_CLASSES = 100  # 8,142 classes would put 66 million numbers into a metrics.json
WORDS = {"ece": "ECE", "mce": "MCE", "nll": "NLL", "f1": "F1", "brier": "Brier", "gt20": "(>20)", "le20": "(<=20)"}
UNITS = {"num": "", "activation": "", "brier": "", "nll": " nats"}  # by a column's first word; percent for the others


def groups(class_counts):
    """Boolean masks (C,) of the many-, medium- and few-shot classes; each class is in exactly one.

    A ValueError where a count is negative or not finite.
    """
    counts = as_counts(class_counts)
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def groups_le20(class_counts):
    """The other convention in use, in which a class of exactly 20 images is few-shot; many-shot classes are the same."""
    counts = as_counts(class_counts)
    few = counts <= FEW_BELOW
    return {"medium_gt20": ~few & (counts <= MANY_ABOVE), "few_le20": few}


def label_rank(logits, labels):
    """How many classes stand before the true one in each row: (N,) int64, 0 where the prediction is right.

    Before it stand the classes with a larger logit, and those with an equal logit and a lower index. So rank 0 is
    `argmax == label` with ties too, and a model that answers all classes alike earns k / C at top-k, not 100 %.
    """
    logits, labels = as_logits(logits), as_labels(labels)
    check_pair(logits, labels)
    columns = np.arange(logits.shape[1])
    rank = np.empty(len(labels), dtype=np.int64)
    for rows in row_blocks(logits):
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
    predictions, labels = as_labels(predictions, "predictions"), as_labels(labels)
    if predictions.shape != labels.shape:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels; expected as many of both")
    check_range(predictions, num_classes, "predictions")
    check_range(labels, num_classes, "labels")
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(confusion):
    """Accuracy of each class (C,) in percent from a confusion matrix; nan where a class has no test image."""
    confusion = as_array(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"a confusion matrix of shape {confusion.shape}; expected (C, C)")
    return percent(confusion.diagonal(), confusion.sum(axis=1))


def group_accuracy(accuracy, members):
    """Mean (percent) of per-class accuracies (C,) over the classes of the boolean mask `members` (C,).

    Classes without a test image (nan) do not count; None where nothing is left to average.
    """
    accuracy, members = np.asarray(accuracy, dtype=np.float64), np.asarray(members, dtype=bool)
    if accuracy.shape != members.shape:
        raise ValueError(f"{accuracy.shape} accuracies for a mask of shape {members.shape}; expected the same shape")
    values = accuracy[members & ~np.isnan(accuracy)]
    return float(values.mean()) if len(values) else None


def macro_f1(hits, images, predicted):
    """Mean F1 in percent over the classes that have a test image or a prediction, as scikit-learn takes it.

    Each (C,): right answers, test images and predictions of a class. F1 = 2 hits / (images + predicted).
    """
    return float(np.nanmean(percent(2.0 * as_array(hits), as_array(images) + as_array(predicted))))


def evaluate_logits(logits, labels, class_counts, activation="softmax"):
    """All metrics of one evaluation as plain Python values, ready for JSON.

    num_samples; overall, top5        images, and percent of them
    many, medium, few                 percent, means over the classes of the group (> 100, 20 to 100, < 20 training images)
    medium_gt20, few_le20             the same where a class of exactly 20 is few-shot
    balanced_accuracy, macro_f1       percent, means over the classes that have test images (or, F1, predictions)
    ece, mce, classwise_ece, nll, brier   see util/calibration.py; by `activation`, that of the loss ("sigmoid" for BCE), and
                                      each by either activation as ece_softmax, ece_sigmoid, ...
    group_classes                     classes of each group
    per_class_accuracy                percent (C,)
    confusion_matrix                  images (C, C), rows = true class; for C <= 100 only

    None stands for a group without classes that have test images, and for the accuracy of a class without. Errors are
    ValueErrors of one line: nan or inf in the logits, shapes that do not fit, a label outside 0 .. C - 1, no images.
    """
    check_activation(activation)
    logits, labels, counts = as_logits(logits), as_labels(labels), as_counts(class_counts)
    check_pair(logits, labels)
    classes = logits.shape[1]
    check_counts(counts, classes)
    rank, predictions = label_rank(logits, labels), np.argmax(logits, axis=1)
    # Not from a confusion matrix, which takes half a gigabyte for the classes of iNaturalist.
    hits, images, predicted = (np.bincount(k, minlength=classes) for k in (labels[rank == 0], labels, predictions))
    accuracy = percent(hits, images)
    masks = groups(counts) | groups_le20(counts)
    result = {"num_samples": len(labels)}
    result |= {"overall": 100.0 * float(np.mean(rank == 0)), "top5": 100.0 * float(np.mean(rank < 5))}
    result |= {name: group_accuracy(accuracy, members) for name, members in masks.items()}
    result["balanced_accuracy"] = group_accuracy(accuracy, np.ones(classes))
    result["macro_f1"] = macro_f1(hits, images, predicted)
    scores = {name: probability_metrics(logits, labels, name) for name in CONFIDENCES}
    result |= {**scores[activation], "activation": activation}
    result |= {f"{key}_{name}": value for name in scores for key, value in scores[name].items()}
    result["group_classes"] = {name: int(members.sum()) for name, members in masks.items()}
    result["per_class_accuracy"] = [None if np.isnan(value) else float(value) for value in accuracy]
    if classes <= MATRIX_MAX_CLASSES:
        result["confusion_matrix"] = confusion_matrix(predictions, labels, classes).tolist()
    return result


def format_table(rows, columns=("many", "medium", "few", "overall", "ece", "mce")):
    """Aligned plain text of {row name: result of evaluate_logits}: percent with one decimal, "-" for None or absent.

    NLL and Brier score have three decimals. A ValueError where no row knows a column, since that is a misspelt name.
    """
    for column in columns:
        if rows and not any(column in row for row in rows.values()):
            known = sorted({key for row in rows.values() for key in row})
            raise ValueError(f"unknown column {column!r}; expected one of {', '.join(known)}")
    lines = [["", *(column_title(column) for column in columns)]]
    lines += [[name, *(column_text(column, row.get(column)) for column in columns)] for name, row in rows.items()]
    return align(lines)


def align(lines: list[list[str]]) -> str:
    """A header and rows of cells as text: a rule below the header, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def column_title(column: str) -> str:
    """The name of a metric as a person reads it, with its unit: "few_le20" is "few (<=20) %"."""
    words = column.split("_")
    kind = next((word for word in words if word in UNITS), "percent")
    return " ".join(WORDS.get(word, word) for word in words) + UNITS.get(kind, " %")


def column_text(column: str, value) -> str:
    """A value of that metric for a table, "-" for None."""
    if value is None:
        return "-"
    digits = 3 if {"nll", "brier"} & set(column.split("_")) else 1
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    # The command needs the flags and with them the data sets, which users of the functions do not.
    from util.args import run_command
    from util.metrics_command import get_args_parser, main
    run_command(get_args_parser(), main)
