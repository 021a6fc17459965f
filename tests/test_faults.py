"""What a run survives: kills, signals, damaged files, full disks, dead workers."""
import json
import os
import pickle
import random
import resource
import signal

import pytest
import torch
from torch import nn

from tests.checkpoints import write_again
from tests.killing import differences, kill_often
from tests.processes import Processes
from tests.test_checkpoint import Runs
from tests.test_distributed import flags  # noqa: F401 (a fixture)
from util.args import outcome
from util.checkpoint import load_checkpoint


@pytest.mark.parametrize(("stage", "kills"), [("pretrain", 3), ("finetune", 2)])
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(tmp_path, stage, kills):
    found, moments = kill_often(stage, tmp_path, kills, 2, random.Random(0))
    assert not found and sum(moments.values()) == kills


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def slow_and_told(number, at):
    """For `before`: the process sends itself a signal while it computes step `at` of the run."""
    def before(rank):
        import util.steps
        step = util.steps.Stepper.step

        def signalled(self, samples):
            if self.total == at and rank == 0:
                os.kill(os.getpid(), number)
            step(self, samples)
        util.steps.Stepper.step = signalled
    return before


def told_by_sigterm(rank):
    """SIGTERM in the eighth step."""
    slow_and_told(signal.SIGTERM, 7)(rank)


def told_by_sigusr2(rank):
    """SIGUSR2 in the eighth step."""
    slow_and_told(signal.SIGUSR2, 7)(rank)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("before", [told_by_sigterm, told_by_sigusr2])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_signal_saves_within_its_step_and_the_run_goes_on_exactly_there(tmp_path, flags, size, before, stage):  # noqa: F811
    job = ["--epochs", 3, "--batch_size", 8 // size]
    whole = Processes(tmp_path, [flags(stage, tmp_path / "whole", *job)], size)
    cut = Processes(tmp_path, [flags(stage, tmp_path / "cut", *job)], size, before=before)
    assert set(cut.end().values()) == {75}, cut.output()
    name = before.__name__.rpartition("_")[2].upper()
    assert f"{name}: finishing the step, then saving" in cut.output() and "Traceback" not in cut.output()
    assert f"{name}: saved {tmp_path / 'cut' / 'last.pth'} after epoch 1 and 2 steps" in cut.output()
    progress = load_checkpoint(tmp_path / "cut" / "last.pth")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 2)  # six steps an epoch
    again = Processes(tmp_path, [flags(stage, tmp_path / "cut", *job)], size)
    assert set(again.end().values()) == set(whole.end().values()) == {0}, again.output()
    assert "continuing" in again.output() and "after epoch 1 and 2 steps" in again.output()
    assert not differences(tmp_path / "whole", tmp_path / "cut")


def two_interrupts(rank):
    """Ctrl-C twice in the second step."""
    import util.steps
    step = util.steps.Stepper.step

    def signalled(self, samples):
        if self.total == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        step(self, samples)
    util.steps.Stepper.step = signalled


def test_a_second_interrupt_leaves_at_once(tmp_path, flags):  # noqa: F811
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run")], before=two_interrupts)
    assert run.end() == {0: 130}
    assert not (tmp_path / "run" / "last.pth").exists() and "stopped; what was saved is whole" in run.output()


def test_image_workers_ignore_what_the_whole_job_is_told_and_end_with_their_parent(tmp_path, flags):  # noqa: F811
    job = ["--epochs", 4000, "--save_every", 4000, "--num_workers", 2]
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", *job)])
    run.wait_for(lambda: "epoch   1" in run.output())
    children = run.workers()
    assert len(children) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        for pid in children:
            os.kill(pid, number)
    before = len(lines(tmp_path / "run"))
    run.wait_for(lambda: len(lines(tmp_path / "run")) > before + 2)  # they still work
    run.kill(0, signal.SIGTERM)
    assert run.end(20) == {0: 75}, run.output()
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]


