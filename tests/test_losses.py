"""Every loss against a closed form written as loops over samples and classes, and the properties all share."""
import math

import numpy as np
import pytest
import torch

from util.losses import LOSSES, build_loss
from util.losses import base as losses_base

COUNTS = [500, 120, 40, 12, 3]
C = len(COUNTS)
PI = [n / sum(COUNTS) for n in COUNTS]
SKEWED = [0.1, 0.4, 0.2, 0.05, 0.25]
N, D = 6, 4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_softmax(z, k):
    return -math.log(sum(math.exp(v - z[k]) for v in z))


def odds_against(z, k):
    """(1 - p_k) / p_k, summed without the k that would cancel."""
    return sum(math.exp(v - z[k]) for j, v in enumerate(z) if j != k)


def effective_weights(beta=0.9999):
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    return [C * w / sum(raw) for w in raw]


def ce_bias(tau, test):
    return [tau * (math.log(PI[k]) - (math.log(test[k]) if test else 0)) for k in range(C)]


def bce_bias(tau, test):
    shift = [math.log(q) - math.log(1 - q) for q in test] if test else [0] * C
    return [tau * (math.log(PI[k]) - math.log(1 - PI[k]) - shift[k]) for k in range(C)]


def of_label(row):
    """Loss defined for a label, row(z, k, features) -> its mean over the batch of the expectation over the target."""
    def mean(z, t, features):
        return sum(t[i][k] * row(z[i], k, features[i]) for i in range(len(z)) for k in range(C)) / len(z)
    return mean


def of_binary(positive, negative, bias, weights=(1,) * C):
    """sum_k w_k [t_k positive(z_k + b_k) + (1 - t_k) negative(z_k + b_k)], mean over the batch."""
    def mean(z, t, features):
        return sum(
            weights[k] * (t[i][k] * positive(z[i][k] + bias[k]) + (1 - t[i][k]) * negative(z[i][k] + bias[k]))
            for i in range(len(z)) for k in range(C)
        ) / len(z)
    return mean


def bce_reference(bias=(0,) * C, weights=(1,) * C, lam=1.0):
    return of_binary(lambda x: -math.log(sigmoid(x)), lambda x: -math.log(sigmoid(-lam * x)) / lam, bias, weights)


def ce_reference(bias=(0,) * C, weights=(1,) * C):
    return of_label(lambda z, k, h: -weights[k] * log_softmax([v + b for v, b in zip(z, bias, strict=True)], k))


def cb_bce_reference():
    w = effective_weights()
    return of_label(lambda z, k, h: w[k] * sum(-math.log(sigmoid(z[j] if j == k else -z[j])) for j in range(C)))


def focal_reference(gamma):
    def row(z, k, h):
        r = odds_against(z, k)
        return (r / (1 + r)) ** gamma * math.log1p(r)
    return of_label(row)


def ldam_reference(max_margin=0.5, scale=30.0, weights=(1,) * C):
    margins = [max_margin * (min(COUNTS) / n) ** 0.25 for n in COUNTS]

    def row(z, k, h):
        return weights[k] * -log_softmax([scale * (v - (margins[k] if j == k else 0)) for j, v in enumerate(z)], k)
    return of_label(row)


def ib_reference(alpha=1000.0, epsilon=1e-3):
    weights = [C * (1 / n) / sum(1 / m for m in COUNTS) for n in COUNTS]

    def row(z, k, h):
        r = odds_against(z, k)
        return alpha * weights[k] * math.log1p(r) / (2 * r / (1 + r) * sum(abs(v) for v in h) + epsilon)
    return of_label(row)


def mislas_reference(head=0.3, tail=0.0, curve=lambda r: math.sin(math.pi * r / 2)):
    e = [tail + (head - tail) * curve((n - min(COUNTS)) / (max(COUNTS) - min(COUNTS))) for n in COUNTS]

    def row(z, k, h):
        return -sum((1 - e[k] if j == k else e[k] / (C - 1)) * log_softmax(z, j) for j in range(C))
    return of_label(row)


