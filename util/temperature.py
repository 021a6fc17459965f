r"""Temperature scaling: one number T that divides all logits, fitted on held-out images, never on those it is reported on.

    python main_finetune.py @recipes/embedded/finetune.args --eval --resume runs/bft/last.pth --split val \
        --output_dir runs/bft_val
    python -m util.temperature --fit runs/bft_val --apply runs/bft

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, by the loss's activation: T minimises the log-loss of
softmax(z / T), or the summed binary log-losses of sigmoid(z / T). The answers stay as they are. metrics.json of --apply keeps
its numbers and gets a "temperature" beside them: T, what it was fitted on, and the calibration before and after.
A slice of a long-tailed training set (--val_fraction) is long-tailed too; where test images are spread over the classes
otherwise, which the command tells, the temperature of the one may make the other worse.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.args import Parser, run_command
from util.arrays import as_labels, as_logits, check_pair, row_blocks
from util.calibration import check_activation, probability_metrics
from util.metrics import format_table
from util.predictions import Predictions, read_json, read_predictions
from util.run import RunFolder, say

LOWEST, HIGHEST = 1e-3, 1e3  # temperatures beyond say that the log-loss has no minimum
MAX_STEPS = 200
APART = 0.1  # total variation distance of two class distributions, beyond chance, from which it is told
COLUMNS = ("nll", "brier", "ece", "mce", "classwise_ece")


class Fit(NamedTuple):
    """temperature: T; steps: passes over the logits that the search took."""
    temperature: float
    steps: int


def slope(logits, labels, activation, beta: float) -> tuple[float, float]:
    """First and second derivative by beta of the mean log-loss of beta z, float64. logits (N, C), labels (N,).

    Softmax: mean of E_p[z] - z_y and of Var_p[z]; sigmoid: of sum_k s_k z_k - z_y and of sum_k s_k (1 - s_k) z_k^2.
    """
    first = second = 0.0
    for rows in row_blocks(logits):
        z = logits[rows].astype(np.float64)
        if activation == "softmax":
            z -= z.max(axis=1, keepdims=True)  # a constant a row changes neither
        own = np.take_along_axis(z, labels[rows, None], axis=1)
        if activation == "softmax":
            p = np.exp(beta * z)
            p /= p.sum(axis=1, keepdims=True)
            mean = (p * z).sum(axis=1, keepdims=True)
            first += float((mean - own).sum())
            second += float((p * (z - mean) ** 2).sum())
        else:
            small = np.exp(-beta * np.abs(z))  # never overflows
            s = np.where(z >= 0, 1.0, small) / (1.0 + small)
            first += float((s * z).sum() - own.sum())
            second += float((small / (1.0 + small) ** 2 * z * z).sum())
    return first / len(logits), second / len(logits)


def fit_temperature(logits, labels, activation="softmax") -> Fit:
    """The T that minimises the mean log-loss of logits / T, logits (N, C), labels (N,), in float64.

    The loss is convex in 1 / T, so its slope has one root: Newton's steps within a bracket that every step narrows, halved
    (as logarithms) where they leave it, until 1 / T moves by less than 1e-12 of itself.
    ValueError where there is no minimum in [0.001, 1000]: every image right (the surer the better), or logits that know
    less of the labels than none at all; and as `util.calibration.probability_metrics`.
    """
    check_activation(activation)
    logits, labels = as_logits(logits), as_labels(labels)
    check_pair(logits, labels)
    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(logits, labels, activation, high)[0] <= 0:
        raise ValueError(f"the log-loss of these {len(labels)} images falls as the temperature goes to 0, so none is best (is "
                         "every image right?): fit on held-out images, more of them")
    if slope(logits, labels, activation, low)[0] >= 0:
        raise ValueError(f"the log-loss of these {len(labels)} images falls as the temperature grows without end: the logits "
                         "tell nothing of the labels (is this the right model and split?)")
    beta = 1.0
    for step in range(1, MAX_STEPS + 1):
        first, second = slope(logits, labels, activation, beta)
        low, high = (low, beta) if first > 0 else (beta, high)
        newton = beta - first / second if second > 0 else 0.0
        after = newton if low <= newton <= high else math.sqrt(low * high)
        moved, beta = abs(after - beta), after
        if moved <= 1e-12 * beta:
            return Fit(1 / beta, step + 2)
    raise ValueError(f"no temperature found in {MAX_STEPS} steps, the last at {1 / beta:g}: the logits are hardly real numbers")


def check_held_out(fit: Predictions, test: Predictions) -> None:
    """ValueError unless `fit` holds other images than `test`, of the same model."""
    for key, what in (("split", "split"), ("data_source", "list of images")):
        value = fit.result.get(key)
        if value is None:
            raise ValueError(f"metrics.json of {fit.folder} names no {what}, so nothing says that the temperature is fitted on "
                             "held-out images: evaluate the checkpoint again with --split val")
        if value == test.result.get(key):
            raise ValueError(f"{fit.folder} and {test.folder} are of the same {what} ({value}), and a temperature is not "
                             "fitted on the images that it is reported on: evaluate the checkpoint with --split val for --fit")
    if np.array_equal(fit.labels, test.labels) and np.array_equal(fit.logits, test.logits):
        raise ValueError(f"{fit.folder} and {test.folder} hold the same predictions: evaluate the checkpoint with --split val "
                         "for --fit")
    for key in ("class_names", "class_counts", "activation", "corrected"):
        if fit.result.get(key) != test.result.get(key):
            raise ValueError(f"{fit.folder} and {test.folder} differ in {key}: fit the temperature on predictions of the same "
                             "model")
    weights = [checkpoint(run.folder) for run in (fit, test)]
    if None not in weights and weights[0] != weights[1]:
        raise ValueError(f"{fit.folder} is of {weights[0]}, {test.folder} of {weights[1]}: fit the temperature on predictions "
                         "of the same checkpoint")


def checkpoint(folder: Path) -> Path | None:
    """The weights that a run folder's predictions are of: what --eval was given, else its own last.pth; None if gone."""
    path = Path(read_json(folder / "args.json").get("checkpoint") or folder / "last.pth")
    return path.resolve() if path.exists() else None


