"""Many file names in two arrays, and file names in messages."""
import os
from collections.abc import Iterable, Iterator

import numpy as np


class PathTable:
    """N paths, indexed as a list of str would be, in as many bytes as they have and eight more each.

    A Python list of half a million strings costs ten times that, and every worker that touches it copies its pages,
    because counting a reference writes to the string; arrays stay shared. Names that are no UTF-8 come out as the
    operating system's functions take them (surrogates, see os.fsdecode).
    """

    def __init__(self, paths: Iterable[str | bytes]):
        encoded = [os.fsencode(path) for path in paths]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        # One byte between the names, so that the blob of all is also what `data_hash` digests.
        self.ends = np.cumsum(lengths + 1) - 1
        self.blob = np.frombuffer(b"\n".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # IndexError, and negative ones from the end
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.blob[start:self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: np.ndarray) -> "PathTable":
        """The paths at indices (n,), in that order."""
        return PathTable(self[i] for i in np.asarray(indices).tolist())

    def to_bytes(self) -> bytes:
        """All paths, a newline between two."""
        return self.blob.tobytes()


def printable(path) -> str:
    """A path for a message of one line: what a terminal cannot show, or would break the line at, is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
