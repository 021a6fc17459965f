"""The lines of one split as arrays, and a problem that was found in them: what the checks of `datasets.verify` share."""
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.paths import PathTable, printable

LINES, UNCHANGED, CLASSES_FILE = "lines of the lists", "lists unchanged", "classes.txt"
LEFT_OUT = "pictures left out"
EMPTY_CLASS = "classes without a training image"


class Problem(NamedTuple):
    """kind: the check that found it; place: list file and line, path or class; words: what is wrong there."""

    kind: str
    place: str
    words: str


@dataclass
class Listing:
    """The lines of one split that can be read. root: folder that paths are relative to; place: list file or folder;
    labels: (N,) int64; lines: line number of each (N,), None where no list but the folder itself is read; paths: None
    for images that are in memory."""

    split: str
    root: Path
    place: str
    paths: PathTable | None
    labels: np.ndarray
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """`train.txt:812`, or the path where there is no list."""
        return printable(self.paths[index]) if self.lines is None else f"{self.place}:{self.lines[index]}"

    def subject(self, index: int) -> str:
        """What a message about an image begins with: its path, and nothing where `where` says that already."""
        return "" if self.lines is None else f"{printable(self.paths[index])} "

    def called(self, index: int) -> str:
        """An image inside a message: its path, and its line where there is one."""
        return printable(self.paths[index]) + ("" if self.lines is None else f" ({self.where(index)})")

    @functools.cached_property
    def folders(self) -> tuple[list[bytes], np.ndarray]:
        """Folders of the paths in order of appearance, and the folder of every path, (N,) int32."""
        numbers: dict[bytes, int] = {}
        of = np.fromiter((numbers.setdefault(name.rpartition(b"/")[0], len(numbers)) for name in names(self.paths)),
                         dtype=np.int32, count=len(self))
        return list(numbers), of


def names(paths: PathTable) -> Iterator[bytes]:
    """The paths of a table as bytes, one after the other; several times as fast as by index."""
    blob, start = paths.blob.tobytes(), 0
    for end in paths.ends.tolist():
        yield blob[start:end]
        start = end + 1
