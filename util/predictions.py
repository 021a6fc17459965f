"""A finished evaluation, read back from its run folder without the model."""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.arrays import as_counts, as_labels, as_logits, check_counts, check_pair
from util.calibration import check_activation

HINT = "give the --output_dir of a finished main_finetune.py run"


class Predictions(NamedTuple):
    """One run folder's predictions.npz and metrics.json.

    logits: (N, C); labels: (N,) int64; ids: (N,), or None where the file holds none; result: metrics.json, with
    class_counts (C,) and activation, checked.
    """
    folder: Path
    logits: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None
    result: dict

    @property
    def class_names(self) -> list[str]:
        """Names in label order; the numbers of the classes where metrics.json holds none."""
        return self.result.get("class_names") or [str(k) for k in range(self.logits.shape[1])]


def read_json(path: Path) -> dict:
    """A JSON object of a run folder. ValueError for a file that is missing, or is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({getattr(error, 'strerror', None) or 'no JSON'}): {HINT}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object: {HINT}")
    return value


def read_predictions(folder: Path) -> Predictions:
    """The evaluation in a run folder. ValueError for what is no run folder, is damaged or does not fit together."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}: {HINT}")
    path, result = folder / "predictions.npz", read_json(folder / "metrics.json")
    for key in ("class_counts", "activation"):
        if key not in result:
            raise ValueError(f"{folder / 'metrics.json'} has no {key!r}: {HINT}")
    if not path.exists():
        raise ValueError(f"no predictions.npz in {folder}: {HINT}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logits, labels, ids = arrays["logits"], arrays["labels"], arrays.get("ids")
    except Exception as error:  # of zip, of zlib, of numpy's header, of Python's tokenizer: damage has many names
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"cannot read logits and labels from {path} ({reason[0]}): {HINT}") from None
    try:
        run = Predictions(folder, as_logits(logits), as_labels(labels), ids, result)
        _check(run)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}: its predictions.npz and metrics.json are not of one evaluation, or damaged; "
                         "evaluate the checkpoint again") from None
    return run


def _check(run: Predictions) -> None:
    check_pair(run.logits, run.labels)
    check_counts(as_counts(run.result["class_counts"]), run.logits.shape[1])
    check_activation(run.result["activation"])
    if not isinstance(run.class_names, list) or len(run.class_names) != run.logits.shape[1]:
        raise ValueError(f"class names that are no list of {run.logits.shape[1]}")
    if run.ids is not None and run.ids.shape != run.labels.shape:
        raise ValueError(f"ids of shape {run.ids.shape} for {len(run.labels)} images")
