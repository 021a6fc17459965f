"""Every number of a finished run once more, from its predictions and without the model.

    python -m util.metrics RUN [RUN ...] [--intervals] [--csv]

Printed are the metrics of util/metrics.py, one column a run, with --intervals the 95 % intervals of util/bootstrap.py behind
those that have one. They must be those of the run's metrics.json: predictions.npz holds the float32 logits that were scored,
so decisions are equal, and scores differ by the rounding of another machine's exponential at most. Where more than that
differs, the command says where and ends with an error, after all tables.
--csv writes RUN/per_class.csv, one line a class in label order:

    class, name, training_images, group, test_images
    accuracy             percent of the class's test images that are right (recall)
    precision, f1        percent; precision of a class that is never answered is empty
    mean_confidence      percent, of the answers to the class's images, by the loss's activation
    most_frequent_error  class that its images are most often taken for (ties: the lowest), its name and images
"""
import csv
import io
import math
import os
from pathlib import Path

import numpy as np

from util.args import Parser
from util.arrays import percent
from util.bootstrap import intervals
from util.calibration import confidence
from util.checkpoint import replace_file
from util.metrics import align, column_text, column_title, evaluate_logits, groups
from util.predictions import Predictions, read_predictions
from util.run import say

COLUMNS = ("overall", "top5", "balanced_accuracy", "macro_f1", "many", "medium", "few", "medium_gt20", "few_le20", "nll",
           "brier", "ece", "mce", "classwise_ece", "activation", "ece_softmax", "mce_softmax", "ece_sigmoid", "mce_sigmoid")
TOLERANCE = 1e-6  # percent, nats; rounding of exponentials stays far below
DECIMALS = 4  # of a percentage in per_class.csv: one image of a million
COLUMNS_A_BLOCK = {False: 8, True: 4}  # runs side by side, without and with intervals, that a terminal shows
FIELDS = ("class", "name", "training_images", "group", "test_images", "accuracy", "precision", "f1", "mean_confidence",
          "most_frequent_error", "most_frequent_error_name", "most_frequent_error_images")


