"""Choose settings for several losses with the same number of trials each, on held-out training images only.

    python -m util.tune @recipes/embedded/finetune.args --finetune runs/mgp/last.pth --losses bce bal_bce \\
        --grid lr=1e-3,2e-3 layer_decay=.75,.85 bal_bce:tau=.5,1 --budget 4 --output_dir runs/tune

Every other flag goes to main_finetune.py as it is. NAME=V1,V2 is tried for every loss, LOSS:NAME=V1,V2 for one. A loss gets
--budget points of its grid, drawn by --tune_seed, and all of them train on the same images and are scored on the same
held-out slice (--val_fraction); the test images are not read. DIR/tune.json holds every trial, DIR/LOSS.args the chosen
flags, to be used as `@DIR/LOSS.args` behind the recipe.
"""
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from util.args import PROJECT, Parser, run_command
from util.losses import LOSSES
from util.metrics import format_table
from util.run import say
from util.seed import derive_seed

# What is the better the larger, and a number for every held-out slice.
CHOOSE_BY = ("overall", "balanced_accuracy", "macro_f1", "many", "medium", "few", "top5")
COLUMNS = ("many", "medium", "few", "overall", "balanced_accuracy")


class PassingParser(Parser):
    """Keeps the flags that it does not know, in order, as `others`."""

    def parse_args(self, args=None, namespace=None):
        known, others = self.parse_known_args(args, namespace)
        known.others = others
        return known


def read_grid(words: list[str], losses: list[str]) -> dict[str, dict[str, list[str]]]:
    """{loss: {flag: values}} of --grid's words. ValueError for a word that is none, or a flag that is named twice."""
    grid = {loss: {} for loss in losses}
    for word in words:
        name, equals, values = word.partition("=")
        loss, colon, flag = name.rpartition(":")
        listed = [value for value in values.split(",") if value]
        if not (equals and flag and listed):
            raise ValueError(f"--grid takes NAME=V1,V2 or LOSS:NAME=V1,V2, not {word!r}")
        if colon and loss not in losses:
            raise ValueError(f"--grid {word}: {loss} is none of the losses {', '.join(losses)}")
        if len({number_or_word(value) for value in listed}) < len(listed):
            raise ValueError(f"--grid {word} names a value twice, and the same trial twice is one trial")
        if flag in ("loss", "val_fraction", "split", "output_dir", "eval", "resume", "seed"):
            raise ValueError(f"--grid {word}: --{flag} cannot be tuned")
        for one in [loss] if colon else losses:
            if flag in grid[one]:
                raise ValueError(f"--grid names {flag} twice for {one}")
            grid[one][flag] = listed
    return grid


def number_or_word(value: str) -> float | str:
    """The number that a value is, so that 1e-3 and .001 are seen to be equal; the word where it is none."""
    try:
        return float(value)
    except ValueError:
        return value


def points(grid: dict[str, list[str]], budget: int, seed: int, loss: str) -> list[dict[str, str]]:
    """`budget` different points of one loss's grid: all of them in order, or a draw by (seed, loss)."""
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(every) < budget:
        raise ValueError(f"the grid of {loss} has {len(every)} points, fewer than --budget {budget}, and every loss gets as "
                         "many trials: add values, or lower --budget")
    if len(every) == budget:
        return every
    random = np.random.RandomState(np.random.MT19937(derive_seed(seed, "tune", loss)))
    return [every[i] for i in sorted(random.permutation(len(every))[:budget])]


