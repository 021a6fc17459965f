"""How a run is stopped where it waits or scores, what it keeps of having gone back, and a disk that refuses its results."""
import io
import json
import os
import signal

import pytest

from tests.killing import differences
from tests.processes import Processes
from tests.test_distributed import flags  # noqa: F401 (a fixture)
from util.args import outcome
from util.checkpoint import SaveError, load_checkpoint
from util.steps import NonFiniteError

MAE = ["--model", "mae_vit_tiny_patch16"]


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- signals ---

def one_stays_away(rank):
    """Process 1 stands still where the processes agree for the fourth time, and process 0 says that it waits there."""
    from util.distributed import World
    agree, seen = World.agree, []

    def late(self, value):
        seen.append(1)
        if len(seen) == 4:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            print("waiting", flush=True)
        return agree(self, value)
    World.agree = late


def test_a_second_interrupt_leaves_at_once_where_others_are_waited_for(tmp_path, flags):  # noqa: F811
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run")], 2, before=one_stays_away)
    run.wait_for(lambda: "waiting" in run.output())
    run.kill(0, signal.SIGINT)
    run.wait_for(lambda: "SIGINT: finishing the step, then saving (a second Ctrl-C leaves at once)" in run.output())
    run.kill(0, signal.SIGINT)
    run.running[0].join(20)
    left = not run.running[0].is_alive()
    run.kill(1, signal.SIGKILL)
    assert run.end() == {0: 130, 1: -9} and left, run.output()
    assert run.output().splitlines()[-1] == "stopped; what was saved is whole, and the same command goes on from there"


def told_while_scoring(rank):
    """SIGTERM at the beginning of the second evaluation."""
    import main_finetune
    evaluate, seen = main_finetune.evaluate, []

    def told(*args):
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)
    main_finetune.evaluate = told


def test_a_signal_during_an_evaluation_is_heard_in_it(tmp_path, flags):  # noqa: F811
    whole = Processes(tmp_path, [flags("finetune", tmp_path / "whole", "--epochs", 3)])
    cut = Processes(tmp_path, [flags("finetune", tmp_path / "cut", "--epochs", 3)], before=told_while_scoring)
    assert cut.end() == {0: 75}, cut.output()
    assert "after epoch 1 and 6 steps" in cut.output() and len(lines(tmp_path / "cut")) == 1
    progress = load_checkpoint(tmp_path / "cut" / "last.pth")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 6)  # all steps of the second epoch, which is not scored yet
    again = Processes(tmp_path, [flags("finetune", tmp_path / "cut", "--epochs", 3)])
    assert again.end() == whole.end() == {0: 0}, again.output()
    assert not differences(tmp_path / "whole", tmp_path / "cut")


# --- going back ---

class Cut(Exception):
    """Stands for a kill."""


def test_a_run_that_is_killed_after_it_went_back_does_not_go_back_again(pretrain, tmp_path, monkeypatch, capsys):
    import util.steps
    from util.session import Session
    backward, go_back = util.steps.Stepper.backward, Session.go_back

    def poisoned(self, loss, weight):
        backward(self, loss * float("nan") if self.total >= 8 else loss, weight)  # in the second epoch, whenever it is there

    def go_back_and_die(self, error):
        go_back(self, error)
        raise Cut
    monkeypatch.setattr(util.steps.Stepper, "backward", poisoned)
    monkeypatch.setattr(Session, "go_back", go_back_and_die)
    again = [tmp_path / "run", *MAE, "--epochs", 3, "--max_bad_steps", 2, "--log_every", 1]
    with pytest.raises(Cut):
        pretrain(*again)
    progress = load_checkpoint(tmp_path / "run" / "last.pth")["progress"]
    assert (progress["epoch"], progress["went_back"]) == (1, True)
    assert "Going back, once" in capsys.readouterr().out
    monkeypatch.setattr(Session, "go_back", go_back)
    with pytest.raises(NonFiniteError, match="it had gone back to its last checkpoint before"):
        pretrain(*again)
    assert "Going back, once" not in capsys.readouterr().out


def test_a_run_does_not_end_well_on_steps_that_are_not_finite(pretrain, tmp_path, monkeypatch):
    import util.steps
    backward = util.steps.Stepper.backward

    def poisoned(self, loss, weight):
        backward(self, loss * float("nan") if self.total >= 5 else loss, weight)  # in the whole second epoch
    monkeypatch.setattr(util.steps.Stepper, "backward", poisoned)
    with pytest.raises(NonFiniteError, match="in 5 steps in a row .the last epoch, 1, has no other step") as caught:
        pretrain(tmp_path / "run", *MAE, "--epochs", 2, "--batch_size", 9)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert load_checkpoint(tmp_path / "run" / "last.pth")["progress"]["epoch"] == 1
    path = tmp_path / "run" / "bad_step.txt"
    assert f"all in {path}" in str(caught.value)
    assert len(path.read_text().splitlines()) == 9 and all("\t" in line for line in path.read_text().splitlines())


# --- a disk that refuses what comes after training ---

def refuse_figures(monkeypatch):
    """No figure can be written."""
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)


def refuse(name):
    """-> a function after which no file of that name can be written in full."""
    def arrange(monkeypatch):
        import util.checkpoint
        write = util.checkpoint.write_whole

        def full(path, content):
            class Full(io.BytesIO):
                def write(self, data):
                    raise OSError(28, "No space left on device")
            return content(Full()) if path.name == f".{name}.part" else write(path, content)
        monkeypatch.setattr(util.checkpoint, "write_whole", full)
    return arrange


@pytest.mark.parametrize(("stage", "arrange", "where"), [
    ("pretrain", refuse_figures, ""), ("pretrain", refuse("metrics.json"), "metrics.json"), ("finetune", refuse_figures, ""),
    ("finetune", refuse("metrics.json"), "metrics.json"), ("finetune", refuse("predictions.npz"), "predictions.npz")])
def test_results_that_cannot_be_written_are_told_in_one_line_and_come_with_the_same_command(
        request, tmp_path, monkeypatch, stage, arrange, where):
    def run():
        more = MAE if stage == "pretrain" else []
        return request.getfixturevalue(stage)(tmp_path / "run", *more, "--epochs", 1, "--warmup_epochs", 0)
    arrange(monkeypatch)
    with pytest.raises(SaveError) as caught:
        run()
    assert outcome(caught.value, None) == (1, str(caught.value)) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'run' / where} (No space left on device); the check")
    monkeypatch.undo()
    run()
    assert (tmp_path / "run" / "metrics.json").exists() and (tmp_path / "run" / "figures" / "training.png").exists()