def class_distance(fit: Predictions, test: Predictions) -> tuple[float, float]:
    """Total variation distance of the class distributions of two evaluations, and what chance alone gives on average."""
    images = [np.bincount(run.labels, minlength=run.logits.shape[1]) for run in (fit, test)]
    one, other = (counts / counts.sum() for counts in images)
    both = sum(images) / sum(counts.sum() for counts in images)
    variance = both * (1 - both) * sum(1 / counts.sum() for counts in images)
    return float(np.abs(one - other).sum() / 2), float(np.sqrt(2 * variance / math.pi).sum() / 2)


def doubts(fit: Predictions, test: Predictions, found: dict) -> list[str]:
    """Lines that say why the temperature may not suit the images it is applied to, or that it does not."""
    lines, (distance, chance) = [], class_distance(fit, test)
    if distance - chance > APART:
        shares = [100 * np.bincount(run.labels).max() / len(run.labels) for run in (fit, test)]
        lines.append(f"warning: the largest class has {shares[0]:.1f} % of the images of --fit and {shares[1]:.1f} % of those "
                     f"of --apply (total variation distance of the class distributions {distance:.2f}), and a temperature "
                     "suits the classes that it was fitted on: fit on images spread over the classes as the test images are")
    if found["after"]["nll"] > found["before"]["nll"]:
        lines.append(f"warning: with it the log-loss on {test.folder} is larger than without ({found['after']['nll']:.4f}, "
                     f"{found['before']['nll']:.4f}): do not use it there")
    return lines


def scale(fit: Predictions, test: Predictions) -> dict:
    """Fit on one evaluation, apply to the other: the "temperature" of metrics.json."""
    check_held_out(fit, test)
    activation = test.result["activation"]
    found = fit_temperature(fit.logits, fit.labels, activation)
    return {"temperature": found.temperature, "fitted_on": {
        "run": str(fit.folder), "split": fit.result["split"], "data_source": fit.result["data_source"],
        "num_samples": len(fit.labels), "class_distance": class_distance(fit, test)[0]}, "activation": activation,
        "before": probability_metrics(test.logits, test.labels, activation),
        "after": probability_metrics(test.logits, test.labels, activation, found.temperature)}


def main(args) -> dict:
    """Print the calibration before and after and keep it in metrics.json of --apply; returns what is kept."""
    fit, test = read_predictions(Path(args.fit)), read_predictions(Path(args.apply))
    found = scale(fit, test)
    source = found["fitted_on"]
    say(f"{test.folder}: T = {found['temperature']:.4f}, fitted on {source['num_samples']:,} {source['split']} images of "
        f"{fit.folder}; calibration on {len(test.labels):,} {test.result['split']} images, {found['activation']} scores\n")
    say(format_table({"T = 1": found["before"], f"T = {found['temperature']:.4f}": found["after"]}, COLUMNS))
    for line in doubts(fit, test, found):
        say(f"\n{line}")
    run = RunFolder(test.folder)
    run.check_writable()
    run.write_json("metrics.json", {**test.result, "temperature": found})
    say(f"\nwritten into {test.folder / 'metrics.json'}, beside the numbers without it")
    return found


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("temperature scaling of a finished run, fitted on held-out images")
    parser.add_argument("--fit", required=True, metavar="RUN", help="run folder of the same checkpoint on held-out images "
                        "(main_finetune.py --eval --split val --output_dir RUN)")
    parser.add_argument("--apply", required=True, metavar="RUN", help="run folder that is scaled; its metrics.json gets the "
                        "temperature and the calibration before and after")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
