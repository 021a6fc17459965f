"""The pictures of util/report.py that compare runs, at the size of a printed column, and how other pictures get that size.

Every text of them is at least MIN_FONT points high where the figure is COLUMN or TEXT inches wide, as journals print it.
"""
import math
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from util.figures import BLACK, GROUP_COLORS
from util.figures import MARKERS as GROUP_MARKERS
from util.figures_compare import COLORS, MARKERS
from util.figures_pictures import MIN_FONT, TEXT, plain, save_print
from util.metrics import FEW_BELOW, MANY_ABOVE

COLUMN = 3.3  # inches: one column of a page of two, TEXT being the whole width
FONT, MAX_FONT = 8.0, 9.0
DASHES = ("-", "--", "-.", ":")
HIDDEN = 0.01  # of the height of a figure: lines as near lie on one another
MAX_LABEL = 48
MAX_LEGEND = 26  # entries below a column; more are taller than the figure
MIN_BANDWIDTH = 0.1  # decades
KNOTS = 200


def line_style(place: int) -> dict:
    """Colour, marker and dashes of the series at a place: 24 that can be told apart, then again."""
    kind, dash = place % len(COLORS), place // len(COLORS) % len(DASHES)
    return {"color": COLORS[kind], "marker": MARKERS[kind], "linestyle": DASHES[dash], "markersize": 4, "linewidth": 1.3}


def group_style(name: str) -> dict:
    """The same for "overall", "many", "medium" and "few"."""
    style = {"color": GROUP_COLORS.get(name, BLACK), "marker": GROUP_MARKERS[name], "markersize": 4}
    return style | {"linewidth": 1.2 if name in GROUP_COLORS else 2.0}