def in_words(point: dict[str, str]) -> str:
    """A point of the grid for tables."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def at_the_edge(point: dict[str, str], grid: dict[str, list[str]]) -> list[str]:
    """Texts that name what was chosen as the smallest or largest of its three or more numbers: the best may lie beyond."""
    found = []
    for name, value in point.items():
        numbers = [number_or_word(tried) for tried in grid[name]]
        if len(numbers) > 2 and not any(isinstance(number, str) for number in numbers):
            for which, bound in (("smallest", min(numbers)), ("largest", max(numbers))):
                found += [f"{name} {value} is the {which} that was tried"] * (number_or_word(value) == bound)
    return found


def trial(folder: Path, flags: list[str]) -> dict:
    """Run main_finetune.py into `folder` (a finished run there is only scored again); returns its metrics."""
    command = [sys.executable, str(PROJECT / "main_finetune.py"), *flags, "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"the trial {folder.name} failed: {last.removeprefix('error: ')}")
    return json.loads((folder / "metrics.json").read_text())


def main(args) -> dict:
    """Run all trials; prints them and the chosen ones, returns {loss: chosen flags}."""
    unknown = [loss for loss in args.losses if loss not in LOSSES]
    if unknown or len(set(args.losses)) < len(args.losses):
        raise ValueError(f"--losses {' '.join(args.losses)}: expected different ones of {', '.join(LOSSES)}")
    if args.budget < 1:
        raise ValueError(f"--budget must be at least 1, not {args.budget}")
    out, grid = Path(args.output_dir), read_grid(args.grid, args.losses)
    plan = {loss: points(grid[loss], args.budget, args.tune_seed, loss) for loss in args.losses}
    trials, chosen = [], {}
    for loss, tried in plan.items():
        results = []
        for number, point in enumerate(tried):
            flags = ["--loss", loss, *itertools.chain(*((f"--{name}", *value.split()) for name, value in point.items()))]
            name = f"{loss}_{number:02}"
            result = trial(out / name, [*args.others, *flags, "--val_fraction", str(args.val_fraction)])
            if result[args.metric] is None:
                raise ValueError(f"--metric {args.metric} is none on {result['split']}: choose by another")
            say(f"{name}: {in_words(point)}: {args.metric} {result[args.metric]:.2f}")
            results.append(result)
            trials.append({"run": name, "loss": loss, "flags": point, **{key: result[key] for key in (*COLUMNS, "split")}})
        # Of equal results the first, so that a rerun chooses the same.
        best = max(range(len(results)), key=lambda i: results[i][args.metric])
        chosen[loss] = {"flags": tried[best], "run": f"{loss}_{best:02}", args.metric: results[best][args.metric]}
        lines = [f"--loss {loss}", *(f"--{name} {value}" for name, value in tried[best].items())]
        head = f"# Chosen by {args.metric} on {results[best]['split']}, {args.budget} trials a loss: {', '.join(args.losses)}."
        (out / f"{loss}.args").write_text("\n".join([head, *lines]) + "\n")
    (out / "tune.json").write_text(json.dumps({
        "metric": args.metric, "budget": args.budget, "val_fraction": args.val_fraction, "tune_seed": args.tune_seed,
        "grid": grid, "other_flags": args.others, "chosen": chosen, "trials": trials}, indent=1))
    say(f"\n{args.budget} trials for each loss, scored on {trials[0]['split']}; of each loss the one with the largest "
        f"{args.metric}\n")
    best = [entry["run"] for entry in chosen.values()]
    rows = {f"{'*' if entry['run'] in best else ' '} {entry['run']}: {in_words(entry['flags'])}": entry for entry in trials}
    say(format_table(rows, COLUMNS) + "\n")
    for loss, entry in chosen.items():
        say(f"* chosen for {loss}: {in_words(entry['flags'])}; use it as @{out / f'{loss}.args'} behind the recipe")
        for words in at_the_edge(entry["flags"], grid[loss]):
            say(f"  note: {words}, so the best may lie beyond")
    return chosen


def get_args_parser() -> Parser:
    """Flags of the search; all others are main_finetune.py's."""
    parser = PassingParser("the same number of trials for every loss, chosen on held-out training images; flags that are not "
                           "listed here go to main_finetune.py")
    parser.add_argument("--losses", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--grid", nargs="+", required=True, metavar="NAME=V1,V2", help="values to try; LOSS:NAME=V1,V2 for one "
                        "loss only")
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="trials for each loss")
    parser.add_argument("--val_fraction", type=float, default=0.2, metavar="F", help="share of every class's training images "
                        "that is held out and scored")
    parser.add_argument("--metric", default="balanced_accuracy", choices=CHOOSE_BY, help="a number of metrics.json; the "
                        "held-out slice is as skewed as the training set, so overall would be the head's")
    parser.add_argument("--tune_seed", type=int, default=0, metavar="S", help="which points, where the grid has more than "
                        "--budget")
    parser.add_argument("--output_dir", required=True, metavar="DIR")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
