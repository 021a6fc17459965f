"""Softmax cross-entropy and the losses that are linear in its log-probabilities."""
import math

import torch
import torch.nn.functional as F

from .base import Loss, expect
from .prior import effective_number_weights

SMOOTHING_SHAPES = {
    "concave": lambda r: torch.sin(r * math.pi / 2),
    "linear": lambda r: r,
    "convex": lambda r: 1 - torch.cos(r * math.pi / 2),
}


class CE(Loss):
    """Cross-entropy, Eq. 1: - sum_k t_k log softmax(z)_k."""

    def row_losses(self, x, targets):
        return -expect(F.log_softmax(x, dim=1), targets)


class BalCE(CE):
    """Balanced cross-entropy, Eq. 2 and 3: CE of z + tau (log pi - log pi^t), Thm. 1 with a test prior.

    Linear in the target: a soft target is the expectation of the hard loss over the label it stands for.
    """

    uses_prior = True

    def __init__(self, class_counts, **common):
        super().__init__(class_counts, **common)
        bias = self.prior().log()
        if self.test_prior is not None:
            bias = bias - self.test_prior.log()
        self.add_constant("bias", self.tau * bias)

    def constant_logits(self):
        log_pi = self.prior().log()
        return log_pi - self.tau * (log_pi - self.log_test_ratio())


class CbCE(Loss):
    """Class-balanced cross-entropy (Cui et al., CVPR 2019, Eq. 4): w_y CE, w from the effective number of samples.

    w_k = (1 - beta) / (1 - beta^n_k), scaled to sum to C. For a soft target the weight is inside the expectation,
    sum_k t_k w_k CE_k: a mixture of two labels is the mixture of their losses. Mean over the batch, not over weights.
    """

    needs_images = True

    def __init__(self, class_counts, *, beta=0.9999, **common):
        super().__init__(class_counts, **common)
        self.add_constant("class_weights", effective_number_weights(self.counts, beta))

    def constant_logits(self):
        return (self.prior() * self._exact["class_weights"]).log()

    def row_losses(self, x, targets):
        return -expect(F.log_softmax(x, dim=1), targets, self.constant("class_weights", x.dtype))


class Mislas(Loss):
    """Label-aware smoothing (Zhong et al., CVPR 2021, section 3.2): the more images a class has, the softer its target.

    Label y becomes q_y = 1 - e_y and q_j = e_y / (C - 1) elsewhere, with e_y between tail_smoothing (fewest images)
    and head_smoothing (most images) along r = (n_y - n_min) / (n_max - n_min): "concave" sin(r pi / 2), "linear" r,
    "convex" 1 - cos(r pi / 2). Equal counts take r = 0. The loss is - sum_j q_j log p_j.
    A soft target t takes the expectation of q over its labels, q_j = t_j (1 - e_j) + sum_{k != j} t_k e_k / (C - 1),
    which is linear in t. ValueError for a smoothing outside [0, 1), head below tail, or an unknown shape.
    """

    smooths_labels = True

    def __init__(self, class_counts, *, head_smoothing=0.3, tail_smoothing=0.0, shape="concave", **common):
        super().__init__(class_counts, **common)
        if not 0 <= tail_smoothing <= head_smoothing < 1:
            raise ValueError(
                "mislas needs 0 <= tail_smoothing <= head_smoothing < 1, "
                f"got tail {tail_smoothing!r} and head {head_smoothing!r}"
            )
        if shape not in SMOOTHING_SHAPES:
            raise ValueError(f"unknown shape {shape!r} of label-aware smoothing; known: {', '.join(SMOOTHING_SHAPES)}")
        span = self.counts.max() - self.counts.min()
        ratio = (self.counts - self.counts.min()) / span.clamp(min=1e-12)
        smoothing = tail_smoothing + (head_smoothing - tail_smoothing) * SMOOTHING_SHAPES[shape](ratio)
        self.add_constant("smoothing", smoothing)

    def constant_logits(self):
        pi, e = self.prior(), self._exact["smoothing"]
        spread = pi * e / (self.num_classes - 1)
        return (pi * (1 - e) + spread.sum() - spread).log()

    def row_losses(self, x, targets):
        log_p = F.log_softmax(x, dim=1)
        e = self.constant("smoothing", x.dtype)
        rest = self.num_classes - 1
        # label k costs (1 - e_k) a_k + e_k / (C - 1) (A - a_k), with a = -log p and A its sum over classes
        total = log_p.sum(1, keepdim=True)
        return -expect((1 - e - e / rest) * log_p + e / rest * total, targets)
