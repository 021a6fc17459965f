"""Accuracy of a linear classifier on a trained encoder's features.

    python -m util.linprobe --checkpoint runs/mgp/last.pth --balanced

Features are standardised by the training images, as the batch norm without scale and shift of MAE's linear probe does, and
scikit-learn's logistic regression is fitted to its optimum. Its C is chosen on a fifth of each training class.
"""
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from datasets.longtail import hold_out
from util import metrics
from util.args import Parser, run_command
from util.probes import Features, add_probe_flags, probes, report
from util.run import say

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
EPSILON = 1e-6  # beside the variance, as in MAE's probe
MAX_ITERATIONS = 1000
HELD_OUT = 0.2  # of each class, as --val_fraction holds out


def standardise(train: torch.Tensor, test: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both (N, D) in float64, minus the mean of the training rows and over their deviation."""
    train, test = train.double().cpu(), test.double().cpu()
    variance, mean = torch.var_mean(train, dim=0, correction=0)
    scale = (variance + EPSILON).rsqrt()
    return ((train - mean) * scale).numpy(), ((test - mean) * scale).numpy()


def linear_logits(x: np.ndarray, y: np.ndarray, queries: np.ndarray, num_classes: int, C: float, balanced: bool) -> np.ndarray:
    """Logits (M, num_classes) of queries (M, D) by a logistic regression fitted to x (N, D), y (N,).

    balanced: every class weighs alike in the fit. A class without a training image comes last everywhere. ValueError
    where there are not two classes.
    """
    if len(np.unique(y)) < 2:
        raise ValueError("a linear probe needs training images of at least two classes")
    model = LogisticRegression(C=C, class_weight="balanced" if balanced else None, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    if model.n_iter_.max() >= MAX_ITERATIONS:
        say(f"note: the fit at C {C:g} stopped after {MAX_ITERATIONS} iterations, short of its optimum")
    scores = model.decision_function(queries)
    if scores.ndim == 1:  # two classes: the log-odds of the second
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    logits = np.full((len(queries), num_classes), scores.min() - 1)
    logits[:, model.classes_] = scores
    return logits


def choose_C(x: np.ndarray, y: np.ndarray, num_classes: int, balanced: bool, grid=GRID) -> float:
    """The C of the grid with the best mean accuracy over classes on a held-out fifth of each class; of equals the smallest.

    ValueError where no class has two images.
    """
    fit, held = hold_out(y, np.bincount(y, minlength=num_classes), HELD_OUT)
    if not len(held):
        raise ValueError("no class has a second training image to hold out for choosing C: give --C")
    accuracy = {}
    for C in sorted(grid):
        predicted = linear_logits(x[fit], y[fit], x[held], num_classes, C, balanced).argmax(axis=1)
        accuracy[C] = np.nanmean(metrics.per_class_accuracy(metrics.confusion_matrix(predicted, y[held], num_classes)))
    best = max(accuracy, key=accuracy.get)
    say(f"C {best:g}, by the mean accuracy over classes on {len(held)} held-out training images: "
        + ", ".join(f"{C:g}: {value:.1f} %" for C, value in accuracy.items()))
    return best


def probe_logits(train: Features, queries: torch.Tensor, num_classes: int, C: float | None, balanced: bool) -> np.ndarray:
    """Logits (M, num_classes) of queries (M, D); C None is chosen by `choose_C`, and the fit then uses all of train."""
    x, test = standardise(train.values, queries)
    y = train.labels.numpy()
    C = choose_C(x, y, num_classes, balanced) if C is None else C
    return linear_logits(x, y, test, num_classes, C, balanced)


def main(args) -> dict[str, dict]:
    """Print the table; returns {row: result of metrics.evaluate_logits}."""
    if args.C is not None and not 0 < args.C < float("inf"):
        raise ValueError(f"--C must be a finite number above 0, not {args.C:g}")
    results = {}
    for probe in probes(args):
        classes = len(probe.class_counts)
        logits = probe_logits(probe.train, probe.test.values, classes, args.C, args.balanced)
        results[f"linear probe{', balanced' * args.balanced}, {probe.name}"] = metrics.evaluate_logits(
            logits, probe.test.labels, probe.class_counts)
    report(results)
    return results


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("linear-probe accuracy of a trained encoder")
    add_probe_flags(parser)
    parser.add_argument("--balanced", action="store_true", help="every class weighs alike in the fit, however small")
    parser.add_argument("--C", type=float, help="inverse strength of the penalty; chosen on a fifth of the training images, "
                        "never on the evaluated ones, where it is not given")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