def smooth(counts, accuracy, at) -> np.ndarray:
    """Accuracy (C,) over class sizes (C,), smoothed at the sizes `at` (K,): means weighted by a Gaussian of log10 distance.

    Its deviation in decades is Scott's 1.06 sd C^(-1/5) over the log10 sizes, at least
    MIN_BANDWIDTH. A class of nan accuracy or without a training image does not count. ValueError where none is left.
    """
    counts, accuracy = np.asarray(counts, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    known = (counts > 0) & np.isfinite(accuracy)
    if not known.any():
        raise ValueError("no class has both a training and a test image; expected at least one to draw accuracy by size")
    sizes = np.log10(counts[known])
    distance = (np.log10(at)[:, None] - sizes) / max(MIN_BANDWIDTH, 1.06 * sizes.std() * len(sizes) ** -0.2)
    # The nearest class has weight 1, so that a gap of many decades is no 0 / 0.
    weights = np.exp(-0.5 * (distance**2 - (distance**2).min(axis=1, keepdims=True)))
    return weights @ accuracy[known] / weights.sum(axis=1)


def draw_frequency(classes: dict) -> Figure:
    """Accuracy against class frequency: {label: (training images (C,), accuracies (C,) in percent)}, a dot a class and
    `smooth` as a line."""
    figure, axis = column_axes()
    for place, (label, (counts, accuracy)) in enumerate(classes.items()):
        counts, style = np.asarray(counts, dtype=np.float64), line_style(place)
        known = (counts > 0) & np.isfinite(np.asarray(accuracy, dtype=np.float64))
        many = known.sum() > 200
        axis.plot(counts[known], np.asarray(accuracy)[known], linestyle="none", color=style["color"], marker=style["marker"],
                  markersize=2 if many else 4, alpha=0.35 if many else 0.7, markeredgewidth=0)
        at = np.geomspace(counts[known].min(), counts[known].max(), KNOTS)
        axis.plot(at, smooth(counts, accuracy, at), color=style["color"], linestyle=style["linestyle"], linewidth=1.8,
                  label=label)
    axis.set_xscale("log")
    plain_log(axis.xaxis)
    low, high = axis.get_xlim()
    for bound in (FEW_BELOW, MANY_ABOVE):
        if low < bound < high:
            axis.axvline(bound, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
    axis.set(xlabel="training images of the class (log scale)", ylabel="top-1 accuracy (%)", ylim=(-3, 103))
    return finish(figure, axis)


def draw_points(series: dict, xlabel: str, ylabel: str, log: bool, styles=line_style) -> Figure:
    """Lines with error bars over a setting: {label: [(x, mean, low, high)]}. styles(place or label): a line's style."""
    figure, axis = column_axes()
    for place, (label, points) in enumerate(series.items()):
        x, mean, low, high = np.array(points, dtype=np.float64).T
        style = styles(label) if styles is group_style else styles(place)
        axis.errorbar(x, mean, [mean - low, high - mean], capsize=2.5, label=label or None, **style)
    ticks = sorted({point[0] for points in series.values() for point in points})
    if log:
        axis.set_xscale("log")
        plain_log(axis.xaxis)
    if len(ticks) <= 8:
        spread = np.log(ticks) if log else np.array(ticks)
        apart = np.diff(spread).min() / (np.ptp(spread) or 1) if len(ticks) > 1 else 1
        if apart > 0.09:  # nearer ones would be written over each other
            axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return finish(figure, axis)


def draw_curves(curves: dict, ylabel: str, log: bool = False) -> Figure:
    """One line for each of {label: [(epochs, values) of a seed]}: the mean over seeds and, where there are some, their range.

    Values may be nan or None: a gap. Epochs that not all seeds have are means over those that have them. A line that lies on
    earlier ones is dashed, the more of them the sparser, so that all can be seen.
    """
    figure, axis = column_axes()
    lines = {label: over_seeds(seeds) for label, seeds in curves.items()}
    dashes = dashes_of([(epochs, np.log(mean) if log else mean) for epochs, mean, *_ in lines.values()])
    for place, ((label, (epochs, mean, low, high)), dash) in enumerate(zip(lines.items(), dashes, strict=True)):
        style = line_style(place)
        style["marker"] = style["marker"] if len(epochs) == 1 else None
        axis.plot(epochs, mean, label=label, **style | dash)
        if len(curves[label]) > 1:
            axis.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    if log:
        axis.set_yscale("log")
        plain_log(axis.yaxis)
    else:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        axis.yaxis.get_offset_text().set_fontsize(MIN_FONT)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set(xlabel="epoch (first = 0)", ylabel=ylabel)
    return finish(figure, axis)


def over_seeds(seeds: list[tuple]) -> tuple:
    """[(epochs, values) of a seed] -> (epochs of any of them, mean, lowest, highest), nan where no seed has a value."""
    epochs = np.unique([epoch for of_seed, _ in seeds for epoch in of_seed])
    table = np.full((len(seeds), len(epochs)), np.nan)
    for row, (of_seed, values) in zip(table, seeds, strict=True):
        row[np.searchsorted(epochs, of_seed)] = np.array(list(values), dtype=np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(All-NaN|Mean of empty).*", category=RuntimeWarning)
        return epochs, *(f(table, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))


def dashes_of(lines: list[tuple]) -> list[dict]:
    """Dashes for every line (epochs, values) that lies on earlier ones: half of it nearer than HIDDEN of the height of all."""
    every = np.concatenate([values[np.isfinite(values)] for _, values in lines])
    height, found = (np.ptp(every) if len(every) else 0.0), []
    for place, (epochs, values) in enumerate(lines):
        below = 0
        for there, others in lines[:place]:
            _, mine, theirs = np.intersect1d(epochs, there, return_indices=True)
            apart = np.abs(values[mine] - others[theirs])
            below += np.isfinite(apart).any() and np.nanmedian(apart) <= HIDDEN * height
        found.append({"linestyle": (0, (3, 3 * int(below)))} if below else {})
    return found


def column_axes():
    """(figure, axes) of a printed column."""
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axis = figure.subplots()
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
    return figure, axis


def plain_log(which) -> None:
    """Numbers instead of powers on a logarithmic axis, and of a decade or two more of them than its powers of ten."""
    low, high = which.get_data_interval()
    if high < 100 * low:
        which.set_major_locator(LogLocator(subs=(1, 2, 5)))
    which.set_major_formatter("{x:g}")
    which.set_minor_formatter(NullFormatter())


def finish(figure: Figure, axis) -> Figure:
    """Fonts of FONT points, and a legend below where there is a label, for which the figure grows."""
    axis.tick_params(labelsize=FONT - 0.5)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_fontsize(FONT)
    handles, labels = axis.get_legend_handles_labels()
    labels = [plain(label, MAX_LABEL) for label in labels]
    if len(labels) > 1 or (labels and labels != [""]):
        shown = labels[:MAX_LEGEND]
        columns = max(1, min(4, len(shown), 46 // (max(map(len, shown)) + 6)))
        rows = math.ceil(len(shown) / columns)
        figure.set_size_inches(COLUMN, 2.5 + 0.145 * rows)
        figure.legend(handles[:MAX_LEGEND], shown, loc="outside lower center", ncols=columns, fontsize=MIN_FONT,
                      frameon=False, columnspacing=1.0, handlelength=2.4, labelspacing=0.25, borderaxespad=0.1)
    return figure


def fit(figure: Figure, width: float = TEXT, square: bool = False) -> Figure:
    """A figure made for a screen, for print: at most `width` inches wide, its text MIN_FONT to MAX_FONT points high.

    It is laid out again, not shrunk. square: what it shows keeps its ratio of height to width.
    """
    old, height = figure.get_size_inches()
    scale = min(1.0, width / old)
    for axis in figure.axes:
        for which in (axis.xaxis, axis.yaxis):
            sizes = [label.get_fontsize() for label in which.get_ticklabels()]
            if sizes:
                which.set_tick_params(which="both", labelsize=print_font(sizes[0] * scale))
    for text in figure.findobj(Text):
        text.set_fontsize(print_font(text.get_fontsize() * scale))
    # Text that does not shrink along needs some of the height back.
    figure.set_size_inches(old * scale, height * (scale if square else math.sqrt(scale)))
    for legend in list(figure.legends):
        narrow(figure, legend, old * scale, loc="outside lower center")
    for axis in figure.axes:
        if axis.get_legend():
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24)}
            narrow(axis, axis.get_legend(), old * scale / len(figure.axes), **below)
    return figure


def print_font(size: float) -> float:
    """A font size within the bounds of print."""
    return min(MAX_FONT, max(MIN_FONT, size))


def narrow(owner, legend, width: float, **place) -> None:
    """A legend of a figure or of axes in as many columns as `width` inches have room for."""
    handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
    size = legend.get_texts()[0].get_fontsize()
    legend.remove()
    # A letter is about 0.55 of its height wide, a handle with its gaps six letters.
    room = int(width * 72 / (0.55 * size))
    columns = max(1, min(len(labels), room // (max(map(len, labels)) + 6)))
    owner.legend(handles, labels, ncols=columns, fontsize=size, frameon=False, **place)


def save_figure(figure: Figure, path) -> list[Path]:
    """`save_print`, without a warning for letters that the font has not: a box stands for each, and the page has the name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        return save_print(figure, path, tight=False)
