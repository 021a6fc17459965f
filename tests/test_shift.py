"""util/shift.py: weights against drawing, EM against exact problems, the table, and the command on run folders."""
import json
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from datasets.sampling import expected_frequencies
from util import figures_shift, shift
from util.args import run_command
from util.shift import Base, class_posteriors, estimate_prior_em, shift_table, trained_base, weighted_accuracy

COUNTS = np.array([30, 500, 8, 100, 30])
LIKELIHOOD = np.random.default_rng(4).dirichlet(np.full(12, 0.4), 5).T + 1e-4  # p(x | k), (12 inputs, 5 classes)
LIKELIHOOD /= LIKELIHOOD.sum(0)
TARGET = np.array([0.05, 0.02, 0.5, 0.13, 0.3])


def logit(p):
    return np.log(p / (1 - p))


def fitted(loss, seen, told, tau, test):
    """Logits (12, 5) that minimise the exact expected loss under the class distribution `seen`: posterior less bias."""
    posterior = LIKELIHOOD * seen / (LIKELIHOOD @ seen)[:, None]
    link = logit if loss.endswith("bce") else np.log
    bias = tau * (link(told) - (0 if isinstance(test, str) and test == "none" else link(test)))
    return link(posterior) - (bias if loss.startswith("bal") else 0)


UNIFORM = np.full(5, 0.2)
PRIOR = COUNTS / COUNTS.sum()
FORMS = [("ce", "random", None, 1.0, "uniform"), ("bce", "random", None, 1.0, "uniform"), ("bce", "sqrt", None, 1.0, "uniform"),
         ("ce", "class_aware", "data", 1.0, "uniform")] + [
    (loss, *rest) for loss in ("bal_ce", "bal_bce") for rest in (
        ("random", None, 1.0, "uniform"), ("random", None, 1.0, "none"), ("random", None, 0.5, "uniform"),
        ("random", None, 1.3, TARGET[::-1].copy()), ("sqrt", "sampler", 1.0, "uniform"), ("sqrt", "data", 1.0, "none"))]


@pytest.mark.parametrize("loss, sampler, prior, tau, test", FORMS)
def test_em_recovers_the_prior_from_exact_logits_of_every_form(loss, sampler, prior, tau, test):
    seen = expected_frequencies(sampler, COUNTS)
    told = PRIOR if prior == "data" or sampler == "random" else seen
    logits = fitted(loss, seen, told, tau, UNIFORM if isinstance(test, str) and test == "uniform" else test)
    base = trained_base(loss, COUNTS, tau, test, sampler, prior)
    activation = "sigmoid" if loss.endswith("bce") else "softmax"
    # each of the 12 inputs weighs what it has under the target: the population, without the noise of a sample
    scores, scores_prior = class_posteriors(logits, activation, base)
    estimate = estimate_prior_em(scores, scores_prior, LIKELIHOOD @ TARGET, tolerance=1e-13, max_iterations=100_000)
    assert estimate.converged and np.abs(estimate.prior - TARGET).max() < 1e-8
    moved = logits + shift.constant_logits(TARGET, activation) - base.logits
    if activation == "softmax":  # Thm. 3: the Bayes rule under the target
        assert (moved.argmax(1) == (LIKELIHOOD * TARGET).argmax(1)).all()
    else:  # each logit is the log-odds of its binary problem, the rest mixed as in training, moved to the target
        rest = (LIKELIHOOD @ seen)[:, None] - LIKELIHOOD * seen
        odds = LIKELIHOOD / (rest / (1 - seen)) * TARGET / (1 - TARGET)
        assert np.abs(moved - np.log(odds)).max() < 1e-9


def test_em_on_a_large_sample_with_known_posteriors():
    draw = np.random.default_rng(0)
    labels = draw.choice(5, size=40_000, p=TARGET)
    centres = 2.5 * np.eye(5)
    x = centres[labels] + draw.standard_normal((len(labels), 5))
    log_likelihood = x @ centres.T - 0.5 * (centres**2).sum(1)
    estimate = estimate_prior_em(log_likelihood + np.log(PRIOR) + draw.standard_normal((len(x), 1)), PRIOR)
    assert estimate.converged and np.abs(estimate.prior - TARGET).max() < 0.01  # three standard errors


def test_em_weights_are_repetitions():
    draw = np.random.default_rng(1)
    scores, times = draw.standard_normal((30, 4)), draw.integers(0, 4, 30)
    base = np.array([0.1, 0.2, 0.3, 0.4])
    weighted = estimate_prior_em(scores, base, 7.0 * times, max_iterations=40)
    repeated = estimate_prior_em(np.repeat(scores, times, axis=0), base, max_iterations=40)
    assert np.abs(weighted.prior - repeated.prior).max() < 1e-12 and weighted.iterations == repeated.iterations


