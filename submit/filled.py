"""Tables and figures of the paper filled with what is finished, as blocks that a report prints."""
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.records import official_counts
from submit import paper
from submit.experiment import COLUMNS, Cell, Figure, Job, Row, Run, Table, training_counts
from util.compare import compare_runs
from util.predictions import Predictions, read_json, read_predictions

NOT_RUN = "not run"
COMPARED = ("overall", "many", "medium", "few", "ece")  # columns that util.compare has intervals of


@dataclass
class Block:
    """A table as text: caption, head and rows; the first cell of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """A table or figure of the report; study is None where it is computed."""

    name: str
    title: str
    text: str
    blocks: list[Block] = field(default_factory=list)
    study: Table | Figure | None = None


@dataclass
class Results:
    """What is finished below a folder, of some seeds and, where it is given, with another micro-batch than the recipes'.

    differences: whether ours minus the paper's means something.
    """

    out: Path
    seeds: list[int]
    differences: bool
    batch_size: int | None = None

    def __post_init__(self):
        self._read: dict[Path, dict | None] = {}

    def folders(self, run: Run) -> dict[int, Path]:
        """{seed: folder} of a run's finished jobs."""
        jobs = {seed: Job(run, seed, self.batch_size) for seed in self.seeds}
        return {seed: self.out / job.folder for seed, job in jobs.items() if job.finished(self.out)}

    def metrics(self, run: Run) -> list[dict]:
        """metrics.json of a run's finished jobs, seed by seed."""
        places = self.folders(run).values()
        for place in places:
            if place not in self._read:
                self._read[place] = read_json(place / "metrics.json")
        return [self._read[place] for place in places]

    def predictions(self, a: Run, b: Run) -> tuple[list[Predictions], list[Predictions]]:
        """Those of the seeds that both runs have finished."""
        of_a, of_b = self.folders(a), self.folders(b)
        seeds = [seed for seed in of_a if seed in of_b]
        return tuple([read_predictions(of[seed]) for seed in seeds] for of in (of_a, of_b))


def number(value: float | None, form: str = ".1f") -> str:
    """A number as tables show it, "-" for none."""
    return "-" if value is None else format(value, form)


def cell_text(cell: Cell, results: Results) -> str:
    """"60.9 / 60.5 ± 0.3 (-0.4) [60.1, 60.9]": the paper's, ours with its deviation over seeds, the difference, and the 95 %
    interval of ours over test images (of the first seed). Only the paper's where the row is not run here."""
    if cell.run is None:
        return number(cell.paper)
    found = results.metrics(cell.run)
    values = [one.get(cell.metric) for one in found]
    if not values:
        return f"{number(cell.paper)} / {NOT_RUN}"
    if None in values:
        return f"{number(cell.paper)} / -"
    mean = float(np.mean(values))
    text = f"{number(cell.paper)} / {mean:.1f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.1f}"
    if len(values) < len(results.seeds):
        text += f" ({len(values)} of {len(results.seeds)} seeds)"
    if results.differences and cell.paper is not None:
        text += f" ({mean - cell.paper:+.1f})"
    bounds = found[0].get("intervals", {}).get(cell.metric) if cell.metric == "overall" else None
    return f"{text} [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else text


def averaged(row: Row, sizes: tuple[int, int, int]) -> float | None:
    """The paper's groups averaged over their classes; None where it does not give all three."""
    numbers = [row.cells[COLUMNS[group]].paper for group in ("many", "medium", "few")]
    return None if None in numbers else float(np.dot(numbers, sizes) / sum(sizes))


def main_block(table: Table, results: Results) -> Block:
    """Every row with the paper's numbers and ours."""
    columns = list(dict.fromkeys(column for row in table.rows for column in row.cells))
    head, rows = ["", *columns], []
    if table.group_sizes:
        head.append("the paper's all, from its groups")
    for row in table.rows:
        cells = [cell_text(row.cells[column], results) if column in row.cells else "" for column in columns]
        if table.group_sizes:
            cells.append(number(averaged(row, table.group_sizes)))
        rows.append([f"{row.name} ({row.source})" if row.source else row.name, *cells])
    return Block("paper / ours", head, rows)


