"""How several processes end where the save that a signal asks for fails, and where one of them has gone before the others."""
import os

from tests.processes import Processes
from tests.test_distributed import flags  # noqa: F401 (a fixture)
from tests.test_faults import no_renames, told_by_sigterm
from util.checkpoint import load_checkpoint


def hurried():
    """The processes look for each other often, and wait for none that is gone."""
    import util.distributed
    util.distributed.WATCH_SECONDS, util.distributed.GRACE_SECONDS = 0.1, 1.0


def told_and_refused(rank):
    """SIGTERM in the eighth step, and the folder refuses the save after it."""
    hurried()
    told_by_sigterm(rank)
    no_renames(rank)


def test_no_process_says_saved_where_the_save_after_a_signal_has_failed(tmp_path, flags):  # noqa: F811
    job = [flags("pretrain", tmp_path / "run", "--epochs", 3, "--batch_size", 4)]
    run = Processes(tmp_path, job, 2, before=told_and_refused)
    assert run.end() == {0: 1, 1: 1}, run.output()
    for rank in (0, 1):
        said = run.output(rank)
        assert "Traceback" not in said and "SIGTERM: saved" not in said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0].startswith(f"error: cannot write {tmp_path / 'run' / 'last.pth'} (Permission d")
    assert load_checkpoint(tmp_path / "run" / "last.pth")["progress"]["epoch"] == 1


def told_and_left(rank):
    """SIGTERM in the eighth step, after which the second process is gone before the two leave together."""
    from util.distributed import World
    hurried()
    told_by_sigterm(rank)
    if rank == 1:
        World.close = lambda self: os._exit(9)


def test_a_process_that_is_gone_when_the_others_leave_is_named_in_a_line(tmp_path, flags):  # noqa: F811
    job = [flags("pretrain", tmp_path / "run", "--epochs", 3, "--batch_size", 4)]
    run = Processes(tmp_path, job, 2, before=told_and_left)
    assert run.end() == {0: 1, 1: 9}, run.output()
    last = run.output().strip().splitlines()[-2:]
    assert last[0].startswith(f"SIGTERM: saved {tmp_path / 'run' / 'last.pth'} after epoch 1 and 2 steps")
    assert last[1].startswith("error: process 1 (") and "died or hangs" in last[1] and "Traceback" not in run.output()
