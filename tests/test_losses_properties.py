"""What must hold for the losses whatever their formula: targets, symmetry, types, schedules, memory, no host reads."""
import copy
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from util.losses import LOSSES, build_loss
from util.losses import base as losses_base

from .test_losses import COUNTS, PI, SKEWED, C, N, call, draw, ready

EYE = torch.eye(C, dtype=torch.float64)
NOT_LINEAR = {"lade"}  # its class means are ratios of sums over the batch


def value_and_grad(loss, z, targets, h):
    z = z.detach().clone().requires_grad_()
    value = call(loss, z, targets, h)
    value.backward()
    return value.detach(), z.grad


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("name", LOSSES)
def test_hard_equals_one_hot(name, kind):
    loss = ready(name)
    z, _, y, h = draw(3, kind)
    for dtype in (torch.float64, torch.float32):
        hard, hard_grad = value_and_grad(loss, z.to(dtype), y, h.to(dtype))
        soft, soft_grad = value_and_grad(loss, z.to(dtype), EYE[y], h.to(dtype))
        tolerance = {torch.float64: 1e-13, torch.float32: 1e-6}[dtype]
        torch.testing.assert_close(hard, soft, rtol=tolerance, atol=0)
        torch.testing.assert_close(hard_grad, soft_grad, rtol=tolerance, atol=tolerance)
    assert torch.equal(call(loss, z, y.int(), h), call(loss, z, y, h))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - NOT_LINEAR))
