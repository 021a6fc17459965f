"""The theorems in numbers on a few dozen problems, and that the same checks fail where the mathematics is broken."""
import json
import math

import numpy as np
import pytest
import torch

from submit import theorems
from util.losses import build_loss

PLAIN = ("CE", "BCE")
CONSISTENT = ("Bal-CE", "CE + bayes", "BCE + bayes", "Bal-BCE + bayes", "Thm. 4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(numbers of 36 problems and 7 of two classes, folder they were written to)."""
    folder = tmp_path_factory.mktemp("theorems") / "new"
    args = theorems.get_args_parser().parse_args(["--problems", "36", "--output_dir", str(folder)])
    return theorems.main(args), folder


@pytest.fixture(scope="module")
def problem():
    return theorems.draw_problem(3, 5, 6)


@pytest.mark.parametrize("prior", theorems.PRIORS)
@pytest.mark.parametrize("row", CONSISTENT)
def test_bayes_rule_of_the_test_prior_without_exception(run, row, prior):
    for table in ("table", "two_classes"):
        found = run[0][table][row][prior]
        assert found["exact"] == found["agree"] == 100
        assert found["max_regret"] < 1e-6


@pytest.mark.parametrize("row", PLAIN)
def test_plain_losses_are_bayes_rule_of_the_training_prior_only(run, row):
    found = run[0]["table"][row]
    assert found["training"]["exact"] == 100 and found["training"]["max_regret"] < 1e-6
    for prior in theorems.PRIORS:
        assert found[prior]["exact"] < 20 and found[prior]["agree"] < 60 and found[prior]["regret"] > 5


@pytest.mark.parametrize("prior", theorems.PRIORS)
def test_bal_bce_is_bayes_rule_for_two_classes_and_close_to_it_for_more(run, prior):
    assert run[0]["two_classes"]["Bal-BCE"][prior]["exact"] == 100
    many = run[0]["table"]["Bal-BCE"][prior]
    assert 0 < many["exact"] < 60 and 75 < many["agree"] < 99
    assert 0.1 < many["regret"] < run[0]["table"]["BCE"][prior]["regret"] / 5
    if prior == "uniform":
        assert many["to_head"] == 1


@pytest.mark.parametrize("prior", theorems.PRIORS)
@pytest.mark.parametrize("row", theorems.WRONG)
def test_wrong_margins_fail_the_check_that_theorem_4_passes(run, row, prior):
    found = run[0]["table"][row][prior]
    assert found["exact"] < 20 and found["regret"] > 5


def test_fitted_logits_are_those_of_the_theorems_to_a_millionth(run):
    errors = run[0]["errors"]
    assert set(errors) == {"gradient", "CE", "BCE", "Bal-CE", "Bal-BCE"}
    assert max(errors.values()) < 1e-6 and errors["gradient"] < 1e-12


def test_example_of_the_issue(run):
    expected = {"Bayes": 1, "BCE": 0, "Bal-CE": 1, "Bal-BCE": 0, "Bal-BCE + bayes": 1}
    assert run[0]["example"] == expected == json.loads((run[1] / "theorems.json").read_text())["example"]
    assert 0.6 / 0.5 < 0.05 / 0.04
    assert 0.6 * 0.5 / (0.4 * 0.5) > 0.05 * 0.96 / (0.95 * 0.04)
    assert (run[1] / "theorems.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["bal_ce", "bal_bce"])
@pytest.mark.parametrize("prior", theorems.PRIORS)
def test_a_bias_of_the_wrong_sign_is_found(problem, name, prior):
    """Mutation of the loss itself: with B negated, the minimum neither has the theorem's logits nor follows Bayes' rule."""
    target = problem.test_priors[prior]
    loss = build_loss(name, problem.counts, test_prior=target)
    expected = problem.joint(target).log() if name == "bal_ce" else problem.binary_log_odds(target)

    def gap():
        z = theorems.fit(loss, problem)
        difference = z - expected
        if name == "bal_ce":
            difference = difference - difference.mean(1, keepdim=True)
        return float(difference.abs().max()), theorems.bayes_check(z, problem, target)["agree"]

    assert gap()[0] < 1e-6 and gap()[1] > 0.7
    loss._exact["bias"] = -loss._exact["bias"]
    assert gap()[0] > 1 and gap()[1] < 0.7


def test_gradient_is_that_of_the_exact_expected_loss(problem):
    """Against the definition, written out: every x and label by itself, a hard label each, weighted by P_s(x, y)."""
    loss = build_loss("bal_bce", problem.counts)
    z = torch.linspace(-3, 3, problem.posterior.numel(), dtype=torch.float64).reshape(problem.posterior.shape)
    z.requires_grad_()
    joint = problem.joint(problem.prior)
    assert float(joint.sum()) == pytest.approx(1, abs=1e-12)
    total = sum(joint[x, y] * loss(z[x:x + 1], torch.tensor([y])) for x in range(len(z)) for y in range(z.shape[1]))
    (expected,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(theorems.expected_gradient(loss, z, problem), expected, rtol=1e-10, atol=1e-15)


def test_pairwise_loss_by_hand_and_as_cross_entropy():
    z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    margins = torch.tensor([[0, 0.5, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    weights = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    values = theorems.pairwise_losses(z, weights, margins)[0]
    assert float(values[0]) == pytest.approx(2 * math.log(1 + math.exp(0.5 - 1) + math.exp(-2)), rel=1e-12)
    assert float(values[1]) == pytest.approx(math.log(1 + math.exp(1) + math.exp(-1)), rel=1e-12)
    # d^s = pi, d^t = pi^t: weights one and Bal-CE's bias, so the family holds Bal-CE
    counts = torch.tensor([50.0, 30.0, 20.0], dtype=torch.float64)
    bias = build_loss("bal_ce", counts).shift(torch.float64)
    pairwise = theorems.pairwise_losses(z, torch.ones(3), bias[None, :] - bias[:, None])[0]
    for label in range(3):
        assert float(pairwise[label]) == pytest.approx(float(build_loss("bal_ce", counts)(z, torch.tensor([label]))), rel=1e-12)


def test_bayes_check_by_hand():
    """Two x, two classes, P(x | y) = (.8, .2), (.4, .6): uniform prior, best .4 + .3; always class 1 gets .2 + .3."""
    problem = theorems.Problem(torch.tensor([[0.8, 0.4], [0.2, 0.6]], dtype=torch.float64),
                               torch.tensor([1.0, 9.0], dtype=torch.float64), {})
    uniform = torch.tensor([0.5, 0.5], dtype=torch.float64)
    found = theorems.bayes_check(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), problem, uniform)
    assert (found["agree"], found["exact"], found["wrong"], found["to_head"]) == (0.5, False, 1, 1)
    assert found["regret"] == pytest.approx(20)
    found = theorems.bayes_check(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), problem, uniform)
    assert found["exact"] and found["regret"] == 0
    # a tie is right either way: joint of the first x is .4, .4 under the prior (1/3, 2/3) times 3/2
    tied = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    for row in ([1.0, 0.0], [0.0, 1.0]):
        assert theorems.bayes_check(torch.tensor([row, [0.0, 1.0]]), problem, tied)["exact"]


def test_problems_are_functions_of_seed_and_number():
    first, again, other = (theorems.draw_problem(0, n, 4) for n in (7, 7, 8))
    assert torch.equal(first.likelihood, again.likelihood) and torch.equal(first.counts, again.counts)
    assert not torch.equal(first.prior, other.prior)
    for number in range(20):
        drawn = theorems.draw_problem(1, number, 3 + number % 18)
        assert 8 <= len(drawn.likelihood) <= 40
        np.testing.assert_allclose(drawn.likelihood.sum(0), 1, rtol=1e-12)
        np.testing.assert_allclose(drawn.posterior.sum(1), 1, rtol=1e-12)
        assert 9.9 < float(drawn.counts.max() / drawn.counts.min()) < 1001


def test_bad_input_and_no_minimum():
    with pytest.raises(ValueError, match="--problems 0; expected at least 1"):
        theorems.main(theorems.get_args_parser().parse_args(["--problems", "0"]))
    with pytest.raises(RuntimeError, match="no minimum within 200 steps"):
        theorems.minimise(torch.ones_like, (2, 3))
