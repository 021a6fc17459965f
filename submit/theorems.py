"""What the paper's theorems claim, as experiments: float64, exact expected losses, minimised to their optimum.

    python -m submit.theorems [--problems 1000] [--output_dir DIR]        two minutes on one core

A problem is a finite set of x, P(x | y) known, a skewed training prior and two test priors, uniform and skewed. The
logits of each x are free, so a loss's minimum shows what the loss asks for and nothing of a network. The project's own
loss objects are minimised; closed forms only check the result. One table, one picture, theorems.json.
"""
import argparse
import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from util import posthoc
from util.args import run_command
from util.figures_compare import COLORS, MARKERS, save
from util.losses import Loss, build_loss
from util.run import say

CLASSES = range(3, 21)
MAX_STEPS, LONGEST_STEP, LAST_STEP = 200, 2.0, 1e-8  # of Newton's method, in nats
TIE = 1e-8  # two classes whose P_t(x, y) differ by less than this share are as good as each other
PRIORS = ("uniform", "skewed")
BAYES = {"BCE + bayes": "BCE", "Bal-BCE + bayes": "Bal-BCE", "CE + bayes": "CE"}
WRONG = ("Thm. 4, margin reversed", "Thm. 4, margin alone")
ROWS = ("CE", "BCE", "Bal-CE", "Bal-BCE", *BAYES, "Thm. 4", *WRONG)
DRAWN = ("CE", "BCE", "Bal-BCE", "Bal-CE", "BCE + bayes", "Bal-BCE + bayes", "Thm. 4", WRONG[0])


class Problem:
    """P(x | y) as likelihood (n, C), columns summing to 1, class counts (C,) and test priors {name: (C,)}, all float64."""

    def __init__(self, likelihood: torch.Tensor, counts: torch.Tensor, test_priors: dict[str, torch.Tensor]):
        self.likelihood, self.counts = likelihood, counts
        self.prior = counts / counts.sum()
        self.test_priors = test_priors
        joint = self.joint(self.prior)
        self.marginal = joint.sum(1, keepdim=True)  # P_s(x), (n, 1)
        self.posterior = joint / self.marginal  # P_s(y | x), (n, C)

    def joint(self, prior: torch.Tensor) -> torch.Tensor:
        """P(x, y) under a prior (C,). -> (n, C)."""
        return self.likelihood * prior

    def binary_log_odds(self, test_prior: torch.Tensor) -> torch.Tensor:
        """Thm. 3's claim (n, C): log P(x | k) pi^t_k / [P(x | not k) (1 - pi^t_k)], "not k" as mixed in training."""
        joint = self.joint(self.prior)
        others = torch.stack([joint[:, torch.arange(joint.shape[1]) != k].sum(1) for k in range(joint.shape[1])], dim=1)
        rest = others / (1 - self.prior)
        return (self.likelihood / rest * test_prior / (1 - test_prior)).log()


def draw_problem(seed: int, number: int, classes: int) -> Problem:
    """Problem `number` of a seed: 8 to 40 values of x, training prior of imbalance 10 to 1,000 in random class order."""
    draw = np.random.default_rng([seed, number])
    values = int(draw.integers(8, 41))
    powers = np.exp(draw.uniform(0.5, 2.0) * draw.standard_normal((values, classes)))
    counts = 1000 * 10 ** (-draw.uniform(1, 3) * draw.permutation(classes) / (classes - 1))
    skewed = np.exp(draw.standard_normal(classes))
    priors = {"uniform": np.full(classes, 1 / classes), "skewed": skewed / skewed.sum()}
    return Problem(torch.from_numpy(powers / powers.sum(0)), torch.from_numpy(counts),
                   {name: torch.from_numpy(prior) for name, prior in priors.items()})


def minimise(newton_step, shape: tuple) -> torch.Tensor:
    """Logits (n, C) from zero by Newton's method, each entry moving at most LONGEST_STEP, until none moves LAST_STEP.

    newton_step(z) -> - H^-1 g of every row. It is quadratic at the end, so the last step is far longer than the error left.
    """
    z = torch.zeros(shape, dtype=torch.float64)
    for _ in range(MAX_STEPS):
        step = newton_step(z).clamp(-LONGEST_STEP, LONGEST_STEP)
        z = z + step
        if step.abs().max() < LAST_STEP:
            return z
    raise RuntimeError(f"no minimum within {MAX_STEPS} steps, the last moved {step.abs().max():.1e}")


