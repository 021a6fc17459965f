"""Jobs on a real SLURM: `make test-slurm` starts one on this machine, and these tests use whichever is there."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.killing import STAGES, differences

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("sbatch"), reason="no sbatch here: make test-slurm starts "
                                                    "a SLURM of one machine")]
CLUSTER = ["--tasks_per_node", 2, "--partition", "debug", "--time_limit", 60]


def submit(stage, out, *flags, cluster=CLUSTER, wait=True, check=True):
    """What a person types; returns the finished process, or the running one."""
    command = [sys.executable, "-m", "submit.slurm", stage, *STAGES[stage], "--output_dir", out, *flags, *cluster]
    command = list(map(str, command + ["--wait"] * wait))
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                         timeout=400)
    assert not check or run.returncode == 0, run.stdout + run.stderr
    return run


def job_ids(run):
    return re.findall(r"^(\d+(?:_\d+)?): \S+$", run.stdout, re.MULTILINE)


def state(job):
    """SLURM's word for a job, "" once it has forgotten it."""
    shown = subprocess.run(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout
    return shown.strip()


def wait_until(reached, seconds=240):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.2)


def log_of(out, rank=0):
    return "".join(path.read_text() for path in sorted(out.glob(f"jobs/*/*/*_{rank}_log.out")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted stage 1 of two tasks on the cluster."""
    out = tmp_path_factory.mktemp("whole") / "mgp"
    submit("pretrain", out, "--epochs", 20)
    return out


def test_both_stages_with_two_tasks_and_a_chain(tmp_path, whole):
    first = submit("pretrain", tmp_path / "mgp", "--epochs", 2, wait=False)
    job, = job_ids(first)
    second = submit("finetune", tmp_path / "bft", "--epochs", 2, "--finetune", tmp_path / "mgp" / "last.pth", "--after", job)
    assert ": done" in second.stdout and state(job) == "COMPLETED"
    record = json.loads((tmp_path / "bft" / "args.json").read_text())
    assert record["processes"] == 2 and record["slurm_job"] == job_ids(second)[0]
    assert "encoder of" in log_of(tmp_path / "bft") and len((tmp_path / "bft" / "log.jsonl").read_text().splitlines()) == 2


def test_an_array_over_losses_has_a_folder_for_each(tmp_path):
    losses = ["ce", "bal_ce", "bce", "bal_bce"]
    run = submit("finetune", tmp_path, "--epochs", 1, "--warmup_epochs", 0, "--array", f"loss={','.join(losses)}",
                 cluster=[*CLUSTER, "--tasks_per_node", 1])
    assert len({job.split("_")[0] for job in job_ids(run)}) == 1 and len(job_ids(run)) == 4
    for loss in losses:
        record = json.loads((tmp_path / f"loss_{loss}" / "args.json").read_text())
        assert record["args"]["loss"] == loss and (tmp_path / f"loss_{loss}" / "metrics.json").exists()


@pytest.mark.parametrize("how", ["signal", "priority"])
def test_a_preempted_job_is_queued_again_and_ends_as_if_it_had_not_been(tmp_path, whole, how):
    out = tmp_path / "mgp"
    job, = job_ids(submit("pretrain", out, "--epochs", 20, wait=False))
    wait_until(lambda: "epoch   2" in log_of(out))
    if how == "signal":
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
    else:  # a job of a better partition wants all the nodes
        subprocess.run(["sbatch", "--partition", "high", "--nodes", "2", "--exclusive", "--output", tmp_path / "high.txt",
                        "--wrap", "true"], check=True, capture_output=True)
    wait_until(lambda: "continuing" in log_of(out) and state(job) == "COMPLETED")
    assert re.search(r"continuing .* after epoch \d+ and \d+ steps", log_of(out))
    assert not differences(whole, out)


def test_a_time_limit_saves_and_queues_again(tmp_path, whole):
    out = tmp_path / "mgp"
    # SLURM tells a job of one minute after half of it, at the earliest; the run takes longer than that.
    cluster = [*CLUSTER, "--tasks_per_node", 2, "--time_limit", 1]
    job, = job_ids(submit("pretrain", out, "--epochs", 60, cluster=cluster, wait=False))
    wait_until(lambda: "continuing" in log_of(out) and state(job) == "COMPLETED", 400)
    assert "SIGUSR2: saved" in log_of(out)
    assert [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()] == list(range(60))


def test_a_job_that_fails_tells_the_terminal_why(tmp_path):
    run = submit("finetune", tmp_path / "bft", "--epochs", 2, "--finetune", tmp_path / "nowhere.pth", check=False)
    assert run.returncode == 1
    assert re.search(r"FAILED: .*no checkpoint at .*nowhere\.pth: give the path of a last\.pth", run.stdout), run.stdout
    # What waits for it does not wait for ever.
    job, = job_ids(run)
    late = submit("finetune", tmp_path / "late", "--after", job, wait=False)
    wait_until(lambda: state(job_ids(late)[0]) == "CANCELLED", 60)


def test_a_queued_job_keeps_the_code_of_its_submission(tmp_path):
    run = submit("pretrain", tmp_path / "mgp", "--epochs", 1, "--warmup_epochs", 0)
    code, = (tmp_path / "mgp" / "jobs").glob("*/code")
    assert (code / "main_pretrain.py").read_bytes() == (PROJECT / "main_pretrain.py").read_bytes()
    assert ": done" in run.stdout and not (code / ".git").exists()
