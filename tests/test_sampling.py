"""datasets/sampling.py: exact frequencies of every epoch, unbiased over epochs, and the rule of the prior."""
import math
import random
import subprocess
import sys
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.longtail import indices_hash, longtail_counts
from datasets.sampling import REBALANCING, SAMPLERS, _round, check_prior_rule, epoch_order, expected_frequencies
from util.losses import LOSSES, build_loss

getcontext().prec = 50
COUNTS = [23, 7, 3, 1, 9]
LABELS = np.random.RandomState(3).permutation(np.repeat(np.arange(5), COUNTS))
EPOCHS = 1500


def reference(kind, counts):
    """Expected draws N f_k as exact numbers (sqrt: to 50 digits)."""
    weights = {"random": lambda n: Fraction(n), "class_aware": lambda n: Fraction(1),
               "sqrt": lambda n: Fraction(Decimal(n).sqrt())}[kind]
    total = sum(map(weights, counts))
    return [sum(counts) * weights(n) / total for n in counts]


def draws_of_epochs(kind, labels, classes, epochs):
    return np.stack([np.bincount(epoch_order(kind, labels, classes, 0, e), minlength=len(labels)) for e in range(epochs)])


def per_class(draws, labels, classes):
    return np.stack([draws[:, labels == k].sum(1) for k in range(classes)], axis=1)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_epoch_rounds_the_exact_frequencies_and_their_mean_is_exact(kind):
    exact = reference(kind, COUNTS)
    draws = draws_of_epochs(kind, LABELS, 5, EPOCHS)
    classes = per_class(draws, LABELS, 5)
    assert (classes.sum(1) == len(LABELS)).all()
    for k, expected in enumerate(exact):
        low, high = math.floor(expected), math.ceil(expected)
        assert set(classes[:, k]) <= {low, high}
        part = float(expected - low)  # a rounding up is a Bernoulli draw of this probability
        assert abs(classes[:, k].mean() - float(expected)) <= 4.5 * math.sqrt(part * (1 - part) / EPOCHS)
        # each image floor or ceiling times in every epoch, and all of them equally often over the epochs
        images = draws[:, k == LABELS]
        rounds = classes[:, k, None] // COUNTS[k]
        assert ((images == rounds) | ((images == rounds + 1) & (classes[:, k, None] % COUNTS[k] > 0))).all()
        mean = float(expected) / COUNTS[k]
        assert np.abs(images.mean(0) - mean).max() <= 4.5 * 0.5 / math.sqrt(EPOCHS)


def test_frequencies_are_the_expected_draws():
    for kind in SAMPLERS:
        frequencies = expected_frequencies(kind, COUNTS)
        assert frequencies.dtype == np.float64
        assert np.allclose(frequencies * sum(COUNTS), [float(x) for x in reference(kind, COUNTS)], rtol=1e-14)
    assert expected_frequencies("sqrt", [4, 0, 16]).tolist() == [2 / 6, 0, 4 / 6]


@pytest.mark.parametrize("kind, counts", [("class_aware", [7, 7, 7]), ("class_aware", [19, 1, 1]), ("sqrt", [49, 4, 1, 0]),
                                          ("sqrt", [11] * 7), ("random", [31, 5, 2]), ("random", [0, 3])])
