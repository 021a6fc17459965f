"""Post-hoc corrections: hand-computed values, closed forms, Bayes' rule on discrete problems, bad input."""
import math

import numpy as np
import pytest
import torch

from util.losses import build_loss
from util.posthoc import adjust, retarget

COUNTS = [50, 4, 46]
PI = np.array(COUNTS) / 100
NEW = np.array([0.2, 0.5, 0.3])


def logit(p):
    return np.log(p) - np.log1p(-p)


def draw(seed, classes, values=30):
    """P(x | y) (n, C), training prior of imbalance 100 and a skewed test prior, both (C,)."""
    generator = np.random.default_rng(seed)
    powers = np.exp(generator.standard_normal((values, classes)))
    counts = 1000 * 0.01 ** (generator.permutation(classes) / (classes - 1))
    test = np.exp(generator.standard_normal(classes))
    return powers / powers.sum(0), counts, test / test.sum()


def fitted(name, likelihood, counts, test_prior="uniform", tau=1.0):
    """Closed-form minimum of a loss on a discrete problem: z = log or logit P_s(k | x), minus the loss's bias; the bias."""
    joint = likelihood * counts / counts.sum()
    posterior = joint / joint.sum(1, keepdims=True)
    loss = build_loss(name, counts, tau=tau, test_prior=test_prior)
    bias = loss.shift(torch.float64)
    x = np.log(posterior) if loss.activation == "softmax" else logit(posterior)
    return (x if bias is None else x - bias.numpy()), bias, loss.activation


def test_example_by_hand():
    """p = .6, .05, .35 under pi = .5, .04, .46: p / pi = 1.2, 1.25, .761; odds ratios 1.5, 1.263, .632."""
    z = logit(np.array([[0.6, 0.05, 0.35]]))
    exact, kind = adjust(z, COUNTS, "sigmoid", "bayes", test_prior="none")
    np.testing.assert_allclose(np.exp(exact[0]), [1.2, 1.25, 0.35 / 0.46], rtol=1e-12)
    assert kind == "softmax" and exact[0].argmax() == 1
    moved, kind = adjust(z, COUNTS, "sigmoid", "logit_adjust", test_prior="none")
    np.testing.assert_allclose(np.exp(moved[0]), [1.5, 0.05 * 0.96 / (0.95 * 0.04), 0.35 * 0.54 / (0.65 * 0.46)], rtol=1e-12)
    assert kind == "sigmoid" and moved[0].argmax() == 0
    assert adjust(z, COUNTS, "sigmoid", "none").scores[0].argmax() == 0


def test_softmax_formulas():
    z = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(adjust(z, COUNTS, "softmax", "logit_adjust", test_prior="none", tau=0.7).scores,
                               z - 0.7 * np.log(PI), rtol=1e-12)
    np.testing.assert_allclose(adjust(z, COUNTS, "softmax", "logit_adjust", test_prior=NEW).scores,
                               z - np.log(PI) + np.log(NEW), rtol=1e-12)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    np.testing.assert_allclose(adjust(z, COUNTS, "softmax", "bayes", test_prior=NEW).scores,
                               log_p - np.log(PI) + np.log(NEW), rtol=1e-12)
    np.testing.assert_array_equal(adjust(z, COUNTS, "softmax", "none").scores, z)
    np.testing.assert_allclose(retarget(z, COUNTS, "softmax", NEW, PI).scores, z + np.log(PI) - np.log(NEW), rtol=1e-12)


