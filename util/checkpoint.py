"""Checkpoints: tensors and plain Python values only, written beside and renamed, opened without running code.

    last.pth      the newest checkpoint of a run
    previous.pth  the one before it, which a run goes on from where the newest is damaged
"""
import contextlib
import hashlib
import os
import pickle
import time
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

FORMAT = "livt-2"  # always with a digest
EARLIER = "livt-1"  # of runs whose masks, dropped paths and erased pieces were drawn otherwise: only its weights serve
MARK = b"livt-sha"
COMMENT = len(MARK) + 32  # bytes of the zip comment
KEYS = ("format", "stage", "model", "optimizer", "scaler", "ema", "progress", "rng", "args", "class_counts",
        "class_names")


class SaveError(RuntimeError):
    """Something of a run could not be written; what was there before is whole."""


def save_error(path: Path, error: Exception) -> SaveError:
    """The SaveError of `path`, which `error` has kept from being written."""
    # torch's writer turns the disk's error into one of its own, which has the disk's as its context.
    cause = error if isinstance(error, OSError) else error.__context__
    reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
    return SaveError(f"cannot write {path} ({reason}); the checkpoints that are there are whole: make room, or mend the "
                     "permissions, and start the same command again to go on from them")


@contextlib.contextmanager
def writing(path: Path):
    """What the disk refuses in the body, where `path` is written, or files in it, is a SaveError."""
    try:
        yield
    except OSError as error:
        raise save_error(path, error) from None


class DamagedCheckpoint(ValueError):
    """A checkpoint file whose content is not what was written, or was never a checkpoint."""