def test_a_worker_that_is_killed_ends_the_run_with_what_to_change(tmp_path, flags):  # noqa: F811
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", "--epochs", 4000, "--num_workers", 2)])
    run.wait_for(lambda: "epoch   1" in run.output())
    os.kill(run.workers()[0], signal.SIGKILL)
    assert run.end(30) == {0: 1}
    last = run.output().strip().splitlines()[-1]
    assert last.startswith("error: DataLoader worker") and "lower --num_workers" in last


def test_a_device_without_memory_is_told_what_to_change():
    class Args:
        batch_size = 64
    code, message = outcome(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), Args)
    assert code == 1 and "too little memory for --batch_size 64 (CUDA out of memory. Tried to allocate 2 GiB.)" in message
    assert "halve --batch_size and double --accum_iter, or add --grad_checkpointing" in message and "\n" not in message


# --- damaged files ---

def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def folder(path):
    path.unlink()
    path.mkdir()


def foreign_pickle(path):
    path.write_bytes(pickle.dumps(Runs(path.with_name("it ran"))))


@pytest.fixture
def two_checkpoints(pretrain, tmp_path):
    """A run with last.pth and previous.pth, stopped before its end, and the whole run beside it."""
    pretrain(tmp_path / "whole", "--model", "mae_vit_tiny_patch16", "--epochs", 4)

    def start(*more):
        return pretrain(tmp_path / "run", "--model", "mae_vit_tiny_patch16", "--epochs", 4, *more)
    return start


@pytest.mark.parametrize("damage", [truncated, flipped, folder, foreign_pickle])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(two_checkpoints, tmp_path, damage, capsys):
    two_checkpoints()
    run = tmp_path / "run"
    assert load_checkpoint(run / "previous.pth")["progress"]["epoch"] == 3
    damage(run / "last.pth")
    two_checkpoints()
    text = capsys.readouterr().out
    assert "warning: " in text and f"goes on from {run / 'previous.pth'}" in text and "after epoch 3" in text
    assert len(list(run.glob("damaged-*.pth"))) == 1 and not (run / "it ran").exists()
    assert not differences(tmp_path / "whole", run)


@pytest.mark.parametrize("damage", [truncated, flipped, folder, foreign_pickle])
def test_damage_without_another_checkpoint_stops_and_says_so(two_checkpoints, tmp_path, damage):
    two_checkpoints()
    (tmp_path / "run" / "previous.pth").unlink()
    damage(tmp_path / "run" / "last.pth")
    with pytest.raises(ValueError, match=r"last\.pth"):
        two_checkpoints()
    assert not (tmp_path / "run" / "it ran").exists()


def test_a_kill_between_two_renames_loses_nothing_but_the_last_save(two_checkpoints, tmp_path, capsys):
    two_checkpoints()
    (tmp_path / "run" / "last.pth").unlink()
    two_checkpoints()
    assert "previous.pth after epoch 3" in capsys.readouterr().out
    assert not differences(tmp_path / "whole", tmp_path / "run")


# --- disks ---

def no_large_files(rank):
    """No file may grow beyond 64 KiB from the second save on: what a full disk looks like."""
    import util.session
    save, seen = util.session.Session.save, []

    def limited(self):
        seen.append(1)
        if len(seen) == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        save(self)
    util.session.Session.save = limited


def no_renames(rank):
    """The folder refuses new names from the second save on, as one that has become read-only."""
    import util.checkpoint
    write, seen = util.checkpoint.write_whole, []

    def refused(path, content):
        if path.name == ".last.pth.part":
            seen.append(1)
            if len(seen) == 2:
                raise PermissionError(13, "Permission denied")
        write(path, content)
    util.checkpoint.write_whole = refused


