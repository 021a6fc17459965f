"""util/compare.py: exact p-values, what noise is called, what a real difference is called, and the command."""
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from util import compare
from util.args import run_command
from util.bootstrap import COLUMNS, class_masks, draws, outcomes, resampled
from util.compare import Row, compare_column, compare_runs, format_rows, mcnemar_exact, measure, spread, verdict
from util.metrics import evaluate_logits
from util.predictions import Predictions

COUNTS = [400, 300, 60, 20, 10, 5]


def a_run(seed, images=240, skill=1.0, activation="softmax", name="run", **more):
    """Predictions of a model of some skill on always the same images."""
    labels = np.arange(images) % 6
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(images, 6))
    logits[np.arange(images), labels] += skill
    result = {"class_counts": COUNTS, "activation": activation, "class_names": list("abcdef"), "split": "test"}
    return Predictions(Path(f"{name}{seed}"), logits, labels, np.arange(images) + 1000, result | more)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (0, 5), (0, 6), (3, 3), (7, 1), (12, 30), (152, 507), (3000, 3200)])
def test_mcnemar_equals_scipy(only_a, only_b):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert mcnemar_exact(only_a, only_b) == mcnemar_exact(only_b, only_a) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_images_is_zero_and_not_an_overflow():
    assert mcnemar_exact(0, 20_000) == 0 and mcnemar_exact(9_990, 10_010) == pytest.approx(0.8931, abs=1e-4)


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_runs_differ_in_nothing(seeds):
    a = [a_run(seed) for seed in range(seeds)]
    b = [run._replace(folder=Path(f"other{run.folder}")) for run in a]
    for row in compare_runs(a, b):
        assert (row.difference, row.interval, row.verdict) == (0, [0, 0], "no difference shown"), row
        assert row.differ == (None if row.column == "ece" else 0)


def test_rows_of_two_runs_equal_a_plain_bootstrap():
    a, b = a_run(0), a_run(1, skill=1.6, activation="sigmoid")
    rows = compare_runs([a], [b], resamples=300, seed=4)
    ours = evaluate_logits(a.logits, a.labels, COUNTS), evaluate_logits(b.logits, b.labels, COUNTS, "sigmoid")
    index, masks = np.concatenate(list(draws(240, 6, 300, seed=4))), class_masks(COUNTS)
    both = [resampled(outcomes(run.logits, run.labels, run.result["activation"]), index, masks) for run in (a, b)]
    right = [run.logits.argmax(axis=1) == run.labels for run in (a, b)]
    members = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    for place, row in enumerate(rows):
        assert row.column == COLUMNS[place]
        assert (row.a, row.b) == pytest.approx((ours[0][row.column], ours[1][row.column]), rel=1e-12)
        difference = ours[1][row.column] - ours[0][row.column]
        assert row.difference == pytest.approx(difference, abs=1e-10)
        values = both[1][:, place] - both[0][:, place]
        if row.column == "ece":
            values = values - values.mean() + difference
            assert row.differ is None
        else:
            in_group = np.isin(a.labels, members.get(row.column, range(6)))
            assert row.differ == np.sum(in_group & (right[0] != right[1]))
        assert row.interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9)
    assert rows[0].verdict == "better" and rows[0].interval[0] > 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_swapped_settings_give_the_mirror_image(seeds):
    words = {"better": "worse", "worse": "better", "no difference shown": "no difference shown"}
    a, b = [a_run(seed) for seed in range(seeds)], [a_run(seed, skill=2, name="b") for seed in range(10, 10 + seeds)]
    for one, other in zip(compare_runs(a, b), compare_runs(b, a), strict=True):
        assert (one.a, one.b, one.difference, one.differ) == (other.b, other.a, -other.difference, other.differ)
        assert one.verdict == words[other.verdict] != "worse" or one.column == "ece"
        if seeds == 1:  # the draws of the seeds' mean are not mirrored
            assert one.interval == pytest.approx([-bound for bound in reversed(other.interval)], abs=1e-10)


