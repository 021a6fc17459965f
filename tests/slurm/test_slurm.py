"""Jobs on a real SLURM of this machine, which `make test-slurm` starts: its partitions, its clock, its processes."""
# ruff: noqa: E402
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

from submit import slurm, snapshot
from tests.killing import STAGES, differences
from util.args import PROJECT
from util.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("sbatch"), reason="no sbatch here: make test-slurm starts "
                                                    "a SLURM of one machine")]
CLUSTER = ["--tasks_per_node", 2, "--partition", "debug", "--time_limit", 60]
ONE_TASK = [*CLUSTER, "--tasks_per_node", 1]
LONG = ["--epochs", 2, "--batch_size", 16, "--save_steps", 5]  # 140 steps an epoch with two tasks: room to be stopped within
QUICK = ["--epochs", 1, "--warmup_epochs", 0, "--batch_size", 512]
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@pytest.fixture(autouse=True)
def _one_thread_a_task(monkeypatch):
    """Jobs inherit the environment that they are submitted in."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def words(stage, out, *flags, cluster=CLUSTER):
    """What a person types behind `python -m submit.slurm`."""
    return list(map(str, [stage, *STAGES[stage], "--output_dir", out, *flags, *cluster]))


def typed(*args, cwd=PROJECT, **kwargs):
    """The finished process of that command."""
    return subprocess.run([sys.executable, "-m", "submit.slurm", *words(*args, **kwargs)], cwd=cwd, capture_output=True,
                          text=True, timeout=400)


def submit(*args, **kwargs):
    """The same without another interpreter; returns the jobs' ids."""
    return slurm.main(slurm.get_args_parser().parse_args(words(*args, **kwargs)))


def job_ids(run):
    return re.findall(r"^(\d+(?:_\d+)?): \S+$", run.stdout, re.MULTILINE)


def ask(*command):
    """A command of SLURM's that has to succeed; what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def state(job):
    """SLURM's word for a job."""
    return ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def held_job():
    """Id of a job that waits until it is released; what is submitted `--after` it waits too."""
    return ask("sbatch", "--parsable", "--hold", "--partition", "debug", "--output", "/dev/null", "--wrap", "true")


def wait_until(reached, seconds=240, every=.2):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(every)


def ended_well(job):
    """Waits for its end, whichever, so that a job which failed is not waited for."""
    wait_until(lambda: state(job) in ENDS)  # PREEMPTED is none: it is queued again
    return state(job) == "COMPLETED"


def printed(root, job, rank=0, stream="out"):
    """What a task of a job has written, over all its starts; root: the folder that the job was submitted with."""
    return "".join(path.read_text() for path in root.glob(f"jobs/*/*/{job}_{rank}_log.{stream}"))


def within_an_epoch(out):
    """Whether a LONG run is behind its first epoch, and a good way before the end of its second."""
    saved = out / "previous.pth"  # unlike last.pth it is there at every moment once it is
    if not saved.exists():
        return False
    progress = load_checkpoint(saved)["progress"]
    return progress["epoch"] > 0 and 0 < progress["step"] < 70


def reach_within_an_epoch(out):
    wait_until(lambda: within_an_epoch(out), every=.05)


def went_on_within_an_epoch(root, job):
    """Waits for a job's end: whether it ended well, after it had saved at SIGUSR2 and gone on from there."""
    assert ended_well(job), printed(root, job, stream="err")
    text = printed(root, job)
    where = re.search(r"SIGUSR2: saved .* (after epoch \d+ and \d+ steps);", text)
    return where and re.search(rf"continuing .* {where[1]};", text)


