"""What a table or figure of the paper is made of: runs of a stage, cells that a run fills, and the jobs that are left to do."""
import functools
import hashlib
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import main_finetune
import main_pretrain
from datasets import embedded
from datasets.longtail import longtail_counts, longtail_counts_of
from datasets.records import OFFICIAL_SIZES, official_counts
from util.args import PROJECT, Parser
from util.args_finetune import with_loss_defaults
from util.predictions import read_json
from util.same_run import MAY_CHANGE

STAGES = {"pretrain": main_pretrain, "finetune": main_finetune}
# Flags that say where and how, or that the images of a step replace; the encoder's place is told by its own hash.
NO_RESULT = MAY_CHANGE | {"given", "batch_size", "accum_iter", "effective_batch_size", "finetune"}
COLUMNS = {"many": "many", "medium": "med.", "few": "few", "overall": "all", "ece": "ECE", "mce": "MCE"}


@dataclass(frozen=True)
class Data:
    """A data set: how tables call it, channels of its images, classes; made: whether `submit.stand_ins` makes it here."""

    title: str
    classes: int
    channels: int = 3
    made: bool = False


DATA = {
    "imagenet_lt": Data("ImageNet-LT", 1000),
    "imagenet_bal": Data("ImageNet-BAL, 160 images a class", 1000),
    "imagenet_bal_116": Data("ImageNet-BAL, 116 images a class", 1000),
    "imagenet_1k": Data("ImageNet-1K", 1000),
    "inat18": Data("iNaturalist 2018", 8142),
    "places_lt": Data("Places-LT", 365),
    "cifar10_lt": Data("CIFAR-10", 10),
    "cifar100_lt": Data("CIFAR-100", 100),
    "cifar100_folder": Data("CIFAR-100-LT, factor 100, a folder of train/<class>/*, test/<class>/*", 100),
    "embedded": Data("Fashion-MNIST-LT (embedded), factor 200, 2,000 images of the largest class", 10, 1),
    "fashion_100": Data("Fashion-MNIST, factor 100, 2,000 images of the largest class", 10, 1, made=True),
    "fashion_10": Data("Fashion-MNIST, factor 10, 1,085 images of the largest class", 10, 1, made=True),
    "fashion_bal": Data("Fashion-MNIST, 210 images of every class", 10, 1, made=True),
}
NEEDS_NO_PATH = ("embedded",)


@dataclass(frozen=True)
class Run:
    """A run of a stage: recipe, such as "imagenet_lt/finetune", the flags behind it, its data and the run it starts from."""

    stage: str
    recipe: str
    data: str
    flags: tuple[str, ...] = ()
    after: "Run | None" = None


def pretrain(recipe: str, *flags, data: str | None = None) -> Run:
    """A stage-1 run; its data is that of the recipe's folder by default."""
    return Run("pretrain", recipe, data or recipe.split("/")[0], tuple(map(str, flags)))


def finetune(recipe: str, *flags, after: Run | None = None, data: str | None = None) -> Run:
    """A stage-2 run from the weights of `after`, or from random ones."""
    return Run("finetune", recipe, data or recipe.split("/")[0], tuple(map(str, flags)), after)


@dataclass(frozen=True)
class Cell:
    """A number of a table in percent: the paper's (None: it gives none), and the run whose metric it is (None: others')."""

    paper: float | None
    run: Run | None = None
    metric: str = "overall"


@dataclass(frozen=True)
class Row:
    """A row of a table; source says whose row it is where it is not run here."""

    name: str
    cells: dict[str, Cell]
    source: str = ""


