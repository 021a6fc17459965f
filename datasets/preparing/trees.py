"""Where the images of a list lie in a tree that has other folders than the list's author had."""
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.entries import LeftOut
from datasets.folder import class_images
from datasets.paths import printable
from datasets.preparing.classes import WNID
from datasets.preparing.sources import Listing
from util.run import progress

DEPTH = 4           # ILSVRC/Data/CLS-LOC/train
MOST_BELOW = 64     # a folder of more folders than that holds classes; what is in these, no search needs to see
MOST_FOLDERS = 10_000
SAMPLE = 64
PROBES = 8
NAMED = 5           # lines that a message names


class Reading(NamedTuple):
    """One way to read the paths of a list: tail(name, label) is a path below some folder of the tree."""

    changes: bool  # ways that change nothing go first
    tail: Callable[[bytes, int], bytes]


class Candidate(NamedTuple):
    """A reading below one folder of the tree (b"" for its root).

    sample: path of each sampled image and the file that it leads to, links resolved, or None.
    """

    rank: tuple[bool, bool]
    prefix: bytes
    tail: Callable[[bytes, int], bytes]
    sample: list[tuple[bytes, bytes | None]]

    @property
    def hits(self) -> int:
        return sum(file is not None for _, file in self.sample)


def folders_below(root: Path) -> dict[bytes, set[bytes]]:
    """{folder relative to root: names of the folders in it} of the folders that may hold classes, down to DEPTH.

    Folders of classes are not entered, nor those of one letter that Places365 sorts its classes into.
    """
    tree, queue = {}, [b""]
    while queue:
        folder = queue.pop()
        with os.scandir(join(os.fsencode(root), folder)) as entries:
            below = {entry.name for entry in entries if not entry.name.startswith(b".") and is_there(entry.is_dir)}
        tree[folder] = below
        if len(tree) > MOST_FOLDERS:
            raise ValueError(f"--source {printable(root)} holds more than {MOST_FOLDERS:,} folders: name the data set's own")
        if len(below) <= MOST_BELOW and (folder.count(b"/") + 1 < DEPTH or not folder):
            queue += [join(folder, name) for name in sorted(below, reverse=True) if len(name) > 1]
    return tree


def join(*parts: bytes) -> bytes:
    """A path out of parts, of which some may be empty."""
    return b"/".join(part for part in parts if part)


def readings(listing: Listing, classes: list[bytes] | None,
             spellings: tuple[Callable[[bytes], bytes], ...]) -> Iterator[Reading]:
    """Ways to read a list's paths: without leading folders, in the class folder of the label, or without any.

    A file name alone is a way only where it is unique within the list: in Places every class has a 00004851.jpg.
    """
    for drop in range(max(1, min(name.count(b"/") for name in listing.names))):
        yield Reading(drop > 0, lambda name, _, drop=drop: name.split(b"/", drop)[drop])
    for spelling in spellings if classes else ():
        folders = [spelling(name) + b"/" for name in classes]
        yield Reading(True, lambda name, label, folders=folders: folders[label] + base(name))
    if len({base(name) for name in listing.names}) == len(set(listing.names)):
        yield Reading(True, lambda name, _: base(name))


def base(name: bytes) -> bytes:
    """The last part of a path."""
    return name.rpartition(b"/")[2]


def find_images(listing: Listing, root: Path, tree: dict[bytes, set[bytes]], classes: list[bytes] | None,
                spellings: tuple[Callable[[bytes], bytes], ...]) -> list[bytes]:
    """Paths (N,) below root of the images of a list, all by one rule: a reading of its paths below one folder of the tree.

    The rule is found on a sample (see `choose`) and then held against every line. classes: class folders in label order,
    if known. tree: as `folders_below`. ValueError where no rule leads to a file, two rules to different files, one line to
    none (naming it, and how many there are), or two lines to one file.
    """
    encoded, labels = os.fsencode(root), listing.labels.tolist()
    places = np.unique(np.linspace(0, len(labels) - 1, SAMPLE).astype(int)).tolist()
    found = [candidate for reading in readings(listing, classes, spellings)
             for candidate in try_reading(reading, [(listing.names[i], labels[i]) for i in places], encoded, tree)]
    if not found:
        raise ValueError(f"{listing.where(0)}: no file {printable(listing.names[0])} below {printable(root)}, nor one for any "
                         "other line that was tried, as it stands, with other leading folders, with or without class folders: "
                         "name the folder that holds the data set's images with --source")
    chosen = choose(listing, places, root, found)
    paths = [join(chosen.prefix, chosen.tail(name, label)) for name, label in zip(listing.names, labels, strict=True)]
    check_files(listing, root, paths)
    return paths