def process_of(job, rank):
    """Process id of a task; the nodes are all this machine."""
    mark = {f"SLURM_JOB_ID={job}", "SLURM_STEP_ID=0", f"SLURM_PROCID={rank}"}  # the job's shell has no step
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if mark <= set(environment.read_text(errors="replace").split("\0")):
                found.append(int(environment.parent.name))
    one, = found
    return one


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted stage 1 of two tasks: (its output folder, the job, which need not have ended)."""
    out = tmp_path_factory.mktemp("whole") / "mgp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        job, = submit("pretrain", out, *LONG)
    return out, job


def test_both_stages_with_two_tasks_and_a_chain(tmp_path, whole):
    out, first = whole
    second = typed("finetune", tmp_path, *QUICK, "--finetune", out / "last.pth", "--after", first, "--wait")
    assert ": done" in second.stdout and state(first) == "COMPLETED", second.stdout + second.stderr
    record = json.loads((tmp_path / "args.json").read_text())
    assert record["processes"] == 2 and [record["slurm_job"]] == job_ids(second)
    assert "encoder of" in printed(tmp_path, record["slurm_job"])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_an_array_over_losses_has_a_folder_for_each_and_the_clusters_size(tmp_path):
    losses = ["ce", "bal_ce", "bce", "bal_bce", "cb_ce"]
    jobs = submit("finetune", tmp_path, *QUICK, "--array", f"loss={','.join(losses)}", cluster=ONE_TASK)
    sizes = list(Counter(job.split("_")[0] for job in jobs).values())
    # The index is what is limited: four jobs have 0 to 3.
    highest = int(re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))[1]) - 1
    assert highest == 3 and sizes == [3, 2]
    assert all(map(ended_well, jobs))
    for loss in losses:
        record = json.loads((tmp_path / f"loss_{loss}" / "args.json").read_text())
        assert record["args"]["loss"] == loss and (tmp_path / f"loss_{loss}" / "metrics.json").exists()


@pytest.mark.parametrize("how", ["signal", "priority"])
def test_a_preempted_job_is_queued_again_and_ends_as_if_it_had_not_been(tmp_path, whole, how):
    job, = submit("pretrain", tmp_path, *LONG)
    reach_within_an_epoch(tmp_path)
    if how == "signal":
        ask("scancel", "--signal=USR2", job)
    else:  # a job of a better partition wants all the nodes
        ask("sbatch", "--partition", "high", "--nodes", "2", "--exclusive", "--output", "/dev/null", "--wrap", "true")
    assert went_on_within_an_epoch(tmp_path, job)
    assert ended_well(whole[1]) and not differences(whole[0], tmp_path)


def test_an_element_of_an_array_is_queued_again_alone_and_ends_as_if_it_had_not_been(tmp_path):
    # Two runs that compute the same: how often they save is no part of the result.
    still, stopped = submit("finetune", tmp_path, *LONG, "--array", "save_steps=5,6", cluster=ONE_TASK)
    one, other = tmp_path / "save_steps_5", tmp_path / "save_steps_6"
    reach_within_an_epoch(other)
    ask("scancel", "--signal=USR2", stopped)
    assert went_on_within_an_epoch(tmp_path, stopped)
    assert ended_well(still) and "continuing" not in printed(tmp_path, still)
    assert not differences(one, other)


def test_a_time_limit_saves_and_queues_again_and_the_run_ends_as_if_there_were_none(tmp_path, whole):
    def limit(minutes):
        ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    gate = held_job()
    job, = submit("pretrain", tmp_path, *LONG, "--after", gate, "--time_limit", 2, cluster=CLUSTER[:-2])
    # SLURM looks at its clock every half minute, from when it was started. So that it does not tell a job that has not
    # begun to train, nor one that has ended, it sees the limit only while the run waits for a process that stands still.
    limit(60)
    ask("scontrol", "release", gate)
    reach_within_an_epoch(tmp_path)
    first = process_of(job, 0)
    os.kill(first, signal.SIGSTOP)
    try:
        limit(2)
        wait_until(lambda: "SIGUSR2: finishing the step" in printed(tmp_path, job, rank=1, stream="err"), 60)
        limit(60)
    finally:
        os.kill(first, signal.SIGCONT)
    assert went_on_within_an_epoch(tmp_path, job)
    assert "this job is timed-out" in printed(tmp_path, job, stream="err")
    assert ended_well(whole[1]) and not differences(whole[0], tmp_path)


def test_a_job_that_fails_tells_the_terminal_why(tmp_path):
    run = typed("finetune", tmp_path / "bft", *QUICK, "--finetune", tmp_path / "nowhere.pth", "--wait")
    assert run.returncode == 1
    assert re.search(r"FAILED: .*no checkpoint at .*nowhere\.pth: give the path of a last\.pth", run.stdout), run.stdout
    # What waits for it does not wait for ever.
    late, = submit("finetune", tmp_path / "late", "--after", *job_ids(run))
    wait_until(lambda: state(late) == "CANCELLED", 60)


def test_a_queued_job_keeps_the_code_of_its_submission(tmp_path):
    project = snapshot.take(tmp_path / "project")
    ask("git", "init", "--quiet", project)
    ask("git", "-C", project, "add", "--all")
    script = project / "main_pretrain.py"
    text = script.read_text()

    def edit(when):
        script.write_text(f"{text}\nprint('code', {when!r}, flush=True)\n")
    edit("of the submission")
    gate, out, here = held_job(), tmp_path / "cluster", tmp_path / "here"
    run = typed("pretrain", out, *QUICK, "--after", gate, cwd=project, cluster=ONE_TASK)
    job, = job_ids(run)
    # The second job of an array on this machine waits too: for the first.
    local = [sys.executable, "-m", "submit.slurm", *words("pretrain", here, *QUICK, "--array", "seed=0,1", "--where", "local",
                                                          cluster=[])]
    with open(tmp_path / "local.txt", "w") as file:
        both = subprocess.Popen(local, cwd=project, stdout=file, stderr=file)
    wait_until(lambda: (here / "seed_0").exists() or both.poll())
    edit("of later")
    ask("scontrol", "release", gate)
    assert both.wait(400) == 0, (tmp_path / "local.txt").read_text()
    assert ended_well(job)
    texts = [printed(out, job), *(path.read_text() for path in sorted(here.glob("jobs/*/*/*_0_log.out")))]
    assert [re.findall("^code (.*)$", text, re.MULTILINE) for text in texts] == [["of the submission"]] * 3
    assert not list(tmp_path.glob("*/jobs/*/code/.git"))
