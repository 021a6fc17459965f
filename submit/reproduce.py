"""Every table and figure of the paper by its name: its jobs, run here or on a cluster, and then filled with what they gave.

    python -m submit.reproduce table6 figure3 --list                                what they need
    python -m submit.reproduce all --dry_run                                        a script of every job's command
    python -m submit.reproduce table2 --data_path imagenet_lt=DIR --gpus_per_node 8 --partition gpu
    python -m submit.reproduce table6 table7 figure3 --scale small --where local --data_path cifar100_folder=DIR
    python -m submit.reproduce table6 table7 figure3 --scale small --report         paper's number, ours, difference

A job's folder is named by a hash of its settings, so that runs are shared between tables, a finished one is not run again, and
an unfinished one goes on. Tables 8 to 10 and Figures 4 and 5 need no runs.
"""
import argparse
import datetime
import json
from pathlib import Path

import submitit

from submit import cost, reproduce_report, slurm, stand_ins, studies, studies_small
from submit.experiment import DATA, NEEDS_NO_PATH, Figure, Job, Run, Table, jobs_of
from submit.filled import Results
from submit.jobs import StageJob
from submit.reproduce_commands import commands, words_of
from util.args import PROJECT, Parser, run_command
from util.checkpoint import replace_file
from util.run import say

SCALES = {"paper": studies.STUDIES, "small": studies_small.STUDIES}
HANDED_IN = "jobs/handed_in.json"  # below the output folder: {hash of a job: its id on the cluster}
COMPUTED = ("table8", "table9", "table10", "figure4", "figure5")
NAMES = (*(f"table{number}" for number in range(1, 12)), *(f"figure{number}" for number in range(1, 8)))


