"""Sigmoid (binary) cross-entropy: one yes-or-no problem a class, summed over the classes.

Their gradients need a sigmoid, which a CPU computes twenty times faster than the softplus of the value; so they are
written out, and backward does not compute the value a second time.
"""
import math
import numbers

import torch
import torch.nn.functional as F

from .base import Loss, add_on_targets, expect
from .prior import as_vector, effective_number_weights


def softplus(x):
    """log(1 + e^x). Above 40 it is x to the last digit of float64; torch's own threshold, 20, is not."""
    return F.softplus(x, threshold=40)


class BCE(Loss):
    """Binary cross-entropy, Eq. 5: - sum_k w_k [t_k log s(z_k) + (1 - t_k) log(1 - s(z_k))], s the sigmoid.

    Computed as sum_k w_k softplus(z_k) - sum_k t_k w_k z_k, which is the same for hard and soft targets and linear in
    them. class_weights: w (C,), positive, of Eq. 5 and 6 (default: all one); it does not move the best constant logits.
    """

    activation = "sigmoid"

    def __init__(self, class_counts, *, class_weights=None, **common):
        super().__init__(class_counts, **common)
        self.weighted = class_weights is not None
        if self.weighted:
            weights = as_vector(class_weights, "class_weights")
            if len(weights) != self.num_classes or not (torch.isfinite(weights) & (weights > 0)).all():
                raise ValueError(
                    f"class_weights must be {self.num_classes} positive numbers, one a class, got {class_weights!r}"
                )
            self.add_constant("class_weights", weights)

    def constant_logits(self):
        return torch.logit(self.prior())

    def row_losses(self, x, targets):
        if not self.weighted:
            return softplus(x).sum(1) - expect(x, targets)
        w = self.constant("class_weights", x.dtype)
        return (w * softplus(x)).sum(1) - expect(w * x, targets)

    def row_gradients(self, x, targets):
        """w (s(x) - t)."""
        if not self.weighted:
            return add_on_targets(torch.sigmoid(x), x.new_full((1, 1), -1.0), targets)
        w = self.constant("class_weights", x.dtype)
        return add_on_targets(w * torch.sigmoid(x), -w, targets)


class _LogOddsPrior(Loss):
    """Adds the bias of Thm. 3, tau [(log pi - log pi^t) - (log(1 - pi) - log(1 - pi^t))], to a sigmoid loss.

    test_prior "none" leaves Thm. 2, logit pi; "uniform" gives Eq. 10, logit pi + log(C - 1).
    """

    uses_prior = True

    def __init__(self, class_counts, **kwargs):
        super().__init__(class_counts, **kwargs)
        bias = torch.logit(self.prior())
        if self.test_prior is not None:
            bias = bias - torch.logit(self.test_prior)
        self.add_constant("bias", self.tau * bias)

    def constant_logits(self):
        return super().constant_logits() - self._exact["bias"]


class BalBCE(_LogOddsPrior, BCE):
    """Balanced binary cross-entropy, Eq. 6 and 10: BCE of z + B with B of Thm. 2 or 3, scaled by tau."""

    def __init__(self, class_counts, *, class_weights=None, **common):
        super().__init__(class_counts, class_weights=class_weights, **common)


class CbBCE(Loss):
    """Class-balanced sigmoid loss (Cui et al., CVPR 2019, Eq. 6): all C binary terms of a sample weighted by its label.

    w_y sum_k BCE_k, w as in `cb_ce`. A soft target takes the expectation over the label,
    sum_y t_y w_y [sum_k softplus(z_k) - z_y], which is linear in t.
    """

    activation = "sigmoid"
    needs_images = True

    def __init__(self, class_counts, *, beta=0.9999, **common):
        super().__init__(class_counts, **common)
        self.add_constant("class_weights", effective_number_weights(self.counts, beta))

    def constant_logits(self):
        share = self.prior() * self._exact["class_weights"]
        return torch.logit(share / share.sum())

    def row_losses(self, x, targets):
        w = self.constant("class_weights", x.dtype)
        return expect(w * (softplus(x).sum(1, keepdim=True) - x), targets)

    def row_gradients(self, x, targets):
        """(sum_y t_y w_y) s(x) - t w."""
        w = self.constant("class_weights", x.dtype)
        return add_on_targets(torch.sigmoid(x) * expect(w.expand_as(x), targets)[:, None], -w, targets)


class NTBCE(Loss):
    """Negative-tolerant BCE (appendix E.2): - sum_k [t_k log s(z_k) + (1 - t_k) / lam log(1 - s(lam z_k))].

    lam > 0; 1 is BCE, larger values let go of negatives that are already low. Linear in the target.
    ValueError for a lam that is not a positive finite number.
    """

    activation = "sigmoid"

    def __init__(self, class_counts, *, lam=2.0, **common):
        super().__init__(class_counts, **common)
        if not (isinstance(lam, numbers.Real) and math.isfinite(lam) and lam > 0):
            raise ValueError(f"lam must be a positive finite number (1 is plain BCE), got {lam!r}")
        self.lam = float(lam)

    def constant_logits(self):
        """Root of (1 - pi) s(lam x) = pi s(-x): it has no closed form, so bisection between bounds that hold it."""
        pi = self.prior()
        reach = 1 + torch.logit(pi).abs().max() * max(1.0, 1.0 / self.lam)
        low, high = -reach * torch.ones_like(pi), reach * torch.ones_like(pi)
        for _ in range(100):
            middle = (low + high) / 2
            above = (1 - pi) * torch.sigmoid(self.lam * middle) > pi * torch.sigmoid(-middle)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def row_losses(self, x, targets):
        negative = softplus(self.lam * x) / self.lam
        return negative.sum(1) + expect(softplus(-x) - negative, targets)

    def row_gradients(self, x, targets):
        """(1 - t) s(lam x) - t s(-x)."""
        negative = torch.sigmoid(self.lam * x)
        return add_on_targets(negative, -(torch.sigmoid(-x) + negative), targets)


class NTBalBCE(_LogOddsPrior, NTBCE):
    """Negative-tolerant balanced BCE (appendix E.2): NT-BCE of z + B, the bias inside the lam."""

    def __init__(self, class_counts, *, lam=2.0, **common):
        super().__init__(class_counts, lam=lam, **common)