def binomial_bounds(trials, chance, outside=1e-4):
    """The counts between which all but `outside` of a binomial lies."""
    pmf = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    below = np.cumsum(pmf)
    return int(np.searchsorted(below, outside / 2)), int(np.searchsorted(below, 1 - outside / 2))


def calls(trials, seeds, simulate, resamples=200, images=200):
    """How often a win or a loss is called: simulate(draw) -> per-image accuracies (2, seeds, images) in percent."""
    called = 0
    for trial in range(trials):
        draw = np.random.default_rng([trial, seeds])
        values = simulate(draw)
        index = draw.integers(images, size=(resamples, images))
        drawn = values[:, :, index].mean(axis=-1).transpose(2, 0, 1)
        student = draw.standard_t(max(1, seeds - 1), (resamples, compare.SEED_DRAWS))
        called += compare_column("overall", values.mean(axis=-1), drawn, student, 99).verdict != "no difference shown"
    return called


def test_noise_is_called_a_win_in_five_of_a_hundred_cases():
    """Two models of the same accuracy whose answers agree on most images, one seed each."""
    def simulate(draw):
        common = draw.random(200) < 0.7
        flipped = draw.random((2, 1, 200)) < 0.1
        return 100.0 * (common ^ flipped)

    low, high = binomial_bounds(400, 0.05)
    assert (low, high) == (5, 39)
    assert low <= calls(400, 1, simulate) <= high


@pytest.mark.parametrize("seed_noise, image_noise", [(4.0, 1.0), (0.0, 40.0), (3.0, 40.0)])
def test_noise_of_three_seeds_is_no_win_either(seed_noise, image_noise):
    """Seeds that differ as a whole, in single images, and in both; drawing the seeds themselves calls a fourth of the first
    kind wins."""
    def simulate(draw):
        means = 70 + seed_noise * draw.normal(size=(2, 3, 1))
        return means + image_noise * draw.normal(size=(2, 3, 200)) + 30 * draw.normal(size=200)

    low, high = binomial_bounds(200, 0.05)
    assert low <= calls(200, 3, simulate) <= high == 24


def test_three_points_on_five_thousand_images_are_found():
    """70 against 73 %, both wrong on most of the same images; with one seed and with three, whose noise is 0.4 points."""
    for seeds in (1, 3):
        found = 0
        for trial in range(10):
            draw = np.random.default_rng(trial)
            hard, flips = draw.random(5000), draw.normal(0, 0.1, (2, seeds, 5000))
            shift = np.array([0.70, 0.73])[:, None, None] + 0.004 * draw.normal(size=(2, seeds, 1)) * (seeds > 1)
            values = 100.0 * (hard + flips < shift)
            weights = draw.multinomial(5000, np.full(5000, 1 / 5000), 100) / 5000
            drawn = (values.reshape(-1, 5000) @ weights.T).T.reshape(100, 2, seeds)
            student = draw.standard_t(max(1, seeds - 1), (100, compare.SEED_DRAWS))
            found += compare_column("overall", values.mean(axis=-1), drawn, student, 99).verdict == "better"
        assert found >= 9, seeds


