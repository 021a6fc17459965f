"""Correcting a trained model after the fact: other scores from the same logits, no training.

Everything starts from what a loss leaves behind. A loss that adds a bias B to the logits in training (`bal_*`) fits
x = z + B, not z, to the training distribution; a plain loss is the case B = 0. At the optimum of cross-entropy

    softmax losses: softmax(x) = P_s(. | x),       sigmoid losses: s(x_k) = P_s(k | x) for every k,

with P_s the training distribution and pi its prior. Under a test prior pi^t with the same P(x | y), Bayes' rule is
P_t(k | x) = c(x) P_s(k | x) pi^t_k / pi_k, so the best prediction maximises log P_s(k | x) - log pi_k + log pi^t_k.

    adjust(..., "bayes")         that rule, exact for either activation and every number of classes
    adjust(..., "logit_adjust")  the bias that Bal-CE / Bal-BCE train with, applied afterwards: Menon et al., ICLR 2021
    retarget(...)                moves logits that fit one prior to another one, Thm. 1 for softmax, Thm. 3 for sigmoid

What is exact: for softmax losses all three agree and are Bayes' rule. For sigmoid losses "logit_adjust" and `retarget`
move each yes-or-no problem, class k against the rest as it is mixed in training, to the prior pi^t_k. Under the test
prior the rest is mixed differently, so for more than two classes they are not Bayes' rule: with p = P_s(k | x) they
rank by p (1 - pi) / ((1 - p) pi), Bayes by p / pi (uniform pi^t). For two classes the rest is one class, and they are.
All of it presumes that x fits the training distribution: losses that are minimised elsewhere (focal, ldam, cb_*, ib,
mislas, nt_* with lam other than 1) get the same formulas as a heuristic. `submit/theorems.py` shows these statements
in numbers.
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from util.losses.prior import as_vector, check_counts, check_tau, check_test_prior

METHODS = ("none", "logit_adjust", "bayes")
ACTIVATIONS = ("softmax", "sigmoid")


class Scores(NamedTuple):
    """scores (N, C) float64, an array or a CPU tensor as the logits were, and the activation that makes them probabilities.

    For `metrics.evaluate_logits(scores, labels, class_counts, activation)`.
    """

    scores: np.ndarray | torch.Tensor
    activation: str


def adjust(logits, class_counts, activation: str, method: str, *, test_prior="uniform", tau: float = 1.0,
           loss_bias=None) -> Scores:
    """Scores for a test set with prior pi^t, from logits (N, C) of a model trained under the prior of class_counts (C,).

    method, with x = z + loss_bias and w(q) = log q for softmax, logit q for sigmoid losses:
        "none"          z as it is
        "logit_adjust"  x - tau w(pi) + w(pi^t)
        "bayes"         log softmax(x) - log pi + log pi^t, or log s(x) - log pi + log pi^t
    activation: the loss's, "softmax" or "sigmoid". test_prior: "uniform", "none" (no pi^t term, which for sigmoid
    losses is odds of one to one for every class) or C positive probabilities. tau: finite, >= 0; belongs to logit_adjust
    and scales the training prior alone (a loss's tau scales all of its bias; they rank alike for a uniform test prior).
    loss_bias: the bias (C,) that the loss added in training, `loss.shift(torch.float64)`; None for a plain loss. A model
    trained with `bal_*` at tau 1 and this test prior has "logit_adjust" built in: it returns z. "bayes" takes the bias
    out again first, so that a Bal-BCE model gets the exact rule.

    "bayes" gives log P_t(k | x) up to a constant of the row, whatever the loss, so its activation is softmax.
    ValueError for an unknown method or activation, shapes that do not fit, or a prior that is none.
    """
    if method not in METHODS:
        raise ValueError(f"unknown post-hoc method {method!r}; expected one of {', '.join(METHODS)}")
    tau = check_tau(tau)
    if tau != 1.0 and method != "logit_adjust":
        raise ValueError(f"tau {tau:g} has no meaning for post-hoc method {method!r}: leave it out, or use 'logit_adjust'")
    z = _as_logits(logits, activation)
    if method == "none":
        return Scores(_like(z, logits), activation)
    classes = z.shape[1]
    prior, target = _train_prior(class_counts, classes), check_test_prior(test_prior, classes)
    if loss_bias is not None:
        z += _check_bias(loss_bias, classes)
    if method == "logit_adjust":
        z += _weight(target, activation) - tau * _weight(prior, activation)
    else:
        z = F.log_softmax(z, dim=1) if activation == "softmax" else F.logsigmoid(z)
        z += _weight(target, "softmax") - prior.log()
        activation = "softmax"
    return Scores(_like(z, logits), activation)


def retarget(logits, class_counts, activation: str, trained_prior, new_prior) -> Scores:
    """Logits (N, C) that fit one prior, moved to another one: z + w(new) - w(old), w as in `adjust`.

    trained_prior: what z fits. "train" for a plain loss (the prior of class_counts, which nothing else needs); for a
    balanced loss at tau 1 its `test_prior`: "uniform", "none" (Thm. 1 and 2) or C probabilities.
    new_prior: "uniform", "none" or C probabilities.
    Derivation: z = w(P_s) - w(pi) + w(old) by Thm. 1 and 3, and the same with new in the place of old. Softmax logits
    become those of Bayes' rule under the new prior, exactly. Sigmoid logits become the log-odds of each yes-or-no
    problem at its new prior, Bayes' rule for two classes only; `adjust(..., "bayes", test_prior=new)` is it for any.
    A balanced loss at another tau fits neither prior: give z + loss_bias and trained_prior "train".
    ValueError for an unknown activation, shapes that do not fit, or a prior that is none.
    """
    z = _as_logits(logits, activation)
    classes = z.shape[1]
    if isinstance(trained_prior, str) and trained_prior == "train":
        old = _train_prior(class_counts, classes)
    elif isinstance(trained_prior, str) and trained_prior not in ("uniform", "none"):
        raise ValueError(f"trained_prior must be 'train' (a plain loss), 'uniform', 'none' or {classes} probabilities (the "
                         f"test_prior of a balanced one), got {trained_prior!r}")
    else:
        old = check_test_prior(trained_prior, classes)
    new = check_test_prior(new_prior, classes)
    z += _weight(new, activation) - _weight(old, activation)
    return Scores(_like(z, logits), activation)


def correct(logits, criterion, method: str = "none", test_prior=None, tau: float | None = None) -> Scores:
    """What `--eval` does with the logits (N, C) of a model that was trained with `criterion`, a loss of util.losses.

    method: as in `adjust`, with tau (1 by default, of logit_adjust alone) and test_prior (uniform by default). Method
    "none" with a test_prior moves the logits there (`retarget`) from the prior that they fit, and without one leaves
    them as they are.
    """
    bias, prior = criterion.shift(torch.float64), fitted_prior(criterion)
    if method != "none":
        return adjust(logits, prior, criterion.activation, method, loss_bias=bias,
                      test_prior="uniform" if test_prior is None else test_prior,
                      tau=tau if tau is not None and method == "logit_adjust" else 1.0)
    if test_prior is None:
        return Scores(logits, criterion.activation)
    trained = "train"
    if bias is not None and criterion.tau == 1:
        trained = "none" if criterion.test_prior is None else criterion.test_prior
    elif bias is not None:  # fits neither prior: with its bias added it fits the training distribution
        logits = logits.double() + bias.cpu()
    return retarget(logits, prior, criterion.activation, trained, test_prior)


def fitted_prior(criterion) -> torch.Tensor:
    """Class distribution (C,) float64 that z + B of a loss fits where an input says nothing.

    pi for the cross-entropies and their balanced forms; pi times the class weights for cb_*, whose weights have moved the
    prior already, and the smoothed pi for mislas.
    """
    bias = criterion.shift(torch.float64)
    best = criterion.constant_logits().double().cpu() + (0 if bias is None else bias.cpu())
    prior = best.softmax(0) if criterion.activation == "softmax" else best.sigmoid()
    return prior / prior.sum()


def _weight(prior: torch.Tensor | None, activation: str) -> torch.Tensor:
    """w(q) (C,): how a prior q enters a logit, log q for softmax and logit q for sigmoid; zero where there is none."""
    if prior is None:
        return torch.zeros((), dtype=torch.float64)
    return prior.log() if activation == "softmax" else torch.logit(prior)


def _as_logits(logits, activation: str) -> torch.Tensor:
    """A float64 CPU copy of the logits (N, C), after their and the activation's check."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    z = torch.as_tensor(logits)
    if z.ndim != 2 or not z.is_floating_point() or 0 in z.shape:
        raise ValueError(f"logits of shape {tuple(z.shape)} and type {z.dtype}; expected floating point (N, C), neither zero")
    z = z.detach().to("cpu", torch.float64, copy=True)
    broken = int((~torch.isfinite(z).all(dim=1)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(z)} rows of logits hold nan or inf; expected finite numbers: check the model")
    return z


def _train_prior(class_counts, classes: int) -> torch.Tensor:
    """pi (C,) float64. ValueError where it does not fit the logits, or a class has no image and so no log pi."""
    counts = check_counts(class_counts)
    if len(counts) != classes:
        raise ValueError(f"{len(counts)} class counts for logits of {classes} classes; expected one count a class")
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        raise ValueError(f"class {empty[0]} has no training image ({len(empty)} such classes in all), so its prior cannot be "
                         "corrected: use post-hoc method 'none', or a model and data set without the class")
    return counts / counts.sum()


def _check_bias(loss_bias, classes: int) -> torch.Tensor:
    bias = as_vector(loss_bias, "loss_bias")
    if len(bias) != classes or not torch.isfinite(bias).all():
        raise ValueError(f"loss_bias must be {classes} finite numbers, one a class, got {loss_bias!r}: "
                         "give loss.shift(torch.float64) of the loss that the model was trained with")
    return bias


def _like(z: torch.Tensor, logits) -> np.ndarray | torch.Tensor:
    return z if isinstance(logits, torch.Tensor) else z.numpy()
