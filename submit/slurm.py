"""Submit runs of a stage to SLURM, or run the same jobs on this machine.

    python -m submit.slurm pretrain @recipes/imagenet_lt/pretrain.args --data_path DIR --output_dir runs/mgp \\
        --nodes 2 --gpus_per_node 8 --partition gpu --time_limit 1440
    python -m submit.slurm finetune @recipes/imagenet_lt/finetune.args --data_path DIR --finetune runs/mgp/last.pth \\
        --output_dir runs/tau --array tau=0.5,1,1.5 --after JOB_ID --gpus_per_node 8 --partition gpu --time_limit 600

One task a GPU, and main(args) is called in it. A job whose time is over, or that has to make place, saves, is queued again
and goes on. Flags that are not SLURM's are the stage's.
"""
import datetime
import getpass
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

from datasets import IN_MEMORY
from datasets.loading import MOST_WORKERS
from datasets.memory import in_batches
from datasets.shards import is_url
from submit import snapshot, sweep
from submit.jobs import StageJob, stage_parser
from util.args import Parser, run_command
from util.run import say

PATH_FLAGS = ("--output_dir", "--data_path", "--finetune", "--resume", "--test_prior")
CLUSTER_ONLY = ("nodes", "partition", "account", "qos", "constraint", "mem", "time_limit", "parallel", "after")
SIGNAL_SECONDS = 120  # before its time is over, a job is told to save
RESTARTS = 10000  # each one goes on from where the last one stood


class PassingParser(Parser):
    """Keeps the flags that it does not know, in order, as `others`: they are the stage's."""

    def parse_args(self, args=None, namespace=None):
        self.fromfile_prefix_chars = None  # recipes belong to the stage too
        known, others = self.parse_known_args(args, namespace)
        known.others = others
        return known


def add_cluster_flags(parser: Parser) -> None:
    """Where jobs run, and what they ask of a cluster."""
    group = parser.add_argument_group("cluster")
    group.add_argument("--where", default="slurm", choices=["slurm", "local"], help="local: the same jobs on this machine")
    group.add_argument("--side_by_side", type=int, default=1, metavar="N", help="with --where local: jobs at a time")
    group.add_argument("--nodes", type=int, default=1)
    group.add_argument("--gpus_per_node", type=int, default=0, help="one task each; 0 trains on CPUs")
    group.add_argument("--tasks_per_node", type=int, help="without GPUs: processes on each node (1 by default)")
    group.add_argument("--partition")
    group.add_argument("--account")
    group.add_argument("--qos")
    group.add_argument("--constraint")
    group.add_argument("--mem", help="memory of a node, such as 100G")
    group.add_argument("--time_limit", type=int, default=1440, metavar="MINUTES", help="after which a job is queued again")
    group.add_argument("--parallel", type=int, default=256, metavar="N", help="jobs of an array that run at once")
    group.add_argument("--after", nargs="+", default=[], metavar="JOB_ID", help="wait until these have ended well")
    group.add_argument("--wait", action="store_true", help="stay until the jobs have ended, and tell how")
    group.add_argument("--dry_run", action="store_true", help="print what would be submitted, and do nothing")


