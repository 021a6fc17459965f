"""What `datasets.verify` has found: rows of a table, problems, and notes."""
from dataclasses import dataclass, field
from typing import NamedTuple

from datasets.verifying.listing import Problem


class Row(NamedTuple):
    """One check of the table. right: None where there was nothing to compare with, or nothing was looked at."""

    what: str
    expected: str
    found: str
    right: bool | None


@dataclass
class Verdict:
    """Rows of the table, every problem in the order of the checks, and notes on what may be meant so."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, kind: str, good: str, problems: list[Problem], expected: str) -> None:
        """One check as a row: `good` is what was found where nothing is wrong."""
        self.problems += problems
        self.rows.append(Row(kind, expected, plural(len(problems), "problem") if problems else good, not problems))

    def compare(self, what: str, expected: str | None, found: str) -> None:
        """Two texts that have to be equal, where anything is expected."""
        self.rows.append(Row(what, expected or "", found, None if expected is None else expected == found))


def plural(number: int, word: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def table(rows: list[Row]) -> list[str]:
    """Aligned plain text."""
    cells = [("what", "expected", "found", "")]
    cells += [(row.what, row.expected or "-", row.found, {True: "ok", False: "WRONG", None: "-"}[row.right]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple("-" * width for width in widths))
    return ["", *("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)]