def try_reading(reading: Reading, sample: list[tuple[bytes, int]], root: bytes,
                tree: dict[bytes, set[bytes]]) -> Iterator[Candidate]:
    """The folders of the tree below which a reading leads to files."""
    tails = [reading.tail(name, label) for name, label in sample]
    probes = range(0, len(tails), max(1, len(tails) // PROBES))
    for prefix, below in tree.items():
        # Most folders are ruled out by their names, without a look at the disk.
        if all(b"/" in tails[i] and tails[i].partition(b"/")[0] not in below for i in probes):
            continue
        paths = [join(prefix, tail) for tail in tails]
        if any(os.path.isfile(join(root, paths[i])) for i in probes):
            files = [os.path.realpath(join(root, path)) if os.path.isfile(join(root, path)) else None for path in paths]
            yield Candidate((reading.changes, prefix != b""), prefix, reading.tail, list(zip(paths, files, strict=True)))


def choose(listing: Listing, places: list[int], root: Path, candidates: list[Candidate]) -> Candidate:
    """The candidate to go by; places: index in the list of each sampled image.

    It is the one that changes the list's paths least, of those that lead to files about as often as the best: a tree that
    lacks a few images so stays the one that the list names, beside a whole copy of another size. A candidate that never
    leads an image to another file than this one does, and leads more of them to one, is taken instead (another spelling
    of some classes). ValueError where another one changes as little and does lead to another file.
    """
    best = max(candidate.hits for candidate in candidates)
    likely = [candidate for candidate in candidates if candidate.hits > best / 2]
    least = min(likely, key=lambda candidate: (candidate.rank, -candidate.hits))
    agreeing = []
    for other in likely:
        at = next((i for i, (one, two) in enumerate(zip(least.sample, other.sample, strict=True))
                   if None not in (one[1], two[1]) and one[1] != two[1]), None)
        if at is None:
            agreeing.append(other)
        elif other.rank == least.rank:
            raise ValueError(f"{listing.where(places[at])}: {printable(listing.names[places[at]])} may be "
                             f"{printable(least.sample[at][0])} or {printable(other.sample[at][0])} below {printable(root)}: "
                             "name as --source a folder that holds one of them (it may be one of links)")
    return max(agreeing, key=lambda candidate: candidate.hits)


def check_files(listing: Listing, root: Path, paths: list[bytes]) -> None:
    """ValueError for lines that lead to no file, or to the same, by one look into every folder."""
    by_folder, repeated = defaultdict(dict), []
    for index, path in enumerate(paths):
        folder, _, name = path.rpartition(b"/")
        other = by_folder[folder].setdefault(name, index)
        if other != index and listing.names[other] == listing.names[index]:
            repeated.append((index, other))
        elif other != index:
            raise ValueError(f"{listing.where(index)}: {printable(listing.names[index])} and {printable(listing.names[other])} "
                             f"({listing.where(other)}) would both be {printable(path)} below {printable(root)}: the folders "
                             "of the tree do not tell them apart")
    if repeated:
        lines = [f"{listing.where(index)}: {printable(listing.names[index])} is listed already ({listing.where(other)})"
                 for index, other in repeated[:NAMED]]
        raise ValueError(f"{several(lines, len(repeated))}: {len(repeated):,} of {len(paths):,} lines name an image again: "
                         "take the list as it was published, or leave them out")
    missing = []
    for folder, wanted in progress(by_folder.items(), len(by_folder), f"folders of {listing.path.name}"):
        try:
            with os.scandir(join(os.fsencode(root), folder)) as entries:
                for entry in entries:
                    if entry.name in wanted and is_there(entry.is_file):
                        del wanted[entry.name]
        except (FileNotFoundError, NotADirectoryError):
            pass  # all of its images are missing
        missing += wanted.values()
    if missing:
        lines = [f"{listing.where(i)}: no file {printable(paths[i])}"
                 + f" (from {printable(listing.names[i])})" * (listing.names[i] != paths[i]) for i in sorted(missing)[:NAMED]]
        raise ValueError(f"{several(lines, len(missing))}: {len(missing):,} of {len(paths):,} lines lead to no file below "
                         f"{printable(root)}: unpack the images again, or take the list that fits")


def is_there(question: Callable[[], bool]) -> bool:
    """The answer of an entry's is_file or is_dir, which raise for a link that leads in a circle."""
    try:
        return question()
    except OSError:
        return False


def several(words: list[str], number: int) -> str:
    """The first few of `number` things, and dots for the rest."""
    return "; ".join(words) + "; ..." * (number > len(words))


def class_tree(root: Path, tree: dict[bytes, set[bytes]], split: str) -> bytes | None:
    """The folder named `split` that holds folders of images named by wnid; None without one, ValueError with several.

    Kaggle's Annotations have such folders too, of another kind of file.
    """
    there = {}
    for folder, below in sorted(tree.items(), key=lambda item: (item[0].count(b"/"), item[0])):
        first = min(filter(WNID.fullmatch, below), default=None) if base(folder) == split.encode() else None
        if first is not None and class_images(root, os.fsdecode(join(folder, first)), LeftOut()):
            there.setdefault(os.path.realpath(join(os.fsencode(root), folder)), folder)
    if len(there) > 1:
        several = ", ".join(map(printable, there.values()))
        raise ValueError(f"{printable(root)} has several folders {split} of wnids ({several}): name as --source one that holds "
                         "the original")
    return next(iter(there.values()), None)


def read_class_tree(root: Path, folder: bytes, below: set[bytes],
                    wnids: list[bytes] | None = None) -> tuple[list[bytes], np.ndarray, list[bytes]]:
    """Images of folder/<wnid>/*, sorted by wnid and name: paths below root, labels (N,), and the wnids in label order.

    wnids: those that have to be there. ValueError for other folders, and for a class without an image.
    """
    where = printable(join(os.fsencode(root), folder))
    strange = sorted(name for name in below if not WNID.fullmatch(name))
    if strange:
        raise ValueError(f"{where} holds the folder {printable(strange[0])}, which is no wnid (n and 8 digits): take it out")
    names = sorted(below)
    if wnids is not None and names != wnids:
        wrong = sorted(set(names) ^ set(wnids))[0]
        raise ValueError(f"{where} {'has' if wrong in below else 'lacks'} the class {printable(wrong)}, unlike train: unpack "
                         "both again")
    paths, counts, left_out = [], [], LeftOut()
    for name in progress(names, len(names), f"folders of {printable(folder)}"):
        files = sorted(map(os.fsencode, class_images(root, os.fsdecode(join(folder, name)), left_out)))
        if not files:
            raise ValueError(f"{where}/{printable(name)} holds no image: unpack it again")
        paths += files
        counts.append(len(files))
    left_out.tell()
    return paths, np.repeat(np.arange(len(names)), counts), names
