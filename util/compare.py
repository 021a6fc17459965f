"""Is run B better than run A? Paired over test images, and over seeds where there are several.

    python -m util.compare RUN_A RUN_B
    python -m util.compare RUN_A RUN_B RUN_C                    # B with A, then C with A: each further run with the first
    python -m util.compare --a A_SEED0 A_SEED1 A_SEED2 --b B_SEED0 B_SEED1 B_SEED2      # in any order: paired by their seed

The interval of B - A is a bootstrap with two levels:
    images   drawn with replacement, the same draw for every run; with one run each that is all, by percentiles
    seeds    S pairs, each of one seed (args.json), else the i-th of A with the i-th of B, which is told. Each draw of
             images takes also a draw of the seeds' mean: Student's t with S - 1 degrees of freedom times (deviation of the S
             differences) / sqrt(S). Drawing the seeds themselves with replacement, which is usual for large numbers, calls
             noise a win in 24 % of cases at three seeds (simulated, seeds alone differ); this one errs in 1 to 7 %, wherever
             the noise is
What each seed gets wrong by itself is in both levels, so the images' spread is shrunk by its share, which the draws show.

"better" and "worse" are said of B where the interval excludes 0 and, for accuracies, the runs disagree about at least six
images of the group: with five, even a unanimous vote has an exact p of 0.06. Each row errs in about 5 % of cases where
there is nothing; whoever compares twenty rows finds one. Two single runs also get McNemar's exact test.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.args import Parser, run_command
from util.bootstrap import COLUMNS, RESAMPLES, class_masks, draws, interval, outcomes, resampled
from util.metrics import align, column_title
from util.predictions import Predictions, read_json, read_predictions
from util.run import say

LOWER_IS_BETTER = ("ece",)
MIN_DISAGREEMENTS = 6  # 2 / 2^6 = 0.03 is the smallest exact p below 0.05
SEED_DRAWS = 32  # draws of the seeds' mean for each draw of images
BETTER, WORSE, UNDECIDED = "better", "worse", "no difference shown"


class Row(NamedTuple):
    """One metric of two settings: a, b and difference b - a (means over seeds), all None for a group without classes.

    interval: [low, high] of the difference; differ: images of the group about which the runs disagree, None for ece.
    """
    column: str
    a: float | None
    b: float | None
    difference: float | None
    interval: list[float] | None
    differ: int | None
    verdict: str


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test, from the numbers of images that only A and only B has right.

    Under the null hypothesis the smaller one is Binomial(only_a + only_b, 1/2): 2 P(X <= it), at most 1; 1 for no image.
    """
    total, term, tail = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (total - k) // (k + 1)  # C(total, k + 1), whole numbers throughout
    return min(1.0, 2 * tail / 2**total)


def check_same_images(runs: list[Predictions]) -> None:
    """ValueError, which names the first difference, unless all runs scored the same images and classes in one order."""
    first = runs[0]
    for run in runs:
        pair = f"{run.folder} and {first.folder}"
        if run.ids is None:
            raise ValueError(f"predictions.npz of {run.folder} has no ids, so nothing says that its images are those of other "
                             "runs: evaluate the checkpoint again")
        for key in ("split", "class_names"):
            if run.result.get(key) != first.result.get(key):
                raise ValueError(f"{pair} differ in {key} ({_short(run.result.get(key))}, {_short(first.result.get(key))}): "
                                 "compare runs on the same images")
        if len(run.ids) != len(first.ids):
            raise ValueError(f"{pair} hold {len(run.ids)} and {len(first.ids)} images: compare runs on the same images")
        for name, here, there in (("ids", run.ids, first.ids), ("labels", run.labels, first.labels)):
            different = np.flatnonzero(here != there)
            if len(different):
                at = different[0]
                raise ValueError(f"{pair} differ in {len(different)} {name}, first in image {at} ({here[at]}, {there[at]}): "
                                 "compare runs on the same images")


def _short(value) -> str:
    return f"{', '.join(map(str, value[:3]))}, ... ({len(value)})" if isinstance(value, list) else str(value)


def check_arms(a: list[Predictions], b: list[Predictions]) -> None:
    """ValueError unless there are as many runs of either setting, none of them twice, each setting of one activation."""
    if len(a) != len(b) or not a:
        raise ValueError(f"A has {len(a)} run{'s' * (len(a) != 1)} and B {len(b)}; expected as many of both: each of A is "
                         "paired with one of B")
    for name, arm in (("A", a), ("B", b)):
        folders = [run.folder.resolve() for run in arm]
        if len(set(folders)) < len(folders):
            raise ValueError(f"{name} names a run twice ({', '.join(str(run.folder) for run in arm)}): a seed counts once")
        kinds = [run.result["activation"] for run in arm]
        if len(set(kinds)) > 1:
            raise ValueError(f"the runs of {name} are no seeds of one setting, their activations are {', '.join(kinds)}")