def test_whole_numbers_are_not_rounded(kind, counts):
    if kind == "sqrt" and counts == [49, 4, 1, 0]:  # 54 (7, 2, 1) / 10: rounded, while the empty class stays empty
        wanted = [{37, 38}, {10, 11}, {5, 6}, {0}]
    else:
        wanted = [{int(x)} for x in reference(kind, counts)]
        assert all(x.denominator == 1 for x in reference(kind, counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = per_class(draws_of_epochs(kind, labels, len(counts), 60), labels, len(counts))
    assert [set(column.tolist()) for column in drawn.T] == wanted


@pytest.mark.parametrize("start", [0.0, 1 - 2**-53])
def test_a_last_digit_of_float_makes_no_whole_number_a_fraction(start):
    class Fixed:
        permutation, random_sample = staticmethod(np.arange), staticmethod(lambda: start)

    expected = np.array([np.nextafter(5, 0), np.nextafter(3, 9), 0.5, 1.5])
    drawn = _round(expected, Fixed)
    assert drawn[:2].tolist() == [5, 3] and drawn.sum() == 10


def test_two_classes_are_rounded_up_together_and_apart():
    """Fractional parts of one half each: over a fixed order of the classes neighbours would never go up together."""
    labels = np.repeat(np.arange(4), [3, 3, 3, 1])  # 2.5 draws of each class
    drawn = per_class(draws_of_epochs("class_aware", labels, 4, 400), labels, 4)
    assert {tuple(row) for row in drawn.tolist()} == {
        tuple(2 + (k in pair) for k in range(4)) for pair in [(a, b) for a in range(4) for b in range(a)]}


def test_random_is_a_permutation_and_the_order_is_shuffled():
    assert sorted(epoch_order("random", LABELS, 5, 0, 0)) == list(range(len(LABELS)))
    labels = np.repeat(np.arange(10), longtail_counts(500, 100, 10))
    for kind in SAMPLERS:
        order = epoch_order(kind, labels, 10, 0, 0)
        assert order.dtype == np.int64 and order.shape == labels.shape
        first, second = np.split(labels[order][: len(order) // 2 * 2], 2)
        halves = [np.bincount(half, minlength=10) for half in (first, second)]
        assert np.abs(halves[0] - halves[1]).max() < 5 * math.sqrt(max(halves[0].max(), 1))
        repeats = (np.diff(order) == 0).mean()  # draws of one image do not stand side by side
        assert repeats < 0.02


def test_an_order_is_a_function_of_kind_seed_and_epoch_alone():
    keys = [(kind, seed, epoch) for kind in SAMPLERS for seed in (0, 1) for epoch in (0, 1, 2)]
    orders = {tuple(epoch_order(kind, LABELS, 5, seed, epoch).tolist()) for kind, seed, epoch in keys}
    assert len(orders) == len(keys)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    again = {tuple(epoch_order(kind, LABELS, 5, seed, epoch).tolist()) for kind, seed, epoch in reversed(keys)}
    assert again == orders
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


PINNED = {"random": "474cce68a5c1", "class_aware": "2aede3f812f1", "sqrt": "fdcecf12176f"}


def test_orders_are_pinned_and_the_same_in_another_process():
    """The same draws on every machine, in every process and with every numpy."""
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    assert {kind: indices_hash(epoch_order(kind, labels, 3, 5, 7))[:12] for kind in SAMPLERS} == PINNED
    code = ("import random; random.seed(); from datasets.sampling import epoch_order; from datasets.longtail import "
            f"indices_hash; print(indices_hash(epoch_order('sqrt', {labels}, 3, 5, 7))[:12])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parent.parent, env={"PYTHONHASHSEED": "77"})
    assert run.stdout.strip() == PINNED["sqrt"]


@pytest.mark.parametrize("kind, labels, classes, message", [
    ("class_aware", [0, 2, 2], 3, "cannot draw class 1: it has no training image;"),
    ("class_aware", [0, 2, 2], 5, r"cannot draw class 1: it has no training image \(3 such classes in all\)"),
    ("mean", [0, 1], 2, "unknown sampler 'mean'; known: random, class_aware, sqrt"),
    ("sqrt", [0, 3], 3, "labels go from 0 to 3; expected 0 to 2"),
    ("sqrt", [-1, 1], 3, "labels go from -1 to 1"),
    ("random", [0.0, 1.0], 2, "labels of type float64"),
    ("random", np.zeros(0, dtype=int), 2, r"shape \(0,\)"),
])
def test_orders_refuse(kind, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        epoch_order(kind, labels, classes, 0, 0)


def test_frequencies_refuse():
    with pytest.raises(ValueError, match=r"cannot draw class 1 \('elk'\)"):
        expected_frequencies("class_aware", [3, 0], ["cat", "elk"])
    for counts in ([[1, 2]], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(ValueError, match="class counts of shape"):
            expected_frequencies("random", counts)


def value(name, counts):
    """The loss of one fixed batch, past every warm-up, for given class counts."""
    draw = torch.Generator().manual_seed(0)
    loss = build_loss(name, counts)
    loss.set_epoch(1000)
    logits, features = torch.randn(6, 3, generator=draw), torch.randn(6, 4, generator=draw)
    return float(loss(logits, torch.tensor([0, 1, 2, 0, 1, 2]), features=features))


def test_rebalancing_losses_are_those_that_see_the_counts():
    assert {name for name in LOSSES if value(name, [500, 50, 5]) != value(name, [100, 100, 100])} == REBALANCING


@pytest.mark.parametrize("kind", ["class_aware", "sqrt"])
@pytest.mark.parametrize("loss", LOSSES)
def test_prior_rule(loss, kind):
    counts = [100, 25, 4]
    drawn = {"class_aware": [43, 43, 43], "sqrt": [129 * 10 / 17, 129 * 5 / 17, 129 * 2 / 17]}[kind]
    assert check_prior_rule(loss, "random", None, counts).tolist() == counts
    assert np.allclose(check_prior_rule(loss, kind, "sampler", counts), drawn, rtol=1e-14)
    assert check_prior_rule(loss, kind, "data", counts).tolist() == counts
    if loss in REBALANCING:
        with pytest.raises(ValueError, match=f"--loss {loss} and --sampler {kind} both re-balance.*--prior sampler"):
            check_prior_rule(loss, kind, None, counts)
    else:
        assert np.allclose(check_prior_rule(loss, kind, None, counts), drawn, rtol=1e-14)
    build_loss(loss, check_prior_rule(loss, kind, "sampler", counts))


def test_prior_rule_refuses():
    with pytest.raises(ValueError, match="--prior data does nothing with --sampler random"):
        check_prior_rule("bal_ce", "random", "data", [3, 1])
    with pytest.raises(ValueError, match="unknown prior 'test'; known: sampler, data"):
        check_prior_rule("ce", "sqrt", "test", [3, 1])
    with pytest.raises(ValueError, match="cannot draw class 1"):
        check_prior_rule("ce", "class_aware", None, [3, 0])
