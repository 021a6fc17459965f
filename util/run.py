"""The run folder: what a run writes, where it starts from, and what it prints.

    args.json       flags, derived settings, git revision, versions, data hash, class counts
    log.jsonl       one object an epoch
    last.pth        the latest checkpoint (util/checkpoint.py), and previous.pth the one before it
    metrics.json    the result of the last epoch
    predictions.npz logits, labels and sample ids of the evaluation (stage 2)
    bad_images.txt  id, tab, reason of every training image that --skip_bad_images has replaced
    bad_step.txt    index, tab, id of the images with which a row of steps that were not finite began
    figures/*.png   and TensorBoard's event files
"""
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.skipping import SkipUnreadable
from util.checkpoint import FORMAT, load_checkpoint, newest, previous_of, replace_file, writing
from util.distributed import world
from util.log_line import log_line, read_lines, whole_lines
from util.provenance import git_revision, slurm_job, versions
from util.same_run import same_file, settings_difference

RUN_FILES = ("args.json", "log.jsonl", "last.pth", "previous.pth", "metrics.json", "predictions.npz")


def say(message: str) -> None:
    """One line for the person at the terminal or the log file, at once; from the first process only."""
    if world().first:
        print(message, flush=True)


def progress(iterable, total: int, what: str):
    """A progress bar on a terminal, nothing in a file."""
    return tqdm(iterable, total=total, desc=what, leave=False, disable=not (world().first and sys.stderr.isatty()))


def write_file(path: Path, write) -> None:
    """`replace_file`, with a SaveError where the disk is full or refuses."""
    with writing(path):
        replace_file(path, write)