def test_sigmoid_formulas():
    z = np.array([[1.0, -2.0, 0.5], [0.0, 90.0, -90.0]])
    np.testing.assert_allclose(adjust(z, COUNTS, "sigmoid", "logit_adjust", test_prior=NEW, tau=2).scores,
                               z - 2 * logit(PI) + logit(NEW), rtol=1e-12)
    # log s by logaddexp: at -90 it is -90, not log of a rounded zero
    np.testing.assert_allclose(adjust(z, COUNTS, "sigmoid", "bayes", test_prior=NEW, loss_bias=[1.0, 2.0, 3.0]).scores,
                               -np.logaddexp(0, -(z + [1.0, 2.0, 3.0])) - np.log(PI) + np.log(NEW), rtol=1e-12)
    np.testing.assert_allclose(retarget(z, COUNTS, "sigmoid", "train", "uniform").scores,
                               z - logit(PI) - math.log(2), rtol=1e-12)
    np.testing.assert_allclose(retarget(z, COUNTS, "sigmoid", "uniform", "none").scores, z + math.log(2), rtol=1e-12)


@pytest.mark.parametrize("target", ["uniform", "skewed"])
@pytest.mark.parametrize("classes", [2, 3, 7, 20])
@pytest.mark.parametrize("name", ["ce", "bce", "bal_ce", "bal_bce"])
@pytest.mark.parametrize("tau", [1.0, 1.3])
def test_bayes_is_the_test_posterior_for_every_loss(name, classes, target, tau):
    """Not the ranking alone: softmax of the scores is P_t(k | x)."""
    for seed in range(5):
        likelihood, counts, skewed = draw(seed, classes)
        test = np.full(classes, 1 / classes) if target == "uniform" else skewed
        z, bias, activation = fitted(name, likelihood, counts, tau=tau)
        scores, kind = adjust(z, counts, activation, "bayes", test_prior=test, loss_bias=bias)
        joint = likelihood * test
        powers = np.exp(scores - scores.max(1, keepdims=True))
        assert kind == "softmax"
        np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), joint / joint.sum(1, keepdims=True), rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 9])
def test_retarget_moves_a_model_to_what_training_for_the_new_prior_gives(classes):
    """Trained for one prior and re-targeted = trained for the other, softmax and sigmoid, from plain and balanced."""
    likelihood, counts, new = draw(11, classes)
    for plain, balanced in (("ce", "bal_ce"), ("bce", "bal_bce")):
        wanted = fitted(balanced, likelihood, counts, new)[0]
        for old in ("uniform", "none", draw(12, classes)[2]):
            z, _, activation = fitted(balanced, likelihood, counts, old)
            moved = retarget(z, counts, activation, old, new)
            assert moved.activation == activation
            np.testing.assert_allclose(moved.scores, wanted, rtol=1e-9, atol=1e-9)
        z, _, activation = fitted(plain, likelihood, counts)
        np.testing.assert_allclose(retarget(z, counts, activation, "train", new).scores, wanted, rtol=1e-9, atol=1e-9)
        # the route for a loss with another tau
        z, bias, activation = fitted(balanced, likelihood, counts, "uniform", tau=1.3)
        moved = retarget(z + bias.numpy(), counts, activation, "train", new).scores
        np.testing.assert_allclose(moved, wanted, rtol=1e-9, atol=1e-9)


def test_what_is_exact_and_what_is_not():
    """Against Bayes' rule: retarget is exact for softmax and for two classes, not for sigmoid and twenty."""
    for classes in (2, 20):
        likelihood, counts, new = draw(21, classes, values=400)
        best = (likelihood * new).argmax(1)
        for name in ("bal_ce", "bal_bce"):
            z, _, activation = fitted(name, likelihood, counts)
            agree = (retarget(z, counts, activation, "uniform", new).scores.argmax(1) == best).mean()
            assert (agree == 1) == (name == "bal_ce" or classes == 2)
            assert agree > 0.5