def check_cluster(args) -> None:
    """ValueError for numbers that cannot be, and for flags that do nothing where the jobs run."""
    for name, least in (("side_by_side", 1), ("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1), ("time_limit", 1),
                        ("parallel", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, not {value}")
    if args.gpus_per_node and args.tasks_per_node is not None:
        raise ValueError(f"--tasks_per_node {args.tasks_per_node} is for runs without GPUs, and --gpus_per_node "
                         f"{args.gpus_per_node} starts one task each: give one of the two")
    idle = [name for name in CLUSTER_ONLY if name in args.given] if args.where == "local" else []
    if idle:
        raise ValueError(f"--{idle[0]} is the cluster's and does nothing with --where local: leave one of the two out")
    if args.where == "slurm" and "side_by_side" in args.given:
        raise ValueError(f"--side_by_side {args.side_by_side} is of --where local: on a cluster use --parallel, the jobs of an "
                         "array that run at once")


def get_args_parser() -> Parser:
    """Flags of the cluster, and the sweep."""
    parser = PassingParser(__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["pretrain", "finetune"])
    add_cluster_flags(parser)
    parser.add_argument("--array", nargs="+", default=[], metavar="NAME=V1,V2", help="one job for each combination of values, "
                        "each with an output folder of its own below --output_dir")
    return parser


def absolute(stage: str, argv: list[str]) -> list[str]:
    """The stage's flags as they mean the same in any folder and at any time: what recipes say instead of their names, and
    paths from the root. ValueError for an empty path."""
    found, flag = [], ""
    for word in stage_parser(stage).expanded(argv):
        name, equals, value = word.partition("=")
        if equals and name in PATH_FLAGS:
            found += [name, rooted(name, value)]
        else:
            found.append(rooted(flag, word) if flag in PATH_FLAGS and not word.startswith("--") else word)
        flag = word
    return found


def rooted(flag: str, value: str) -> str:
    """A flag's path from the root; what is no path as it is."""
    if not value:
        raise ValueError(f"{flag} is empty (an unset variable?): name a file or folder, or leave the flag out")
    return value if is_url(value) or value in ("uniform", "none") else os.path.abspath(value)


def build_jobs(args) -> list[tuple[StageJob, Path]]:
    """One (job, output folder) for each point of the sweep. ValueError where two of them would share a folder."""
    argv = absolute(args.stage, args.others)
    out = StageJob(args.stage, argv).parse()[1].output_dir  # a mistake is told now, not by the cluster tomorrow
    if out is None:
        raise ValueError("--output_dir is missing: the runs and what the cluster says about them go there")
    jobs: dict[Path, StageJob] = {}
    for point in sweep.points(args.array):
        folder = Path(out, sweep.folder_of(point)) if point else Path(out)
        if folder in jobs:
            raise ValueError(f"--array gives two jobs the folder {folder}: leave out values that are there twice, or whose "
                             "names are, \"/\" and \" \" in them being \"_\"")
        more = absolute(args.stage, sweep.flags_of(point))
        jobs[folder] = StageJob(args.stage, [*argv, *more, "--output_dir", str(folder)])
        jobs[folder].parse()
    return [(job, folder) for folder, job in jobs.items()]


def parameters(args, workers: int) -> dict:
    """sbatch's settings."""
    tasks = args.gpus_per_node or args.tasks_per_node or 1
    extra = {"requeue": True, "open-mode": "append"}
    if args.after:
        extra |= {"dependency": f"afterok:{':'.join(args.after)}", "kill-on-invalid-dep": "yes"}
    found = {"job_name": f"livt-{args.stage}", "nodes": args.nodes, "ntasks_per_node": tasks, "cpus_per_task": workers + 1,
             "time": args.time_limit, "partition": args.partition, "account": args.account, "qos": args.qos,
             "constraint": args.constraint, "mem": args.mem, "gpus_per_node": args.gpus_per_node or None,
             "signal_delay_s": SIGNAL_SECONDS, "array_parallelism": args.parallel,
             # Since 22.05 srun does not take this from sbatch.
             "srun_args": [f"--cpus-per-task={workers + 1}", "--kill-on-bad-exit=1"], "additional_parameters": extra}
    return {name: value for name, value in found.items() if value is not None}


def workers_of(stage_args, gpus: int) -> int:
    """Loader workers that a process of this run starts, given the cores; each wants one, and the process itself another."""
    if stage_args.num_workers is not None:
        return stage_args.num_workers
    policy = None if getattr(stage_args, "aa", "none") == "none" else stage_args.aa
    batched = in_batches(stage_args.train_crop, policy, getattr(stage_args, "color_jitter", 0))
    return 0 if stage_args.dataset in IN_MEMORY and (batched or not gpus) else MOST_WORKERS


def array_limit() -> int:
    """Most jobs that the cluster takes in one array."""
    text = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", text)
    return int(found[1]) - 1 if found and int(found[1]) > 1 else 1000


def queued() -> set[str]:
    """Ids of one's jobs that wait or run on the cluster, those of an array each by itself: {"17", "18_0", "18_1"}.

    None where there is no cluster. ValueError where it does not answer.
    """
    if not shutil.which("squeue"):
        return set()
    words = ["squeue", "--user", getpass.getuser(), "--noheader", "--array", "--format=%i"]
    found = subprocess.run(words, capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"squeue does not answer ({' '.join(found.stderr.split())}), so it is not known which earlier jobs "
                         "still run: try again when it does")
    return set(found.stdout.split())


def submit_to_slurm(jobs: list[tuple[StageJob, Path]], folder: Path, settings: dict) -> list[submitit.Job]:
    """Hand the jobs in, arrays where there are several, and return them. ValueError with sbatch's words where it refuses."""
    if not shutil.which("sbatch"):
        raise ValueError("no sbatch here: submit from a node of the cluster, or use --where local")
    code = snapshot.take(folder / "code")
    executor = SlurmExecutor(folder=folder / "%j", max_num_timeout=RESTARTS)
    executor.update_parameters(**settings)
    submitted, size = [], array_limit()
    try:
        # submitit prints what sbatch says, which here is the message.
        with chdir(code), redirect_stderr(io.StringIO()):
            for start in range(0, len(jobs), size):
                with executor.batch():
                    submitted += [executor.submit(job) for job, _ in jobs[start:start + size]]
    except FailedJobError as error:
        lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines()]
        refused = f"sbatch has not taken the job{'s' * (len(jobs) > 1)}"
        raise ValueError(f"{refused}: {'; '.join(lines) or 'it does not say why'}") from None
    return submitted


def run_here(jobs: list[tuple[StageJob, Path]], folder: Path, tasks: int, side_by_side: int) -> list[submitit.Job]:
    """Run the jobs on this machine, `side_by_side` at a time; returns them, ended."""
    code = snapshot.take(folder / "code")
    executor = LocalExecutor(folder=folder / "%j")
    executor.update_parameters(tasks_per_node=tasks, timeout_min=60 * 24 * 365)
    running, done = [], []
    with chdir(code):
        for job, out in jobs:
            if len(running) == side_by_side:
                done.append(running.pop(0))
                done[-1].wait()
            running.append(executor.submit(job))
            say(f"{running[-1].job_id}: {out}")
    for job in running:
        job.wait()
    return done + running


def tell(jobs: list[submitit.Job], folders: list[Path]) -> int:
    """Wait for the jobs, print how each ended, with its error's last line; returns how many failed."""
    failed = 0
    for job, folder in zip(jobs, folders, strict=True):
        error = job.exception()
        failed += error is not None
        words = "done" if error is None else f"FAILED: {message_of(error, job.stderr() or '')} (more in {job.paths.stderr})"
        say(f"{job.job_id}: {folder}: {words}")
    return failed


def message_of(error: Exception, printed: str) -> str:
    """The line that says what went wrong, out of the traceback that submitit hands on, or, where a job has ended without
    one, out of what it has printed, which begins as a command's message does."""
    lines = str(error).strip().splitlines()
    named = [line.partition(": ")[2] for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    told = [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]
    return (named or told or lines)[-1]


def main(args) -> list[str]:
    """Submit; returns the jobs' ids."""
    check_cluster(args)
    jobs = build_jobs(args)
    settings = parameters(args, max(workers_of(job.parse()[1], args.gpus_per_node) for job, _ in jobs))
    root = Path(os.path.commonpath([folder for _, folder in jobs]))
    if args.dry_run:
        size = {"map_count": len(jobs)} if len(jobs) > 1 else {}
        if args.where == "slurm":
            say(_make_sbatch_string(command="(submitit's task)", folder=root / "jobs" / "%j", **settings, **size))
        for job, _ in jobs:
            say(f"# main_{job.stage}.py {shlex.join(job.argv)}")
        return []
    folder = root / "jobs" / f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
    if args.where == "local":
        submitted = run_here(jobs, folder, settings["ntasks_per_node"], args.side_by_side)
    else:
        submitted = submit_to_slurm(jobs, folder, settings)
        for job, (_, out) in zip(submitted, jobs, strict=True):
            say(f"{job.job_id}: {out}")
    if (args.wait or args.where == "local") and tell(submitted, [out for _, out in jobs]):
        sys.exit(1)
    return [job.job_id for job in submitted]


if __name__ == "__main__":
    run_command(get_args_parser(), main)
