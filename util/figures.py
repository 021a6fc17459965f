"""The pictures of a run: each function writes one file (PNG, or what the path's suffix says) and returns its path.

Drawn through matplotlib's object API, so nothing global is touched and no display is needed. Each `name(path, ...)`
saves what `draw_name(...)` returns as a Figure, for TensorBoard and tests. Accuracies and errors are in percent.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from util.figures_pictures import PRINT_DPI, draw_rows
from util.figures_pictures import plain as _plain
from util.metrics import FEW_BELOW, MANY_ABOVE, group_accuracy, groups

# Okabe and Ito's palette: told apart with every kind of colour blindness, and of different brightness in grey print.
BLUE, ORANGE, PURPLE, VERMILION, BLACK = "#0072B2", "#E69F00", "#CC79A7", "#D55E00", "#222222"
GROUP_COLORS = {"many": BLUE, "medium": ORANGE, "few": PURPLE}
MARKERS = {"overall": "o", "many": "s", "medium": "^", "few": "v"}
GROUP_SIZES = {"many": f"> {MANY_ABOVE} images", "medium": f"{FEW_BELOW} to {MANY_ABOVE}", "few": f"< {FEW_BELOW}"}
NAMED_CLASSES = 30  # above it class names would not be legible; a rank axis stands instead
NUMBERED_CELLS = 20
MAX_BARS = 400  # more bars than that are thinner than a printed line
MAX_NAME = 24


def reconstructions(path, images, masked, reconstructed, title):
    """Rows of image, masked image and reconstruction. Arrays (K, H, W, C) or (K, H, W), floats in [0, 1].

    Drawn as `util.figures_pictures.draw_rows` says; a ValueError as there.
    """
    return _save(draw_reconstructions(images, masked, reconstructed, title), path, PRINT_DPI)


def draw_reconstructions(images, masked, reconstructed, title):
    """The Figure of `reconstructions`."""
    return draw_rows({"image": images, "masked": masked, "reconstruction": reconstructed}, title)


def training_curves(path, records):
    """Training loss, learning rate and, where any record has "eval", accuracies over the epochs.

    records: the objects of log.jsonl: "epoch" (from 0), "train_loss", "lr", and "eval" {"overall", "many", "medium",
    "few"} in percent in the epochs that evaluated. A group that is None throughout is left out. A ValueError if empty.
    """
    return _save(draw_training_curves(records), path)


def draw_training_curves(records):
    """The Figure of `training_curves`."""
    if not records:
        raise ValueError("no records to draw; expected at least one epoch in log.jsonl")
    evaluated = [record for record in records if record.get("eval")]
    figure = Figure(figsize=(12.6 if evaluated else 8.4, 3.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    axes = figure.subplots(1, 3 if evaluated else 2)
    epochs = [record["epoch"] for record in records]
    # A line without markers shows nothing of a single epoch.
    style = {"marker": "o" if len(records) <= 25 else None, "markersize": 4, "color": BLUE}
    axes[0].plot(epochs, _floats(record["train_loss"] for record in records), **style)
    axes[0].set(title="training loss", ylabel="loss (mean over images)")
    axes[1].plot(epochs, _floats(record["lr"] for record in records), **style)
    axes[1].set(title="learning rate", ylabel="learning rate (highest group)", ylim=(0, None))
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if evaluated:
        _draw_accuracies(axes[2], evaluated)
    for axis in axes:
        axis.set_xlabel("epoch (first = 0)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        margin = max(0.5, 0.03 * (max(epochs) - min(epochs)))
        axis.set_xlim(min(epochs) - margin, max(epochs) + margin)
    _grid(*axes)
    return figure


def _draw_accuracies(axis, evaluated):
    epochs = [record["epoch"] for record in evaluated]
    every = max(1, len(epochs) // 12)
    for name, marker in MARKERS.items():
        values = _floats(record["eval"].get(name) for record in evaluated)
        if np.isnan(values).all():
            continue
        style = {"marker": marker, "markevery": every, "markersize": 5}
        style |= {"color": GROUP_COLORS.get(name, BLACK), "linewidth": 1.4 if name in GROUP_COLORS else 2.2}
        axis.plot(epochs, values, label=name, **style)
    axis.set(title="accuracy on the evaluation set", ylabel="top-1 accuracy (%)", ylim=(0, 100))
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False, columnspacing=1)


def per_class_accuracy(path, accuracy, class_counts, class_names):
    """Accuracy (C,) in percent of every class, largest training set first, with the training images on a log axis.

    nan or None is a class without test images. Up to 30 classes are named; above 400, a bar is the mean over
    neighbouring classes of one group. A ValueError where the three lengths differ.
    """
    return _save(draw_per_class_accuracy(accuracy, class_counts, class_names), path)


def draw_per_class_accuracy(accuracy, class_counts, class_names):
    """The Figure of `per_class_accuracy`."""
    counts, names, order = _sorted_classes(class_counts, class_names)
    accuracy = np.asarray(accuracy, dtype=np.float64)
    if accuracy.shape != counts.shape:
        raise ValueError(f"accuracies of shape {accuracy.shape} for {len(counts)} classes; expected one a class")
    accuracy, counts, classes = accuracy[order], counts[order], len(counts)
    named = classes <= NAMED_CLASSES
    figure = Figure(figsize=(max(7.5, 0.42 * classes + 2.5) if named else 11, 5), layout="constrained")
    axis = figure.subplots()
    ranks, merged = np.arange(1, classes + 1), math.ceil(classes / MAX_BARS)
    _draw_group_bars(axis, ranks, accuracy, counts, merged, gap=0.2 if named else 0.0)
    mean = np.nanmean(accuracy)
    axis.axhline(mean, color=VERMILION, linestyle="--", linewidth=1.5, label=f"mean over classes: {mean:.1f} %")
    axis.set(title="accuracy by class, largest class first", ylabel="top-1 accuracy (%)", ylim=(0, 100))
    axis.set_xlim(0.5, classes + 0.5)
    _grid(axis)
    if named:
        axis.set_xticks(ranks, [names[i] for i in order], rotation=45, ha="right", rotation_mode="anchor")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
        for rank, value in zip(ranks, accuracy, strict=True):
            text = "n/a" if np.isnan(value) else f"{value:.0f}"
            axis.text(rank, 1.5, text, ha="center", fontsize=8, bbox=box, zorder=5)
    else:
        note = f"; a bar is the mean of up to {merged} classes" if merged > 1 else ""
        axis.set_xlabel(f"rank of the class by training images (1 = largest{note})")
    _draw_counts(axis.twinx(), ranks, counts, named)
    figure.legend(loc="outside lower center", ncols=2 if named else 4, fontsize=9, frameon=False)
    return figure


def _draw_group_bars(axis, ranks, accuracy, counts, merged, gap):
    for name, members in groups(counts).items():
        if not members.any():
            continue
        parts = np.array_split(ranks[members], math.ceil(members.sum() / merged))
        left = [part[0] - 0.5 + gap / 2 for part in parts]
        width = [len(part) - gap for part in parts]
        # None where no class of the part has a test image: no bar.
        heights = _floats(group_accuracy(accuracy[part - 1], np.ones(len(part))) for part in parts)
        mean = group_accuracy(accuracy, members)
        label = f"{name} ({GROUP_SIZES[name]}): " + ("no test image" if mean is None else f"mean {mean:.1f} %")
        axis.bar(left, heights, width, align="edge", color=GROUP_COLORS[name], label=label, zorder=2)


def _draw_counts(axis, ranks, counts, named):
    style = {"marker": "D", "markersize": 5, "markeredgecolor": "white"} if named else {}
    axis.plot(ranks, counts, color=BLACK, linewidth=1.4, **style)
    axis.set_yscale("log", nonpositive="mask")
    axis.margins(y=0.14)  # keeps the line off the numbers at the foot of the bars
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("training images (black line, log scale)")


def reliability_diagram(path, calibrations):
    """One diagram for each of {name: Calibration}: accuracy by confidence bin, its gap to the mean confidence of the
    bin (the gaps weighted by the share of images underneath are the ECE), and the diagonal of perfect calibration.

    A ValueError where there is none.
    """
    return _save(draw_reliability_diagram(calibrations), path)


def draw_reliability_diagram(calibrations):
    """The Figure of `reliability_diagram`."""
    if not calibrations:
        raise ValueError("no calibration to draw; expected at least one")
    rows, across = math.ceil(len(calibrations) / 4), min(len(calibrations), 4)
    figure = Figure(figsize=(3.6 * across + 0.8, 4.9 * rows + 0.3), layout="constrained")
    axes = figure.subplots(2 * rows, across, squeeze=False, height_ratios=[3, 1] * rows)
    for axis in axes[-2:, (len(calibrations) - 1) % across + 1 :].flat:
        axis.remove()
    for i, (name, result) in enumerate(calibrations.items()):
        row, column = divmod(i, across)
        _draw_reliability(axes[2 * row, column], axes[2 * row + 1, column], _plain(name, 40), result)
        if column == 0:
            axes[2 * row, 0].set_ylabel("accuracy (%)")
            axes[2 * row + 1, 0].set_ylabel("images (%)")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=1 if across == 1 else 3, fontsize=9, frameon=False)
    return figure


def _draw_reliability(upper, lower, name, result):
    bins = len(result.count)
    left, width = 100.0 * np.arange(bins) / bins, 100.0 / bins
    bar = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    upper.bar(left, result.accuracy, color=BLUE, label="accuracy", **bar)
    gap = bar | {"facecolor": "none", "edgecolor": VERMILION, "hatch": "////", "linewidth": 0.8, "zorder": 3}
    upper.bar(left, result.confidence - result.accuracy, bottom=result.accuracy, label="gap to mean confidence", **gap)
    upper.plot([0, 100], [0, 100], color=BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    upper.set_title(f"{name}\nECE {result.ece:.1f} %, MCE {result.mce:.1f} %", fontsize=10)
    upper.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20))
    lower.bar(left, 100.0 * result.count / result.count.sum(), color="#777777", **bar)
    lower.set(xlim=(0, 100), xticks=range(0, 101, 20), xlabel="confidence (%)")
    _grid(upper, lower)


def confusion(path, matrix, class_names, class_counts):
    """Confusion matrix (C, C) of image numbers (rows = true class) in percent of each row, largest class first.

    Up to 20 classes have numbers in the cells and up to 30 have names, the true ones with their training images. A row
    without test images is grey. A ValueError where the lengths differ.
    """
    return _save(draw_confusion(matrix, class_names, class_counts), path)


def draw_confusion(matrix, class_names, class_counts):
    """The Figure of `confusion`."""
    counts, names, order = _sorted_classes(class_counts, class_names)
    matrix, classes = np.asarray(matrix, dtype=np.float64), len(counts)
    if matrix.shape != (classes, classes):
        raise ValueError(f"a confusion matrix of shape {matrix.shape}; expected {(classes, classes)}")
    share = matrix[np.ix_(order, order)]
    share[share.sum(axis=1) == 0] = np.nan
    share *= 100.0 / share.sum(axis=1, keepdims=True)
    named = classes <= NAMED_CLASSES
    size = max(4.5, 0.36 * classes + 1.5) if named else 7
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#bbbbbb")  # what shows where a row is nan
    box = (0.5, classes + 0.5, classes + 0.5, 0.5)
    # Square-root colours: a class that loses 5 % to another should be seen beside a diagonal of 90 %.
    image = axis.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100), extent=box)
    bar = figure.colorbar(image, ax=axis, ticks=[0, 1, 5, 10, 25, 50, 75, 100], shrink=0.85)
    bar.set_label("share of the true class (%, square-root colour scale)")
    if named:
        ticks = range(1, classes + 1)
        axis.set_xticks(ticks, [names[i] for i in order], rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, [f"{names[i]} ({counts[i]:.0f})" for i in order])
        axis.set(xlabel="predicted class", ylabel="true class (training images)")
    else:
        axis.set(xlabel="rank of the predicted class (1 = largest)", ylabel="rank of the true class (1 = largest)")
    axis.set_title("confusion matrix, largest class first")
    if classes <= NUMBERED_CELLS:
        for row, column in zip(*np.nonzero(~np.isnan(share)), strict=True):
            style = {"color": "white" if share[row, column] > 45 else BLACK, "fontsize": 8}
            axis.text(column + 1, row + 1, f"{share[row, column]:.0f}", ha="center", va="center", **style)
    return figure


def _save(figure, path, dpi=150):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, format=path.suffix[1:] or "png", bbox_inches="tight")
    return path


def _floats(values):
    return np.array(list(values), dtype=np.float64)  # None becomes nan


def _grid(*axes):
    for axis in axes:
        axis.grid(axis="y", color="#cccccc", linewidth=0.6)
        axis.set_axisbelow(True)


def _sorted_classes(class_counts, class_names):
    """Counts (C,), legible names, and the order from the largest class to the smallest (ties by index)."""
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.shape != (len(class_names),):
        raise ValueError(f"{counts.shape} class counts for {len(class_names)} class names; expected as many of both")
    return counts, [_plain(name, MAX_NAME) for name in class_names], np.argsort(-counts, kind="stable")