class RunFolder:
    """The output folder of one run. Nothing is written before `create`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last = self.path / "last.pth"
        self.figures = self.path / "figures"
        self.working_dir = os.getcwd()  # to which the flags' relative paths belong
        self._tensorboard = None
        self._first_epoch = 0
        self._saved = False  # whether args.json says so
        self.lines = 0  # of log.jsonl, known to the process that writes it

    def find_start(self, stage: str, settings: dict, resume: str | None) -> tuple[dict | None, str]:
        """Where the run starts from: (checkpoint or None, words that say so), the same on all processes.

        Order: last.pth of this folder (previous.pth where that is damaged), else `resume`, else neither. Raises ValueError
        where the folder holds a run of other settings, or where `resume` names another file than the last.pth that is there.
        """
        everyone = world()
        source, state, words = self._find_start(stage, settings, resume) if everyone.first else (None, None, None)
        source, words = everyone.from_first((source, words))
        if source and not everyone.first:
            try:
                state = load_checkpoint(source, stage)
            except ValueError as error:
                raise ValueError(f"process {everyone.rank} does not see the checkpoint that process 0 goes on from ({error}); "
                                 "--output_dir has to be on a disk that all hosts share") from None
        return state, words

    def _find_start(self, stage: str, settings: dict, resume: str | None) -> tuple[Path | None, dict | None, str]:
        """(file, checkpoint, words), as this process sees the folder."""
        self._check_kinds()
        here = self.has_checkpoint()
        if here and resume and not same_file(resume, self.last) and not self.began_with("resume", resume):
            raise ValueError(f"{self.path} already holds a last.pth, so --resume {resume} would overwrite another run: "
                             "give another --output_dir, or leave --resume out to continue the run that is there")
        source, state = self.newest(stage) if here else (resume and Path(resume), None)
        if source is None:
            self._check_unfinished(settings)
            return None, None, "from scratch"
        state = state or load_checkpoint(source, stage)
        if state["format"] != FORMAT:
            raise ValueError(f"{source} is of an earlier version, which drew masks, dropped paths and erased pieces otherwise, "
                             "so its run cannot go on: its weights serve --finetune and --eval; give another --output_dir")
        different = settings_difference(settings, state["args"], state["progress"]["working_dir"])
        if different:
            whose = f"{self.path} holds another run" if here else f"{source} is of another run"
            raise ValueError(f"{whose}: {', '.join(different)}: use the settings that are there, or another --output_dir")
        if not here:
            self._check_unfinished(settings)
            if state["progress"]["epoch"] >= settings["epochs"]:
                raise ValueError(f"--resume {source} has all its {settings['epochs']} epochs behind it: nothing to continue")
        epoch, step = state["progress"]["epoch"], state["progress"]["step"]
        return source, state, f"continuing {source} after epoch {epoch}" + f" and {step} steps" * bool(step)

    def has_checkpoint(self) -> bool:
        """Whether there is something here to go on from."""
        return self.last.exists() or previous_of(self.last).exists()

    def began_with(self, flag: str, path: str) -> bool:
        """Whether this folder's run began with that file as a flag: the same command goes on with what is here."""
        record = self._record()
        return record is not None and same_file(path, record["args"].get(flag), record.get("working_dir", ""))

    def _record(self) -> dict | None:
        """args.json, None where there is none that can be read."""
        try:
            record = json.loads((self.path / "args.json").read_text())
            return record if isinstance(record["args"], dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def newest(self, stage: str) -> tuple[Path, dict]:
        """(path, state) of the folder's newest checkpoint that is whole. A line warns of a damaged one. ValueError for none."""
        path, state, warning = newest(self.last, stage)
        if warning:
            say(warning)
        return path, state

    def _check_kinds(self) -> None:
        """ValueError where no file stands in the place of one that the run writes, or no folder in that of its figures."""
        files = [self.path / name for name in RUN_FILES if name != "last.pth"]  # which may be anything, and is put aside
        wrong = [f"{path} is no file" for path in files if path.exists() and not path.is_file()]
        if self.figures.exists() and not self.figures.is_dir():
            wrong.append(f"{self.figures} is no folder")
        if wrong:
            raise ValueError(f"{wrong[0]}, and a run writes there: move it away, or give another --output_dir")

    def _check_unfinished(self, settings: dict) -> None:
        """Without a last.pth the folder may hold the beginning of this very run, before its first save, and no other run."""
        found = [name for name in RUN_FILES if (self.path / name).exists()]
        if not found:
            return
        record = self._record()
        different = (settings_difference(settings, record["args"], record.get("working_dir", "")) if record else
                     ["no readable args.json"])
        if different or "metrics.json" in found:
            raise ValueError(f"{self.path} holds another run ({', '.join(found)}) and no last.pth to continue "
                             f"({'; '.join(different)}): give another --output_dir")
        lines = len(read_lines(self.path / "log.jsonl"))
        # An earlier version kept no record of its saves, one of which followed so many epochs.
        if record.get("saved", lines > record["args"].get("save_every", 1)):
            raise ValueError(f"{self.path} has {lines} epochs in its log.jsonl, and last.pth and previous.pth have been "
                             "removed: put one back, or to begin again give another --output_dir")
        if lines:
            say(f"note: {self.path} holds a run that ended before its first checkpoint, after {lines} epochs: it begins again")

    def note_save(self) -> None:
        """Keep in args.json that the run has written a checkpoint here, which can only be missing if it was removed."""
        record = None if self._saved else self._record()
        if record and not record.get("saved"):
            self.write_json("args.json", {**record, "saved": True})
        self._saved = True

    def check_empty(self) -> None:
        """Raise ValueError where the folder holds a run already, or something else where one writes."""
        self._check_kinds()
        found = [name for name in RUN_FILES if (self.path / name).exists()]
        if found:
            raise ValueError(f"{self.path} already holds {', '.join(found)}: give another --output_dir")

    def check_writable(self) -> None:
        """Create the folder and raise ValueError where nothing can be written into it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(f"cannot write into --output_dir {self.path} ({error.strerror}): give another "
                             "one") from None

    def create(self, settings: dict, derived: dict, log_lines: int = 0, epoch: int = 0) -> None:
        """Make the folder, write args.json, and cut log.jsonl to the lines that the checkpoint, of `epoch`, has seen."""
        if not world().first:
            return
        self.check_writable()
        self.figures.mkdir(exist_ok=True)
        record = {"args": settings, **derived, "git": git_revision(), "versions": versions(),
                  "slurm_job": slurm_job(), "working_dir": self.working_dir, "continued": []}
        begun = self._record()
        continued = record["saved"] = self.has_checkpoint()
        if continued and begun is None:
            say(f"warning: {self.path / 'args.json'} is missing or cannot be read: it is written as of now")
        if continued and begun:
            # What the run began with stays; a continuation stands behind it, and a finished run has none.
            names = ("git", "versions", "device", "processes", "slurm_job")
            now = {"after_epochs": epoch, **{key: record[key] for key in names if key in record}}
            begun["continued"] += [now] * (epoch < settings["epochs"])
            record = begun
        self.write_json("args.json", record)
        self.cut_log(log_lines, epoch)

    def cut_log(self, lines: int, epoch: int) -> None:
        """Keep the first `lines` lines of log.jsonl, and in TensorBoard what lies before `epoch`."""
        if not world().first:
            return
        self.close()
        log, self._first_epoch = self.path / "log.jsonl", epoch
        seen = read_lines(log)[:lines]
        kept = whole_lines(seen, epoch)
        if len(kept) < len(seen):
            say(f"warning: {len(seen) - len(kept)} of the {len(seen)} lines of {log} dropped: no record of an epoch before "
                f"{epoch}")
        if len(seen) < lines:
            say(f"warning: {log} has {len(seen)} of the {lines} lines that the checkpoint has seen: the others are lost")
        self.lines = len(kept)
        write_file(log, lambda file: file.write(b"".join(kept)))

    @property
    def tensorboard(self):
        """The run's SummaryWriter, opened at the first use."""
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter
            self._tensorboard = SummaryWriter(str(self.path), purge_step=self._first_epoch or None)
        return self._tensorboard

    def log(self, record: dict) -> None:
        """Append one epoch to log.jsonl, to TensorBoard, and print it."""
        if not world().first:
            return
        with writing(self.path / "log.jsonl"):
            with open(self.path / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.lines += 1
            flat = {**record, **{f"eval/{key}": value for key, value in record.get("eval", {}).items()}}
            for key, value in flat.items():
                if key != "epoch" and isinstance(value, int | float):
                    self.tensorboard.add_scalar(key if "/" in key else f"train/{key}", value, record["epoch"])
        say(log_line(record))

    def log_settings(self, settings: dict, result: dict) -> None:
        """The run's settings and its last numbers for TensorBoard's HPARAMS page."""
        if not world().first:
            return
        plain = {name: value if isinstance(value, bool | int | float | str) else str(value)
                 for name, value in settings.items() if value is not None}
        numbers = {f"result/{name}": value for name, value in result.items() if isinstance(value, int | float)}
        self.tensorboard.add_hparams(plain, numbers, run_name=".")

    def log_bad_images(self, images) -> dict:
        """Tell of training images that were found unreadable and replaced, by any process, and write them down.

        Returns {"bad_images": how many so far} for the epoch's record, {} for a set in which none is replaced. Raises
        UnreadableImage where the processes together have found more than --skip_bad_images.
        """
        if not isinstance(images, SkipUnreadable):
            return {}
        for found in world().from_all(images.found):
            images.remember(found)
        found = images.unreadable
        path = self.path / "bad_images.txt"
        told = path.read_text().splitlines() if path.exists() else []
        new = [f"{name}\t{why}" for name, why in found if f"{name}\t{why}" not in told]
        if new and world().first:
            what = "image, replaced" if len(new) == 1 else "images, each replaced"
            say("\n  ".join([f"{len(new)} unreadable training {what} by the next of its class (listed in {path}):", *new]))
            write_file(path, lambda file: file.write("".join(f"{line}\n" for line in told + new).encode()))
        return {"bad_images": len(found)}

    def records(self) -> list[dict]:
        """All lines of log.jsonl."""
        return [json.loads(line) for line in (self.path / "log.jsonl").read_text().splitlines()]

    def write_json(self, name: str, value: dict) -> None:
        """Write one JSON file, beside and renamed."""
        text = json.dumps(value, indent=1, allow_nan=False)
        if world().first:
            write_file(self.path / name, lambda file: file.write(text.encode()))

    def write_predictions(self, logits: torch.Tensor, labels: torch.Tensor, ids: np.ndarray) -> None:
        """predictions.npz: logits (N, C) float32, labels (N,), ids (N,)."""
        if world().first:
            write_file(self.path / "predictions.npz", lambda file: np.savez_compressed(
                file, logits=logits.float().numpy(), labels=labels.numpy(), ids=ids))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