def compare_runs(a: list[Predictions], b: list[Predictions], resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """Rows for overall, many, medium, few, balanced accuracy (percent, differences in points) and ECE.

    a, b: the seeds of two settings, in the same order. Groups follow the training counts; where these differ between runs,
    their rows are empty. ValueError unless all runs scored the same images in the same order.
    """
    check_arms(a, b)
    check_same_images([*a, *b])
    counts = a[0].result["class_counts"]
    masks = class_masks(counts)
    if any(run.result["class_counts"] != counts for run in (*a, *b)):
        masks[:3] = False
    of = [outcomes(run.logits, run.labels, run.result["activation"]) for run in (*a, *b)]
    values = measure(of, np.arange(len(of[0].labels))[None], masks)
    drawn = np.concatenate([measure(of, index, masks) for index in draws(len(of[0].labels), masks.shape[1], resamples, seed)])
    student = np.random.default_rng([seed, 1]).standard_t(max(1, len(a) - 1), (resamples, SEED_DRAWS))
    pairs = zip(of[:len(a)], of[len(a):], strict=True)
    differ = np.bincount(of[0].labels, np.any([one.correct != other.correct for one, other in pairs], axis=0), masks.shape[1])
    images = [differ.sum(), *(masks @ differ), None]
    return [compare_column(column, values[0, :, :, place], drawn[:, :, :, place], student, images[place])
            for place, column in enumerate(COLUMNS)]


def compare_column(column: str, values, drawn, student, differ) -> Row:
    """One row from the values (2, S) of the images as they are and (R, 2, S) of the draws; student: see `spread`."""
    if np.isnan(values).any():
        return Row(column, None, None, None, None, None, "-")
    (of_a, of_b), point = values.mean(axis=1), values[1] - values[0]
    d = drawn[:, 1] - drawn[:, 0]
    known = ~np.isnan(d).any(axis=1)
    if column == "ece":
        d = d - (d.mean(axis=0) - point)  # the surplus that resampling adds, see util/bootstrap.py
    bounds = interval(spread(d[known], point, student[known]).ravel())
    differ = None if differ is None else int(differ)
    return Row(column, float(of_a), float(of_b), float(of_b - of_a), bounds, differ, verdict(column, bounds, differ))


def measure(of, index, masks) -> np.ndarray:
    """Metrics (R, 2, S, 6) of the draws index (R, N): setting A and B, its S seeds, COLUMNS. of: 2 S outcomes."""
    values = np.stack([resampled(one, index, masks) for one in of], axis=1)
    return values.reshape(len(index), 2, len(of) // 2, len(COLUMNS))


def spread(drawn, point, student) -> np.ndarray:
    """Draws of the mean difference, (R, T) or (R, 1) for a single pair of runs.

    drawn: differences (R, S) of the draws of images; point: those (S,) of the images as they are; student: (R, T) of
    Student's t with S - 1 degrees of freedom.
    """
    mean, seeds = drawn.mean(axis=1, keepdims=True), drawn.shape[1]
    if seeds == 1 or len(drawn) < 2:
        return mean
    # The seeds' own noise, of variance v each, is v / S of the variance of their mean, and in the scatter of `point` again.
    own = (drawn - mean).var(axis=0, ddof=1).sum() / (seeds - 1) / seeds
    total = mean.var(ddof=1)
    kept = math.sqrt(max(0.0, 1 - own / total)) if total > 0 else 0.0
    centre = mean.mean()
    return centre + kept * (mean - centre) + student * point.std(ddof=1) / math.sqrt(seeds)


def verdict(column: str, bounds: list[float] | None, differ: int | None) -> str:
    """What the interval [low, high] of B - A says of B; None where no draw had the group."""
    low, high = bounds or (0.0, 0.0)
    if low <= 0 <= high or (differ is not None and differ < MIN_DISAGREEMENTS):
        return UNDECIDED
    return BETTER if (low > 0) != (column in LOWER_IS_BETTER) else WORSE


def format_rows(rows: list[Row]) -> str:
    """Aligned plain text, percent and points."""
    lines = [["", "A", "B", "B - A", "95 % interval", "images that differ", "B is"]]
    for row in rows:
        if row.difference is None:
            lines.append([column_title(row.column), *"-----", "-"])
            continue
        low, high = row.interval or (float("nan"), float("nan"))
        lines.append([column_title(row.column), f"{row.a:.1f}", f"{row.b:.1f}", f"{row.difference:+.2f}",
                      f"[{low:.2f}, {high:.2f}]", "-" if row.differ is None else f"{row.differ:,}", row.verdict])
    return align(lines)


def recorded_seed(run: Predictions) -> int | None:
    """--seed of a run as its args.json has it; None where there is none."""
    try:
        return read_json(run.folder / "args.json")["args"]["seed"]
    except (ValueError, KeyError, TypeError):
        return None


def pair_by_seed(a: list[Predictions], b: list[Predictions]) -> tuple[list[Predictions], str]:
    """B in the order of A's seeds, and words that say how runs are paired: by position where their seeds are no pairs."""
    of_a, of_b = ([recorded_seed(run) for run in arm] for arm in (a, b))
    if None in of_a + of_b:
        why = "no args.json tells all their seeds"
    elif len(set(of_a)) < len(of_a) or len(set(of_b)) < len(of_b) or set(of_a) != set(of_b):
        why = f"seeds {', '.join(map(str, of_a))} of A and {', '.join(map(str, of_b))} of B are no pairs"
    else:
        return [b[of_b.index(seed)] for seed in of_a], f"by seed {', '.join(map(str, of_a))}"
    return b, f"in the order given, since {why}"


def describe(a: list[Predictions], b: list[Predictions], paired: str = "in the order given") -> str:
    """What is compared, and what the intervals are over. paired: how runs are paired, where there are several."""
    lines = [f"{name}  {run.folder}" for name, arm in (("A", a), ("B", b)) for run in arm]
    over = f"images and {len(a)} pairs of runs, {paired}"
    if len(a) == 1:
        over = "images; one run each, so what another seed gives is not in it"
    lines.append(f"{len(a[0].labels):,} {a[0].result.get('split', '')} images; intervals over {over}")
    kinds = [arm[0].result["activation"] for arm in (a, b)]
    lines.append(f"ECE by {kinds[0]} scores" if kinds[0] == kinds[1] else f"ECE by {kinds[0]} scores of A and {kinds[1]} of B")
    if any(run.result["class_counts"] != a[0].result["class_counts"] for run in (*a, *b)):
        lines.append("the runs were trained on other numbers of images, so that there are no common groups")
    return "\n".join(lines)


def main(args) -> list[list[Row]]:
    """Print the comparisons; returns the rows of each."""
    if bool(args.runs) == bool(args.a or args.b) or len(args.runs) == 1:
        raise ValueError(f"{len(args.runs)} {'run' if len(args.runs) == 1 else 'runs'}, --a {len(args.a)}, --b {len(args.b)}; "
                         "expected RUN_A RUN_B [RUN_C ...], or the seeds of two settings as --a RUN ... --b RUN ...")
    if not args.runs:
        return [report([read_predictions(Path(run)) for run in args.a], [read_predictions(Path(run)) for run in args.b])]
    first, *others = [read_predictions(Path(run)) for run in args.runs]
    found = []
    for place, other in enumerate(others, 1):
        if len(others) > 1:
            say("\n" * (place > 1) + f"{place} of {len(others)}: {other.folder} against {first.folder}\n")
        found.append(report([first], [other]))
    if len(others) > 1:
        say(f"\n{len(others)} runs against one: whoever picks the best of them picks luck too")
    return found


def report(a: list[Predictions], b: list[Predictions]) -> list[Row]:
    """Print one comparison; returns its rows."""
    check_arms(a, b)
    b, paired = pair_by_seed(a, b)
    rows = compare_runs(a, b)
    say(f"{describe(a, b, paired)}\n\n{format_rows(rows)}")
    if len(a) == 1:
        right_a, right_b = (run.logits.argmax(axis=1) == run.labels for run in (a[0], b[0]))
        only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
        say(f"\nMcNemar: only A has {only_a:,} images right, only B {only_b:,}; exact p = {mcnemar_exact(only_a, only_b):.2g}")
    return rows


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("paired comparison of finished runs: is B better than A?")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders A, B, ... with predictions.npz and "
                        "metrics.json; each is compared with the first")
    parser.add_argument("--a", nargs="+", default=[], metavar="RUN", help="instead: the seeds of setting A")
    parser.add_argument("--b", nargs="+", default=[], metavar="RUN", help="those of setting B, in any order: paired by seed")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