def expected_gradient(loss: Loss, z: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Gradient (n, C) of the exact expected loss sum_x P_s(x) sum_y P_s(y | x) loss(z_x, y), by the loss's own backward."""
    z = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, problem.posterior), z)
    # the loss is a mean over rows and z_x moves row x alone, so P_s(x) instead of 1 / n scales that row's gradient
    return gradient * len(z) * problem.marginal


def fit(loss: Loss, problem: Problem) -> torch.Tensor:
    """Logits (n, C) that minimise the exact expected loss of one of the project's ce, bce, bal_ce, bal_bce."""
    def newton_step(z):
        g = expected_gradient(loss, z, problem) / problem.marginal
        # g = p - t with p the fitted probabilities. Hessian of a sigmoid loss: diag p(1 - p). Of a softmax loss:
        # diag p - p p^T, which maps g / p to g because g sums to zero. So p, read off from the gradient, is all it takes.
        p = g + problem.posterior
        return -g / (p * (1 - p) if loss.activation == "sigmoid" else p)
    return minimise(newton_step, problem.posterior.shape)


def pairwise_losses(z: torch.Tensor, weights: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Menon's family (appendix A.3), every label's loss (n, C): a_y log[1 + sum_{j != y} exp(D_yj) exp(z_j - z_y)].

    z: (n, C); weights: a (C,); margins: D (C, C) with zero diagonal, which makes the 1 the term j = y of the sum.
    """
    return weights * torch.logsumexp(z[:, None, :] - z[:, :, None] + margins, dim=2)


def fit_pairwise(problem: Problem, weights: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Logits (n, C) that minimise the exact expected pairwise loss."""
    def newton_step(z):
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad((pairwise_losses(z, weights, margins) * problem.posterior).sum(), z)
        share = torch.softmax(z.detach()[:, None, :] + margins, dim=2)  # (n, label, class)
        scaled = share * (problem.posterior * weights)[:, :, None]
        hessian = torch.diag_embed(scaled.sum(1)) - scaled.transpose(1, 2) @ share
        # blind to a constant on all logits: ones in that direction make it invertible and leave the step as it is
        return -torch.linalg.solve(hessian + 1 / z.shape[1], g)
    return minimise(newton_step, problem.posterior.shape)


def pairwise_fits(problem: Problem, test_prior: torch.Tensor, draw: np.random.Generator) -> dict[str, torch.Tensor]:
    """Thm. 4's loss for random positive d^s, d^t, and two that break it: D with its sign reversed, D without weights."""
    ds, dt = (torch.from_numpy(np.exp(draw.standard_normal(len(test_prior)))) for _ in range(2))
    weights = ds * test_prior / (dt * problem.prior)
    bias = ds.log() - dt.log()
    margins = bias[None, :] - bias[:, None]  # D_yj = log(d^s_j d^t_y / (d^t_j d^s_y))
    plans = ((weights, margins), (weights, -margins), (torch.ones_like(weights), margins))
    return {row: fit_pairwise(problem, *plan) for row, plan in zip(("Thm. 4", *WRONG), plans, strict=True)}


def bayes_check(scores: torch.Tensor, problem: Problem, prior: torch.Tensor) -> dict:
    """How argmax of scores (n, C) does under a prior (C,): "agree", the share of x where it is Bayes' rule, "exact", whether
    it is for all, "regret" in points, "wrong" x, and those "to_head", the class taken having the larger training prior.

    The regret is that of the expected accuracy, sum_x [max_y P(x, y) - P(x, prediction)]; under the uniform prior that is
    balanced accuracy. A prediction within TIE of the best counts as the best.
    """
    joint = problem.joint(prior)
    best, taken = joint.amax(1), joint.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    right = taken >= best * (1 - TIE)
    wrong = problem.prior[scores.argmax(1)][~right] - problem.prior[joint.argmax(1)][~right]
    return {"agree": float(right.double().mean()), "exact": bool(right.all()), "regret": 100 * float((best - taken).sum()),
            "wrong": len(wrong), "to_head": int((wrong > 0).sum())}


def solve(problem: Problem, draw: np.random.Generator) -> tuple[dict[tuple, dict], dict[str, float]]:
    """All fits of one problem: {(row, prior): bayes_check} and the largest errors {name: value}.

    Prior "training" checks the same scores against Bayes' rule of training; of balanced rows, those for the skewed one.
    """
    plain = {name: build_loss(name.lower(), problem.counts) for name in ("CE", "BCE")}
    checks, errors = {}, {"gradient": 0.0, "CE": 0.0, "BCE": 0.0}
    for prior_name, prior in problem.test_priors.items():
        losses = plain | {f"Bal-{name}": build_loss(f"bal_{name.lower()}", problem.counts, test_prior=prior) for name in plain}
        scores = {row: fit(loss, problem) for row, loss in losses.items()}
        target = {"CE": problem.posterior.log(), "BCE": problem.binary_log_odds(problem.prior),
                  "Bal-CE": problem.joint(prior).log(), "Bal-BCE": problem.binary_log_odds(prior)}
        for row, loss in losses.items():
            gap = scores[row] - target[row]
            if loss.activation == "softmax":  # which leaves a constant of the row free
                gap = gap - gap.mean(1, keepdim=True)
            errors[row] = max(errors.get(row, 0.0), float(gap.abs().max()))
            errors["gradient"] = max(errors["gradient"], float(expected_gradient(loss, scores[row], problem).abs().max()))
        for row, of in BAYES.items():
            scores[row] = posthoc.adjust(scores[of], problem.counts, losses[of].activation, "bayes", test_prior=prior,
                                         loss_bias=losses[of].shift(torch.float64)).scores
        scores |= pairwise_fits(problem, prior, draw)
        checks |= {(row, prior_name): bayes_check(z, problem, prior) for row, z in scores.items()}
        checks |= {(row, "training"): bayes_check(z, problem, problem.prior) for row, z in scores.items()}
    return checks, errors


def example() -> dict[str, int]:
    """One x with P_s(k | x) = .6, .05, .35 under pi = .5, .04, .46: which class (0, 1, 2) each loss takes, uniform pi^t."""
    prior = torch.tensor([0.5, 0.04, 0.46], dtype=torch.float64)
    posterior = torch.tensor([0.6, 0.05, 0.35], dtype=torch.float64)
    # a second value of x takes what is left, so that P(x | y) is a distribution; this one has P_s(x) = .5
    likelihood = torch.stack([0.5 * posterior / prior, 1 - 0.5 * posterior / prior])
    problem = Problem(likelihood, 100 * prior, {})
    losses = {row: build_loss(row.lower().replace("-", "_"), problem.counts) for row in ("BCE", "Bal-CE", "Bal-BCE")}
    scores = {row: fit(loss, problem) for row, loss in losses.items()}
    scores["Bal-BCE + bayes"] = posthoc.adjust(scores["Bal-BCE"], problem.counts, "sigmoid", "bayes",
                                               loss_bias=losses["Bal-BCE"].shift(torch.float64)).scores
    return {"Bayes": int(likelihood[0].argmax())} | {row: int(z[0].argmax()) for row, z in scores.items()}


def summarise(solved: list[tuple[int, dict]]) -> dict[str, dict[str, dict]]:
    """{row: {prior: {exact: % of problems, agree: % of x, regret, max_regret: points, to_head: share of the errors}}}."""
    table = {}
    for row in ROWS:
        table[row] = {}
        for prior in ("training", *PRIORS):
            found = [checks[row, prior] for _, checks in solved]
            regret = [check["regret"] for check in found]
            table[row][prior] = {"exact": 100 * float(np.mean([check["exact"] for check in found])),
                                 "agree": 100 * float(np.mean([check["agree"] for check in found])),
                                 "regret": float(np.mean(regret)), "max_regret": float(np.max(regret)),
                                 "to_head": sum(c["to_head"] for c in found) / max(1, sum(c["wrong"] for c in found))}
    return table


def format_rows(many: dict, two: dict) -> str:
    """The printed table: three or more classes under each prior, then two classes."""
    keys = ("exact", "agree", "regret", "max_regret")
    lines = [f"{'':<24}  train |{'uniform test prior':^29}|{'skewed test prior':^29}| 2 classes",
             f"{'':<24} exact%" + " | exact%  agree% regret    max" * 2 + " | uni%  skew%"]
    for row in ROWS:
        cells = ["{:6.1f}  {:6.1f} {:6.3f} {:6.2f}".format(*(many[row][prior][key] for key in keys)) for prior in PRIORS]
        pair = "{:5.1f}  {:5.1f}".format(*(two[row][prior]["exact"] for prior in PRIORS))
        lines.append(f"{row:<24} {many[row]['training']['exact']:6.1f} | {cells[0]} | {cells[1]} | {pair}")
    return "\n".join(lines)


def draw_figure(path: Path, solved: list[tuple[int, dict]]) -> Path:
    """Regret in balanced accuracy and agreement with Bayes' rule over the number of classes; equal losses share a line."""
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    axes = figure.subplots(1, 2)
    sizes = sorted({classes for classes, _ in solved})
    lines = {}  # agreement of each size: the losses that have it
    for row in DRAWN:
        means = {key: [np.mean([checks[row, "uniform"][key] for c, checks in solved if c == size]) for size in sizes]
                 for key in ("regret", "agree")}
        lines.setdefault(tuple(np.round(means["agree"], 6)), (means, []))[1].append(row)
    for place, (means, rows) in enumerate(lines.values()):
        place %= len(COLORS)
        style = dict(color=COLORS[place], marker=MARKERS[place], label=", ".join(rows), clip_on=False)
        axes[0].plot(sizes, means["regret"], **style)
        axes[1].plot(sizes, 100 * np.asarray(means["agree"]), **style)
    axes[0].set_yscale("symlog", linthresh=0.1)  # logarithmic above .1, and zero has a place
    axes[0].set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes[0].set(ylabel="regret in balanced accuracy (points)", ylim=(0, 100))
    axes[1].set(ylabel="x on which argmax is Bayes' rule (%)", ylim=(0, 100))
    for axis in axes:
        axis.set_xticks(sizes)
        axis.set(xlabel="number of classes")
        axis.grid(color="#cccccc", linewidth=0.6)
    figure.suptitle(f"Losses at their minimum, {len(solved):,} random problems, uniform test prior")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)