def lade_reference(tau=1.0, test=(1 / C,) * C, lam=0.1, weight=0.1):
    ce = ce_reference(ce_bias(tau, test))

    def mean(z, t, features):
        n = len(z)
        importance = [sum(t[i][k] / (C * PI[k]) for k in range(C)) for i in range(n)]
        regulariser = 0.0
        for c in range(C):
            mass = sum(t[i][c] for i in range(n))
            if mass == 0:
                continue
            f = [z[i][c] - tau * math.log(C * (test[c] if test else 1 / C)) for i in range(n)]
            v = math.log(sum(importance[i] * math.exp(f[i]) for i in range(n)) / n)
            regulariser += PI[c] * (-sum(t[i][c] * f[i] for i in range(n)) / mass + v + lam * v * v)
        return ce(z, t, features) + weight * regulariser
    return mean


WEIGHTS = [0.5, 1.0, 2.0, 0.25, 3.0]
UNIFORM = [1 / C] * C
# (loss, options, closed form)
CASES = [
    ("ce", {}, ce_reference()),
    ("bal_ce", {}, ce_reference(ce_bias(1, UNIFORM))),
    ("bal_ce", {"test_prior": "none"}, ce_reference(ce_bias(1, None))),
    ("bal_ce", {"test_prior": SKEWED, "tau": 1.5}, ce_reference(ce_bias(1.5, SKEWED))),
    ("bce", {}, bce_reference()),
    ("bce", {"class_weights": WEIGHTS}, bce_reference(weights=WEIGHTS)),
    ("bal_bce", {}, bce_reference(bce_bias(1, UNIFORM))),
    ("bal_bce", {"test_prior": "none", "tau": 0.5}, bce_reference(bce_bias(0.5, None))),
    ("bal_bce", {"test_prior": SKEWED, "class_weights": WEIGHTS}, bce_reference(bce_bias(1, SKEWED), WEIGHTS)),
    ("cb_ce", {}, ce_reference(weights=effective_weights())),
    ("cb_ce", {"beta": 0.9}, ce_reference(weights=effective_weights(0.9))),
    ("cb_bce", {}, cb_bce_reference()),
    ("focal", {}, focal_reference(2.0)),
    ("focal", {"gamma": 0.5}, focal_reference(0.5)),
    ("ldam", {}, ldam_reference()),
    ("ldam", {"drw_epoch": 3, "max_margin": 0.3, "scale": 10.0}, ldam_reference(0.3, 10.0, effective_weights())),
    ("lade", {}, lade_reference()),
    ("lade", {"test_prior": "none", "tau": 0.7, "remine_lambda": 0.5}, lade_reference(0.7, None, 0.5)),
    ("lade", {"test_prior": SKEWED, "weight": 2.0}, lade_reference(1.0, SKEWED, 0.1, 2.0)),
    ("ib", {}, ib_reference()),
    ("ib", {"alpha": 10.0, "epsilon": 0.1}, ib_reference(10.0, 0.1)),
    ("mislas", {}, mislas_reference()),
    ("mislas", {"head_smoothing": 0.4, "tail_smoothing": 0.1, "shape": "linear"},
     mislas_reference(0.4, 0.1, lambda r: r)),
    ("mislas", {"shape": "convex"},
     mislas_reference(0.3, 0.0, lambda r: 1 + math.sin(1.5 * math.pi + math.pi * r / 2))),
    ("nt_bce", {"lam": 3.0}, bce_reference(lam=3.0)),
    ("nt_bal_bce", {"lam": 3.0}, bce_reference(bce_bias(1, UNIFORM), lam=3.0)),
    ("nt_bal_bce", {"lam": 0.5, "test_prior": "none", "tau": 2.0}, bce_reference(bce_bias(2, None), lam=0.5)),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items()) or 'default'}"[:60] for name, options, _ in CASES]


