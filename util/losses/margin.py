"""Softmax losses that are no linear function of the log-probabilities: focal, LDAM, influence-balanced.

All three depend on label k only through the log-odds of its probability, d_k = log p_k - log(1 - p_k). Each is
defined for a hard label; a soft target takes the expectation of the label's loss, sum_k t_k loss_k, linear in t.
"""
import math
import numbers

import torch
import torch.nn.functional as F

from .base import Loss, expect
from .prior import effective_number_weights


def softmax_log_odds(x):
    """x: logits (N, C) -> d (N, C), d_k = x_k - log sum_{j != k} e^{x_j}, exact also where p_k rounds to 1.

    log(1 - p_k) from p_k would lose all its digits at the largest logit, the one that matters under a margin of
    15. So the sum without k is taken by itself there, and by subtraction everywhere else, where it cannot cancel:
    what remains always holds the largest term.
    """
    top = x.detach().argmax(1, keepdim=True)
    peak = x.detach().gather(1, top)
    powers = torch.exp(x - peak)
    others = powers.sum(1, keepdim=True) - powers.scatter(1, top, 0.0)
    log_others = peak + torch.log(others)
    without_top = torch.logsumexp(x.scatter(1, top, -math.inf), dim=1, keepdim=True)
    return x - log_others.scatter(1, top, without_top)


class Focal(Loss):
    """Focal loss, softmax form (Lin et al., ICCV 2017, Eq. 4): - (1 - p_y)^gamma log p_y.

    gamma >= 0; 0 is cross-entropy. Its best constant logits have no closed form, `initial_bias` gives log pi.
    """

    def __init__(self, class_counts, *, gamma=2.0, **common):
        super().__init__(class_counts, **common)
        if not (isinstance(gamma, numbers.Real) and math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma must be a finite number >= 0 (0 is cross-entropy), got {gamma!r}")
        self.gamma = float(gamma)

    def row_losses(self, x, targets):
        d = softmax_log_odds(x)
        # log(1 - p) = -softplus(d): the power as an exponential has a finite gradient at p = 1 for every gamma
        return expect(torch.exp(-self.gamma * F.softplus(d)) * F.softplus(-d), targets)


class LDAM(Loss):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019, Eq. 13): CE of s (cos_k - Delta_k [k = y]).

    Margins Delta_k fall as n_k^(-1/4), the largest is max_margin; scale s multiplies the cosines, which a cosine
    classifier gives (`cosine_head`), so `logit_scale` is s and the loss has no head bias to start.
    drw_epoch: from this epoch on (see `set_epoch`) label k weighs as in `cb_ce` with beta; None: never.
    """

    cosine_head = True
    needs_images = True

    def __init__(self, class_counts, *, max_margin=0.5, scale=30.0, drw_epoch=None, beta=0.9999, **common):
        super().__init__(class_counts, **common)
        if not (math.isfinite(max_margin) and max_margin >= 0 and math.isfinite(scale) and scale > 0):
            raise ValueError(
                f"ldam needs a finite max_margin >= 0 and a finite scale > 0, got {max_margin!r} and {scale!r}"
            )
        if drw_epoch is not None and (isinstance(drw_epoch, bool) or not isinstance(drw_epoch, int) or drw_epoch < 0):
            raise ValueError(f"drw_epoch must be None (no re-weighting) or an epoch >= 0, got {drw_epoch!r}")
        self.logit_scale = float(scale)
        self.drw_epoch = self.scheduled_epoch = drw_epoch
        self.reweighted = drw_epoch == 0
        margins = self.counts.pow(-0.25)
        self.add_constant("margins", max_margin * margins / margins.max())
        self.add_constant("class_weights", effective_number_weights(self.counts, beta))

    def set_epoch(self, epoch):
        self.reweighted = self.drw_epoch is not None and epoch >= self.drw_epoch

    def initial_bias(self):
        """ValueError: a cosine classifier has no bias."""
        raise ValueError("loss 'ldam' asks for a cosine classifier, which has no bias: use --head_bias zero")

    def row_losses(self, x, targets):
        d = softmax_log_odds(self.logit_scale * x)
        losses = F.softplus(self.logit_scale * self.constant("margins", x.dtype) - d)
        if self.reweighted:
            losses = self.constant("class_weights", x.dtype) * losses
        return expect(losses, targets)


class InfluenceBalanced(Loss):
    """Influence-balanced loss (Park et al., ICCV 2021, section 3.3): CE over the influence of the sample.

    lambda_y CE / (|p - onehot(y)|_1 |h|_1 + epsilon), h the penultimate features and |p - onehot(y)|_1 = 2 (1 - p_y).
    lambda_k = alpha w_k, w_k proportional to 1 / n_k with mean 1, so that alpha means the same for every C (with
    weights that sum to 1 it would be C alpha). The denominator is differentiated like the rest of the formula.
    Before epoch warmup_epochs (see `set_epoch`; the paper spends half its training there) it is plain CE.
    `initial_bias` gives log pi, the optimum of the warm-up. ValueError for alpha or epsilon not positive.
    """

    needs_features = True
    needs_images = True

    def __init__(self, class_counts, *, alpha=1000.0, epsilon=1e-3, warmup_epochs=5, **common):
        super().__init__(class_counts, **common)
        if not (math.isfinite(alpha) and alpha > 0 and math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"ib needs alpha > 0 and epsilon > 0, both finite, got {alpha!r} and {epsilon!r}")
        if isinstance(warmup_epochs, bool) or not isinstance(warmup_epochs, int) or warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be an integer >= 0, got {warmup_epochs!r}")
        self.epsilon = float(epsilon)
        self.warmup_epochs = self.scheduled_epoch = warmup_epochs
        self.balancing = warmup_epochs == 0
        inverse = 1.0 / self.counts
        self.add_constant("influence_weights", alpha * inverse / inverse.mean())

    def set_epoch(self, epoch):
        self.balancing = epoch >= self.warmup_epochs

    def row_losses(self, x, targets, features):
        if not self.balancing:
            return -expect(F.log_softmax(x, dim=1), targets)
        d = softmax_log_odds(x)
        influence = 2 * torch.sigmoid(-d) * features.abs().sum(1, keepdim=True) + self.epsilon
        return expect(self.constant("influence_weights", x.dtype) * F.softplus(-d) / influence, targets)
