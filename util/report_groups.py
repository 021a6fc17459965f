"""Which runs of a report are seeds of one setting, and what differs between settings."""
import json
from dataclasses import dataclass

import numpy as np

from util.compare import check_same_images
from util.report_runs import Run

# Flags whose change is bound to change the images, so that the hash says nothing more beside one of them.
DECIDE_DATA = {"dataset", "imb_factor", "data_seed", "val_fraction"}
LABELLED = 3  # settings in a legend; a table holds all of them
FIRST = ("loss", "tau", "loss_args lam", "imb_factor", "model", "finetune")


@dataclass
class Group:
    """Runs of one setting that differ in their seed at most; varied: {setting: value} of what differs between groups."""
    name: str
    runs: list[Run]
    varied: dict

    @property
    def scored(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result]

    @property
    def label(self) -> str:
        """Name and the settings that differ, for legends."""
        words = [setting_words(key, value) for key, value in self.varied.items()
                 if value is not None and show(value) != self.name.split("/")[-1]]
        more = f", {len(words) - LABELLED} more" * (len(words) > LABELLED)
        return self.name + f" ({', '.join(words[:LABELLED])}{more})" * bool(words)

    def values(self, column: str) -> np.ndarray:
        """A metric of each run that has a result; empty where one has no such number."""
        values = [run.result.get(column) for run in self.scored]
        return np.array([] if None in values else values, dtype=np.float64)

    def mean(self, column: str) -> float | None:
        """Mean of a metric over the runs, None where there is no such number."""
        values = self.values(column)
        return float(values.mean()) if len(values) else None

    def std(self, column: str) -> float | None:
        """Deviation over the runs (n - 1), None for fewer than two."""
        values = self.values(column)
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def class_accuracy(self) -> np.ndarray:
        """Accuracy of each class (C,) in percent, mean over the runs; nan where a class has no test image."""
        return np.mean([np.array(run.result["per_class_accuracy"], dtype=np.float64) for run in self.scored], axis=0)


def group_runs(runs: list[Run]) -> list[Group]:
    """Runs of one setting together, in the order of the first of each, its seeds in the order of their numbers."""
    found: dict[str, list[Run]] = {}
    for stage in ("pretrain", "finetune"):
        of_stage = [run for run in runs if run.stage == stage]
        # A flag that one run's version does not know has no value to differ from; what a run has not, is None for it.
        names = {name for run in of_stage for name in run.settings
                 if " " in name or all(name in other.settings for other in of_stage)}
        for run in of_stage:
            key = json.dumps([stage, *((name, run.settings.get(name)) for name in sorted(names))])
            found.setdefault(key, []).append(run)
    members = sorted(found.values(), key=lambda some: min(map(runs.index, some)))
    for some in members:
        some.sort(key=lambda run: (run.flags.get("seed", 0), runs.index(run)))
    varied = {stage: differing([some[0] for some in members if some[0].stage == stage]) for stage in ("pretrain", "finetune")}
    names = unique_names([group_name(some) for some in members])
    return [Group(name, some, {key: some[0].settings.get(key) for key in varied[some[0].stage]})
            for name, some in zip(names, members, strict=True)]


def differing(runs: list[Run]) -> list[str]:
    """Names of the settings that are not the same in all runs, those of the paper's figures first."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        # A loss without an option differs in the loss; an encoder that another run has not differs in all it is.
        optional = " " in name and not name.startswith("loss_args")
        values = [run.settings.get(name) for run in runs if name in run.settings or optional]
        if any(value != values[0] for value in values):
            found.append(name)
    told = DECIDE_DATA | {f"{source} {name}" for source in ("encoder", "checkpoint") for name in DECIDE_DATA}
    if told & set(found):
        found = [name for name in found if not name.endswith("data_hash")]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), " " in name, name))


def group_name(runs: list[Run]) -> str:
    """The folder of one run; of several, the part that their paths share at the end, or the first of them."""
    if len(runs) == 1:
        return runs[0].name
    parts = [run.name.split("/") for run in runs]
    same = 0
    while same < min(map(len, parts)) and len({tuple(part[-same - 1:]) for part in parts}) == 1:
        same += 1
    return "/".join(parts[0][-same:]) if same else f"{runs[0].name} and other seeds"


def unique_names(names: list[str]) -> list[str]:
    """The names, a number behind those that stand there before."""
    return [name if name not in names[:k] else f"{name} #{names[:k].count(name) + 1}" for k, name in enumerate(names)]


def show(value) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(show, value)) if len(value) < 9 else f"{' '.join(map(show, value[:3]))} ... ({len(value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_title(name: str) -> str:
    """The flag of a setting, with whose it is."""
    return {"loss_args lam": "lambda"}.get(name, name.replace("loss_args ", "loss option ").replace("data_hash", "data"))


def setting_words(name: str, value) -> str:
    """A setting for a legend; of a hash its beginning."""
    text = show(value)
    return f"{setting_title(name)} {text[:8] if name.endswith('data_hash') else text}"


def same_images(groups: list[Group]) -> tuple[list[list[Group]], list[str]]:
    """Groups with results, those that scored the same images together, and why others do not stand with the first."""
    parts: list[list[Group]] = []
    reasons = []
    for group in (group for group in groups if group.scored):
        for part in parts:
            try:
                check_same_images([run.predictions for run in part[0].scored + group.scored])
            except ValueError as error:
                reasons.append(str(error))
            else:
                part.append(group)
                break
        else:
            parts.append([group])
    return parts, reasons if len(parts) > 1 else []
