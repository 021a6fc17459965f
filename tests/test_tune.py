"""Tuning: as many trials for every loss, on held-out training images, and everything written down."""
import json
import sys

import pytest

import main_finetune
from tests.conftest import TINY
from util import tune


@pytest.fixture
def short(data_flags, monkeypatch):
    """A stage 2 of one epoch on the small folder; trials run in this process instead of one of their own."""
    start = tune.subprocess.run

    def run(command, **options):
        if command[0] != sys.executable:  # git, which a run asks for its revision
            return start(command, **options)
        assert command[1].endswith("main_finetune.py")
        monkeypatch.setattr(sys, "argv", command[1:])
        main_finetune.main(main_finetune.get_args_parser().parse_args(command[2:]))
        return type("Done", (), {"returncode": 0, "stderr": ""})
    monkeypatch.setattr(tune.subprocess, "run", run)
    return [*data_flags, *TINY, "--model", "vit_tiny_patch16", "--epochs", "1", "--warmup_epochs", "0"]


def parse(*flags):
    return tune.get_args_parser().parse_args(list(map(str, flags)))


def test_the_chosen_is_the_best_of_as_many_trials_for_each_loss(short, tmp_path, capsys):
    out = tmp_path / "tune"
    flags = [*short, "--losses", "bce", "bal_bce", "--grid", "lr=1e-3,1e-1,1e-5", "bal_bce:tau=.5,1", "--budget", 2]
    chosen = tune.main(parse(*flags, "--val_fraction", .3, "--output_dir", out))
    told = json.loads((out / "tune.json").read_text())
    assert [entry["loss"] for entry in told["trials"]] == ["bce", "bce", "bal_bce", "bal_bce"]
    for loss, entry in chosen.items():
        mine = [t for t in told["trials"] if t["loss"] == loss]
        best = max(mine, key=lambda t: t["balanced_accuracy"])
        assert entry["flags"] == best["flags"] and entry["run"] == best["run"] and best["split"] == "held-out 0.3 of train"
        args = main_finetune.get_args_parser().parse_args([*short, f"@{out / f'{loss}.args'}"])
        assert args.loss == loss and args.lr == float(best["flags"]["lr"])
    assert told["other_flags"] == short and told["grid"]["bce"] == {"lr": ["1e-3", "1e-1", "1e-5"]}
    printed = capsys.readouterr().out
    for loss, entry in chosen.items():
        words = ", ".join(f"{name} {value}" for name, value in entry["flags"].items())
        assert f"* chosen for {loss}: {words}; use it as @{out / f'{loss}.args'} behind the recipe" in printed
        assert f"\n* {entry['run']}: {words} " in printed and "{" not in printed


def test_what_was_chosen_at_the_edge_of_its_grid_is_told():
    grid = {"lr": ["1e-3", "4e-3", "2e-3"], "tau": [".5", "1"], "aa": ["none", "x", "y"]}
    assert tune.at_the_edge({"lr": "4e-3", "tau": "1", "aa": "y"}, grid) == ["lr 4e-3 is the largest that was tried"]
    assert tune.at_the_edge({"lr": "1e-3", "tau": ".5", "aa": "none"}, grid) == ["lr 1e-3 is the smallest that was tried"]
    assert tune.at_the_edge({"lr": "2e-3", "tau": "1", "aa": "y"}, grid) == []


def test_points_are_drawn_once_each_and_come_back():
    grid = {"lr": list("abcd"), "tau": list("xyz")}
    drawn = tune.points(grid, 5, 0, "bce")
    assert drawn == tune.points(grid, 5, 0, "bce") != tune.points(grid, 5, 1, "bce")
    assert len({tuple(point.items()) for point in drawn}) == 5 and len(tune.points(grid, 12, 0, "bce")) == 12


@pytest.mark.parametrize(("flags", "words"), [
    (["--losses", "bce", "bal_bce", "--grid", "lr=1,2", "bal_bce:tau=1,2", "--budget", "3"],
     "the grid of bce has 2 points, fewer than --budget 3"),
    (["--losses", "bce", "--grid", "lr", "--budget", "1"], "--grid takes NAME=V1,V2 or LOSS:NAME=V1,V2, not 'lr'"),
    (["--losses", "bce", "--grid", "ce:lr=1", "--budget", "1"], "ce is none of the losses bce"),
    (["--losses", "bce", "--grid", "lr=1", "bce:lr=2", "--budget", "1"], "names lr twice for bce"),
    (["--losses", "bce", "--grid", "split=val,test", "--budget", "1"], "--split cannot be tuned"),
    (["--losses", "bce", "bce", "--grid", "lr=1", "--budget", "1"], "expected different ones of ce, bal_ce"),
    (["--losses", "bce", "--grid", "lr=1e-3,.001", "--budget", "2"], "lr=1e-3,.001 names a value twice"),
    (["--losses", "bce", "--grid", "seed=1,2", "--budget", "2"], "--seed cannot be tuned"),
    (["--losses", "bce", "--grid", "lr=1", "--budget", "0"], "--budget must be at least 1, not 0")])
def test_searches_that_cannot_be(tmp_path, flags, words):
    with pytest.raises(ValueError) as error:
        tune.main(parse(*flags, "--output_dir", tmp_path / "out"))
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_what_is_the_better_the_smaller_does_not_choose(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--losses", "bce", "--grid", "lr=1,2", "--budget", 1, "--metric", "nll", "--output_dir", tmp_path)
    assert "invalid choice: 'nll'" in capsys.readouterr().err


def test_a_trial_that_fails_says_why(tmp_path, data_flags):
    with pytest.raises(ValueError, match="the trial bce_00 failed: --loss bce has no logit bias, so --tau"):
        tune.main(parse(*data_flags, *TINY, "--losses", "bce", "--grid", "tau=.5", "--budget", 1, "--output_dir",
                        tmp_path / "out"))
