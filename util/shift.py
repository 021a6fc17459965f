"""Accuracy under other test distributions, made out of the balanced test set by weights.

    python -m util.shift runs/bft [runs/other ...] [--out DIR]

As LADE (Hong et al., CVPR 2021) and TADE (Zhang et al., NeurIPS 2022) report it: "forward" test sets are long-tailed in the
order of the training set, "backward" ones in the reverse order. They drop test images; here class k weighs pi_k, the same
without the noise of a draw. Three answers stand side by side: the logits as they are, moved to the known test prior
(Thm. 3), and moved to a prior that is estimated without labels (EM).
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.sampling import check_prior_rule, expected_frequencies
from util.args import Parser, parse_options, run_command
from util.arrays import BLOCK_VALUES
from util.calibration import check_activation
from util.figures_shift import shifted_accuracy
from util.losses import LOSSES, build_loss, read_prior
from util.metrics import label_rank
from util.predictions import Predictions, read_json, read_predictions
from util.run import say

DIRECTIONS = ("forward", "backward")
FACTORS = (50, 25, 10, 5, 2, 1)
FLOOR = 1e-12  # an estimated prior may be 0, whose logarithm no logit can take


class Base(NamedTuple):
    """What the logits of a trained model are relative to, each float64 (C,).

    logits: the constant logits of an input that says nothing, log pi_old (softmax) or logit pi_old (sigmoid).
    seen: the class distribution of training, as the sampler drew it.
    """
    logits: np.ndarray
    seen: np.ndarray


class PriorEstimate(NamedTuple):
    """prior: float64 (C,), sums to 1; iterations: EM steps taken; converged: whether the last one was small enough."""
    prior: np.ndarray
    iterations: int
    converged: bool


def test_prior(direction, factor, class_counts) -> np.ndarray:
    """Class distribution of a shifted test set: float64 (C,), sums to 1.

    The CIFAR rule without its truncation: the class of rank r (0 is first) weighs factor^(-r / (C - 1)). Ranks go from
    the largest training class to the smallest ("forward") or the other way round ("backward"); ties by class index.
    direction: one of DIRECTIONS; factor: largest over smallest weight, finite and >= 1; class_counts: (C,).
    ValueError for another direction or factor.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
    if not 1 <= factor < float("inf"):
        raise ValueError(f"the imbalance factor of a test set is {factor}; expected a finite number >= 1 (1: balanced)")
    counts = np.asarray(class_counts, dtype=np.float64)
    order = np.argsort(-counts, kind="stable")
    weights = np.empty(len(counts))
    weights[order if direction == "forward" else order[::-1]] = float(factor) ** -np.linspace(0, 1, len(counts))
    return weights / weights.sum()


