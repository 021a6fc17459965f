"""Checkpoints: tensors and plain Python values only, written beside and renamed, opened without running code."""
import os
import pickle
from pathlib import Path

import torch

FORMAT = "livt-1"
KEYS = ("format", "stage", "model", "optimizer", "scaler", "ema", "progress", "rng", "args", "class_counts",
        "class_names")


def save_checkpoint(path: Path | str, state: dict) -> None:
    """Write `state` (all of KEYS but the format) so that a kill at any moment leaves the old or the new file whole."""
    state = {"format": FORMAT, **state}
    if set(state) != set(KEYS):
        raise AssertionError(f"checkpoint keys differ: {sorted(set(state) ^ set(KEYS))}")
    replace_file(Path(path), lambda file: torch.save(state, file))


def replace_file(path: Path, write) -> None:
    """Call write(binary file) on a file beside `path`, flush it to disk, then rename it over `path`."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(path: Path | str, stage: str | None = None) -> dict:
    """Open a checkpoint of this project, on the CPU.

    stage: "pretrain" or "finetune" where only that one is of use. Raises ValueError, in one line, for a file that is
    missing, damaged, not a checkpoint, of another project, of the other stage, or that would need to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give the path of a last.pth")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is refused: it is no torch file, or holds more than tensors and plain values, which "
                         "could run code when opened") from None
    except Exception as error:  # bytes that are no checkpoint make torch's reader fail in any way, a KeyError included
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].rstrip(": ")
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}): use another copy, or start without "
                         "it") from None
    check_format(path, state, stage)
    return state


def check_format(path: Path, state, stage: str | None) -> None:
    """Raise ValueError unless `state` is a checkpoint of this project and of `stage`."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format", f"the keys {', '.join(map(str, list(state)[:3]))}") if isinstance(state, dict) \
            else type(state).__name__
        raise ValueError(f"{path} is no checkpoint of this project: expected format {FORMAT!r}, found {found!r}")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ValueError(f"{path} is an incomplete checkpoint: {', '.join(missing)} missing")
    if stage and state["stage"] != stage:
        option = {"pretrain": "main_pretrain.py, or --finetune to start stage 2 from it",
                  "finetune": "main_finetune.py"}[state["stage"]]
        raise ValueError(f"{path} is of stage {state['stage']!r}, expected {stage!r}: it belongs to {option}")
