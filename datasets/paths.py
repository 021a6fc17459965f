"""Many file names in two arrays, and file names in messages."""
import os
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

FORMS = "one of the two is in Unicode's decomposed form, as macOS writes it: rename it to the other"


class PathTable:
    """N paths, indexed as a list of str would be, in as many bytes as they have and eight more each.

    A Python list of half a million strings costs ten times that, and every worker that touches it copies its pages,
    because counting a reference writes to the string; arrays stay shared. Names that are no UTF-8 come out as the
    operating system's functions take them (surrogates, see os.fsdecode).
    """

    def __init__(self, paths: Iterable[str | bytes]):
        # `paths` may be a stream: no list of it is made.
        blob, ends = bytearray(), array("q")
        for path in paths:
            blob += os.fsencode(path)
            ends.append(len(blob))
            blob += b"\n"
        # One byte between the names, so that the blob of all is also what `data_hash` digests.
        self.ends = np.frombuffer(ends, dtype=np.int64)
        self.blob = np.frombuffer(blob, dtype=np.uint8)[:-1]

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


def in_unicode(names: list[str], where: str) -> list[str]:
    """Class names as every figure and file can hold them: bytes that are no UTF-8 become escapes. ValueError where two names
    become one, or are the same letters."""
    shown = [name if encodable(name) else printable(name) for name in names]
    twice = next((name for name in shown if shown.count(name) > 1), None) if len(set(shown)) < len(shown) else None
    if twice is not None:
        raise ValueError(f"two classes of {where} would both be written as {twice}, since the name of one is no UTF-8: rename "
                         "that one")
    first: dict[str, str] = {}
    for name in shown:
        if first.setdefault(composed(name), name) != name:
            raise ValueError(f"two classes of {where} are the same letters, {ascii(first[composed(name)])} and {ascii(name)}: "
                             f"{FORMS}")
    return shown


def composed(name: str) -> str:
    """A name in Unicode's composed form; macOS writes names of files in the other one, in which an accent stands alone."""
    return unicodedata.normalize("NFC", name)


def encodable(name: str) -> bool:
    """Whether a name is Unicode throughout."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(mode: int) -> str:
    """What something is, by its mode."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. OSError for anything else: a pipe would wait for its writer without end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"{kind_of(mode)}, not a file")
    return open(path, "rb")