def get_args_parser() -> Parser:
    """Flags of the command and of the cluster."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to table11, figure1 to figure7, or all")
    parser.add_argument("--scale", default="paper", choices=SCALES, help="small: the same comparison on small images, a minute "
                        "or few a run on one core; not of every table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="both stages have the same")
    parser.add_argument("--data_path", nargs="+", default=[], metavar="NAME=DIR", help=f"where data sets are, of "
                        f"{', '.join(name for name in DATA if needs_path(name))}; data/NAME by default")
    parser.add_argument("--output_dir", default="runs/reproduce", metavar="DIR", help="run folders, and what --report writes")
    parser.add_argument("--batch_size", type=int, metavar="N", help="images a process and micro-batch instead of the recipes', "
                        "where these say how many images a step has: another run, since pairs to mix are drawn a "
                        "micro-batch, with a folder of its own")
    parser.add_argument("--num_workers", type=int, metavar="N", help="of each process, as the stages' flag")
    parser.add_argument("--list", action="store_true", help="print what each needs: data, jobs, GPU hours")
    parser.add_argument("--images_per_second", type=float, metavar="N", help="that one GPU trains of ViT-B/16 at 224, for the "
                        f"hours that --list prints ({cost.IMAGES_PER_SECOND:g})")
    parser.add_argument("--report", action="store_true", help="fill tables and figures with what is finished: reproduce.md and "
                        "reproduce.html")
    slurm.add_cluster_flags(parser)
    return parser


def needs_path(name: str) -> bool:
    """Whether --data_path has to say where a data set is."""
    return name not in NEEDS_NO_PATH and not DATA[name].made


def chosen(names: list[str], scale: str) -> dict[str, Table | Figure | None]:
    """{name: what it is made of, None where it is computed}. ValueError for a name that is none, or has no small version."""
    known = [name for name in NAMES if name in SCALES[scale] or name in COMPUTED]
    unknown = [name for name in names if name not in (*NAMES, "all")]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no table or figure: {', '.join(NAMES)}, or all")
    missing = [name for name in names if name not in (*known, "all")]
    if missing:
        raise ValueError(f"{missing[0]} has no version at --scale {scale}; those that have one: {', '.join(known)}")
    return {name: SCALES[scale][name]() if name in SCALES[scale] else None for name in known if name in names or "all" in names}


def data_places(words: list[str], out: Path) -> dict[str, str]:
    """{data set: folder} of NAME=DIR words; data/NAME for those that are not named. ValueError for a word that is none."""
    places = {name: str(out / "data" / name) if DATA[name].made else f"data/{name}" for name in DATA}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (equals and folder and name in DATA and needs_path(name)):
            raise ValueError(f"--data_path takes NAME=DIR with NAME of {', '.join(filter(needs_path, DATA))}, not {word!r}")
        places[name] = folder
    return places


def listing(studies_of: dict, args, out: Path) -> str:
    """--list: what each table and figure needs, a line each, and all of them together."""
    lines, everything = [], []
    for name, study in studies_of.items():
        if study is None:
            lines.append(f"{name:<9} no runs: computed")
            continue
        jobs = jobs_of(study.runs, args.seeds, args.batch_size)
        everything += jobs
        lines.append(f"{name:<9} {study.title}: {needs(jobs, args, out)}")
    jobs = list({job.hash: job for job in everything}.values())
    lines.append(f"{'together':<9} {needs(jobs, args, out)}")
    lines.append(cost.words(args.scale, speed_of(args)))
    return "\n".join(lines)


def speed_of(args) -> float:
    """Images a second that the GPU hours of --list are counted with."""
    return args.images_per_second or cost.IMAGES_PER_SECOND


def needs(jobs: list[Job], args, out: Path) -> str:
    """Number, hours and data of jobs in words."""
    estimate = (f"{sum(map(cost.core_minutes, jobs)):.0f} core minutes" if args.scale == "small" else
                f"{sum(cost.gpu_hours(job, speed_of(args)) for job in jobs):,.0f} GPU hours")
    stages = [sum(job.run.stage == stage for job in jobs) for stage in ("pretrain", "finetune")]
    data = "; ".join(dict.fromkeys(DATA[job.run.data].title for job in jobs))
    return (f"{stages[0]} + {stages[1]} jobs of stage 1 + 2, {sum(job.finished(out) for job in jobs)} finished, "
            f"{estimate}; {data}")


def check_starts(jobs: list[Job], out: Path) -> None:
    """ValueError for a job whose run began before the run that it starts from had ended: it would go on from there."""
    for job in jobs:
        epochs = job.too_early(out)
        if epochs:
            raise ValueError(f"{out / job.folder} started from {job.after.folder} when that had {epochs[0]} of {epochs[1]} "
                             "epochs behind it: delete the folder, and it is run again")


def make_data(jobs: list[Job], places: dict[str, str]) -> None:
    """Make the stand-ins that jobs need. ValueError for another data set's folder that is not there."""
    for name in dict.fromkeys(job.run.data for job in jobs):
        if DATA[name].made:
            stand_ins.make(name, Path(places[name]))
        elif needs_path(name) and not Path(places[name]).is_dir():
            raise ValueError(f"no folder {places[name]} for {DATA[name].title}: give --data_path {name}=DIR (README.md, \"The "
                             "paper's data sets\", says how it is prepared)")


def submit_all(jobs: list[Job], args, places: dict[str, str], out: Path) -> int:
    """Hand in the jobs in order of what they wait for; those that start from one job are an array. Returns how many failed,
    as far as is known: all on this machine and with --wait.

    On this machine a job whose start has failed is left out, and told.
    """
    handed: dict[str, submitit.Job] = {}
    failed: set[str] = set()
    ids = known_ids(out) if args.where == "slurm" else {}
    for job in (job for job in jobs if job.hash in ids):
        say(f"{ids[job.hash]}: {out / job.folder}, in the queue already")
    waiting, batch = [job for job in jobs if job.hash not in ids], 0
    while waiting:
        hashes = {job.hash for job in waiting}
        now = [job for job in waiting if job.after is None or job.after.hash not in hashes]
        waiting = [job for job in waiting if job not in now]
        for group in groups_of(now, args.where):
            lost = [job for job in group if job.after and job.after.hash in failed]
            failed |= {job.hash for job in lost}
            for job in lost:
                say(f"{out / job.folder}: left out, {job.after.folder} has failed")
            group = [job for job in group if job not in lost]
            if group:
                batch += 1
                failed |= hand_in(group, args, places, out, batch, handed, ids)
    if args.wait and args.where == "slurm":
        folders = {job.hash: out / job.folder for job in jobs}
        slurm.tell(list(handed.values()), [folders[key] for key in handed])
        failed = {job.hash for job in jobs if not job.finished(out)}
    return len(failed)