@pytest.mark.parametrize(("before", "words"), [(no_large_files, "File too large"), (no_renames, "Permission denied")])
@pytest.mark.parametrize("size", [1, 2])
def test_a_disk_that_refuses_leaves_the_old_checkpoint_whole(tmp_path, flags, before, words, size):  # noqa: F811
    job = ["--epochs", 4, "--batch_size", 8 // size]
    whole = Processes(tmp_path, [flags("pretrain", tmp_path / "whole", *job)], size)
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", *job)], size, before=before)
    assert set(run.end().values()) == {1} and set(whole.end().values()) == {0}
    error = [line for line in run.output().splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and f"cannot write {tmp_path / 'run' / 'last.pth'} ({words})" in error[0]
    assert "the checkpoints that are there are whole" in error[0] and "Traceback" not in run.output()
    assert load_checkpoint(tmp_path / "run" / "last.pth")["progress"]["epoch"] == 1
    again = Processes(tmp_path, [flags("pretrain", tmp_path / "run", *job)], size)
    assert set(again.end().values()) == {0}
    assert not differences(tmp_path / "whole", tmp_path / "run")


def test_going_back_once_mends_what_happens_once(pretrain, tmp_path, monkeypatch, capsys):
    pretrain(tmp_path / "whole", "--model", "mae_vit_tiny_patch16", "--epochs", 3)
    import util.steps
    backward, seen = util.steps.Stepper.backward, []

    def poisoned(self, loss, weight):
        seen.append(1)
        backward(self, loss * float("nan") if 9 <= len(seen) < 11 else loss, weight)
    monkeypatch.setattr(util.steps.Stepper, "backward", poisoned)
    pretrain(tmp_path / "run", "--model", "mae_vit_tiny_patch16", "--epochs", 3, "--max_bad_steps", 2, "--log_every", 1)
    assert "Going back, once, to the checkpoint after epoch 1 and 0 steps" in capsys.readouterr().out
    a, b = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("whole", "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [0, 1, 2]
    assert load_checkpoint(tmp_path / "run" / "last.pth")["progress"]["went_back"]


# --- what does not change the numbers, and what does ---

@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradient_checkpointing_changes_nothing(request, tmp_path, stage):
    run = request.getfixturevalue(stage)
    more = ["--model", "mae_vit_tiny_patch16"] if stage == "pretrain" else ["--drop_path", .3]
    run(tmp_path / "plain", *more)
    run(tmp_path / "saving", *more, "--grad_checkpointing")
    a, b = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("plain", "saving"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_moving_average_is_kept_scored_and_loaded(finetune, pretrain, tmp_path):
    result = finetune(tmp_path / "run", "--ema", .5, "--epochs", 2)
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert not torch.equal(state["ema"]["head.weight"], state["model"]["head.weight"])
    # Scored: with weights and averages exchanged, --eval gives another result than the run, as they are the same.
    evaluate = ["--eval", "--resume", tmp_path / "run" / "last.pth"]
    assert finetune(tmp_path / "again", *evaluate)["nll"] == pytest.approx(result["nll"], rel=1e-6)
    write_again(tmp_path / "run" / "last.pth", {**state, "ema": state["model"], "model": state["ema"]})
    assert finetune(tmp_path / "other", *evaluate)["nll"] != pytest.approx(result["nll"], rel=1e-6)


def test_the_moving_average_is_timms_over_the_steps():
    from timm.utils import ModelEmaV3

    from util.steps import Stepper, build_optimizer
    model = nn.Linear(3, 2)
    start, ema = model.weight.detach().clone(), ModelEmaV3(model, decay=0.9)
    stepper = Stepper(model, build_optimizer([{"params": list(model.parameters())}], 0.1, (0.9, 0.95)), torch.device("cpu"),
                      ema=ema)
    expected = start
    for _ in range(3):
        stepper.backward(model(torch.ones(4, 3)).square().mean(), 1.0)
        stepper.step(4)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(ema.module.weight, expected)
    assert stepper.trained is ema.module


def test_deterministic_asks_torch_for_it(pretrain, tmp_path):
    try:
        pretrain(tmp_path / "run", "--model", "mae_vit_tiny_patch16", "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
        pretrain(tmp_path / "other", "--model", "mae_vit_tiny_patch16")
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
