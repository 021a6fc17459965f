"""A run folder whose files are damaged, misplaced or refused, that was begun elsewhere, or that never saved."""
import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
import torch

import util.checkpoint
from tests.test_resume import Cut, cut_after  # noqa: F401 (a fixture)
from util.args import outcome
from util.run import RunFolder
from util.steps import NonFiniteError

MAE = ["--model", "mae_vit_tiny_patch16", "--epochs", 3]


def epochs(folder):
    return [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]


def poison(monkeypatch, when):
    """No loss is finite where when(stepper) says so."""
    import util.steps
    backward = util.steps.Stepper.backward
    monkeypatch.setattr(util.steps.Stepper, "backward", lambda self, loss, weight: backward(
        self, loss * float("nan") if when(self) else loss, weight))


def test_a_run_that_was_never_finite_has_saved_nothing_and_begins_again(pretrain, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda stepper: True)
    with pytest.raises(NonFiniteError, match="there is no checkpoint to go back to"):
        pretrain(tmp_path / "run", *MAE)
    assert epochs(tmp_path / "run") == [0, 1] and not json.loads((tmp_path / "run" / "args.json").read_text())["saved"]
    monkeypatch.undo()
    pretrain(tmp_path / "run", *MAE)
    assert "ended before its first checkpoint, after 2 epochs: it begins again" in capsys.readouterr().out
    assert epochs(tmp_path / "run") == [0, 1, 2] and json.loads((tmp_path / "run" / "args.json").read_text())["saved"]


def test_going_back_where_the_newest_checkpoint_is_damaged(pretrain, tmp_path, monkeypatch, capsys):
    run, seen = tmp_path / "run", []

    def once(stepper):
        if stepper.total == 14 and not seen:
            seen.append((run / "last.pth").write_bytes(b"damaged"))
        return bool(seen) and len(seen) < 3 and seen.append(0) is None
    poison(monkeypatch, once)
    pretrain(run, *MAE, "--max_bad_steps", 2, "--log_every", 1)
    out = capsys.readouterr().out
    assert f"warning: {run / 'last.pth'} is " in out and f"and the run goes on from {run / 'previous.pth'}" in out
    assert "Going back, once, to the checkpoint after epoch 1 and 0 steps" in out and epochs(run) == [0, 1, 2]
    monkeypatch.undo()
    pretrain(tmp_path / "whole", *MAE)
    a, b = (torch.load(folder / "last.pth")["model"] for folder in (tmp_path / "whole", run))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_going_back_where_every_checkpoint_is_damaged_keeps_what_is_known_of_the_bad_row(pretrain, tmp_path, monkeypatch):
    run = tmp_path / "run"
    poison(monkeypatch, lambda stepper: stepper.total >= 8 and [(run / "last.pth").write_bytes(b"damaged")] and True)
    with pytest.raises(NonFiniteError, match="the row began with step 2 of epoch 1, .* it cannot go back: .*last.pth") as end:
        pretrain(run, *MAE, "--max_bad_steps", 2, "--log_every", 1)
    assert outcome(end.value, None) == (1, str(end.value)) and "\n" not in str(end.value)


@pytest.mark.parametrize("where", [0, 1])
def test_broken_lines_of_the_log_are_dropped_and_told(pretrain, tmp_path, cut_after, capsys, where):  # noqa: F811
    run, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(run, *MAE)
    patch.undo()
    lines = log.read_bytes().splitlines(keepends=True)
    lines[where] = (b"\xff\xfe\x00 no UTF-8\n", b'{"epoch": \n')[where]
    log.write_bytes(b"".join(lines) + b'{"epoch": 2, "cut \xff')
    pretrain(run, *MAE)
    assert f"warning: 1 of the 2 lines of {log} dropped: no record of an epoch before 2\n" in capsys.readouterr().out
    assert epochs(run) == [1 - where, 2] and json.loads((run / "metrics.json").read_text())["epoch"] == 2


@pytest.mark.parametrize(("name", "words"), [("log.jsonl", "is no file"), ("args.json", "is no file"),
                                             ("metrics.json", "is no file"), ("figures", "is no folder")])
def test_what_stands_in_the_way_of_a_run_is_told_before_it(pretrain, tmp_path, capsys, name, words):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).touch() if name == "figures" else (run / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} {words}, and a run writes there: move it away") as error:
        pretrain(run, *MAE)
    assert outcome(error.value, None) == (2, str(error.value)) and "stage 1" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="move it away"):
        RunFolder(run).check_empty()


def test_a_folder_that_does_not_let_a_damaged_checkpoint_be_renamed(pretrain, tmp_path, monkeypatch):
    pretrain(tmp_path / "run", *MAE)
    (tmp_path / "run" / "last.pth").write_bytes(b"damaged")

    def refused(one, other):
        raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(util.checkpoint.os, "replace", refused)
    with pytest.raises(ValueError, match="last.pth is .*previous.pth is whole, but .* renamed .Read-only file sys") as error:
        pretrain(tmp_path / "run", *MAE)
    assert outcome(error.value, None) == (2, str(error.value)) and "\n" not in str(error.value)


def test_the_same_files_from_another_working_folder_are_the_same_run(pretrain, encoder, tmp_path, cut_after):  # noqa: F811
    (tmp_path / "here").mkdir()
    with contextlib.chdir(tmp_path / "here"):
        relative = ["--finetune", os.path.relpath(encoder)]
        for out, done, more in (("first", 1, []), ("second", 2, ["--resume", "../first/last.pth"])):
            patch = cut_after(done)
            with pytest.raises(Cut):
                pretrain(Path("..", out), *MAE, *relative, *more)
            patch.undo()
    with contextlib.chdir(tmp_path):  # where those paths name nothing
        pretrain("second", *MAE, "--finetune", encoder, "--resume", "first/last.pth")
        assert epochs(tmp_path / "second") == [1, 2]
        pretrain("third", *MAE, "--finetune", encoder, "--resume", "first/last.pth")
        with pytest.raises(ValueError, match="first holds another run: --finetune other.pth .*last.pth there.: use"):
            pretrain("first", *MAE, "--finetune", "other.pth")
        patch = cut_after(2)
        with pytest.raises(Cut):
            pretrain("first", *MAE, "--finetune", os.path.relpath(encoder))
        patch.undo()
    with contextlib.chdir(tmp_path / "here"):
        assert pretrain("../first", *MAE, *relative)["epoch"] == 2