def differences(here, there, place="") -> list[str]:
    """Where a result differs from what a metrics.json holds by more than rounding: texts that name the place.

    Objects are compared in the keys that both have: an older file has fewer, and one of a run has more.
    """
    if isinstance(here, dict) and isinstance(there, dict):
        return [text for key in here if key in there
                for text in differences(here[key], there[key], f"{place}.{key}" if place else key)]
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        found = [text for k in range(len(here)) for text in differences(here[k], there[k], f"{place}[{k}]")]
        return found[:1] + [f"{len(found) - 1} more in {place}"] * (len(found) > 1 and "[" not in place)
    same = here == there
    if isinstance(here, float) and isinstance(there, int | float):
        same = math.isclose(here, there, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return [] if same else [f"{place} {_words(here)} here, {_words(there)} there"]


def _words(value) -> str:
    text = f"{value:.8g}" if isinstance(value, float) else str(value)
    return text if len(text) < 40 else f"{text[:36]} ..."


def class_rows(run: Predictions) -> list[dict]:
    """One row a class in label order, with FIELDS; None where there is no number."""
    logits, labels, classes = run.logits, run.labels, run.logits.shape[1]
    answers, score = np.argmax(logits, axis=1), confidence(logits, run.result["activation"])
    right = answers == labels
    hits, images, answered = (np.bincount(k, minlength=classes) for k in (labels[right], labels, answers))
    columns = {"accuracy": percent(hits, images), "precision": percent(hits, answered),
               "f1": percent(2 * hits, images + answered),
               "mean_confidence": percent(np.bincount(labels, score, classes), images)}
    # Wrong answers as pairs: a matrix of all would take half a gigabyte for the classes of iNaturalist.
    pairs, times = np.unique(labels[~right] * classes + answers[~right], return_counts=True)
    worst = {}
    for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
        label, answer = divmod(pair, classes)
        if count > worst.get(label, (0, 0))[1]:
            worst[label] = answer, count
    counts, names, masks = run.result["class_counts"], run.class_names, groups(run.result["class_counts"])
    rows = []
    for k in range(classes):
        answer, count = worst.get(k, (None, None))
        row = {"class": k, "name": names[k], "training_images": counts[k],
               "group": next(name for name, members in masks.items() if members[k]), "test_images": int(images[k])}
        row |= {name: None if np.isnan(values[k]) else float(values[k]) for name, values in columns.items()}
        rows.append({**row, "most_frequent_error": answer,
                     "most_frequent_error_name": None if answer is None else names[answer],
                     "most_frequent_error_images": count})
    return rows


def write_class_rows(path: Path, rows: list[dict]) -> None:
    """FIELDS as CSV in UTF-8, an empty cell for None, percentages with DECIMALS."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: round(value, DECIMALS) if isinstance(value, float) else value for name, value in row.items()}
                     for row in rows)
    try:
        replace_file(path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): make its folder writable, or leave --csv out") from None


def format_results(results: dict[str, dict]) -> str:
    """{run name: result} as text: one line a metric, one column a run, intervals behind the numbers that have one."""
    names, blocks = list(results), []
    width = COLUMNS_A_BLOCK[any("intervals" in result for result in results.values())]
    for start in range(0, len(names), width):
        part = names[start:start + width]
        lines = [["", *part]]
        for column in COLUMNS:
            lines.append([column_title(column), *(_with_interval(column, results[name]) for name in part)])
        blocks.append(align(lines))
    return "\n\n".join(blocks)


def _with_interval(column: str, result: dict) -> str:
    text, bounds = column_text(column, result[column]), result.get("intervals", {}).get(column)
    return f"{text} [{', '.join(column_text(column, bound) for bound in bounds)}]" if bounds else text


def short_name(folder: Path, folders: list[Path]) -> str:
    """The folder without the parents that all have, by its own name where it is the only one."""
    paths = [path.resolve() for path in folders]
    return str(folder.resolve().relative_to(os.path.commonpath([path.parent for path in paths])))


def main(args) -> dict[Path, dict]:
    """Print the table, write what --csv asks for; returns {run folder: result}. ValueError where a run's own numbers differ."""
    folders, results, wrong = [Path(run) for run in args.runs], {}, []
    for folder in folders:
        run = read_predictions(folder)
        counts, activation = run.result["class_counts"], run.result["activation"]
        result = results[folder] = evaluate_logits(run.logits, run.labels, counts, activation)
        different = differences(result, run.result)
        classes = ", ".join(f"{n} {name}" for name, n in list(result["group_classes"].items())[:3])
        say(f"{folder}: {len(run.labels):,} {run.result.get('split', '')} images, {len(counts):,} classes ({classes}); "
            + (f"differs from its metrics.json: {'; '.join(different)}" if different else
               "equal to its metrics.json"))
        wrong += [str(folder)] * bool(different)
        if args.intervals:
            result["intervals"] = intervals(run.logits, run.labels, counts, activation)
        if args.csv:
            write_class_rows(folder / "per_class.csv", class_rows(run))
            say(f"wrote {folder / 'per_class.csv'}")
    say("\n" + format_results({short_name(folder, folders): result for folder, result in results.items()}))
    if wrong:
        raise ValueError(f"predictions.npz and metrics.json disagree in {', '.join(wrong)}: one of the two files is of another "
                         "evaluation, or was written by another version; evaluate the checkpoint again")
    return results


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("all metrics of finished runs, from their predictions")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with predictions.npz and metrics.json")
    parser.add_argument("--intervals", action="store_true", help="95 %% intervals by bootstrap over the test images")
    parser.add_argument("--csv", action="store_true", help="write RUN/per_class.csv")
    return parser