def test_em_one_step_is_the_mean_posterior_and_it_says_when_it_stops_early():
    scores, base = np.random.default_rng(2).standard_normal((9, 3)), np.full(3, 1 / 3)
    posterior = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    one = estimate_prior_em(scores, base, max_iterations=1)
    assert np.allclose(one.prior, posterior.mean(0), rtol=1e-14) and not one.converged and one.iterations == 1
    kept = scores.copy()
    assert estimate_prior_em(scores, base, tolerance=1.0).converged and (scores == kept).all()


def test_test_priors_are_geometric_in_the_order_of_the_training_set():
    order = [1, 3, 0, 4, 2]  # by COUNTS, the tie of 30 and 30 by index
    for factor in shift.FACTORS:
        forward, backward = (shift.test_prior(name, factor, COUNTS) for name in ("forward", "backward"))
        total = sum(factor ** (-r / 4) for r in range(5))
        assert np.allclose(forward[order], [factor ** (-r / 4) / total for r in range(5)], rtol=1e-14)
        assert np.allclose(backward[order], forward[order][::-1], rtol=1e-14)
    assert np.allclose(shift.test_prior("backward", 1, COUNTS), 0.2, rtol=1e-15)


def labelled(images=60, seed=3):
    """A test set with known posteriors: logits (N, 5) as ce fits them under PRIOR, labels (N,), classes of unequal size."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(5), images + 7 * np.arange(5)))
    x = np.array([draw.choice(12, p=LIKELIHOOD[:, label]) for label in labels])
    return fitted("ce", PRIOR, PRIOR, 1, UNIFORM)[x], labels


LOGITS, LABELS = labelled()
PLAIN = trained_base("ce", COUNTS)


@pytest.mark.parametrize("block", [35, 2**22])  # 7 rows at a time, and all of them
def test_weighted_accuracy_is_the_accuracy_of_drawing_by_the_prior(monkeypatch, block):
    monkeypatch.setattr(shift, "BLOCK_VALUES", block)
    logits, labels, draw = LOGITS, LABELS, np.random.default_rng(8)
    exact = weighted_accuracy(logits, labels, TARGET)
    by_hand = sum(p * np.mean(logits[labels == k].argmax(1) == k) for k, p in enumerate(TARGET))
    assert exact == pytest.approx(100 * by_hand, abs=1e-10)
    drawn = draw.choice(len(labels), size=200_000, p=(TARGET / np.bincount(labels))[labels])
    assert abs(exact - 100 * np.mean(logits[drawn].argmax(1) == labels[drawn])) < 100 * 4 * 0.5 / np.sqrt(200_000)
    balanced = np.concatenate([np.flatnonzero(labels == k)[:60] for k in range(5)])
    overall = 100 * np.mean(logits[balanced].argmax(1) == labels[balanced])
    assert weighted_accuracy(logits[balanced], labels[balanced], UNIFORM) == pytest.approx(overall, abs=1e-10)
    assert weighted_accuracy(logits.astype(np.float16), labels, TARGET, [0, 0, 9e4, 0, 0]) == pytest.approx(100 * TARGET[2])


def test_table_against_loops():
    logits, labels = labelled(images=400)
    rows, per_class = shift_table(logits, labels, COUNTS, "softmax", PLAIN), np.bincount(labels)
    assert [(row["direction"], row["factor"]) for row in rows] == [
        *(("forward", f) for f in (50, 25, 10, 5, 2)), ("uniform", 1), *(("backward", f) for f in (2, 5, 10, 25, 50))]
    for row in rows:
        direction = "forward" if row["direction"] == "uniform" else row["direction"]
        target = shift.test_prior(direction, row["factor"], COUNTS)
        assert row["as_is"] == pytest.approx(weighted_accuracy(logits, labels, target))
        moved = (logits + np.log(target) - np.log(PRIOR)).argmax(1)
        assert row["known"] == pytest.approx(100 * np.sum((target / per_class)[labels] * (moved == labels)))
        estimate = estimate_prior_em(logits, PRIOR, (target / per_class)[labels]).prior
        assert row["l1"] == pytest.approx(np.abs(estimate - target).sum(), abs=1e-9) and row["l1"] < 0.15
        moved = (logits + np.log(estimate) - np.log(PRIOR)).argmax(1)
        assert row["estimated"] == pytest.approx(100 * np.sum((target / per_class)[labels] * (moved == labels)))
        assert row["converged"]
    gain = {row["factor"]: row["known"] - row["as_is"] for row in rows if row["direction"] == "backward"}
    assert gain[50] > 10 and gain[50] > gain[2]


def test_as_it_is_the_logits_of_a_balanced_loss_are_those_for_a_uniform_test_set():
    for loss, activation in (("bal_ce", "softmax"), ("bal_bce", "sigmoid")):
        base = trained_base(loss, COUNTS)
        uniform = shift_table(LOGITS, LABELS, COUNTS, activation, base)[5]
        assert uniform["known"] == uniform["as_is"] and base.logits == pytest.approx(np.full(5, base.logits[0]), abs=1e-12)


def test_em_may_leave_a_class_out():
    """An estimate of exactly 0 has no logarithm; the class is then never answered."""
    logits = np.array([[800.0, -800, 0], [-800, 800, 0], [700, -900, 600]])
    base = Base(np.log(np.full(3, 1 / 3)), np.full(3, 1 / 3))
    for activation in ("softmax", "sigmoid"):
        rows = shift_table(logits, np.array([0, 1, 2]), [3, 2, 1], activation, base)
        assert all(np.isfinite([row[key] for key in ("as_is", "known", "estimated", "l1")]).all() for row in rows)


@pytest.mark.parametrize("function, arguments, message", [
    (shift_table, (LOGITS, LABELS, COUNTS, "relu", PLAIN), "unknown activation 'relu'"),
    (shift_table, (LOGITS, LABELS, COUNTS[:4], "softmax", PLAIN), "4 class counts for logits of 5 classes"),
    (shift_table, (LOGITS, LABELS[1:], COUNTS, "softmax", PLAIN), r"labels \(\d+,\); expected real numbers"),
    (shift_table, (LOGITS[LABELS > 0], LABELS[LABELS > 0], COUNTS, "softmax", PLAIN), "class 0 has no test image"),
    (shift_table, (LOGITS, LABELS, COUNTS, "softmax", trained_base("ce", [9, 9, 0, 9, 9])), "class 2 has no training image"),
    (shift_table, (LOGITS * np.nan, LABELS, COUNTS, "softmax", PLAIN), "nan or inf"),
    (weighted_accuracy, (LOGITS, LABELS, TARGET[:4]), "test prior of shape .4,. for 5 classes"),
    (shift.test_prior, ("up", 2, COUNTS), "unknown direction 'up'; known: forward, backward"),
    (shift.test_prior, ("forward", 0.5, COUNTS), "factor of a test set is 0.5"),
    (shift.test_prior, ("forward", float("nan"), COUNTS), "is nan"),
    (shift.test_prior, ("forward", float("inf"), COUNTS), "is inf"),
    (estimate_prior_em, (np.zeros((3, 2)), [0.5, 0.2, 0.3]), "log-posteriors .3, 2., prior .3,."),
    (estimate_prior_em, (np.zeros((3, 2)), [1.0, 0.0]), "base prior must be positive"),
    (estimate_prior_em, (np.zeros((3, 2)), [0.5, 0.5], [1, -1, 1]), "weights of images must be finite"),
    (estimate_prior_em, (np.zeros((3, 2)), [0.5, 0.5], [0, 0, 0]), "not all of them 0"),
])
def test_functions_refuse(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_formatted_table():
    row = {"direction": "forward", "factor": 50, "as_is": 89.04, "known": 89.26, "estimated": 9.0, "l1": 0.0206}
    lines = shift.format_shift_table([row | {"iterations": 36, "converged": True},
                                      row | {"iterations": 5000, "converged": False, "factor": 2.5}]).splitlines()
    assert lines[0].split("  ")[0] == "test set" and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["forward", "50", "89.0", "89.3", "9.0", "0.021", "36"]
    assert lines[3].split()[1::5] == ["2.5", "5000+"]


def test_figure_shows_three_lines_in_order_and_nothing_is_cut_off():
    rows = shift_table(LOGITS, LABELS, COUNTS, "softmax", PLAIN)
    figure = figures_shift.draw_shifted_accuracy(rows, "a $run$")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == [*map(str, (50, 25, 10, 5, 2, 1, 2, 5, 10, 25, 50))]
    drawn = {line.get_label(): line.get_ydata() for line in axis.lines if not line.get_label().startswith("_")}
    assert list(drawn) == list(figures_shift.LINES.values()) and len(figure.legends[0].get_texts()) == 3
    for key, label in figures_shift.LINES.items():
        assert list(drawn[label]) == [row[key] for row in rows]
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with what the command reads."""
    folder = tmp_path / "bft"
    folder.mkdir()
    np.savez_compressed(folder / "predictions.npz", logits=LOGITS.astype(np.float32), labels=LABELS)
    (folder / "metrics.json").write_text(json.dumps({"class_counts": COUNTS.tolist(), "activation": "softmax"}))
    (folder / "args.json").write_text(json.dumps({"args": {"loss": "ce", "tau": 1.0, "test_prior": "uniform"}}))
    return folder