@dataclass(frozen=True)
class Table:
    """head: what was run, in words; pairs: (row, row) whose difference is of interest; group_sizes: classes many, medium, few
    over which the paper's groups are averaged again, beside its printed total."""

    title: str
    head: str
    rows: tuple[Row, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    group_sizes: tuple[int, int, int] | None = None

    @property
    def runs(self) -> list[Run]:
        """The runs that fill it, each once, in its order."""
        return list(dict.fromkeys(cell.run for row in self.rows for cell in row.cells.values() if cell.run))


@dataclass(frozen=True)
class Figure:
    """kind: "points" over xlabel, "curves" of training, "pictures" of encoders; series: {label: {x: run}}."""

    title: str
    head: str
    kind: str
    series: dict[str, dict[float, Run]]
    xlabel: str = ""
    log: bool = False

    @property
    def runs(self) -> list[Run]:
        """The runs that it shows, each once."""
        return list(dict.fromkeys(run for points in self.series.values() for run in points.values()))


def metrics_row(name: str, run: Run | None, numbers: tuple | str, source: str = "") -> Row:
    """A row whose columns are metrics of one run: many, medium, few, overall and, where given, ECE and MCE.

    numbers: the paper's, or a string of them in which "-" is none.
    """
    if isinstance(numbers, str):
        numbers = [None if word == "-" else float(word) for word in numbers.split()]
    return Row(name, {title: Cell(paper, run, metric) for (metric, title), paper
                      in zip(COLUMNS.items(), numbers, strict=False)}, source)


@dataclass(frozen=True)
class Job:
    """A run with its seed. `folder` is where it lies below the output folder, named by what decides its result.

    batch_size: images of a process and micro-batch, None for the recipe's; of recipes that say how many images a step has, for
    others keep theirs.
    """

    run: Run
    seed: int
    batch_size: int | None = None

    @property
    def after(self) -> "Job | None":
        """The job whose weights it starts from, of the same seed and micro-batch."""
        return None if self.run.after is None else Job(self.run.after, self.seed, self.batch_size)

    @property
    def folder(self) -> str:
        return f"{self.run.recipe.replace('/', '_')}-{self.hash[:10]}"

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the settings that decide the result."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def finished(self, out: Path) -> bool:
        """Whether its run below `out` has its result, and did not begin before the run that it starts from had ended."""
        return (out / self.folder / "metrics.json").is_file() and not self.too_early(out)

    def too_early(self, out: Path) -> list[int] | None:
        """[epochs behind the weights that its run below `out` started from, all of theirs] where the first are fewer."""
        path = out / self.folder / "args.json"
        # Earlier versions have not kept it, and stage 1 starts from nothing.
        epochs = read_json(path).get("finetune_epochs") if self.after and path.is_file() else None
        return epochs if epochs and epochs[0] < epochs[1] else None

    def parse(self) -> Namespace:
        """The stage's flags of it, without paths."""
        return parse(self.run.stage, (*self.words(f"{PROJECT}/"), *self.batch_words()))

    def words(self, project: str = "") -> list[str]:
        """Its flags, without paths and `batch_size`; the recipe's path is relative to `project`."""
        return [f"@{project}recipes/{self.run.recipe}.args", *self.run.flags, "--seed", str(self.seed)]

    def batch_words(self) -> list[str]:
        """The flag for `batch_size`, where it is another than the recipe's and its accumulation follows."""
        args = parse(self.run.stage, tuple(self.words(f"{PROJECT}/")))
        if self.batch_size in (None, args.batch_size) or args.effective_batch_size is None:
            return []
        return ["--batch_size", str(self.batch_size)]

    def settings(self) -> dict:
        """{name: value} of what decides the result, the same however the recipe is written.

        Flags that have their default are left out, so that a flag which a later version adds leaves finished runs theirs.
        """
        args, defaults = self.parse(), parse(self.run.stage, ())
        if self.run.stage == "finetune":
            args, defaults = (with_loss_defaults(one, DATA[self.run.data].classes) for one in (args, defaults))
        args, defaults = vars(args), vars(defaults)
        found = {name: value for name, value in args.items() if name not in NO_RESULT and value != defaults[name]}
        images = args["effective_batch_size"] or args["batch_size"] * (args["accum_iter"] or 1)
        # Masks and mixed pairs are drawn a micro-batch.
        micro_batch = {"images a micro-batch": self.batch_size} if self.batch_words() else {}
        return {**found, "stage": self.run.stage, "data": self.run.data, "images a step": images, **micro_batch,
                "after": self.after and self.after.hash}

    def argv(self, out: Path, places: dict[str, str], project: str = "") -> list[str]:
        """The stage's command line with paths below `out` and the data's of places; the recipe's relative to `project`."""
        words = self.words(project)
        if self.run.data not in NEEDS_NO_PATH:
            words += ["--data_path", places[self.run.data]]
        if self.after:
            words += ["--finetune", str(out / self.after.folder / "last.pth")]
        return [*words, "--output_dir", str(out / self.folder), *self.batch_words()]


@functools.cache
def _parser(stage: str) -> Parser:
    return STAGES[stage].get_args_parser()


@functools.cache
def parse(stage: str, words: tuple[str, ...]) -> Namespace:
    """The flags of a stage; read them only."""
    return _parser(stage).parse_args(list(words))


def jobs_of(runs: list[Run], seeds: list[int], batch_size: int | None = None) -> list[Job]:
    """The jobs of runs and of those that they start from, each once and behind what it starts from, seed by seed."""
    found: dict[str, Job] = {}
    for job in (Job(run, seed, batch_size) for seed in seeds for run in runs):
        chain = [job]
        while chain[-1].after:
            chain.append(chain[-1].after)
        for one in reversed(chain):
            found.setdefault(one.hash, one)
    return list(found.values())


def training_counts(data: str, factor: float | None = None) -> np.ndarray:
    """Training images of every class (C,) of a data set of DATA, of CIFAR with that imbalance factor (100 by default).

    ImageNet-1K is used without labels, and counted as if its classes were equal.
    """
    if data in ("cifar10_lt", "cifar100_lt"):
        classes = DATA[data].classes
        return longtail_counts(50_000 // classes, factor or 100, classes)
    if data == "cifar100_folder":
        counts = longtail_counts(500, 100, 100)
        return longtail_counts_of(counts, factor) if factor else counts
    if data.startswith("imagenet_bal"):
        return np.full(1000, 116 if data.endswith("116") else 160)
    if data == "imagenet_1k":
        return np.diff(np.linspace(0, OFFICIAL_SIZES[data]["train"], 1001).astype(np.int64))
    if data == "embedded":
        return np.bincount(embedded.load("train")[1])
    if DATA[data].made:
        from submit.stand_ins import counts_of
        return counts_of(data)
    return official_counts(data)