def known_ids(out: Path) -> dict[str, str]:
    """{hash: job id} of the jobs that an earlier call has handed in and that still wait or run: one folder has one writer."""
    path = out / HANDED_IN
    if not path.is_file():
        return {}
    there = slurm.queued()
    return {key: number for key, number in json.loads(path.read_text()).items() if number in there}


def groups_of(jobs: list[Job], where: str) -> list[list[Job]]:
    """Jobs that can be one array: those of one stage that wait for the same one. On this machine all together."""
    if where == "local":
        return [jobs]
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.run.stage, job.after and job.after.hash), []).append(job)
    return list(groups.values())


def hand_in(group: list[Job], args, places: dict[str, str], out: Path, batch: int, handed: dict,
            ids: dict[str, str]) -> set[str]:
    """Submit one array, which is written into handed and ids, or run its jobs here. Returns the hashes of those that failed
    here."""
    words = [slurm.absolute(job.run.stage, words_of(job, args, places, f"{PROJECT}/")) for job in group]
    jobs = [(StageJob(job.run.stage, argv), out / job.folder) for job, argv in zip(group, words, strict=True)]
    start = group[0].after
    after = [ids[start.hash]] if start and start.hash in ids else []
    workers = args.num_workers if args.num_workers is not None else max(
        slurm.workers_of(job.parse(), args.gpus_per_node) for job in group)
    asked = argparse.Namespace(**{**vars(args), "stage": group[0].run.stage, "after": [*args.after, *after]})
    settings = slurm.parameters(asked, workers)
    folder = out.resolve() / "jobs" / f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{batch}"
    if args.where == "local":
        done = slurm.run_here(jobs, folder, settings["ntasks_per_node"], args.side_by_side)
        slurm.tell(done, [place for _, place in jobs])
        return {job.hash for job in group if not job.finished(out)}
    for job, submitted in zip(group, slurm.submit_to_slurm(jobs, folder, settings), strict=True):
        handed[job.hash], ids[job.hash] = submitted, submitted.job_id
        say(f"{submitted.job_id}: {out / job.folder}")
    replace_file(out / HANDED_IN, lambda file: file.write(json.dumps(ids, indent=1).encode()))
    return set()


def check_flags(args) -> None:
    """ValueError for numbers that cannot be, and for flags of which only one acts."""
    slurm.check_cluster(args)
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, not {value}")
    speed = args.images_per_second
    if speed is not None and not 0 < speed < float("inf"):
        raise ValueError(f"--images_per_second must be a finite number above 0, not {speed:g}")
    if speed is not None and (not args.list or args.scale == "small"):
        raise ValueError(f"--images_per_second {speed:g} is for the GPU hours of --list --scale paper: leave it out")
    asked = [f"--{name}" for name in ("list", "report", "dry_run") if getattr(args, name)]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} print different things: give one of them")


def main(args) -> None:
    """List, print, run or report."""
    check_flags(args)
    studies_of, out = chosen(args.names, args.scale), Path(args.output_dir)
    places = data_places(args.data_path, out)
    runs: list[Run] = [run for study in studies_of.values() if study for run in study.runs]
    jobs = jobs_of(runs, args.seeds, args.batch_size)
    if args.list:
        say(listing(studies_of, args, out))
        return
    if args.report:
        small = args.scale == "small"
        reproduce_report.write(studies_of, Results(out, args.seeds, not small, args.batch_size), small)
        return
    left = [job for job in jobs if not job.finished(out)]
    check_starts(left, out)
    if args.dry_run:
        say(commands(jobs, args, places, known_ids(out) if args.where == "slurm" else {}))
        return
    say(f"{len(jobs)} jobs, {len(jobs) - len(left)} of them finished")
    make_data(left, places)
    if submit_all(left, args, places, out):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(get_args_parser(), main)