def class_accuracy(logits, labels, shift=0.0) -> np.ndarray:
    """Accuracy of each class in percent of its images under argmax of logits + shift: (C,), nan without images.

    logits: (N, C); labels: (N,); shift: (C,) or 0. ValueError as `util.metrics.label_rank`.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or not logits.size or logits.dtype.kind not in "fiu" or labels.shape != (len(logits),):
        raise ValueError(f"logits {logits.shape} of {logits.dtype}, labels {labels.shape}; expected real numbers (N, C) and "
                         "(N,), N and C at least 1")
    step = max(1, BLOCK_VALUES // logits.shape[1])  # the sum is float64, so it is never made as a whole
    hits = [label_rank(logits[i:i + step] + np.asarray(shift, dtype=np.float64), labels[i:i + step]) == 0
            for i in range(0, len(logits), step)]
    images = np.bincount(labels, minlength=logits.shape[1])
    right = np.bincount(labels[np.concatenate(hits)], minlength=logits.shape[1])
    return 100.0 * np.divide(right, images, out=np.full(len(images), np.nan), where=images > 0)


def weighted_accuracy(logits, labels, prior, shift=0.0) -> float:
    """sum_k pi_k acc_k in percent: the expected accuracy on a test set of class distribution `prior` (C,).

    shift (C,) is added to the logits. ValueError where a class of positive weight has no test image.
    """
    return _weigh(class_accuracy(logits, labels, shift), np.asarray(prior, dtype=np.float64))


def _weigh(accuracy, prior):
    if accuracy.shape != prior.shape:
        raise ValueError(f"a test prior of shape {prior.shape} for {len(accuracy)} classes; expected one weight a class")
    unknown = np.flatnonzero(np.isnan(accuracy) & (prior > 0))
    if len(unknown):
        raise ValueError(f"class {unknown[0]} has no test image, so its accuracy cannot be weighed by {prior[unknown[0]]:.3g}")
    return float(accuracy[prior > 0] @ prior[prior > 0])


def estimate_prior_em(log_posteriors, base_prior, weights=None, tolerance=1e-7, max_iterations=5000) -> PriorEstimate:
    """Class distribution of unlabelled data by EM (Saerens et al., "Adjusting the outputs of a classifier to new a
    priori probabilities", Neural Computation 2002, Eq. 2.9), a maximum of the likelihood, which is concave.

    log_posteriors: log P(k | x_i) under base_prior, (N, C), up to a constant a row: logits of a softmax do.
    base_prior: (C,), positive.  weights: (N,) >= 0, how often image i stands in the data (default: once).
    Stops where a step moves the prior by <= tolerance (L1). Exact posteriors make it consistent; others pass on their errors.
    ValueError for shapes that do not fit, a base prior that is not positive, or weights that are none.
    """
    scores, base = np.asarray(log_posteriors, dtype=np.float64), np.asarray(base_prior, dtype=np.float64)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 2 or base.shape != scores.shape[1:] or weights.shape != scores.shape[:1]:
        raise ValueError(f"log-posteriors {scores.shape}, prior {base.shape}, weights {weights.shape}; not N, C; C; N")
    if not (np.isfinite(base) & (base > 0)).all():
        raise ValueError("the base prior must be positive for every class: no other posterior can be moved")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.sum() > 0:
        raise ValueError("weights of images must be finite and >= 0, and not all of them 0")
    scores, weights = scores[weights > 0], weights[weights > 0] / weights.sum()  # copies
    scores -= np.log(base)
    scores -= scores.max(axis=1, keepdims=True)
    likelihood = np.exp(scores, out=scores)  # p(x_i | k) up to a factor a row, which cancels
    prior = base / base.sum()
    for iteration in range(1, max_iterations + 1):
        # E and M step in one: the mean over images of pi_k p(x_i | k) / sum_j pi_j p(x_i | j)
        after = prior * ((weights / (likelihood @ prior)) @ likelihood)
        after /= after.sum()
        moved, prior = np.abs(after - prior).sum(), after
        if moved <= tolerance:
            return PriorEstimate(prior, iteration, True)
    return PriorEstimate(prior, max_iterations, False)


def constant_logits(prior, activation) -> np.ndarray:
    """log pi (softmax) or logit pi (sigmoid) of a distribution (C,): what Thm. 3 adds for the new prior."""
    prior = np.asarray(prior, dtype=np.float64)
    with np.errstate(divide="ignore"):  # log 0 is -inf, which `shift_table` refuses by the name of the class
        return np.log(prior) if activation == "softmax" else np.log(prior) - np.log1p(-prior)


def class_posteriors(logits, activation, base: Base) -> tuple[np.ndarray, np.ndarray]:
    """What EM needs, out of logits (N, C): log-posteriors (N, C) up to a constant a row, and their prior (C,).

    Softmax: the logits themselves are log-posteriors under softmax(base.logits). Exact where the loss was minimised.
    Sigmoid: z_k - base_k + logit seen_k is the log-odds of class k against the rest, as mixed in training; its sigmoid is
    P(k | x) under `seen`, so the log-sigmoids are log-posteriors. That, too, is exact for minimised binary losses, but
    the C answers of a real model need not sum to 1, and that EM divides them by their sum is a heuristic. Softmax of
    sigmoid logits (normalised odds) would be one even for exact answers: the rest differs from class to class.
    For losses other than cross-entropies (focal, ldam, ib, mislas, nt_*) the reading as posteriors is a heuristic.
    """
    if activation == "softmax":
        return np.asarray(logits, dtype=np.float64), np.exp(base.logits - np.logaddexp.reduce(base.logits))
    odds = np.asarray(logits, dtype=np.float64) - base.logits + constant_logits(base.seen, activation)
    return -np.logaddexp(0.0, -odds), base.seen


def shift_table(logits, labels, class_counts, activation, base: Base, factors=FACTORS) -> list[dict]:
    """One row a test distribution, from forward over uniform to backward, each factor once in either direction.

    logits: (N, C) of a test set that has every class; labels: (N,); class_counts: training images (C,), which order the
    classes; activation: "softmax" or "sigmoid" of the loss; base: see `trained_base`.
    Keys: direction ("uniform" at factor 1), factor, accuracies in percent: as_is, known (z + log pi_t - log pi_old for
    softmax, z + logit pi_t - logit pi_old for sigmoid), estimated (the same with EM's prior), l1 (sum_k |estimate - pi_t|,
    0 to 2), iterations, converged. EM sees no label: labels enter as weights that stand in for drawing such a set.
    ValueError for an unknown activation, a class without training or test images, shapes that do not fit.
    """
    check_activation(activation)
    as_is = class_accuracy(logits, labels)
    if not np.shape(class_counts) == base.logits.shape == base.seen.shape == as_is.shape:
        raise ValueError(f"{len(class_counts)} class counts for logits of {len(as_is)} classes; expected one count a class")
    without = np.flatnonzero(~np.isfinite(base.logits) | (base.seen <= 0))
    if len(without):
        raise ValueError(f"class {without[0]} has no training image, so there is no prior to move its logit from")
    scores, scores_prior = class_posteriors(logits, activation, base)
    images, rows = np.bincount(labels, minlength=len(as_is)), []
    for direction, factor in _distributions(factors):
        prior = test_prior("forward" if direction == "uniform" else direction, factor, class_counts)
        row = {"direction": direction, "factor": factor, "as_is": _weigh(as_is, prior)}
        estimate = estimate_prior_em(scores, scores_prior, (prior / images)[labels])
        for name, assumed in {"known": prior, "estimated": np.clip(estimate.prior, FLOOR, 1 - FLOOR)}.items():
            row[name] = weighted_accuracy(logits, labels, prior, constant_logits(assumed, activation) - base.logits)
        row |= {"l1": float(np.abs(estimate.prior - prior).sum()), "iterations": estimate.iterations,
                "converged": estimate.converged}
        rows.append(row)
    return rows


def _distributions(factors):
    """(direction, factor) from the most forward to the most backward."""
    skewed, middle = sorted(set(factors) - {1}), [("uniform", 1)] * (1 in factors)
    return [("forward", f) for f in reversed(skewed)] + middle + [("backward", f) for f in skewed]


def format_shift_table(rows) -> str:
    """Aligned plain text of `shift_table`; a + after the steps says that EM had not converged by then."""
    lines = [["test set", "factor", "as is %", "prior known %", "prior by EM %", "L1 of EM", "EM steps"]]
    lines += [[row["direction"], f"{row['factor']:g}", *(f"{row[key]:.1f}" for key in ("as_is", "known", "estimated")),
               f"{row['l1']:.3f}", f"{row['iterations']}{'' if row['converged'] else '+'}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def trained_base(loss_name, class_counts, tau=1.0, test_prior="uniform", sampler="random", prior=None, **options) -> Base:
    """What the logits of a model trained with this loss and sampler are relative to, from the loss's own constants.

    Plain losses: the sampled distribution. Balanced ones: what their bias leaves of it, e.g. uniform for Eq. 10.
    Exact for ce, bce, bal_*, cb_ce and lade (and cb_bce but for prior "data"), a heuristic for the other losses.
    Arguments as `build_loss` and `check_prior_rule` take them; ValueError as these.
    """
    seen = expected_frequencies(sampler, class_counts)
    counts = check_prior_rule(loss_name, sampler, prior, class_counts)
    loss = build_loss(loss_name, counts, tau=tau, test_prior=test_prior, **options)
    # What the loss does to the prior it was told, it does to the one that was drawn: they differ with --prior data.
    with np.errstate(invalid="ignore"):  # a class without images has none; `shift_table` refuses it by its number
        moved = loss.constant_logits().numpy() - constant_logits(counts / counts.sum(), loss.activation)
    return Base(constant_logits(seen, loss.activation) + moved, seen)


def run_base(folder: Path, kind, class_counts, activation) -> Base:
    """The Base of a run folder: from the flags in its args.json ("auto"), or by `kind` "train" or "uniform"."""
    counts = np.asarray(class_counts, dtype=np.float64)
    if kind != "auto":
        seen = counts / counts.sum()
        old = seen if kind == "train" else np.full(len(seen), 1 / len(seen))
        return Base(constant_logits(old, activation), seen)
    flags = read_json(folder / "args.json").get("args")
    if not isinstance(flags, dict) or flags.get("eval") or str(flags.get("loss")) not in LOSSES:
        raise ValueError(f"{folder / 'args.json'} does not say how the model was trained: give the folder of its training, or "
                         "say --base train (plain losses) or --base uniform (balanced ones)")
    if LOSSES[flags["loss"]].activation != activation:
        raise ValueError(f"{folder}: args.json has --loss {flags['loss']}, but metrics.json the activation {activation}")
    test = flags.get("test_prior", "uniform")
    if isinstance(test, str) and test not in ("uniform", "none"):
        test = read_prior(test, len(counts))
    return trained_base(flags["loss"], counts, flags.get("tau", 1.0), test, flags.get("sampler", "random"), flags.get("prior"),
                        **parse_options(flags.get("loss_args") or []))


def read_run(folder: Path) -> Predictions:
    """The evaluation in a run folder, its logits as the model gave them. ValueError for what is none, or moved already."""
    run = read_predictions(folder)
    if run.result.get("corrected"):
        raise ValueError(f"the logits in {folder} are moved already ({run.result['corrected']}): give a run without correction")
    return run


def main(args) -> dict[Path, list[dict]]:
    """Print the table and draw the figure of every run; returns {run folder: rows of shift_table}."""
    folders, tables = [Path(run) for run in args.runs], {}
    names = [folder.resolve().name for folder in folders]
    if args.out and len(set(names)) < len(names):
        raise ValueError(f"--out holds a figure a run by the name of its folder, but some of {', '.join(names)} are equal: "
                         "give these runs one by one, each with another --out")
    for folder, name in zip(folders, names, strict=True):
        run = read_run(folder)
        counts, activation = run.result["class_counts"], run.result["activation"]
        base = run_base(folder, args.base, counts, activation)
        rows = tables[folder] = shift_table(run.logits, run.labels, counts, activation, base)
        say(f"{folder}: top-1 accuracy on {len(run.labels)} images, weighted by class\n{format_shift_table(rows)}")
        target = Path(args.out) / (name if len(folders) > 1 else "") if args.out else folder / "figures"
        try:
            path = shifted_accuracy(target / "test_distributions.png", rows, name)
        except OSError as error:
            raise ValueError(f"cannot write into {target} ({error.strerror}): give another --out") from None
        say(f"wrote {path}\n")
    return tables


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("accuracy of finished runs under other test distributions")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with predictions.npz and metrics.json")
    parser.add_argument("--out", metavar="DIR", help="folder of the figure (RUN/figures by default); several runs: DIR/NAME")
    parser.add_argument("--base", default="auto", choices=["auto", "train", "uniform"], help="prior that the logits stand "
                        "for: auto reads it from the loss in args.json; train: a plain loss; uniform: a balanced one")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
