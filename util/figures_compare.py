"""Pictures of several runs side by side; same conventions as util/figures.py."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from util.metrics import groups

# Okabe and Ito's palette again, one colour and marker a run.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P")


def class_accuracies(path, accuracies: dict, class_counts, class_names, title: str) -> Path:
    """Per-class accuracy of several models, largest class first: {name: accuracies (C,) in percent}, counts (C,)."""
    return save(draw_class_accuracies(accuracies, class_counts, class_names, title), path)


def draw_class_accuracies(accuracies: dict, class_counts, class_names, title: str) -> Figure:
    """The Figure of `class_accuracies`."""
    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    masks = groups(counts)
    group_of = [next(name for name, members in masks.items() if members[k]) for k in range(len(counts))]
    figure = Figure(figsize=(max(8.0, 0.75 * len(counts) + 2), 4.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(accuracies)
    for place, (name, values) in enumerate(accuracies.items()):
        left = np.arange(len(counts)) + (place - (len(accuracies) - 1) / 2) * width
        axis.bar(left, np.asarray(values, dtype=float)[order], width, color=COLORS[place], label=name, zorder=2)
    axis.set_xticks(range(len(counts)), [f"{class_names[k]}\n{counts[k]:,} ({group_of[k]})" for k in order], fontsize=8,
                    rotation=35, ha="right", rotation_mode="anchor")
    axis.set(title=title, ylabel="top-1 accuracy (%)", ylim=(0, 100), xlabel="class, its training images and group")
    axis.grid(axis="y", color="#cccccc", linewidth=0.6)
    figure.legend(loc="outside upper right", ncols=len(accuracies), fontsize=9, frameon=False)
    return figure


def curves(path, series: dict, title: str, xlabel: str, ylabel: str, log_x: bool = False) -> Path:
    """Mean and range over seeds of several series: {name: {x: [one value a seed]}}."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for place, (name, points) in enumerate(series.items()):
        x = sorted(points)
        means = [np.mean(points[value]) for value in x]
        below = [mean - min(points[value]) for value, mean in zip(x, means, strict=True)]
        above = [max(points[value]) - mean for value, mean in zip(x, means, strict=True)]
        axis.errorbar(x, means, [below, above], color=COLORS[place], marker=MARKERS[place], capsize=4, label=name)
    if log_x:
        axis.set_xscale("log")
    ticks = sorted({value for points in series.values() for value in points})
    axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axis.minorticks_off()
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(color="#cccccc", linewidth=0.6)
    axis.legend(frameon=False)
    return save(figure, path)


def save(figure: Figure, path) -> Path:
    """Write the figure, its folder made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