def save_checkpoint(path: Path | str, state: dict) -> None:
    """Write `state` (all of KEYS but the format) so that a kill at any moment leaves whole files only.

    A file that is there already is kept as previous.pth. Raises SaveError where the disk is full or refuses.
    """
    path, state = Path(path), {"format": FORMAT, **state}
    if set(state) != set(KEYS):
        raise AssertionError(f"checkpoint keys differ: {sorted(set(state) ^ set(KEYS))}")
    beside = path.with_name(f".{path.name}.part")
    try:
        write_whole(beside, lambda file: save_with_digest(state, file))
        if path.exists():
            os.replace(path, previous_of(path))
        os.replace(beside, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise save_error(path, error) from None


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name("previous.pth")


def replace_file(path: Path, write) -> None:
    """Call write(binary file) on a file beside `path`, flush it to disk, then rename it over `path`."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write_whole(beside, write)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_whole(path: Path, write) -> None:
    """Call write(binary file) on a new file and flush it to the disk itself."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, where the system has such a thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Digesting:
    """A binary file that is only written to, and the SHA-256 of what went through it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save_with_digest(state: dict, file: BinaryIO) -> None:
    """torch.save, and the SHA-256 of the file as its zip comment, MARK and 32 bytes behind the comment's length."""
    digesting = Digesting(file)
    torch.save(state, digesting)
    file.seek(-2, os.SEEK_END)  # the length, 0 so far
    file.write(COMMENT.to_bytes(2, "little") + MARK + digesting.sha256.digest())


def digest_agrees(path: Path) -> bool | None:
    """Whether the file is what `save_with_digest` wrote, to the last bit; None where it carries no digest."""
    tail = 2 + COMMENT
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < tail:
            return None
        left = file.seek(-tail, os.SEEK_END)
        length, mark, digest = file.read(2), file.read(len(MARK)), file.read()
        if mark != MARK:
            return None
        file.seek(0)
        sha256 = hashlib.sha256()
        while left:
            block = file.read(min(left, 2 ** 24))
            sha256.update(block)
            left -= len(block)
    sha256.update(bytes(2))
    return sha256.digest() == digest and length == COMMENT.to_bytes(2, "little")


def check_bytes(path: Path) -> bool:
    """Compare every byte of a torch file with the SHA-256 at its end, or where others have written it with the CRC-32 sums in
    it. DamagedCheckpoint for a difference; else whether it was the SHA-256.

    torch.load itself looks at neither, and takes flipped bits for weights. The sums do not cover the zip's own directory.
    """
    wrong = agrees = None
    try:
        agrees = digest_agrees(path)
        if agrees is False:
            wrong = "the SHA-256 at its end"
        elif agrees is None and zipfile.is_zipfile(path):  # of anything else torch's reader says what it is
            with zipfile.ZipFile(path) as file:
                wrong = file.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise DamagedCheckpoint(f"{path} is damaged (its checksum differs at {wrong}): use another copy, or start without it")
    return bool(agrees)


def load_checkpoint(path: Path | str, stage: str | None = None) -> dict:
    """Open a checkpoint of this project, on the CPU.

    stage: "pretrain" or "finetune" where only that one is of use. Raises ValueError, in one line, for a file that is
    missing or of the other stage, and its subclass DamagedCheckpoint for one that is damaged, not a checkpoint, of another
    project, or that would need to run code.
    """
    path = Path(path)
    state = read_torch(path)
    check_format(path, state, stage)
    return state


def check_readable(path: Path) -> None:
    """ValueError where there is no file to read; DamagedCheckpoint for a folder, a pipe or a socket."""
    if path.is_dir():
        raise DamagedCheckpoint(f"no checkpoint at {path}, which is a folder: give the path of a last.pth")
    if path.exists() and not path.is_file():
        raise DamagedCheckpoint(f"no checkpoint at {path}, which is a pipe, a socket or a device: give the path of a last.pth")
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give the path of a last.pth")
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {path} ({error.strerror}): mend its permissions") from None


def read_torch(path: Path, allowed: tuple[type, ...] = ()):
    """What a torch file holds: tensors, plain values, and objects of the types `allowed`, on the CPU. Runs no code of it.

    Raises as `load_checkpoint`.
    """
    check_readable(path)
    agrees = check_bytes(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedCheckpoint(f"{path} is refused: it is no torch file, or holds more than tensors and plain values, which "
                         "could run code when opened") from None
    except Exception as error:  # bytes that are no checkpoint make torch's reader fail in any way, a KeyError included
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0].rstrip(": ")
        raise DamagedCheckpoint(f"{path} is damaged or no checkpoint ({reason}): use another copy, or start without "
                         "it") from None
    if isinstance(state, dict) and state.get("format") == FORMAT and not agrees:
        raise DamagedCheckpoint(f"{path} is damaged (its format, {FORMAT!r}, has a SHA-256 at its end, and there is none): use "
                                "another copy, or start without it")
    return state


def is_own(state) -> bool:
    """Whether a torch file's content is a checkpoint of this project, of this version or an earlier one."""
    return isinstance(state, dict) and state.get("format") in (FORMAT, EARLIER)


def newest(last: Path, stage: str) -> tuple[Path, dict, str | None]:
    """A run's newest checkpoint that is whole: (path, state, a warning where that is not the last one written).

    A damaged last.pth is put aside. Raises ValueError where none is whole, and where the folder refuses that.
    """
    previous = previous_of(last)
    if not last.exists():  # a kill between two renames leaves this behind
        return previous, load_checkpoint(previous, stage), None
    try:
        return last, load_checkpoint(last, stage), None
    except DamagedCheckpoint as error:
        try:
            state = load_checkpoint(previous, stage)
        except ValueError:
            raise error from None
        aside = last.with_name(f"damaged-{int(time.time())}.pth")
        try:
            os.replace(last, aside)
        except OSError as refused:
            raise ValueError(f"{error}; {previous} is whole, but the folder does not let {last.name} be renamed "
                             f"({refused.strerror}): mend the folder's permissions") from None
        return previous, state, f"warning: {error}. It is now {aside.name}, and the run goes on from {previous}"


def check_format(path: Path, state, stage: str | None) -> None:
    """Raise ValueError unless `state` is a checkpoint of this project and of `stage`."""
    if not is_own(state):
        found = state.get("format", f"the keys {', '.join(map(str, list(state)[:3]))}") if isinstance(state, dict) \
            else type(state).__name__
        raise DamagedCheckpoint(f"{path} is no checkpoint of this project: expected format {FORMAT!r}, found {found!r}")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise DamagedCheckpoint(f"{path} is an incomplete checkpoint: {', '.join(missing)} missing")
    check_stage(path, state, stage)


def check_stage(path: Path | str, state: dict, stage: str | None) -> None:
    """Raise ValueError for a checkpoint of the other stage."""
    if stage and state["stage"] != stage:
        option = {"pretrain": "main_pretrain.py, or --finetune to start stage 2 from it",
                  "finetune": "main_finetune.py"}[state["stage"]]
        raise ValueError(f"{path} is of stage {state['stage']!r}, expected {stage!r}: it belongs to {option}")


def trained_weights(state: dict) -> dict:
    """The weights of a checkpoint that are scored and built upon: their moving average where the run kept one."""
    return state["ema"] or state["model"]
