"""LADE: prior-corrected softmax and a regulariser that pulls the prior out of the logits."""
import functools
import math

import torch
import torch.nn.functional as F

from .base import compute_dtype, expect, row_blocks
from .cross_entropy import BalCE


class LADE(BalCE):
    """LADE (Hong et al., CVPR 2021): Bal-CE plus `weight` times the regularised Donsker-Varadhan estimator.

    Let u be the training data re-weighted to equal classes and f_c = z_c - tau log(C pi^t_c) (f = z for a uniform
    test prior). A classifier free of the training prior has f_c(x) = log p_u(x | c) / p_u(x), which maximises the
    Donsker-Varadhan bound of KL(p_u(x | c), p_u(x)). The regulariser is minus that bound, class by class,

        R = sum_c pi_c [ - mean_{i: y_i = c} f_c(x_i) + v_c + remine_lambda v_c^2 ],
        v_c = log (1 / N) sum_i (1 / (C pi_{y_i})) exp f_c(x_i),

    where 1 / (C pi_{y_i}) = p_u(y_i) / p_s(y_i) is the importance weight of sample i (the authors' code divides by
    the prior of class c instead), and v_c^2 fixes the constant that the bound leaves free.
    A class without a sample in the batch has no estimate and is left out. Batch means are those of one process.

    Soft targets: p(x | c) is proportional to p(c | x) p(x), so the class mean becomes sum_i t_ic f_c(x_i) / sum_i t_ic,
    and the weight of a sample the expectation sum_k t_ik / (C pi_k). The ratio makes R non-linear in the target.
    """

    def __init__(self, class_counts, *, remine_lambda=0.1, weight=0.1, **common):
        super().__init__(class_counts, **common)
        if not (math.isfinite(remine_lambda) and remine_lambda >= 0 and math.isfinite(weight) and weight >= 0):
            raise ValueError(f"lade needs finite remine_lambda and weight >= 0, got {remine_lambda!r} and {weight!r}")
        self.remine_lambda = float(remine_lambda)
        self.weight = float(weight)
        pi = self.prior()
        self.add_constant("pi", pi)
        self.add_constant("importance", 1.0 / (self.num_classes * pi))
        self.add_constant("offset", self.tau * self.log_test_ratio())

    def constant_logits(self):
        # of the constants that Bal-CE cannot tell apart, the one with v = 0
        return super().constant_logits() + (1 - self.tau) * math.log(self.num_classes)

    def total(self, logits, targets, features):
        """Bal-CE and the regulariser of one batch; see the class for R and how its gradient is arranged."""
        dtype = compute_dtype(logits)
        mass, sample_weights = self._batch_statistics(targets, dtype)
        log_weights = sample_weights.log()[:, None]
        share = (mass > 0).to(dtype) * self.constant("pi", dtype)
        # v_c runs over the batch: the same blocks, on the transpose, and without a graph
        with torch.no_grad():
            log_sums = row_blocks(lambda z, _, w: torch.logsumexp(z + w, dim=1), logits.t(), mass,
                                  features=log_weights.T.expand(self.num_classes, -1))
        v = log_sums - self.constant("offset", dtype) - math.log(len(logits))
        slope = share * (1 + 2 * self.remine_lambda * v)
        terms = functools.partial(
            self._sample_terms,
            # the mean over rows divides by N once more than the class means do
            pull=self.weight * len(logits) * share / mass.clamp(min=torch.finfo(dtype).tiny),
            push=self.weight * len(logits) * slope,
            shift=self.constant("bias", dtype),
            log_sums=log_sums,
        )
        rows = row_blocks(terms, logits, targets, self.constant("bias", dtype), features=log_weights)
        # push adds sum_c slope_c to the mean: with it taken out, the value is R and the gradient stays that of R
        return rows.mean() + self.weight * (share * (v + self.remine_lambda * v.square()) - slope).sum()

    def _batch_statistics(self, targets, dtype):
        """-> mass of each class in the batch (C,), importance weight of each sample (N,)."""
        importance = self.constant("importance", dtype)
        if targets.ndim == 1:
            # counted by scatter: bincount would wait for the device
            mass = torch.zeros_like(importance).index_add_(0, targets, torch.ones_like(targets, dtype=dtype))
            return mass, importance[targets]
        targets = targets.to(dtype)
        return targets.sum(0), targets @ importance

    def _sample_terms(self, x, targets, log_weights, pull, push, shift, log_sums):
        """Everything that is a sum over samples, x = z + B (n, C) -> (n,): Bal-CE, class means of f, and v.

        v enters through its gradient. d v_c / d z_ic = q_ic, the share w_i e^(z_ic) / sum_j w_j e^(z_jc), and with the
        sum held fixed q is its own derivative: so slope_c sum_i q_ic has the gradient of v_c + lambda v_c^2. That keeps
        LADE to one gradient buffer; a differentiable pass over the transpose would make it three.
        """
        z = x - shift
        f = z - self.constant("offset", x.dtype)
        q = torch.exp(z + log_weights - log_sums)
        return (push * q).sum(1) - expect(F.log_softmax(x, dim=1) + pull * f, targets)
