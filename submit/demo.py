"""Both stages on the embedded images: does Bal-BCE help the rare classes, and does it beat a linear model on pixels?

    python -m submit.demo                       one seed, the demo of the README
    python -m submit.demo --seeds 0 1 2         mean and deviation over seeds, the table of RESULTS.md
"""
import argparse
import datetime
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import main_finetune
import main_pretrain
from datasets import embedded
from util import metrics
from util.args import PROJECT, run_command
from util.figures_compare import class_accuracies
from util.run import RunFolder, say

COLUMNS = ("many", "medium", "few", "overall", "ece", "mce")
FLOOR, BCE, BAL_BCE = "logistic regression on pixels", "ViT, MGP + BCE", "ViT, MGP + Bal-BCE"
LOSSES = {BCE: "bce", BAL_BCE: "bal_bce"}


def pixel_floor(split: str = "test", C: float = 0.01) -> dict:
    """Metrics of a class-balanced logistic regression on raw pixels: the floor that nobody may fall under.

    C was chosen on the `val` split (RESULTS.md).
    """
    (images, labels, _), (test_images, test_labels, _) = embedded.load("train"), embedded.load(split)
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
    model.fit(images.reshape(len(images), -1) / 255, labels)
    logits = model.decision_function(test_images.reshape(len(test_images), -1) / 255)
    return metrics.evaluate_logits(logits, test_labels, np.bincount(labels))


def run_stage(stage, recipe: str, output_dir: Path, *flags) -> dict:
    """Call a stage's main with a recipe, such as "embedded/finetune", and more flags."""
    argv = [f"@{PROJECT / 'recipes' / recipe}.args", "--output_dir", str(output_dir), *map(str, flags)]
    return stage.main(stage.get_args_parser().parse_args(argv))


def short(epochs: int | None) -> list:
    """Flags that cut a stage to `epochs`, its warm-up with it."""
    return [] if epochs is None else ["--epochs", epochs, "--warmup_epochs", min(5, epochs / 4)]


def run_seed(seed: int, folder: Path, pretrain_epochs: int | None, epochs: int | None) -> dict[str, dict]:
    """One encoder, fine-tuned with plain BCE and with Bal-BCE, side by side where there are threads for both.

    Returns {row: metrics}.
    """
    run_stage(main_pretrain, "embedded/pretrain", folder / "mgp", "--seed", seed, *short(pretrain_epochs))
    flags = ["--finetune", folder / "mgp" / "last.pth", "--seed", seed, *short(epochs)]
    threads = torch.get_num_threads()
    if threads == 1:
        return {row: fine_tune(loss, folder, flags) for row, loss in LOSSES.items()}
    # So small a network trains hardly faster on two threads than on one, but two of them train side by side.
    with ProcessPoolExecutor(len(LOSSES), multiprocessing.get_context("spawn")) as pool:
        runs = {row: pool.submit(beside_others, loss, folder, flags, threads // len(LOSSES)) for row, loss in LOSSES.items()}
        try:
            return {row: run.result() for row, run in runs.items()}
        except ValueError as error:
            raise ValueError(str(error)) from None  # its traceback is of a process that has ended


def fine_tune(loss: str, folder: Path, flags: list) -> dict:
    """One loss's run, in `folder` by its name."""
    return run_stage(main_finetune, "embedded/finetune", folder / loss, "--loss", loss, *flags)


class Named:
    """A text stream that puts a name before every line; no terminal, so that no progress bar is drawn on it."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name, self.begins = stream, name, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(f"{self.name:8}| {line}" if self.begins else line)
            self.begins = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False


def beside_others(loss: str, folder: Path, flags: list, threads: int) -> dict:
    """`fine_tune` in a process of its own, whose lines say which one they are of."""
    torch.set_num_threads(threads)
    sys.stdout, sys.stderr = Named(sys.stdout, loss), Named(sys.stderr, loss)
    return fine_tune(loss, folder, flags)


def main(args) -> dict[str, dict]:
    """Run the demo; returns the rows of its table."""
    start = time.perf_counter()
    out = Path(args.output_dir or f"runs/demo_{datetime.datetime.now():%Y%m%d_%H%M%S}")
    RunFolder(out).check_writable()
    floor = pixel_floor()
    seeds = [run_seed(seed, out / f"seed{seed}", args.pretrain_epochs, args.epochs) for seed in args.seeds]
    last = seeds[-1]
    counts = np.bincount(embedded.load("train")[1])
    class_accuracies(out / "figures" / "classes.png", {
        row: result["per_class_accuracy"] for row, result in {FLOOR: floor, **last}.items()}, counts, embedded.CLASS_NAMES,
        f"Fashion-MNIST-LT, accuracy by class, largest class first (seed {args.seeds[-1]})")
    say(f"\nFashion-MNIST-LT, {counts.sum():,} training images, factor {counts.max() // counts.min()}, last epoch, "
        f"5,000 test images that nothing was chosen on; seeds {', '.join(map(str, args.seeds))}; confidence for ECE and MCE by "
        "softmax (regression) and sigmoid (BCE losses)\n")
    say(table({FLOOR: [floor]}, seeds))
    say(f"\npictures ({(time.perf_counter() - start) / 60:.1f} minutes):")
    for path in sorted(out.glob("**/*.png")):
        say(f"  {path}")
    return {FLOOR: floor, **last}


def table(floor: dict[str, list], seeds: list[dict[str, dict]]) -> str:
    """The table of the demo: means over seeds, with the deviation behind them where there are several."""
    rows = {**floor, **{row: [seed[row] for seed in seeds] for row in seeds[0]}}
    mean = {row: {c: float(np.mean([r[c] for r in results])) for c in COLUMNS} for row, results in rows.items()}
    text = metrics.format_table(mean, COLUMNS)
    if len(seeds) > 1:
        deviation = {row: {c: float(np.std([r[c] for r in results], ddof=1)) for c in COLUMNS}
                     for row, results in rows.items() if len(results) > 1}
        text += f"\n\nstandard deviation over {len(seeds)} seeds\n" + metrics.format_table(deviation, COLUMNS)
    return text


def get_args_parser() -> argparse.ArgumentParser:
    """Flags of the demo."""
    parser = argparse.ArgumentParser(description="LiVT on the embedded images, both stages", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pretrain_epochs", type=int, metavar="N", help="instead of the recipe's, to look at it quickly")
    parser.add_argument("--epochs", type=int, metavar="N", help="of fine-tuning, instead of the recipe's")
    parser.add_argument("--output_dir", metavar="DIR", help="runs/demo_<time> by default")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
