"""How a run is stopped where it waits or scores, what it keeps of having gone back, and a disk that refuses its results."""
import io
import json
import multiprocessing
import os
import signal

import pytest
import torch

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


def told_while_loading(rank):
    """The last of two processes, or the only one, gets SIGTERM before it opens its images."""
    import main_finetune
    import main_pretrain

    def told_before(load):
        def told(*args):
            if str(rank + 1) == os.environ.get("WORLD_SIZE", "1"):
                os.kill(os.getpid(), signal.SIGTERM)
            return load(*args)
        return told
    main_pretrain.load_images = told_before(main_pretrain.load_images)
    main_finetune.load_for_training = told_before(main_finetune.load_for_training)


@pytest.mark.parametrize(("stage", "size"), [("pretrain", 1), ("finetune", 1), ("pretrain", 2)])
def test_a_signal_before_the_first_step_leaves_with_what_the_same_command_goes_on_from(tmp_path, flags, stage,  # noqa: F811
                                                                                      size):
    whole = Processes(tmp_path, [flags(stage, tmp_path / "whole")], size)
    cut = Processes(tmp_path, [flags(stage, tmp_path / "cut")], size, before=told_while_loading)
    assert set(cut.end().values()) == {75}, cut.output()
    assert "after epoch 0 and 0 steps; the same command goes on from there" in cut.output()
    again = Processes(tmp_path, [flags(stage, tmp_path / "cut")], size)
    assert set(again.end().values()) == set(whole.end().values()) == {0}, again.output()
    assert not differences(tmp_path / "whole", tmp_path / "cut")


def told_after_training(rank):
    """SIGTERM and SIGUSR1 where the results are written."""
    import main_finetune
    import main_pretrain
    write = main_finetune.write_results

    def told(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    main_pretrain.show_reconstructions = told
    main_finetune.write_results = lambda *args: (told(), write(*args))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_signal_after_training_lets_the_results_be_written(tmp_path, flags, stage):  # noqa: F811
    run = Processes(tmp_path, [flags(stage, tmp_path / "run")], before=told_after_training)
    assert run.end() == {0: 0}, run.output()
    assert (tmp_path / "run" / "metrics.json").exists()


def told_at_once_while_scoring(rank):
    """SIGTERM at the beginning of the first evaluation."""
    import main_finetune
    evaluate = main_finetune.evaluate
    main_finetune.evaluate = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), evaluate(*args))[1]


def test_a_finished_run_that_is_scored_again_leaves_at_a_signal_and_is_scored_the_next_time(tmp_path, flags):  # noqa: F811
    job, results = [flags("finetune", tmp_path / "run")], tmp_path / "run" / "metrics.json"
    assert Processes(tmp_path, job).end() == {0: 0}
    first = results.read_bytes()
    results.unlink()
    told = Processes(tmp_path, job, before=told_at_once_while_scoring)
    assert told.end() == {0: 75}, told.output()
    assert "after epoch 2 and 0 steps; the same command goes on from there" in told.output()
    assert Processes(tmp_path, job).end() == {0: 0} and results.read_bytes() == first


def test_a_process_that_waits_for_others_leaves_at_a_signal(tmp_path, flags):  # noqa: F811
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run")], 2, ranks=[0], before=told_while_meeting)
    assert run.end(30) == {0: 75}
    assert "SIGTERM: stopped before process 1 had come; the same command starts the run" in run.output()


def told_while_meeting(rank):
    """SIGTERM before the processes meet."""
    import util.setup
    connect = util.setup.connect
    util.setup.connect = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), connect(*args))[1]


def told_in_a_worker(number, kind, then=None):
    """For `before`: a worker that starts to load images of a `kind` gets a signal as early as Python can send it one, and
    then the process that trains does, as where a whole group of processes is told.
    """
    import datasets.loading
    multiprocessing.set_start_method("fork", force=True)  # as the command does, and not from a server that its tests have
    begin = datasets.loading.one_thread

    def told(worker):
        images = torch.utils.data.get_worker_info().dataset
        if worker == 0 and isinstance(getattr(images, "dataset", images), getattr(datasets.loading, kind)):
            os.kill(os.getpid(), number)
            os.kill(multiprocessing.parent_process().pid, number)
            if then:
                os.kill(os.getpid(), then)
        begin(worker)
    datasets.loading.one_thread = told


def told_by_sigterm(rank):
    """Where training starts its workers."""
    told_in_a_worker(signal.SIGTERM, "TrainImages")


def told_by_sigint(rank):
    """Once, though a worker gets it too; a second one would end the process before its step has ended."""
    import util.signals
    util.signals.LEAVE_SECONDS = 0.0
    told_in_a_worker(signal.SIGINT, "TrainImages")


def told_by_sigterm_scoring(rank):
    """Where an evaluation starts its own."""
    told_in_a_worker(signal.SIGTERM, "EvalImages")


def killed_after_sigterm(rank):
    """And one of them is killed then."""
    told_in_a_worker(signal.SIGTERM, "TrainImages", signal.SIGKILL)


def killed_after_sigterm_scoring(rank):
    """And one of them is killed then, in an evaluation."""
    told_in_a_worker(signal.SIGTERM, "EvalImages", signal.SIGKILL)


@pytest.mark.parametrize(("before", "stood"), [
    (told_by_sigterm, (0, 1)), (told_by_sigint, (0, 1)), (told_by_sigterm_scoring, (0, 6)), (killed_after_sigterm, (0, 0)),
    (killed_after_sigterm_scoring, (0, 6))])
def test_a_signal_to_the_whole_job_while_its_workers_start_stops_it_as_ever(tmp_path, flags, before, stood):  # noqa: F811
    job = flags("finetune", tmp_path / "run", "--epochs", 3, "--num_workers", 2)
    run = Processes(tmp_path, [job], before=before)
    assert run.end(30) == {0: 75}, run.output()
    progress = load_checkpoint(tmp_path / "run" / "last.pth")["progress"]
    assert (progress["epoch"], progress["step"]) == stood


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

    monkeypatch.setattr(util.steps.Stepper, "backward", lambda self, loss, weight: backward(
        self, loss * float("nan") if self.total >= 5 else loss, weight))  # in the whole second epoch
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