def test_spread_of_seeds_is_students():
    """Without noise of images the interval is that of a t-test over the seeds' differences."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    point = np.array([1.0, 2.5, 1.7, 2.0])
    student = np.random.default_rng(0).standard_t(3, (2000, 32))
    low, high = np.percentile(spread(np.tile(point, (2000, 1)), point, student), [2.5, 97.5])
    assert [low, high] == pytest.approx(stats.ttest_1samp(point, 0).confidence_interval(), abs=0.03)
    # Noise of the images that all seeds share is added, that of each seed alone is in the scatter already.
    draw = np.random.default_rng(1)
    shared, own = draw.normal(0, 0.5, (4000, 1)), draw.normal(0, 0.5, (4000, 4))
    quiet = np.zeros((4000, 32))
    assert spread(point + shared, point, quiet).std() == pytest.approx(0.5, rel=0.05)
    assert spread(point + own, point, quiet).std() < 0.08 < spread(point + own, point, quiet + 1).mean() - 1.8
    assert spread(point + shared + own, point, quiet).std() == pytest.approx(0.5, rel=0.05)


def test_verdict():
    assert [verdict("few", [0.1, 2], 6), verdict("few", [-2, -0.1], 6)] == ["better", "worse"]
    assert [verdict("ece", [0.1, 2], None), verdict("ece", [-2, -0.1], None)] == ["worse", "better"]
    undecided = [verdict("few", [0.1, 2], 5), verdict("few", [0, 2], 99), verdict("few", [-1, 0], 99), verdict("few", None, 99)]
    assert set(undecided) == {"no difference shown"}
    assert mcnemar_exact(0, 5) > 0.05 > mcnemar_exact(0, 6)  # why six


def test_groups_that_are_empty_or_not_common():
    a, b = a_run(0, class_counts=[500] * 6), a_run(1, class_counts=[500] * 6)
    rows = {row.column: row for row in compare_runs([a], [b], resamples=50)}
    assert rows["few"] == Row("few", None, None, None, None, None, "-") and rows["many"].interval is not None
    other = a_run(1, class_counts=[90] * 6)
    rows = compare_runs([a], [other], resamples=50)
    assert [row.column for row in rows if row.difference is None] == ["many", "medium", "few"]
    assert "so that there are no common groups" in compare.describe([a], [other])
    text = format_rows(rows).splitlines()
    assert text[3].split() == ["many", "%", "-", "-", "-", "-", "-", "-"] and len({len(line) for line in text}) == 1


def test_measure_sorts_settings_and_seeds():
    of = [outcomes(run.logits, run.labels) for run in (a_run(0), a_run(1), a_run(2), a_run(3))]
    values = measure(of, np.arange(240)[None], class_masks(COUNTS))
    assert values.shape == (1, 2, 2, 6)
    assert values[0, :, :, 0].ravel().tolist() == pytest.approx([100 * one.correct.mean() for one in of])


@pytest.mark.parametrize("change, message", [
    ({"ids": np.r_[1000:1010, 7, 1011:1240]}, r"differ in 1 ids, first in image 10 \(7, 1010\)"),
    ({"labels": np.r_[0, 1, 3, np.arange(3, 240) % 6]}, r"differ in 1 labels, first in image 2 \(3, 2\)"),
    ({"ids": None}, "has no ids"), ({"result": {"split": "val"}}, r"differ in split \(val, test\)"),
    ({"result": {"class_names": list("abcdeg")}}, r"differ in class_names \(a, b, c, ... \(6\)")])
def test_other_images_are_refused(change, message):
    a, b = a_run(0), a_run(1)
    change = {**change, "result": b.result | change.get("result", {})}
    with pytest.raises(ValueError, match=message) as error:
        compare_runs([a], [b._replace(**change)])
    assert "\n" not in str(error.value)


def test_arms_that_do_not_fit_are_refused():
    runs = [a_run(seed) for seed in range(4)]
    for a, b, message in [(runs[:2], runs[2:3], "A has 2 runs and B 1; expected"), ([], [], "A has 0 runs and B 0"),
                          ([runs[0], runs[0]], runs[2:], "A names a run twice"),
                          (runs[:2], [runs[2], a_run(9, activation="sigmoid")], "B are no seeds of one setting"),
                          (runs[:1], [a_run(1, images=120)], "hold 120 and 240 images")]:
        with pytest.raises(ValueError, match=message):
            compare_runs(a, b)


@pytest.fixture
def folders(tmp_path):
    """Three seeds of two settings on disk."""
    for seed, (name, skill) in enumerate([("a", 1.0)] * 3 + [("b", 2.0)] * 3):
        run, folder = a_run(seed, skill=skill), tmp_path / f"{name}{seed % 3}"
        folder.mkdir()
        np.savez(folder / "predictions.npz", logits=run.logits, labels=run.labels, ids=run.ids)
        (folder / "metrics.json").write_text(json.dumps(run.result))
    return tmp_path


def command(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, argv)])
    run_command(compare.get_args_parser(), compare.main)


def test_command(folders, monkeypatch, capsys):
    command(monkeypatch, folders / "a0", folders / "b0")
    printed = capsys.readouterr().out
    assert printed.startswith(f"A  {folders / 'a0'}\nB  {folders / 'b0'}\n240 test images; intervals over images; one run each")
    overall = next(line for line in printed.splitlines() if line.startswith("overall"))
    assert overall.endswith("better") and "McNemar: only A has" in printed and "exact p = " in printed
    seeds = [[folders / f"{name}{seed}" for seed in range(3)] for name in "ab"]
    command(monkeypatch, "--a", *seeds[0], "--b", *seeds[1])
    printed = capsys.readouterr().out
    assert "intervals over images and 3 pairs of runs" in printed and "McNemar" not in printed
    assert "ECE by softmax scores" in printed


def give_seeds(folders, **seeds):
    for name, seed in seeds.items():
        (folders / name / "args.json").write_text(json.dumps({"args": {"seed": seed}}))


def test_seeds_are_paired_by_what_is_recorded_whatever_their_order(folders, monkeypatch, capsys):
    a, b = ([folders / f"{name}{seed}" for seed in range(3)] for name in "ab")
    command(monkeypatch, "--a", *a, "--b", *b)
    before = capsys.readouterr().out
    assert "3 pairs of runs, in the order given, since no args.json tells all their seeds" in before
    give_seeds(folders, a0=0, a1=1, a2=2, b0=0, b1=1, b2=2)
    command(monkeypatch, "--a", *a, "--b", *b)
    by_seed = capsys.readouterr().out
    command(monkeypatch, "--a", *a, "--b", b[2], b[0], b[1])
    assert capsys.readouterr().out == by_seed and "3 pairs of runs, by seed 0, 1, 2" in by_seed
    assert by_seed.partition("by seed")[2].splitlines()[1:] == before.partition("all their seeds")[2].splitlines()[1:]
    # Other pairs have other intervals, so it matters.
    give_seeds(folders, b0=2, b1=0, b2=1)
    command(monkeypatch, "--a", *a, "--b", *b)
    assert capsys.readouterr().out.partition("ECE by")[2] != by_seed.partition("ECE by")[2]


@pytest.mark.parametrize("seeds", [{"b2": 7}, {"b2": 1}])
def test_seeds_that_are_no_pairs_are_told(folders, monkeypatch, capsys, seeds):
    give_seeds(folders, **{"a0": 0, "a1": 1, "a2": 2, "b0": 0, "b1": 1, **seeds})
    command(monkeypatch, "--a", *(folders / f"a{k}" for k in range(3)), "--b", *(folders / f"b{k}" for k in range(3)))
    words = f"in the order given, since seeds 0, 1, 2 of A and 0, 1, {seeds['b2']} of B are no pairs"
    assert words in capsys.readouterr().out


def test_each_further_run_is_compared_with_the_first(folders, monkeypatch, capsys):
    runs = [folders / name for name in ("a0", "b0", "b1")]
    command(monkeypatch, *runs[:2])
    one = capsys.readouterr().out
    command(monkeypatch, runs[0], runs[2])
    other = capsys.readouterr().out
    command(monkeypatch, *runs)
    printed = capsys.readouterr().out
    assert one in printed and other in printed and printed.index(one) < printed.index(other)
    assert printed.startswith(f"1 of 2: {runs[1]} against {runs[0]}\n") and f"\n2 of 2: {runs[2]} against {runs[0]}" in printed


def test_bad_commands_end_in_one_line(folders, monkeypatch, capsys):
    a, b = folders / "a0", folders / "b0"
    (b / "metrics.json").write_text((b / "metrics.json").read_text().replace('"test"', '"val"'))
    for argv, message in [((a,), "1 run, --a 0, --b 0; expected RUN_A RUN_B"), ((), "0 runs"), ((a, "--b", b), "1 run, --a"),
                          (("--a", a), "A has 1 run and B 0;"), ((a, folders / "no"), "no run folder"),
                          ((a, b), "differ in split")]:
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *argv)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and message in printed and printed.count("\n") == 1, printed