def test_mixture_of_labels_is_mixture_of_losses(name):
    loss = ready(name)
    z, _, y, h = draw(4, "random")
    other = (y + 2) % C
    mixed = call(loss, z, 0.3 * EYE[y] + 0.7 * EYE[other], h)
    torch.testing.assert_close(mixed, 0.3 * call(loss, z, y, h) + 0.7 * call(loss, z, other, h), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_permutation_of_classes_permutes_the_gradient(name):
    order = torch.tensor([3, 0, 4, 1, 2])
    z, t, _, h = draw(5, "random")
    options = {"test_prior": SKEWED} if LOSSES[name].uses_prior else {}
    moved = {"test_prior": [SKEWED[k] for k in order]} if options else {}
    value, grad = value_and_grad(ready(name, options), z, t, h)
    value2, grad2 = value_and_grad(ready(name, moved, [COUNTS[k] for k in order]), z[:, order], t[:, order], h)
    torch.testing.assert_close(value, value2, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad[:, order], grad2, rtol=1e-10, atol=1e-13)


PLAIN = [("bal_ce", "ce", {}), ("bal_bce", "bce", {}), ("nt_bal_bce", "nt_bce", {}),
         ("lade", "ce", {"weight": 0.0})]


@pytest.mark.parametrize("name, plain, options", PLAIN)
def test_tau_zero_is_the_plain_loss(name, plain, options):
    z, t, _, h = draw(6, "random")
    for test_prior in ("uniform", "none", SKEWED):
        balanced = value_and_grad(ready(name, {"tau": 0, "test_prior": test_prior, **options}), z, t, h)
        torch.testing.assert_close(balanced, value_and_grad(ready(plain), z, t, h), rtol=1e-13, atol=1e-15)


UNIFORM_PAIRS = PLAIN + [("cb_ce", "ce", {}), ("cb_bce", "bce", {}), ("mislas", "ce", {})]


@pytest.mark.parametrize("name, plain, options", UNIFORM_PAIRS)
def test_uniform_counts_give_the_plain_loss(name, plain, options):
    """Against a uniform test prior; without one Bal-BCE keeps its constant, logit(1 / C), on all logits."""
    z, t, _, h = draw(7, "random")
    counts = [40] * C
    balanced = value_and_grad(ready(name, options, counts), z, t, h)
    torch.testing.assert_close(balanced, value_and_grad(ready(plain, {}, counts), z, t, h), rtol=1e-12, atol=1e-14)
    if name in ("bal_ce", "bal_bce"):
        balanced = call(ready(name, {"test_prior": "none"}, counts), z, t, h)
        constant = {"bal_ce": math.log(1 / C), "bal_bce": -math.log(C - 1)}[name]
        torch.testing.assert_close(balanced, call(ready(plain, {}, counts), z + constant, t, h), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["bal_ce", "bal_bce", "cb_ce", "cb_bce", "nt_bal_bce", "lade", "ldam", "ib"])
def test_a_rare_class_gets_the_larger_pull(name):
    """Equal logits: the gradient on the label's own logit is larger for a rarer class, and grows with every step."""
    loss = ready(name)
    h = torch.ones(1, 4, dtype=torch.float64)
    pulls = []
    for k in range(C):
        zero = torch.zeros(1, C, dtype=torch.float64)
        pulls.append(-value_and_grad(loss, zero, torch.tensor([k]), h)[1][0, k].item())
    if name == "lade":  # its regulariser pulls by pi_k / 1 in a batch of one: look at the balanced part alone
        loss = ready(name, {"weight": 0.0})
        pulls = [-value_and_grad(loss, zero, torch.tensor([k]), h)[1][0, k].item() for k in range(C)]
    if name == "ldam":  # a margin saturates: with s Delta near 10 the pull is 1 to four digits, but still ordered
        assert pulls == sorted(pulls)
    else:
        assert all(a < b for a, b in itertools.pairwise(pulls))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_inside_under_autocast(name, dtype):
    """The value is that of the float32 loss of the rounded logits, its gradient that one rounded once."""
    loss = ready(name)
    z, t, _, h = draw(8, "random")
    half, h_half, t = z.to(dtype), h.to(dtype), t.float()
    expected, expected_grad = value_and_grad(loss, half.float(), t, h_half.float())
    half.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = call(loss, half, t, h_half)
        value.backward()
    assert value.dtype == torch.float32 and half.grad.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(half.grad, expected_grad.to(dtype), rtol=0, atol=0)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_no_host_synchronisation(name):
    """None of the operators that wait for the device: .item(), bool(), nonzero, bincount, masks."""
    loss = ready(name)
    z, t, y, h = [v.float() if v.is_floating_point() else v for v in draw(9, "random")]
    for targets in (t, y):
        with Recorder() as recorder:
            call(loss, z.requires_grad_(), targets, h.requires_grad_()).backward()
        forbidden = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "bincount", "unique", "_unique2",
                     "masked_select", "histc"}
        assert len(recorder.names) > 5 and not recorder.names & forbidden


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_do_not_change_the_loss(name, monkeypatch):
    loss = ready(name)
    z, t, y, h = draw(10, "random")
    for targets in (t, y):
        whole = value_and_grad(loss, z, targets, h)
        with monkeypatch.context() as patch:
            patch.setattr(losses_base, "MIN_BLOCK_ELEMENTS", 1)
            assert len(losses_base._spans(N, C)) == N
            torch.testing.assert_close(value_and_grad(loss, z, targets, h), whole, rtol=1e-13, atol=1e-15)


