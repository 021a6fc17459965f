"""A run that is cut after an epoch and continued equals the uninterrupted one to the bit."""
import json
import shutil

import pytest
import torch

from util.checkpoint import load_checkpoint
from util.trained import load_mae


class Cut(Exception):
    """Stands for a kill between two epochs."""


@pytest.fixture
def cut_after(monkeypatch):
    """cut_after(n, step): the process dies right after the checkpoint of n epochs and so many steps."""
    from util.session import Session
    save = Session.save

    def arrange(epochs, step=0):
        def save_and_die(self):
            save(self)
            if (self.epoch, self.step) == (epochs, step):
                raise Cut
        monkeypatch.setattr(Session, "save", save_and_die)
        return monkeypatch
    return arrange


TIMES = ("seconds", "images_per_second", "data_wait", "host_memory_bytes")


def same_runs(one, other):
    a, b = load_checkpoint(one / "last.pth"), load_checkpoint(other / "last.pth")
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in b["model"])
    for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(x[key], y[key]) for key in y)
    assert (a["ema"] is None) == (b["ema"] is None)
    assert all(torch.equal(a["ema"][key], b["ema"][key]) for key in b["ema"] or ())
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, other)]
    exact = [[{k: v for k, v in line.items() if k not in TIMES} for line in log] for log in logs]
    assert exact[0] == exact[1] and len(exact[0]) == 4


STAGE_1 = ["--model", "mae_vit_tiny_patch16", "--epochs", 4, "--ema", .9]
STAGE_2 = ["--epochs", 4, "--mixup", .8, "--cutmix", 1, "--drop_path", .2, "--accum_iter", 2]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(("explicit", "step"), [(False, 0), (True, 0), (False, 2)])
def test_continued_equals_uninterrupted(request, tmp_path, cut_after, stage, explicit, step, capsys):
    run, flags = request.getfixturevalue(stage), STAGE_1 if stage == "pretrain" else STAGE_2
    flags = [*flags, "--save_steps", 1, "--batch_size", 4]
    run(tmp_path / "whole", *flags)
    patch = cut_after(2, step)
    with pytest.raises(Cut):
        run(tmp_path / "cut", *flags)
    patch.undo()
    # A line that was written after the last checkpoint must not stand twice.
    with open(tmp_path / "cut" / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "half": true}\n')
    torch.rand(11)
    run(tmp_path / "cut", *flags, *(["--resume", tmp_path / "cut" / "last.pth"] if explicit else []))
    assert "continuing" in capsys.readouterr().out
    same_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_is_continued_in_a_new_folder(pretrain, tmp_path, cut_after):
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(tmp_path / "cut", *STAGE_1)
    patch.undo()
    pretrain(tmp_path / "new", *STAGE_1, "--resume", tmp_path / "cut" / "last.pth")
    assert [json.loads(x)["epoch"] for x in (tmp_path / "new" / "log.jsonl").read_text().splitlines()] == [2, 3]
    assert load_checkpoint(tmp_path / "cut" / "last.pth")["progress"]["epoch"] == 2