def draw(seed, kind):
    """-> logits (N, C), soft targets (N, C), hard labels (N,), features (N, D), float64."""
    rng = np.random.RandomState(seed)
    z = rng.randn(N, C) * 2 if kind == "random" else rng.choice([-80.0, -1.0, 0.5, 80.0], (N, C))
    t = rng.dirichlet(np.ones(C) * 0.5, N)
    y = rng.randint(C - 1, size=N)  # the last class is absent, which lade must leave out
    return [torch.tensor(a) for a in (z, t, y, rng.randn(N, D))]


def ready(name, options=None, counts=COUNTS):
    """The loss past every warm-up."""
    loss = build_loss(name, counts, **(options or {}))
    loss.set_epoch(10**6)
    return loss


def call(loss, z, targets, h):
    return loss(z, targets, features=h if loss.needs_features else None)


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("name, options, reference", CASES, ids=IDS)
def test_closed_form(name, options, reference, kind):
    loss = ready(name, options)
    for seed in range(3):
        z, t, y, h = draw(seed, kind)
        if name == "ldam":
            z = z / (2 if kind == "random" else 8)  # 30 times a cosine, not 30 times 80, which e^x cannot hold
        for targets, dense in ((t, t), (y, torch.eye(C, dtype=torch.float64)[y])):
            expected = reference(z.tolist(), dense.tolist(), h.tolist())
            value = call(loss, z, targets, h)
            assert value.dtype == torch.float64 and value.ndim == 0
            assert value.item() == pytest.approx(expected, rel=1e-11, abs=1e-12)
            single = call(loss, z.float(), targets if targets is y else targets.float(), h.float())
            assert single.dtype == torch.float32
            assert single.item() == pytest.approx(expected, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("name, options, reference", CASES, ids=IDS)
def test_gradient_of_the_closed_form(name, options, reference, kind):
    """Central differences of the reference, which shares no code with the loss."""
    loss = ready(name, options)
    z, t, _, h = draw(7, kind)
    z = (z / (2 if kind == "random" else 8) if name == "ldam" else z).requires_grad_()
    h.requires_grad_()
    call(loss, z, t, h).backward()
    assert torch.isfinite(z.grad).all()
    step = 1e-5
    pairs = [(z, z.grad, lambda v: reference(v, t.tolist(), h.tolist()))]
    if loss.needs_features:
        pairs.append((h, h.grad, lambda v: reference(z.tolist(), t.tolist(), v)))
    for tensor, grad, evaluate in pairs:
        for i in range(0, N, 2):
            for k in range(tensor.shape[1]):
                values = []
                for sign in (1, -1):
                    moved = tensor.tolist()
                    moved[i][k] += sign * step
                    values.append(evaluate(moved))
                numeric = (values[0] - values[1]) / (2 * step)
                # IB is of the order of 1000 and steep where p is near 1: compare on the scale of its values
                scale = max(1.0, abs(values[0]))
                assert grad[i, k].item() == pytest.approx(numeric, rel=2e-4, abs=1e-7 * scale)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_gradcheck(name, blocks, kind, monkeypatch):
    if blocks > 1:
        monkeypatch.setattr(losses_base, "MAX_BLOCKS", blocks)
        monkeypatch.setattr(losses_base, "MIN_BLOCK_ELEMENTS", 1)
    loss = ready(name)
    z, t, y, h = draw(1, kind)
    z, h = z.requires_grad_(), h.requires_grad_()
    inputs = (z, h) if loss.needs_features else (z,)
    for targets in (t, y):
        assert torch.autograd.gradcheck(lambda z, h=None, t=targets: call(loss, z, t, h), inputs)


def test_softplus_keeps_its_tail():
    """A positive logit of 25 is not yet certain: what it costs is 1.4e-11, not the 0 of torch's own threshold."""
    z = torch.tensor([[25.0] + [-60.0] * (C - 1)], dtype=torch.float64)
    for name in ("bce", "cb_bce", "nt_bce"):
        weight = effective_weights()[0] if name == "cb_bce" else 1.0
        assert ready(name)(z, torch.tensor([0])).item() == pytest.approx(weight * math.log1p(math.exp(-25)), abs=1e-14)


def test_every_loss_has_a_closed_form():
    assert {name for name, _, _ in CASES} == set(LOSSES)
