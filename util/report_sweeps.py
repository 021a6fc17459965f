"""What a report can put on an axis: settings that vary as numbers (Figures 3 and 6 of the paper), and sizes (Figure 1)."""
from typing import NamedTuple

import numpy as np
import torch

from util.compare import Row, compare_runs
from util.report_groups import Group, setting_title, setting_words
from util.report_runs import Run, is_number
from util.trained import classifier

# What makes a network large, and what recipes change with it.
SIZE = {"model", "patch_size", "embed_dim", "depth", "num_heads"}
WITH_SIZE = {"drop_path", "layer_decay", "epochs", "warmup_epochs", "lr", "blr", "batch_size", "accum_iter"}
LOG_FROM = 20  # an axis is logarithmic where the largest value is so many times the smallest


class Sweep(NamedTuple):
    """key: the setting on the axis; title: its words; series: {what else differs: {value: group}}; log: whether values lie
    orders of magnitude apart; left_out: names of groups that are no point of it."""
    key: str
    title: str
    series: dict[str, dict[float, Group]]
    log: bool
    left_out: list[str]


def sweeps(groups: list[Group]) -> list[Sweep]:
    """One for each setting that varies as a number while all others stay, in the order of `differing`."""
    scored = [group for group in groups if group.scored]
    keys = [key for key in (scored[0].varied if scored else {}) if key.split(" ")[-1] not in SIZE]
    found = []
    for key in keys:
        points = [group for group in scored if is_number(group.varied.get(key))]
        series: dict[str, dict[float, Group]] = {}
        for group in points:
            rest = {name: value for name, value in group.varied.items() if name != key and value is not None}
            label = ", ".join(setting_words(name, value) for name, value in rest.items())
            series.setdefault(label, {})[float(group.varied[key])] = group
        sweep = as_sweep(key, setting_title(key), series, scored)
        if sweep:
            found.append(sweep)
    return found


def as_sweep(key: str, title: str, series: dict[str, dict[float, Group]], groups: list[Group]) -> Sweep | None:
    """The series that have two points or more, sorted, as a Sweep; None where there is no such."""
    series = {label: dict(sorted(points.items())) for label, points in series.items() if len(points) > 1}
    if not series:
        return None
    drawn = {id(group) for points in series.values() for group in points.values()}
    values = [value for points in series.values() for value in points]
    log = min(values) > 0 and max(values) >= LOG_FROM * min(values)
    return Sweep(key, title, series, log, [group.name for group in groups if id(group) not in drawn])


def size_sweep(groups: list[Group]) -> tuple[Sweep | None, str | None]:
    """Groups whose networks differ in size over millions of parameters: (Sweep or None, why sizes are not known or None)."""
    scored = [group for group in groups if group.scored]
    if not scored or not SIZE & set(scored[0].varied):
        return None, None
    series: dict[str, dict[float, Group]] = {}
    try:
        for group in scored:
            rest = {name: value for name, value in group.varied.items()
                    if name.split(" ")[-1] not in SIZE | WITH_SIZE and "decoder" not in name and value is not None}
            label = ", ".join(setting_words(name, value) for name, value in rest.items())
            series.setdefault(label, {})[parameters(group.scored[0]) / 1e6] = group
    except (ValueError, KeyError) as error:
        return None, f"the sizes of the networks are not known ({error})"
    return as_sweep("model", "parameters (millions)", series, scored), None


def parameters(run: Run) -> int:
    """Numbers that the classifier of a stage-2 run has, without making them. ValueError, KeyError for flags that make none."""
    channels = len(run.flags.get("mean") or run.record["mean"])
    with torch.device("meta"):
        model = classifier(run.flags, channels, run.predictions.logits.shape[1])
    return sum(parameter.numel() for parameter in model.parameters())


def point(group: Group, column: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of a metric: a deviation to either side over seeds, the 95 % interval of one run; None without it."""
    mean, deviation = group.mean(column), group.std(column)
    if mean is None:
        return None
    if deviation is not None:
        return mean, mean - deviation, mean + deviation
    low, high = group.scored[0].bounds.get(column) or (mean, mean)
    return mean, min(low, mean), max(high, mean)


def pairs(a: Group, b: Group) -> tuple[list[Run], list[Run]]:
    """Runs of two settings to compare: of the seeds that both have, else the first of each."""
    of_a, of_b = ({run.flags.get("seed"): run for run in group.scored} for group in (a, b))
    seeds = [seed for seed in of_a if seed in of_b]
    return ([of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds]) if seeds else (a.scored[:1], b.scored[:1])


class Comparison(NamedTuple):
    """The best group of those that scored the same images, another one, and how far the best is ahead: rows of best - other
    by `util.compare.compare_runs` over `seeds` pairs; None, and why, where the two are no pair."""
    best: Group
    other: Group
    rows: list[Row] | None
    seeds: int
    why: str


def comparisons(groups: list[Group]) -> list[Comparison]:
    """The group of the highest overall accuracy against each of the others; all of them scored the same images."""
    best = groups[int(np.argmax([group.mean("overall") for group in groups]))]
    found = []
    for other in groups:
        if other is best:
            continue
        a, b = pairs(other, best)
        try:
            found.append(Comparison(best, other, compare_runs([run.predictions for run in a], [run.predictions for run in b]),
                                    len(a), ""))
        except ValueError as error:
            found.append(Comparison(best, other, None, len(a), str(error)))
    return found