def command(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["shift.py", *map(str, argv)])
    run_command(shift.get_args_parser(), shift.main)


def test_command_prints_the_table_and_draws(run_folder, monkeypatch, capsys, tmp_path):
    command(monkeypatch, run_folder)
    printed = capsys.readouterr().out
    rows = shift_table(LOGITS.astype(np.float32), LABELS, COUNTS, "softmax", PLAIN)
    assert shift.format_shift_table(rows) in printed
    assert (run_folder / "figures" / "test_distributions.png").read_bytes()[:4] == b"\x89PNG"
    (run_folder / "figures" / "test_distributions.png").unlink()
    command(monkeypatch, run_folder, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "test_distributions.png").exists() and not list((run_folder / "figures").iterdir())


def test_command_takes_the_prior_from_the_flags(run_folder, monkeypatch, capsys):
    def known(**flags):
        (run_folder / "args.json").write_text(json.dumps({"args": flags}))
        rows = shift.main(shift.get_args_parser().parse_args([str(run_folder)]))[run_folder]
        return [row["known"] for row in rows]

    plain, balanced = known(loss="ce"), known(loss="bal_ce")
    assert plain != balanced == known(loss="ce", sampler="class_aware") == known(loss="bal_ce", test_prior="none")
    for kind, wanted in (("train", plain), ("uniform", balanced)):
        (run_folder / "args.json").unlink(missing_ok=True)  # not needed then
        rows = shift.main(shift.get_args_parser().parse_args([str(run_folder), "--base", kind]))[run_folder]
        assert [row["known"] for row in rows] == wanted
    path = run_folder / "prior.txt"
    path.write_text(" ".join(map(repr, PRIOR.tolist())))
    assert known(loss="bal_ce", test_prior=str(path)) == plain == known(loss="bal_ce", test_prior=PRIOR.tolist(), loss_args=[])
    assert known(loss="cb_ce", loss_args=["beta=0"]) == plain != known(loss="cb_ce", loss_args=["beta=.9999"])