def test_a_run_that_went_on_in_a_new_folder_is_cut_there(pretrain, tmp_path, cut_after):
    patch = cut_after(1)
    with pytest.raises(Cut):
        pretrain(tmp_path / "cut", *STAGE_1)
    patch.undo()
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(tmp_path / "new", *STAGE_1, "--resume", tmp_path / "cut" / "last.pth")
    patch.undo()
    # A line that was written after the last checkpoint must not stand twice.
    with open(tmp_path / "new" / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "half": true}\n')
    pretrain(tmp_path / "new", *STAGE_1)
    assert [json.loads(x)["epoch"] for x in (tmp_path / "new" / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_run_cut_before_its_first_checkpoint_starts_anew_and_says_so(pretrain, tmp_path, monkeypatch, capsys):
    from util.session import Session

    def die(self):
        raise Cut

    monkeypatch.setattr(Session, "save", die)
    with pytest.raises(Cut):
        pretrain(tmp_path / "run", *STAGE_1)
    monkeypatch.undo()
    pretrain(tmp_path / "run", *STAGE_1)
    out = capsys.readouterr().out
    assert "from scratch" in out and "ended before its first checkpoint, after 1 epochs: it begins again" in out
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4


def test_a_checkpoint_of_an_earlier_version_is_not_continued(pretrain, tmp_path):
    pretrain(tmp_path / "run", *STAGE_1)
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    torch.save({**state, "format": "livt-1"}, tmp_path / "earlier.pth")
    shutil.copy(tmp_path / "earlier.pth", tmp_path / "run" / "last.pth")
    for out, more in (("run", []), ("new", ["--resume", tmp_path / "earlier.pth"])):
        with pytest.raises(ValueError, match="is of an earlier version, which drew masks, .* serve --finetune and --eval"):
            pretrain(tmp_path / out, *STAGE_1, *more)
    # Its weights serve: with them another run begins, and an autoencoder is as it was.
    pretrain(tmp_path / "next", *STAGE_1, "--epochs", 2, "--finetune", tmp_path / "earlier.pth")
    weights = load_mae(tmp_path / "earlier.pth").model.state_dict()
    assert all(torch.equal(weights[key], state["ema"][key]) for key in weights)


def test_what_a_run_began_with_stays_in_its_record(pretrain, tmp_path, cut_after, monkeypatch):
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(tmp_path / "run", *STAGE_1)
    patch.undo()
    for _ in range(2):  # the second call finds it finished
        monkeypatch.setattr("util.run.git_revision", lambda: "another")
        pretrain(tmp_path / "run", *STAGE_1)
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["git"] != "another"
    assert [(c["after_epochs"], c["git"]) for c in record["continued"]] == [(2, "another")]


def test_a_finished_run_gives_its_result_again_and_trains_nothing(finetune, tmp_path):
    first = finetune(tmp_path / "run", "--epochs", 2)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert finetune(tmp_path / "run", "--epochs", 2) == first
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_a_run_whose_checkpoints_were_removed_does_not_begin_again_in_silence(pretrain, tmp_path, cut_after):
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(tmp_path / "run", *STAGE_1)
    patch.undo()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    for name in ("last.pth", "previous.pth"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(ValueError, match="has 2 epochs in its log.jsonl, and last.pth and previous.pth have been removed: put"):
        pretrain(tmp_path / "run", *STAGE_1)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    (tmp_path / "run" / "log.jsonl").unlink()  # that it has saved does not hang on its log
    with pytest.raises(ValueError, match="last.pth and previous.pth have been removed: put"):
        pretrain(tmp_path / "run", *STAGE_1)


def test_the_same_command_goes_on_though_it_says_resume(pretrain, tmp_path, cut_after):
    for out, epochs, more in (("first", 1, []), ("second", 2, ["--resume", tmp_path / "first" / "last.pth"])):
        patch = cut_after(epochs)
        with pytest.raises(Cut):
            pretrain(tmp_path / out, *STAGE_1, *more)
        patch.undo()
    assert pretrain(tmp_path / "second", *STAGE_1, *more)["epoch"] == 3
    assert [json.loads(x)["epoch"] for x in (tmp_path / "second" / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    with pytest.raises(ValueError, match="already holds a last.pth, so --resume .* would overwrite another run"):
        pretrain(tmp_path / "second", *STAGE_1, "--resume", tmp_path / "first" / "previous.pth")


def test_what_is_lost_of_the_record_is_told_and_the_run_goes_on(pretrain, tmp_path, cut_after, capsys):
    patch = cut_after(2)
    with pytest.raises(Cut):
        pretrain(tmp_path / "run", *STAGE_1)
    patch.undo()
    (tmp_path / "run" / "args.json").write_text("")
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    patch = cut_after(3)
    with pytest.raises(Cut):
        pretrain(tmp_path / "run", *STAGE_1)
    patch.undo()
    out = capsys.readouterr().out
    assert f"{log} has 1 of the 2 lines that the checkpoint has seen: the others are lost" in out
    assert "args.json is missing or cannot be read: it is written as of now" in out
    with open(log, "a") as file:
        file.write('{"epoch": 3, "half": true}\n')
    pretrain(tmp_path / "run", *STAGE_1)
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 2, 3]
    assert json.loads((tmp_path / "run" / "args.json").read_text())["args"]["epochs"] == 4
