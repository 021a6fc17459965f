"""Rows of pictures: what the network sees, what it makes of it, and where it looks; conventions as in util/figures.py.

They are drawn at the size of print: at most TEXT inches wide as files, with texts of MIN_FONT points and more.
"""
import math
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

TEXT = 6.9  # inches: the width of a page
MIN_FONT = 7.0
EXAMPLES_PER_ROW = 8
SIDE = 1.25  # inches across one picture, where there is room for as much
NAMES = 1.1  # inches for the names of the rows, at least
PAD = 0.1  # inches around what is drawn, when the rest is cut off
LETTER = 0.6  # width of a letter by its height
PRINT_DPI = 300
MAX_CAPTION = 20


def draw_rows(rows: dict, title: str, captions=None, per_row: int = EXAMPLES_PER_ROW) -> Figure:
    """One row of pictures for each of {name: pictures}, one column for each of the K examples, cut into blocks.

    Pictures are (K, H, W, C) or (K, H, W) floats in [0, 1]; values outside are clipped, since a reconstruction
    overshoots. C = 3 is drawn in colour, any other number of channels as their mean in grey. Rows may differ in resolution,
    not in K nor in H / W. captions: K texts above the columns, their numbers by default. ValueError for what does not fit.
    """
    rows = {name: as_pictures(values, name) for name, values in rows.items()}
    shapes = {name: values.shape for name, values in rows.items()}
    if len({(shape[0], shape[1] / shape[2]) for shape in shapes.values()}) > 1:
        raise ValueError(f"pictures of shapes {shapes}; expected as many of each, of one ratio of height to width")
    count, height, width = next(iter(shapes.values()))[:3]
    captions = [str(i + 1) for i in range(count)] if captions is None else captions
    figure, axes = picture_axes(list(rows), captions, height / width, title, per_row)
    for sample in range(count):
        for axis, values in zip(axes[sample], rows.values(), strict=True):
            axis.imshow(values[sample], cmap="gray", vmin=0, vmax=1)
    return figure


def draw_overlays(pictures, maps, captions, title: str, scale: str) -> Figure:
    """Each of K pictures, and under it the same in grey below its map (K, h, w) of non-negative numbers.

    One colour scale for all of them, from 0 to the largest number, and `scale` says what it is.
    """
    pictures, maps = as_pictures(pictures, "pictures"), np.asarray(maps, dtype=np.float64)
    count, height, width = pictures.shape[:3]
    if maps.ndim != 3 or len(maps) != count or not (np.isfinite(maps) & (maps >= 0)).all():
        raise ValueError(f"maps of shape {maps.shape}; expected ({count}, h, w), finite and not negative")
    gray = pictures.mean(axis=3) if pictures.ndim == 4 else pictures
    figure, axes = picture_axes(["image", "attention"], captions, height / width, title, EXAMPLES_PER_ROW)
    for sample in range(count):
        upper, lower = axes[sample]
        upper.imshow(pictures[sample], cmap="gray", vmin=0, vmax=1)
        lower.imshow(gray[sample], cmap="gray", vmin=0, vmax=1)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        # Whole patches, because a patch is the finest that attention tells apart.
        shown = lower.imshow(maps[sample], cmap="inferno", vmin=0, vmax=maps.max(), alpha=0.6, extent=extent)
    bar = figure.colorbar(shown, ax=figure.axes, shrink=0.9, aspect=40)
    bar.set_label(scale, fontsize=8)
    bar.ax.tick_params(labelsize=MIN_FONT)
    return figure


def picture_axes(names: list[str], captions: list[str], ratio: float, title: str, per_row: int):
    """(figure, axes[example] -> the axes of its rows from top to bottom) without ticks or frames.

    ratio: height over width of a picture. Blocks of at most per_row examples stand below one another, and captions are cut
    to the width of a picture.
    """
    count, rows = len(captions), len(names)
    blocks, across = math.ceil(count / per_row), min(count, per_row)
    beside = max(NAMES, max(len(line) for name in names for line in name.split("\n")) * LETTER * 8 / 72)
    side = min(SIDE, (TEXT - 2 * PAD - beside) / across)
    letters = min(MAX_CAPTION, int(side * 72 / (LETTER * MIN_FONT)))
    lines = max(caption.count("\n") for caption in captions)
    size = (max(side * across, 2.5) + beside, blocks * (rows * side * ratio + 0.3 + 0.12 * lines) + 0.5)
    figure = Figure(figsize=size, layout="compressed")
    figure.suptitle(textwrap.fill(plain(title), int(size[0] * 72 / (LETTER * 9))), fontsize=9)
    axes = figure.subplots(rows * blocks, across, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    columns = []
    for sample, caption in enumerate(captions):
        block, column = divmod(sample, across)
        columns.append(axes[rows * block:rows * (block + 1), column])
        columns[-1][0].set_title("\n".join(plain(line, letters) for line in caption.split("\n")), fontsize=MIN_FONT)
        if column == 0:
            for axis, name in zip(columns[-1], names, strict=True):
                axis.set_ylabel(plain(name), fontsize=8, rotation=0, ha="right", va="center")
    return figure, columns


def save_print(figure: Figure, path, tight: bool = True) -> list[Path]:
    """Write FILE.png and FILE.pdf, both at 300 dots an inch, and return the two. ValueError where that cannot be.

    tight: cut off at what is drawn, else exactly the size of the figure. Fonts of the PDF are TrueType, as publishers ask.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf"):
        raise ValueError(f"--out takes FILE.png (a PDF is written beside it), not {path}")
    paths = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"pdf.fonttype": 42}):
            for target in paths:
                figure.savefig(target, dpi=PRINT_DPI, bbox_inches="tight" if tight else None, pad_inches=PAD)
                figure.set_layout_engine("none")  # laid out once is enough, and takes most of the time
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): give another --out") from None
    return paths


def plain(text: str, length: int = 200) -> str:
    """Its middle cut out beyond `length`, and dollars escaped: matplotlib reads what is between two as mathematics."""
    if len(text) > length:
        text = f"{text[: length // 2]}…{text[length // 2 + 1 - length :]}"
    return text.replace("$", r"\$")


def as_pictures(values, name: str) -> np.ndarray:
    """(K, H, W) or (K, H, W, 3) float64 in [0, 1]. ValueError for other shapes, integers or nan."""
    values = np.asarray(values)
    if values.ndim not in (3, 4) or 0 in values.shape or values.dtype.kind != "f" or np.isnan(values).any():
        found = f"{name}: shape {values.shape} of {values.dtype}"
        raise ValueError(f"{found}; expected (K, H, W) or (K, H, W, C) of floats in [0, 1] without nan")
    if values.ndim == 4 and values.shape[3] != 3:
        values = values.mean(axis=3)
    return np.clip(values.astype(np.float64), 0, 1)
