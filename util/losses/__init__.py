"""Losses for long-tailed recognition, hard and soft targets in one path, float32 inside.

    loss = build_loss("bal_bce", class_counts)
    value = loss(logits, targets)          # logits (N, C), targets (N,) or (N, C) -> scalar
"""
import inspect

from .base import Loss
from .binary import BCE, NTBCE, BalBCE, CbBCE, NTBalBCE
from .cross_entropy import CE, BalCE, CbCE, Mislas
from .lade import LADE
from .margin import LDAM, Focal, InfluenceBalanced
from .prior import read_prior

LOSSES = {
    "ce": CE,
    "bal_ce": BalCE,
    "bce": BCE,
    "bal_bce": BalBCE,
    "cb_ce": CbCE,
    "cb_bce": CbBCE,
    "focal": Focal,
    "ldam": LDAM,
    "lade": LADE,
    "ib": InfluenceBalanced,
    "mislas": Mislas,
    "nt_bce": NTBCE,
    "nt_bal_bce": NTBalBCE,
}

__all__ = ["LOSSES", "Loss", "build_loss", "loss_options", "read_prior"]


def loss_options(name):
    """Options that loss `name` knows besides tau and test_prior, with their defaults. ValueError: unknown name."""
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    parameters = inspect.signature(LOSSES[name].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_loss(name, class_counts, tau=1.0, test_prior="uniform", class_names=None, **options):
    """Build a loss by name.

    name: a key of LOSSES; class_counts: training images of each class (C,); tau: finite, >= 0, scales the prior;
    test_prior: "uniform" (Eq. 10), "none" (Thm. 1 and 2) or C probabilities (Thm. 3); class_names: C names for
    messages; options: see `loss_options(name)`. Losses whose `uses_prior` is False do not depend on tau and test_prior.
    -> Loss, an nn.Module on the CPU. ValueError for an unknown name or option, and for values a loss cannot use.
    """
    known = loss_options(name)
    for option in options:
        if option not in known:
            listed = ", ".join(known) if known else "none besides tau and test_prior"
            raise ValueError(f"unknown option {option!r} of loss {name!r}; known: {listed}")
    common = {"tau": tau, "test_prior": test_prior, "class_names": class_names, "name": name}
    try:
        return LOSSES[name](class_counts, **options, **common)
    except TypeError as error:
        if not options:
            raise
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        expected = ", ".join(f"{option}={default!r}" for option, default in known.items())
        raise ValueError(f"an option of loss {name!r} has a wrong type: {given}; the defaults are {expected}") from error