def test_logit_adjust_is_built_into_balanced_losses():
    z = np.random.default_rng(0).standard_normal((5, 3))
    for name in ("bal_ce", "bal_bce"):
        for prior in ("uniform", "none", NEW):
            loss = build_loss(name, COUNTS, test_prior=prior)
            again = adjust(z, COUNTS, loss.activation, "logit_adjust", test_prior=prior, loss_bias=loss.shift(torch.float64))
            np.testing.assert_allclose(again.scores, z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float64_inside_arrays_stay_arrays_and_the_input_stays(dtype):
    z = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype, requires_grad=True)
    calls = [lambda v: adjust(v, COUNTS, "sigmoid", "bayes", loss_bias=[1, 1, 1]),
             lambda v: adjust(v, COUNTS, "softmax", "none"),
             lambda v: adjust(v, COUNTS, "softmax", "logit_adjust"),
             lambda v: retarget(v, COUNTS, "sigmoid", "train", NEW)]
    for call in calls:
        scores = call(z).scores
        assert isinstance(scores, torch.Tensor) and scores.dtype == torch.float64 and not scores.requires_grad
        assert z.tolist() == [[1.0, -2.0, 0.5]]
        if dtype != torch.bfloat16:
            array = z.detach().numpy().copy()
            found = call(array).scores
            assert isinstance(found, np.ndarray) and found.dtype == np.float64
            np.testing.assert_array_equal(found, scores.numpy())
            np.testing.assert_array_equal(array, z.detach().numpy())


Z = np.zeros((2, 3))
BAD = [
    (lambda: adjust(Z, COUNTS, "softmax", "best"), "unknown post-hoc method 'best'; expected one of none, logit_adjust, bayes"),
    (lambda: adjust(Z, COUNTS, "relu", "bayes"), "unknown activation 'relu'; expected one of softmax, sigmoid"),
    (lambda: adjust(Z, [1, 2], "softmax", "bayes"), "2 class counts for logits of 3 classes"),
    (lambda: adjust(Z, [1, 0, 0], "softmax", "bayes"), r"class 1 has no training image \(2 such classes"),
    (lambda: adjust(Z, COUNTS, "softmax", "bayes", tau=2.0), "tau 2 has no meaning for post-hoc method 'bayes'"),
    (lambda: adjust(Z, COUNTS, "softmax", "logit_adjust", tau=-1), "tau must be a finite number >= 0"),
    (lambda: adjust(Z, COUNTS, "softmax", "bayes", test_prior=[0.5, 0.5]), "test_prior must hold 3 probabilities"),
    (lambda: adjust(Z, COUNTS, "softmax", "bayes", test_prior=[5, 3, 2]), "test_prior must sum to 1, got 10"),
    (lambda: adjust(Z, COUNTS, "sigmoid", "bayes", loss_bias=[1.0, 2.0]), "loss_bias must be 3 finite numbers"),
    (lambda: adjust(Z, COUNTS, "sigmoid", "bayes", loss_bias=[1.0, 2.0, math.inf]), "loss_bias must be 3 finite numbers"),
    (lambda: adjust(Z[0], COUNTS, "softmax", "bayes"), r"logits of shape \(3,\)"),
    (lambda: adjust(Z.astype(int), COUNTS, "softmax", "bayes"), "type torch.int64; expected floating point"),
    (lambda: adjust(Z * np.nan, COUNTS, "softmax", "none"), "2 of 2 rows of logits hold nan or inf"),
    (lambda: retarget(Z, COUNTS, "softmax", "training", NEW), r"trained_prior must be 'train' \(a plain loss\), 'uniform'"),
    (lambda: retarget(Z, COUNTS, "softmax", "train", "train"), "test_prior must be 'uniform', 'none' or 3 probabilities"),
    (lambda: retarget(Z, COUNTS, "relu", "train", NEW), "unknown activation 'relu'"),
    (lambda: retarget(Z, [1, 2], "softmax", "train", NEW), "2 class counts for logits of 3 classes"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_class_without_images_needs_no_prior_where_none_is_used():
    np.testing.assert_array_equal(adjust(Z, [1, 0, 0], "softmax", "none").scores, Z)
    retarget(Z, [1, 0, 0], "softmax", "uniform", NEW)