def spoil(path, how):
    if isinstance(how, bytes):
        path.write_bytes(how)
    elif path.suffix == ".json" and how:
        path.write_text(json.dumps(json.loads(path.read_text()) | how))
    else:
        path.unlink()
        if how:
            np.savez(path, **how)


@pytest.mark.parametrize("name, how, message", [
    ("predictions.npz", None, "predictions.npz"), ("metrics.json", None, "metrics.json (No such file"),
    ("args.json", None, "args.json (No such file"), ("predictions.npz", b"no zip", "cannot read logits and labels"),
    ("predictions.npz", {"images": np.zeros(3)}, "logits"), ("metrics.json", b"[1, 2]", "holds a list"),
    ("predictions.npz", {"logits": np.array([{}]), "labels": np.zeros(1)}, "cannot read logits and labels"),
    ("predictions.npz", {"logits": np.array([["a", "b"]]), "labels": np.zeros(1, dtype=int)}, "expected real numbers"),
    ("predictions.npz", {"logits": np.zeros((9, 4)), "labels": np.arange(9) % 4}, "5 class counts for logits of 4"),
    ("predictions.npz", {"logits": np.zeros((9, 5)), "labels": np.arange(9)}, "expected 0 to 4"),
    ("predictions.npz", {"logits": np.zeros((9, 5)), "labels": np.zeros(9)}, "expected (N,) integers"),
    ("metrics.json", b"{", "metrics.json (no JSON)"), ("metrics.json", b"{}", "has no 'class_counts'"),
    ("metrics.json", {"activation": "sigmoid"}, "--loss ce, but metrics.json the activation sigmoid"),
    ("metrics.json", {"class_counts": [5, 0, 3, 2, 9]}, "class 1 has no training image"),
    ("args.json", {"args": {}}, "say --base train"), ("args.json", {"args": 3}, "say --base train"),
    ("metrics.json", {"corrected": "posthoc bayes"}, "moved already (posthoc bayes)"),
    ("args.json", {"args": {"loss": "ce", "eval": True, "test_prior": None}}, "give the folder of its training"),
    ("args.json", {"args": {"loss": "bal_ce", "test_prior": "nowhere.txt"}}, "no prior file at nowhere.txt"),
])
def test_bad_runs_end_in_one_line(run_folder, monkeypatch, capsys, name, how, message):
    spoil(run_folder / name, how)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, run_folder)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.err.count("\n") == 1 and message in printed.err and not printed.out
    assert not (run_folder / "figures").exists()


def test_bad_commands_end_in_one_line(run_folder, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    for argv, message in [
        ((tmp_path / "none",), "no run folder at"), ((run_folder, "--out", tmp_path / "file"), "cannot write"), ((), ": RUN"),
        ((run_folder, run_folder, "--out", tmp_path), "bft, bft are equal"), ((run_folder, "--base", "b"), "choice: 'b'"),
    ]:
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *argv)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and message in printed and printed.count("\n") == 1, printed
