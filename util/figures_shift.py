"""The picture of util/shift.py; same conventions as util/figures_compare.py."""
from pathlib import Path

from matplotlib.figure import Figure

from util.figures_compare import COLORS, MARKERS, save

LINES = {"as_is": "as is", "known": "test prior known (Thm. 3)", "estimated": "test prior estimated (EM)"}


def shifted_accuracy(path, rows: list[dict], title: str) -> Path:
    """Accuracy (percent) over test distributions, from forward to backward: rows of `util.shift.shift_table`, in order."""
    return save(draw_shifted_accuracy(rows, title), path)


def draw_shifted_accuracy(rows: list[dict], title: str) -> Figure:
    """The figure of `shifted_accuracy`: one line an answer, the distributions evenly spaced."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axis = figure.subplots()
    places = range(len(rows))
    for (key, label), color, marker in zip(LINES.items(), COLORS, MARKERS, strict=False):
        # EM often lies on top of the known prior: hollow, larger markers below show that it is there.
        style = {"markerfacecolor": "none", "markersize": 9, "linestyle": "--"} if key == "estimated" else {"markersize": 5}
        axis.plot(places, [row[key] for row in rows], color=color, marker=marker, label=label, **style)
    axis.set_xticks(places, [f"{row['factor']:g}" for row in rows])
    middle = [place for place, row in zip(places, rows, strict=True) if row["direction"] == "uniform"]
    for place in middle:
        axis.axvline(place, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    # An unescaped dollar would begin mathematics.
    axis.set(title=f"{title}: accuracy over test distributions".replace("$", r"\$"),
             ylabel="top-1 accuracy (%), weighted by class",
             xlabel="forward (as the training set)  \N{LEFTWARDS ARROW}  imbalance factor of the test set  "
                    "\N{RIGHTWARDS ARROW}  backward (reversed)")
    axis.grid(axis="y", color="#cccccc", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure
