"""Numbers and identities of the paper: zero-logit losses, gradients of appendix B, Eq. 10 against Thm. 2."""
import json
import math
from pathlib import Path

import pytest
import torch

from util.losses import build_loss

COUNTS_FOLDER = Path(__file__).resolve().parents[1] / "datasets" / "class_counts"

# mean loss over the training distribution at all-zero logits: ce, bal_ce, bce, bal_bce of Thm. 2, bal_bce of Eq. 10
ZERO_LOGITS = {
    "imagenet_lt": (6.908, 6.418, 693.147, 7.416, 582.397),
    "inat18": (9.005, 8.081, 5643.604, 9.080, 4084.581),
    "places_lt": (5.900, 4.941, 252.999, 5.933, 180.955),
    "cifar100_lt": (4.605, 4.007, 69.315, 4.995, 55.322),
    "cifar10_lt": (2.303, 1.644, 6.931, 2.500, 4.996),
}
COLUMNS = [("ce", {}), ("bal_ce", {}), ("bce", {}), ("bal_bce", {"test_prior": "none"}), ("bal_bce", {})]


def counts_of(dataset):
    if dataset.startswith("cifar"):
        classes, largest = {"cifar10_lt": (10, 5000), "cifar100_lt": (100, 500)}[dataset]
        return [int(largest * (1 / 100) ** (i / (classes - 1))) for i in range(classes)]
    path = COUNTS_FOLDER / f"{dataset}.json"
    if not path.is_file():
        pytest.skip(f"no class counts at {path}: they lie beside the repository, not in it")
    return json.loads(path.read_text())


@pytest.mark.parametrize("dataset", ZERO_LOGITS)
@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=["ce", "bal_ce", "bce", "thm2", "eq10"])
def test_zero_logit_losses(dataset, column):
    counts = counts_of(dataset)
    name, options = COLUMNS[column]
    loss = build_loss(name, counts, **options)
    pi = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    # the losses are linear in the target, so one row with the target pi is the mean over the training set
    for dtype, tolerance in ((torch.float64, 0), (torch.float32, 2e-3)):
        value = loss(torch.zeros(1, len(counts), dtype=dtype), pi[None].to(dtype)).item()
        assert abs(value - ZERO_LOGITS[dataset][column]) <= 5.01e-4 + tolerance


COUNTS = [600, 200, 50, 9, 2]
PI = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)


@pytest.mark.parametrize("scale", [2.0, 80.0])
def test_gradients_of_appendix_b(scale):
    """Bal-CE: softmax(z + B) - y, Bal-BCE: s(z + B) - y, each over the batch size. (The appendix prints the Bal-CE
    gradient of the label without its - 1, which cannot be: the gradients of a softmax loss sum to zero.)"""
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(8, 5, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    y = torch.randint(5, (8,), generator=generator)
    one_hot = torch.eye(5, dtype=torch.float64)[y]
    build_loss("bal_ce", COUNTS)(z, y).backward()
    powers = torch.exp(z.detach() + PI.log() - (z.detach() + PI.log()).amax(1, keepdim=True))
    torch.testing.assert_close(z.grad, (powers / powers.sum(1, keepdim=True) - one_hot) / 8, rtol=1e-10, atol=1e-14)
    assert z.grad.sum(1).abs().max() < 1e-14
    for test_prior, constant in (("none", 0.0), ("uniform", math.log(4))):
        z.grad = None
        build_loss("bal_bce", COUNTS, test_prior=test_prior)(z, y).backward()
        bias = PI.log() - torch.log(1 - PI) + constant
        expected = torch.where(one_hot == 1, -1 / (1 + torch.exp(z + bias)), 1 / (1 + torch.exp(-z - bias))) / 8
        torch.testing.assert_close(z.grad, expected.detach(), rtol=1e-10, atol=1e-14)


def test_biases_of_theorems_1_to_3():
    """Read off from outside: the loss of a shifted loss is the plain loss of shifted logits."""
    test = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    z = torch.linspace(-3, 3, 15, dtype=torch.float64).reshape(3, 5)
    y = torch.tensor([4, 0, 2])
    odds = torch.log(PI / (1 - PI))
    biases = {
        ("bal_ce", "none"): PI.log(),
        ("bal_ce", "uniform"): PI.log() + math.log(5),
        ("bal_ce", "file"): PI.log() - test.log(),
        ("bal_bce", "none"): odds,
        ("bal_bce", "uniform"): odds + math.log(4),
        ("bal_bce", "file"): odds - torch.log(test / (1 - test)),
    }
    for (name, kind), bias in biases.items():
        for tau in (1.0, 1.05, 0.3):
            balanced = build_loss(name, COUNTS, tau=tau, test_prior=test if kind == "file" else kind)
            plain = build_loss(name.removeprefix("bal_"), COUNTS)
            torch.testing.assert_close(balanced(z, y), plain(z + tau * bias, y), rtol=1e-12, atol=0)


def train(loss, optimiser, head_bias, decay_bias=False, steps=20):
    """Losses of a linear model over `steps` steps on a fixed random problem; the head bias starts at a constant."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 7, generator=generator, dtype=torch.float64)
    y = torch.multinomial(PI, 64, replacement=True, generator=generator)
    weight = (torch.randn(5, 7, generator=generator, dtype=torch.float64) * 0.02).requires_grad_()
    bias = torch.full((5,), head_bias, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.05 * decay_bias}]
    stepper = torch.optim.SGD(groups, lr=0.1, momentum=0.9) if optimiser == "sgd" else torch.optim.AdamW(groups, lr=0.1)
    values = []
    for _ in range(steps):
        value = loss(x @ weight.T + bias, y)
        stepper.zero_grad()
        value.backward()
        stepper.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("tau", [1.0, 1.05])
def test_equation_10_is_theorem_2_with_another_head_bias(optimiser, tau):
    eq10 = build_loss("bal_bce", COUNTS, tau=tau)
    thm2 = build_loss("bal_bce", COUNTS, tau=tau, test_prior="none")
    start = tau * math.log(4)
    losses = train(eq10, optimiser, 0.0)
    assert losses == pytest.approx(train(thm2, optimiser, start), rel=1e-9)
    assert losses[-1] < losses[0]
    # the identity is no accident of the problem: another start, or decay on the bias, gives other losses
    assert losses != pytest.approx(train(thm2, optimiser, 0.0), rel=1e-3)
    assert train(eq10, optimiser, 0.0, True) != pytest.approx(train(thm2, optimiser, start, True), rel=1e-4)


def test_negative_tolerance():
    """Appendix E.2: lam 1 is BCE; a larger lam lets go of negatives that are low, and keeps the positives' pull."""
    z = torch.tensor([[1.0, -2.0, -4.0, 0.5, 0.0]], dtype=torch.float64)
    y = torch.tensor([0])
    for plain, tolerant in (("bce", "nt_bce"), ("bal_bce", "nt_bal_bce")):
        torch.testing.assert_close(build_loss(tolerant, COUNTS, lam=1)(z, y), build_loss(plain, COUNTS)(z, y))
    grads = []
    for lam in (1.0, 4.0):
        leaf = z.clone().requires_grad_()
        build_loss("nt_bce", COUNTS, lam=lam)(leaf, y).backward()
        grads.append(leaf.grad[0])
    assert grads[1][0] == pytest.approx(grads[0][0].item())
    assert (grads[1][1:3] < 0.2 * grads[0][1:3]).all()


def test_effective_number_weights():
    """Limits of the class-balanced loss: beta 0 is no weight, beta near 1 is the inverse count; always mean 1."""
    z = torch.zeros(1, 5, dtype=torch.float64)
    plain = math.log(5)
    for k in range(5):
        y = torch.tensor([k])
        assert build_loss("cb_ce", COUNTS, beta=0.0)(z, y).item() == pytest.approx(plain)
        inverse = 5 / COUNTS[k] / sum(1 / n for n in COUNTS)
        assert build_loss("cb_ce", COUNTS, beta=1 - 1e-12)(z, y).item() == pytest.approx(plain * inverse, rel=1e-6)
