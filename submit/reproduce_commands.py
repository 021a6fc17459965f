"""What `submit.reproduce --dry_run` prints: a script for sh that hands in every job, or runs it here."""
import shlex
from pathlib import Path

from submit.experiment import DATA, Job


def words_of(job: Job, args, places: dict[str, str], project: str = "") -> list[str]:
    """The stage's flags of a job, with those of this command that change no result; its recipe is relative to `project`."""
    words = job.argv(Path(args.output_dir), places, project)
    if args.num_workers is not None:
        words += ["--num_workers", str(args.num_workers)]
    return words


def commands(jobs: list[Job], args, places: dict[str, str], ids: dict[str, str]) -> str:
    """--dry_run: lines that sh runs as they stand, each behind what it starts from; what needs no run is a comment.

    ids: {hash: job id} of those that are in the queue already. The ids of others that something starts from are kept in
    variables, for its --after; where one is empty, since the cluster has not taken the job, the script ends.
    """
    out, ids = Path(args.output_dir), dict(ids)
    left = [job for job in jobs if not job.finished(out)]
    started = {job.after.hash for job in left if job.after}
    lines = ["# Run these with sh, in this order: each starts from what stands above it.", "set -e"]
    for name in dict.fromkeys(job.run.data for job in left):
        if DATA[name].made:
            code = f"from pathlib import Path; from submit import stand_ins; stand_ins.make({name!r}, Path({places[name]!r}))"
            lines.append(shlex.join(["python", "-c", code]))
    for job in jobs:
        if job.finished(out):
            lines.append(f"# {out / job.folder}: finished")
        elif job.hash in ids:
            lines.append(f"# {ids[job.hash]}: {out / job.folder}, in the queue already")
        else:
            line = command(job, args, places, [ids[job.after.hash]] if job.after and job.after.hash in ids else [])
            if job.hash in started and args.where == "slurm":
                ids[job.hash] = f'"${{job_{job.hash[:10]}:?was not taken}}"'
                line = f"job_{job.hash[:10]}=$({line} | tee /dev/stderr | cut -d: -f1)"
            lines.append(line)
    return "\n".join(lines)


def command(job: Job, args, places: dict[str, str], after: list[str]) -> str:
    """The line that runs a job by itself: submit.slurm's, or that of the stage, under torchrun where there are several GPUs.

    after: ids of jobs on the cluster that it waits for, or a shell's variables that hold them.
    """
    words = words_of(job, args, places)
    if args.where == "local":
        tasks = args.gpus_per_node or args.tasks_per_node or 1
        start = ["torchrun", "--nproc_per_node", str(tasks)] if tasks > 1 else ["python"]
        return shlex.join([*start, f"main_{job.run.stage}.py", *words])
    line = shlex.join(["python", "-m", "submit.slurm", job.run.stage, *words, *cluster_words(args)])
    waits = [*map(shlex.quote, args.after), *after]
    return " ".join([line, "--after", *waits] if waits else [line])


def cluster_words(args) -> list[str]:
    """The given flags of the cluster as words."""
    names = ("nodes", "gpus_per_node", "tasks_per_node", "partition", "account", "qos", "constraint", "mem", "time_limit")
    return [word for name in names if name in args.given for word in (f"--{name}", str(getattr(args, name)))]