def main(args) -> dict:
    """Run all problems. -> {"table", "two_classes": see `summarise`, "errors": largest, "example", "seconds"}."""
    if args.problems < 1:
        raise ValueError(f"--problems {args.problems}; expected at least 1")
    start = time.perf_counter()
    solved, two, errors = [], [], {}
    pairs = max(1, args.problems // 5)  # problems of two classes, on top
    for number in range(args.problems + pairs):
        classes = CLASSES[number % len(CLASSES)] if number < args.problems else 2
        checks, found = solve(draw_problem(args.seed, number, classes), np.random.default_rng([args.seed, number, 1]))
        (solved if classes > 2 else two).append((classes, checks))
        errors = {name: max(errors.get(name, 0.0), value) for name, value in found.items()}
    numbers = {"problems": args.problems, "table": summarise(solved), "two_classes": summarise(two), "errors": errors,
               "example": example(), "seconds": time.perf_counter() - start}
    say(f"{args.problems:,} problems of 3 to 20 classes and {pairs} of 2, seed {args.seed}, {numbers['seconds']:.0f} s. exact: "
        "problems where argmax is Bayes' rule on every x;\nagree: x where it is; regret and its maximum: accuracy below "
        "Bayes' rule, points. train: against Bayes' rule of the training prior\n")
    say(format_rows(numbers["table"], numbers["two_classes"]))
    say("\nlargest error of a fitted logit: " + ", ".join(f"{row} {errors[row]:.0e}" for row in ROWS[:4])
        + f"; largest gradient {errors['gradient']:.0e}")
    say(f"where Bal-BCE differs from Bayes' rule (uniform test prior, 3 or more classes) it takes the class with more training "
        f"images in {numbers['table']['Bal-BCE']['uniform']['to_head']:.1%}")
    taken = ", ".join(f"{row} {k + 1}" for row, k in numbers["example"].items())
    say(f"p = .6, .05, .35 under pi = .5, .04, .46, class taken: {taken}")
    out = Path(args.output_dir or f"runs/theorems_{datetime.datetime.now():%Y%m%d_%H%M%S}")
    path = draw_figure(out / "theorems.png", two + solved)
    (out / "theorems.json").write_text(json.dumps(numbers, indent=1))
    say(f"wrote {path} and theorems.json beside it")
    return numbers


def get_args_parser() -> argparse.ArgumentParser:
    """Flags of the experiment."""
    parser = argparse.ArgumentParser(description="the paper's theorems as experiments", allow_abbrev=False)
    parser.add_argument("--problems", type=int, default=1000, metavar="N", help="of 3 to 20 classes; a fifth of 2 on top")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", metavar="DIR", help="runs/theorems_<time> by default")
    return parser


if __name__ == "__main__":
    torch.set_num_threads(1)  # matrices of twenty columns: a second thread only waits
    run_command(get_args_parser(), main)
