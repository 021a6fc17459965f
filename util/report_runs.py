"""The run folders of a report: what each holds, and what decides it."""
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets import FACTORS
from util.args import parse_options
from util.bootstrap import intervals
from util.losses import LOSSES, loss_options
from util.metrics import evaluate_logits
from util.metrics_command import differences, short_name
from util.predictions import Predictions, read_json, read_predictions
from util.report_text import clean
from util.same_run import MAY_CHANGE

HINT = "give the --output_dir of a run of main_pretrain.py or main_finetune.py"
# What tells two runs of one setting apart. Other images under the same flags are told by their hash.
NO_SETTING = MAY_CHANGE | {"seed", "loss_args", "finetune"}


@dataclass
class Run:
    """One run folder. name: its shortest path that tells it from the others; record: args.json; log: objects of log.jsonl.

    predictions and result (metrics of it, as `evaluate_logits`) are None for stage 1 and for a run that is not finished;
    notes are sentences about what is wrong with the folder.
    """
    folder: Path
    name: str
    record: dict
    log: list[dict]
    finished: bool
    predictions: Predictions | None = None
    result: dict | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def flags(self) -> dict:
        """The run's flags by name."""
        return self.record["args"]

    @property
    def stage(self) -> str:
        """"pretrain" or "finetune"."""
        return "pretrain" if "mask_ratio" in self.flags else "finetune"

    @property
    def scored_on(self) -> str:
        """The images of the evaluation in words: split and list."""
        return " of ".join(str(self.result[key]) for key in ("split", "data_source") if self.result.get(key))

    @property
    def class_names(self) -> list[str]:
        """Names in label order, as they can be shown."""
        return [clean(name) for name in self.predictions.class_names]

    @cached_property
    def settings(self) -> dict:
        """What decides the run, see `flat_settings`."""
        return flat_settings(self.record, self.folder)

    @cached_property
    def bounds(self) -> dict:
        """95 % intervals of the result: the file's, or drawn where it holds none."""
        run = self.predictions
        return run.result.get("intervals") or intervals(run.logits, run.labels, run.result["class_counts"],
                                                        self.result["activation"])


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs, in order. ValueError for a folder that is no run, that is damaged, or that is named twice."""
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for k, folder in enumerate(folders) if resolved[k] in resolved[:k]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: a run counts once")
    return [read_run(folder, clean(short_name(folder, folders))) for folder in folders]


def read_run(folder: Path, name: str) -> Run:
    """One run. ValueError for a folder that is none, and for files that do not belong together."""
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}: {HINT}")
    if not (folder / "args.json").is_file():
        raise ValueError(f"{folder} is no run folder (it has no args.json): {HINT}")
    record = read_json(folder / "args.json")
    if not isinstance(record.get("args"), dict):
        raise ValueError(f"{folder / 'args.json'} has no 'args': {HINT}")
    run = Run(folder, name, record, read_log(folder / "log.jsonl"), (folder / "metrics.json").is_file())
    if run.stage == "finetune":
        run.finished = run.finished and (folder / "predictions.npz").is_file()
        if run.finished:
            add_result(run)
    if not run.finished:
        planned = run.flags.get("epochs")
        run.notes.append(f"not finished: {len(run.log)} of {planned} epochs, no result yet")
    missing = [record["epoch"] for record in run.log if not is_number(record.get("train_loss"))]
    if missing:
        words = f"epoch {missing[0]}" if len(missing) == 1 else f"{len(missing)} epochs, the first of them {missing[0]}"
        run.notes.append(f"the training loss is not finite in {words}: gaps in its curve")
    return run


def add_result(run: Run) -> None:
    """Predictions and metrics of a finished run of stage 2; a note where metrics.json says something else."""
    run.predictions = read_predictions(run.folder)
    stored = run.predictions.result
    result = evaluate_logits(run.predictions.logits, run.predictions.labels, stored["class_counts"], stored["activation"])
    run.result = {**{key: stored.get(key) for key in ("split", "data_source", "epoch", "corrected")}, **result}
    other = differences(result, stored)
    if other:
        run.notes.append(f"metrics.json is not of these predictions ({'; '.join(other[:3])}): the numbers here are those of "
                         "predictions.npz")


def read_log(path: Path) -> list[dict]:
    """The epochs of a log.jsonl, [] without one. ValueError for a line that is no epoch; the last one may be half written."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            whole = isinstance(record["epoch"], int) and {"train_loss", "lr"} <= set(record)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise ValueError(f"{path}:{number}: no object with epoch, train_loss and lr: the log of a run holds one a line")
        records.append(record)
    return records


def is_number(value) -> bool:
    """Whether a value is a finite number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def origin(path: str | None, folder: Path, output_dir: str | None) -> Path | None:
    """The run folder that a checkpoint of a run's flags lies in, also where both have been moved together; None if gone."""
    if not path:
        return None
    places = [Path(path).parent]
    if output_dir:
        places.append(folder / os.path.relpath(Path(path).parent, output_dir))
    return next((place for place in places if (place / "args.json").is_file()), None)


def flat_settings(record: dict, folder: Path, depth: int = 0) -> dict:
    """What decides a run as {name: value}: its flags, options of its loss as "loss_args lam", and the settings of the runs
    that its weights come from, as "encoder epochs" and (with --eval) "checkpoint lr". A run's seed is none of them.

    Where the folder of those weights is gone, their path stands for them.
    """
    flags = record["args"]
    settings = {name: value for name, value in flags.items() if name not in NO_SETTING}
    settings["data_hash"] = record.get("data_hash")
    if settings.get("imb_factor") is None:
        settings["imb_factor"] = FACTORS.get(flags.get("dataset"))
    if flags.get("loss") in LOSSES:
        options = {**loss_options(flags["loss"]), **parse_options(flags.get("loss_args") or [])}
        settings |= {f"loss_args {name}": value for name, value in options.items()}
    for flag, name in (("finetune", "encoder"), ("resume", "checkpoint")):
        path = flags.get(flag)
        if flag == "resume" and not flags.get("eval"):
            continue
        place = origin(path, folder, flags.get("output_dir"))
        settings[flag] = path if place is None else "given"
        if place is not None and depth < 2:
            below = flat_settings(read_json(place / "args.json"), place, depth + 1)
            settings |= {f"{name} {key}": value for key, value in below.items()}
    return settings
