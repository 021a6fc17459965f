"""Figures 4 and 5 of the paper: the biases of Bal-CE and Bal-BCE (Eq. 3 and 10, appendix B), as the losses hold them.

    python -m submit.bias_figures --output_dir DIR

    B^ce = log pi + log C        B^bce = log pi - log(1 - pi) + log(C - 1)
"""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets.longtail import longtail_counts
from util.args import Parser, run_command
from util.figures_compare import COLORS, MARKERS, save
from util.losses import build_loss
from util.run import RunFolder, say

CLASSES = 1000  # Figure 4
CIFAR = {"n_max": 5000, "num_classes": 10}  # Figure 5, with factors
FACTORS = (10, 50, 100, 200)
LOSSES = {"bal_ce": r"$\mathcal{B}^{\mathrm{ce}}$ (Bal-CE)", "bal_bce": r"$\mathcal{B}^{\mathrm{bce}}$ (Bal-BCE)"}
RIGHT_AXIS = 2.5  # nats of a bias to one of Delta, on the height of the paper
GAP = r"$\Delta = \mathcal{B}^{\mathrm{bce}} - \mathcal{B}^{\mathrm{ce}}$"


def biases(class_counts) -> dict[str, np.ndarray]:
    """{loss: bias (C,) float32 in nats} for a uniform test prior, read from the buffers that training adds to the logits."""
    return {name: build_loss(name, class_counts).bias.numpy() for name in LOSSES}


def biases_over_prior(priors, num_classes=CLASSES) -> dict[str, np.ndarray]:
    """{loss: bias (P,)} of a class of prior pi, for each of priors (P,) in (0, 1); the other classes share the rest."""
    values = [biases([pi] + [(1 - pi) / (num_classes - 1)] * (num_classes - 1)) for pi in priors]
    return {name: np.array([value[name][0] for value in values]) for name in LOSSES}


def biases_over_factor(factors=FACTORS) -> dict[float, dict[str, np.ndarray]]:
    """{imbalance factor: {loss: bias (10,)}} of CIFAR-10-LT, largest class first."""
    return {factor: biases(longtail_counts(factor=factor, **CIFAR)) for factor in factors}


def draw_over_prior() -> Figure:
    """Figure 4: both biases over the prior of a class, C = 1,000; on a log axis the tail shows, on a linear one the head."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    priors = 1 / (1 + np.exp(-np.linspace(-11.5, 7, 150)))  # even in the log-odds: dense at either end
    values = biases_over_prior(priors)
    for axis, scale in zip(axes, ("log", "linear"), strict=True):
        for place, name in enumerate(LOSSES):
            axis.plot(priors, values[name], color=COLORS[place], linestyle=("-", "--")[place], linewidth=2, label=LOSSES[name])
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set(xscale=scale, xlabel=rf"prior $\pi$ of the class ({scale} axis)")
        axis.grid(color="#cccccc", linewidth=0.6)
    axes[0].axvline(1 / CLASSES, color="#999999", linewidth=0.8, linestyle=":")
    axes[0].annotate(r"$\pi = 1/C$: both are 0", (1 / CLASSES, 0), (2e-5, 5), fontsize=9,
                     arrowprops={"arrowstyle": "->", "color": "#666666"})
    axes[0].set(ylabel="bias on the logit")
    axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"Bias of a class over its prior, C = {CLASSES:,} (Figure 4)", fontsize=12)
    return figure


def draw_over_factor(factors=FACTORS) -> Figure:
    """Figure 5: both biases of each class of CIFAR-10-LT, their difference on the right axis, one panel a factor."""
    figure = Figure(figsize=(3.1 * len(factors) + 1, 4.2), layout="constrained")
    axes = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    values, rights = biases_over_factor(factors), []
    for axis, factor in zip(axes, factors, strict=True):
        classes, right = np.arange(CIFAR["num_classes"]), axis.twinx()
        bars = right.bar(classes, values[factor]["bal_bce"] - values[factor]["bal_ce"], color="#bbbbbb", width=0.7,
                         label=f"{GAP} (right axis)")
        lines = [axis.plot(classes, value, color=COLORS[place], marker=MARKERS[place], markersize=5, label=LOSSES[name])[0]
                 for place, (name, value) in enumerate(values[factor].items())]
        axis.set_zorder(right.get_zorder() + 1)  # lines over bars
        axis.patch.set_visible(False)
        axis.set(title=rf"$\gamma$ = {factor:g}", xlabel="class (0 = largest)", xticks=classes)
        axis.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        right.tick_params(labelright=axis is axes[-1])
        rights.append(right)
    for right in rights:  # both axes have their zero at one height, and the bars end below the lines
        right.set_ylim(*(limit / RIGHT_AXIS for limit in axes[0].get_ylim()))
    axes[0].set_ylabel("bias on the logit")
    right.set_ylabel(GAP)
    figure.suptitle("Biases of the classes of CIFAR-10-LT over the imbalance factor (Figure 5)", fontsize=12)
    figure.legend(handles=[*lines, bars], loc="outside lower center", ncols=3, frameon=False)
    return figure


def main(args) -> list[Path]:
    """Write both figures and return their paths."""
    folder = Path(args.output_dir)
    RunFolder(folder).check_writable()
    paths = [save(draw_over_prior(), folder / "figure4_bias_over_prior.png"),
             save(draw_over_factor(), folder / "figure5_bias_over_factor.png")]
    for path in paths:
        say(f"wrote {path}")
    return paths


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("Figures 4 and 5 of the paper: the biases of Bal-CE and Bal-BCE")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the two PNG files go")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