def test_the_number_of_blocks_does_not_grow_with_the_batch():
    for rows in (1, 7, 1024, 10**6):
        spans = losses_base._spans(rows, 8142)
        assert len(spans) <= losses_base.MAX_BLOCKS
        assert spans[0][0] == 0 and spans[-1][1] == rows and all(a[1] == b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("name", LOSSES)
def test_at_most_three_times_the_logits(name, monkeypatch):
    """Peak of all allocations of forward and backward, gradient included, over the bytes of the bfloat16 logits."""
    from benchmarks.loss import peak_bytes

    monkeypatch.setattr(losses_base, "MIN_BLOCK_ELEMENTS", 1)
    rows, classes = 240, 2000
    loss = ready(name, {}, [max(2, 1000 - k) for k in range(classes)])
    logits = torch.randn(rows, classes).bfloat16().requires_grad_()
    features = torch.randn(rows, 64).bfloat16().requires_grad_()
    for targets in (torch.randint(classes, (rows,)), torch.rand(rows, classes).softmax(1)):
        peak = peak_bytes(loss, logits, targets, features)
        assert 1 <= peak / (2 * logits.numel()) <= 3


def test_the_logits_are_not_changed():
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.randn(4, C).to(dtype)
        before = z.clone()
        build_loss("bal_bce", COUNTS)(z, torch.tensor([0, 1, 2, 3]))
        assert torch.equal(z, before)


def test_schedules_follow_the_epoch():
    z, t, _, h = draw(11, "random")
    deferred, never, ib, ce = (build_loss(n, COUNTS, **o) for n, o in (
        ("ldam", {"drw_epoch": 2}), ("ldam", {}), ("ib", {"warmup_epochs": 2}), ("ce", {})))
    for epoch in (0, 1, 2, 3, 1):
        for loss in (deferred, never, ib):
            loss.set_epoch(epoch)
        assert (call(deferred, z, t, h) == call(never, z, t, h)).item() is (epoch < 2)
        assert (call(ib, z, t, h) == call(ce, z, t, h)).item() is (epoch < 2)


def test_features_get_a_gradient_from_ib_only_after_its_warmup():
    loss = build_loss("ib", COUNTS, warmup_epochs=1)
    z, t, _, h = draw(12, "random")
    h.requires_grad_()
    call(loss, z.requires_grad_(), t, h).backward()
    assert h.grad.abs().sum() == 0
    loss.set_epoch(1)
    call(loss, z, t, h).backward()
    assert h.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_module_behaviour(name):
    """No parameters, nothing in a checkpoint; a deep copy and a trip through float16 leave the numbers alone."""
    loss = ready(name)
    z, t, _, h = draw(13, "random")
    expected = call(loss, z, t, h)
    assert not list(loss.parameters()) and not loss.state_dict()
    assert torch.equal(call(copy.deepcopy(loss).half(), z, t, h), expected)
    assert loss.activation in ("softmax", "sigmoid") and loss.cosine_head is (name == "ldam")
    assert loss.needs_features is (name == "ib") and loss.logit_scale == (30.0 if name == "ldam" else 1.0)


BIAS_CASES = [(name, {}) for name in LOSSES if name not in ("focal", "ldam", "ib")] + [
    ("bal_ce", {"tau": 0.5}), ("bal_ce", {"test_prior": SKEWED}), ("bal_bce", {"test_prior": "none"}),
    ("bal_bce", {"tau": 1.05, "test_prior": SKEWED}), ("nt_bce", {"lam": 0.3}), ("nt_bal_bce", {"tau": 0.5}),
    ("bce", {"class_weights": [1, 2, 3, 4, 5]})]


@pytest.mark.parametrize("name, options", BIAS_CASES)
def test_initial_bias_is_the_best_constant(name, options):
    """The expected loss over the training distribution has no slope at constant logits equal to it."""
    loss = ready(name, options)
    labels = torch.repeat_interleave(torch.arange(C), torch.tensor(COUNTS))
    bias = loss.initial_bias()
    assert bias.dtype == torch.float32 and bias.shape == (C,)
    bias = bias.double().requires_grad_()
    call(loss, bias.expand(len(labels), C), labels, None).backward()
    assert bias.grad.abs().max() < 1e-7


def test_initial_bias_of_the_paper():
    pi = torch.tensor(PI)
    expected = {"ce": pi.log(), "bce": torch.logit(pi), "bal_ce": torch.zeros(C), "focal": pi.log(), "ib": pi.log(),
                "bal_bce": torch.full((C,), -math.log(C - 1)), "lade": torch.zeros(C)}
    for name, bias in expected.items():
        torch.testing.assert_close(build_loss(name, COUNTS).initial_bias(), bias, rtol=1e-5, atol=1e-6)
    assert build_loss("bal_bce", COUNTS, test_prior="none").initial_bias().abs().max() == 0
    tilted = build_loss("bal_bce", COUNTS, tau=0.5, test_prior="none").initial_bias()
    torch.testing.assert_close(tilted, 0.5 * torch.logit(pi), rtol=1e-5, atol=1e-6)