def differences_block(table: Table, results: Results) -> Block | None:
    """Row less row, paired over test images and seeds; None for a table without pairs."""
    named = {row.name: row for row in table.rows}
    rows = []
    for better, plain in table.pairs:
        a, b = named[better].cells, named[plain].cells
        columns = [column for column in a if column in b]
        known: dict = {}
        rows.append([pair_name(better, plain), *(difference_text(a[column], b[column], results, known) for column in columns)])
    return Block("differences: paper / ours [95 % interval, paired over test images]", ["", *columns], rows) if rows else None


def pair_name(better: str, plain: str) -> str:
    """"ViT-Base, BCE" and "ViT-Base, CE" as "ViT-Base: BCE - CE"; what shares no beginning as it is."""
    size, comma, rest = better.rpartition(", ")
    if comma and plain.startswith(size + comma):
        return f"{size}: {rest} - {plain.removeprefix(size + comma)}"
    return f"{better} - {plain}"


def difference_text(a: Cell, b: Cell, results: Results, known: dict) -> str:
    """a - b of the paper and of ours; known: comparisons of pairs of runs that are made already."""
    stated = "-" if None in (a.paper, b.paper) else f"{a.paper - b.paper:+.1f}"
    pair = (a.run, b.run)
    if pair not in known:
        of_a, of_b = results.predictions(*pair)
        known[pair] = {row.column: row for row in compare_runs(of_b, of_a)} if of_a else None
    if known[pair] is None:
        return f"{stated} / {NOT_RUN}"
    row = known[pair].get(a.metric)
    if row is None or row.difference is None:
        return f"{stated} / -"
    return f"{stated} / {row.difference:+.1f} [{row.interval[0]:+.1f}, {row.interval[1]:+.1f}]"


def table_section(name: str, table: Table, results: Results) -> Section:
    """A table of runs."""
    blocks = [main_block(table, results), differences_block(table, results)]
    return Section(name, table.title, table.head, [block for block in blocks if block], table)


def figure_section(name: str, figure: Figure, results: Results) -> Section:
    """The numbers that a figure shows."""
    rows = []
    for label, points in figure.series.items():
        for x, run in points.items():
            words = f"{label}, {figure.xlabel} {x:g}" if figure.kind == "points" else label
            found = results.metrics(run)
            if figure.kind == "pictures":
                rows.append([words, f"{found[0]['train_loss']:.4f}" if found else NOT_RUN])
            else:
                rows.append([words, *(cell_text(Cell(None, run, metric), results).removeprefix("- / ") for metric in COLUMNS)])
    head = ["", "loss of the last epoch"] if figure.kind == "pictures" else ["", *COLUMNS.values()]
    return Section(name, figure.title, figure.head, [Block("what the figure shows", head, rows)], figure)


def data_sets() -> dict[str, np.ndarray]:
    """{column of Table 8: training images of every class}, from the lists and the CIFAR rule."""
    found = {f"CIFAR-{classes}-LT {factor}": training_counts(f"cifar{classes}_lt", factor)
             for classes in (10, 100) for factor in (100, 10)}
    return {**found, "ImageNet-LT": official_counts("imagenet_lt"), "ImageNet-BAL": training_counts("imagenet_bal"),
            "iNat18": official_counts("inat18"), "Places-LT": official_counts("places_lt")}


def table8() -> Section:
    """The data sets, computed from class counts."""
    head = ["", "training images", "classes", "largest class", "smallest class", "factor"]
    rows = []
    for name, counts in data_sets().items():
        ours = (counts.sum(), len(counts), counts.max(), counts.min(), counts.max() / counts.min())
        rows.append([name, *(f"{stated:,} / {value:,.0f}" for stated, value in zip(paper.TABLE_8[name], ours, strict=True))])
    return Section("table8", "Data sets", "Computed from the class counts of the official lists and, for CIFAR, its rule; "
                   "ImageNet-BAL is a draw of 160 images a class.", [Block("paper / computed", head, rows)])
