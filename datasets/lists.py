"""List files: an image and its label a line, `relative/path label`, or a CSV with the columns path and label."""
import csv
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from datasets.paths import PathTable, open_file, printable

LONGEST = 4095  # bytes of a path; longer ones no system opens


class ListError(ValueError):
    """A line that cannot be read; the message begins with file:line."""


def read_list(path: str | Path, num_classes: int | None = None) -> tuple[PathTable, np.ndarray]:
    """Paths and labels (N,) int64 of a list file, in its order.

    The label is the last word of a line, so that a path may contain blanks; blank lines and CRLF are accepted. With
    num_classes labels must be below it. ListError names file and line of the first line that is wrong, and the number
    of such lines: no label, a label that is no whole number, negative or too large, a path that is empty, absolute or
    leads out of the data's folder by `..`. ValueError for a file that is missing, empty or no text.
    """
    problems: list[str] = []
    paths, labels = [], []
    for _, name, label in rows(path, lambda number, words: problems.append(f"{printable(path)}:{number}: {words}"),
                                    num_classes):
        paths.append(name)
        labels.append(label)
    if problems:
        more = f" ({len(problems)} lines are wrong; python -m datasets.verify lists them)" if len(problems) > 1 else ""
        raise ListError(problems[0] + more)
    if not paths:
        expected = "rows below the header" if is_csv(path) else "lines `relative/path label`"
        raise ValueError(f"{printable(path)} lists no image: expected {expected}")
    return PathTable(paths), np.array(labels, dtype=np.int64)


def rows(path: str | Path, report: Callable[[int, str], None],
         num_classes: int | None = None) -> Iterator[tuple[int, bytes, int]]:
    """(line number from 1, path, label) of every line that is right; report(number, words) for every one that is not."""
    data = read_text(Path(path))
    for number, name, label in (csv_rows if is_csv(path) else word_rows)(path, data, report):
        # isdigit of bytes is true for ASCII digits only; nothing else is a label, "+1", "1_0" and "1.0" included.
        if not label.isdigit() or len(label) > 9:
            report(number, wrong_label(label))
        elif num_classes is not None and int(label) >= num_classes:
            report(number, f"label {int(label)} of {printable(name)}, but the labels of {num_classes} classes end at "
                           f"{num_classes - 1}")
        elif reason := wrong_path(name):
            report(number, reason)
        else:
            yield number, name, int(label)


def is_csv(path: str | Path) -> bool:
    """Whether a list is a CSV, by its name."""
    return Path(path).suffix.lower() == ".csv"


def line_of(path: Path, index: int) -> str:
    """file:line of image `index` of a list that can be read."""
    return f"{printable(path)}:{next(itertools.islice(rows(path, lambda *_: None), index, None))[0]}"


def read_text(path: Path, expected: str = "lines `relative/path label`") -> bytes:
    """The bytes of a list file without a byte order mark. ValueError, with what is expected, where it is no text."""
    try:
        with open_file(path) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"cannot read the list file {printable(path)} ({error.strerror or error})") from None
    if b"\0" in data:
        raise ValueError(f"{printable(path)} is no list file in UTF-8 (it contains zero bytes): expected {expected}")
    return data.removeprefix(b"\xef\xbb\xbf")


def word_rows(path, data: bytes, report) -> Iterator[tuple[int, bytes, bytes]]:
    """Lines `relative/path label`."""
    for number, line in enumerate(io.BytesIO(data), 1):
        words = line.strip().rsplit(None, 1)
        if len(words) == 2:
            yield number, *words
        elif words:
            report(number, f"{printable(words[0])!r} has no label: expected `relative/path label`")


def csv_rows(path, data: bytes, report) -> Iterator[tuple[int, bytes, bytes]]:
    """Rows of a CSV whose header names the columns path and label; other columns are left alone."""
    reader = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    header, number = csv_header(path, reader), reader.line_num + 1
    columns = header.index("path"), header.index("label")
    try:
        for cells in reader:
            name, label = ("".join(cells[k:k + 1]).strip().encode("utf-8", "surrogateescape") for k in columns)
            if any(cells[len(header):]):
                report(number, f"{len(cells)} cells under a header of {len(header)}: a path with a comma in it stands in "
                               "double quotes")
            elif name or label:
                yield number, name, label
            number = reader.line_num + 1  # a cell may hold line breaks: a row is called by its first line
    except csv.Error as error:
        report(number, f"no line of a CSV ({error}): see that every double quote is closed")


def csv_header(path, reader) -> list[str]:
    """Names of a CSV's columns, path and label once each among them; ListError where they are not."""
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ListError(f"{printable(path)}:1: no header of a CSV ({error}): expected the columns path and label") from None
    if not {"path", "label"} <= set(header):
        found = ", ".join(map(printable, header))
        raise ListError(f"{printable(path)}:1: the header of a CSV must name the columns path and label, found "
                        f"{found[:100] or 'nothing'}{'...' * (len(found) > 100)}")
    if header.count("path") > 1 or header.count("label") > 1:
        twice = "path" if header.count("path") > 1 else "label"
        raise ListError(f"{printable(path)}:1: the header of a CSV names {twice} twice")
    return header


def wrong_label(label: bytes) -> str:
    """Why a word is no label."""
    text = printable(label)
    if not text:
        return "a path and no label: labels count from 0"
    if text.startswith("-") and text[1:].isdigit():
        return f"label {text} is negative: labels count from 0"
    return f"label {text!r} is no whole number: labels count from 0"


def wrong_path(name: bytes) -> str | None:
    """Why a path of a list may not be read, None if it may."""
    if not name:
        return "no path before the label"
    if len(name) > LONGEST:
        return f"{printable(name[:60])}... has {len(name):,} bytes, and a path at most {LONGEST:,}"
    if name.startswith(b"/"):
        return f"{printable(name)} is absolute: paths in a list are relative to the data's folder"
    if b"\0" in name:
        return f"{printable(name)} has a zero byte in it"
    if b"\r" in name:
        return f"{printable(name[:60])} has a carriage return in it: end lines with LF or CRLF"
    # The parts are looked at only where two dots occur at all: this runs for each of half a million lines.
    if b".." in name and b".." in name.split(b"/"):
        return f"{printable(name)} leads out of the data's folder: `..` is not allowed in a list"
    return None


def write_list(path: str | Path, paths, labels) -> None:
    """Write lines `relative/path label`. ValueError for a path that such a line cannot hold."""
    lines = []
    for name, label in zip(paths, labels, strict=True):
        encoded = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        if encoded != encoded.strip() or b"\n" in encoded or b"\r" in encoded:
            raise ValueError(f"a list cannot hold the file name {printable(name)} (a line break, or blanks at its ends): "
                             "rename the file")
        lines.append(b"%s %d\n" % (encoded, label))
    Path(path).write_bytes(b"".join(lines))
