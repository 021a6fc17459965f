"""What `datasets.verify` checks beside the files themselves (scan.py): pure functions with a list of problems as
result, over listings (listing.py) and class counts."""
import os
import re
from collections.abc import Iterator

import numpy as np

from datasets import records
from datasets.paths import printable
from datasets.verifying.listing import EMPTY_CLASS, Listing, Problem, names
from util.metrics import FEW_BELOW, MANY_ABOVE, groups

# Folders that hold a split and are no part of a class's name, in the layouts of the publishers.
SPLIT_FOLDERS = {b"train", b"val", b"test", b"train2018", b"val2018", b"train_val2018", b"data_256", b"val_256", b"test_256",
                 b"data_large", b"val_large"}
STRAY = 0.1  # beyond this share of lines that contradict their folders, the folders are not those of classes


def path_keys(listing: Listing) -> np.ndarray:
    """(N,) int64, equal where paths name the same file (`a//b`, `./a/b` and `a/b`). Hashes of 64 bits: whoever finds two
    equal compares the paths."""
    return np.fromiter((hash(same_path(name)) for name in names(listing.paths)), dtype=np.int64, count=len(listing))


def same_path(name: bytes) -> bytes:
    """A path without what does not change it."""
    return os.path.normpath(name) if b"//" in name or b"./" in name else name


def listed_twice(listing: Listing, keys: np.ndarray) -> list[Problem]:
    """Lines whose path stands on an earlier line."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    first = order[np.searchsorted(ordered, ordered[again])]  # the sort is stable: the earliest line of each key
    problems = []
    for i, j in sorted(zip(order[again].tolist(), first.tolist(), strict=True)):
        if same_path(os.fsencode(listing.paths[i])) == same_path(os.fsencode(listing.paths[j])):
            label = "" if listing.labels[i] == listing.labels[j] else (f", with label {listing.labels[j]} there and "
                                                                       f"{listing.labels[i]} here")
            problems.append(Problem("listed twice", listing.where(i),
                                    f"{listing.subject(i)}is listed already ({listing.where(j)}){label}"))
    return problems


def shared_paths(train: Listing, train_keys: np.ndarray, other: Listing, other_keys: np.ndarray) -> list[Problem]:
    """Paths of an evaluation split that train has too."""
    return [Problem("in train and evaluation", other.where(i), f"{other.subject(i)}is a training image too "
                    f"({train.where(j)})") for i, j in shared(train_keys, other_keys)
            if same_path(os.fsencode(other.paths[i])) == same_path(os.fsencode(train.paths[j]))]


def shared_content(train: Listing, train_keys: np.ndarray, other: Listing, other_keys: np.ndarray) -> list[Problem]:
    """Files of an evaluation split whose bytes are those of a training image of another path; keys: hashes (N,) of the
    bytes, 0 for files that were not read."""
    return [Problem("same file in train and evaluation", other.where(i), f"{other.subject(i)}has the same bytes as the "
                    f"training image {train.called(j)}") for i, j in shared(train_keys, other_keys)
            if other_keys[i] and same_path(os.fsencode(other.paths[i])) != same_path(os.fsencode(train.paths[j]))]


def copies_within(train: Listing, keys: np.ndarray) -> list[str]:
    """A note on training images whose bytes are those of an earlier one of another path, and one on those of them that have
    another label than it; none where there are none. keys: as of `shared_content`."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    first = order[np.searchsorted(ordered, ordered[again])]
    pairs = [(i, j) for i, j in zip(order[again].tolist(), first.tolist(), strict=True)
             if same_path(os.fsencode(train.paths[i])) != same_path(os.fsencode(train.paths[j]))]
    if not pairs:
        return []
    i, j = min(pairs)
    notes = [f"{len(pairs):,} training image{'s have' if len(pairs) > 1 else ' has'} the same bytes as another: "
             f"{train.called(i)} those of {train.called(j)}{', ...' * (len(pairs) > 1)}"]
    differ = [(i, j) for i, j in pairs if train.labels[i] != train.labels[j]]
    if differ:
        i, j = min(differ)
        notes.append(f"{len(differ):,} of them under another label, so that one of the two is wrong: {train.called(i)} under "
                     f"{train.labels[i]}, {train.called(j)} under {train.labels[j]}{', ...' * (len(differ) > 1)}")
    return notes


def shared(keys: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int]]:
    """(position in others, first position in keys) of every key of others that keys have."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.searchsorted(ordered, others)
    for i in np.flatnonzero(at < len(keys)).tolist():
        if ordered[at[i]] == others[i]:
            yield i, int(order[at[i]])


def empty_classes(counts: np.ndarray, class_names: list[str]) -> list[Problem]:
    """Classes without a training image; counts: training images (C,)."""
    return [Problem(EMPTY_CLASS, class_place(k, class_names), "has no training image") for k in np.flatnonzero(counts == 0)]


def class_place(k: int, class_names: list[str]) -> str:
    """How a class is named in a message."""
    name = printable(class_names[k])
    return f"class {k}" if name == str(k) else f"class {k} ({name})"


def count_problems(split: str, counts: np.ndarray, expected: np.ndarray, class_names: list[str]) -> list[Problem]:
    """Classes of a split that have another number of images than expected (C,)."""
    return [Problem(f"{split}: images a class", class_place(k, class_names), f"has {counts[k]:,} images, expected "
                    f"{expected[k]:,}") for k in np.flatnonzero(counts != expected)]


def expected_counts(name: str, split: str, num_classes: int, options: dict) -> np.ndarray | None:
    """Images of every class (C,) that a split has to have, None where nobody knows. Official evaluation splits have the
    same number of each class; so has ImageNet-BAL's train."""
    if split == "train":
        counts = records.official_counts(name)
        if counts is None and name == "imagenet_bal" and "per_class" in options:
            counts = np.full(num_classes, options["per_class"])
    else:
        images, classes = records.OFFICIAL_SIZES.get(name, {}).get(split), records.OFFICIAL_CLASSES.get(name)
        counts = np.full(classes, images // classes) if images else None
    return counts if counts is not None and len(counts) == num_classes else None


def histogram(counts: np.ndarray, width: int = 40) -> str:
    """Classes by their number of training images (C,), in the groups few, medium and many, as lines of text."""
    edges = [0, 1, 5, 10, FEW_BELOW, 50, MANY_ABOVE + 1, 200, 500, 1000, 2000, 5000]
    edges = [edge for edge, after in zip(edges, [*edges[1:], np.inf], strict=True)
             if after > counts.min() and edge <= counts.max()] + [int(counts.max()) + 1]
    lines, seen = [], ""
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        members = int(((counts >= low) & (counts < high)).sum())
        group = next(name for name, mask in groups([low]).items() if mask[0])
        span = f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}"
        bar = "#" * -(-members * width // len(counts))
        lines.append(f"{group if group != seen else '':<6}  {span:>14}  {members:>6,}  {bar}".rstrip())
        seen = group
    return "\n".join(lines)


def label_problems(splits: dict[str, Listing], class_names: list[str], folder_names: list[str] | None = None
                   ) -> tuple[list[Problem], int]:
    """Lines that lie in the folder of another class than their label's, and how many lines lie in the folder of a class.

    A folder is that of the class it is called after (folder_names: C names; None where names say nothing), else of the
    label that most of its lines have, in train if train has the folder. The latter only against labels that have a folder
    too, and only where at most STRAY of a split's lines contradict: pictures sorted by camera are not sorted by class.
    Where most lines of a split are wrong its labels are in another order, which is one problem.
    """
    numbers: dict[bytes, int] = {}
    of = {split: np.array([numbers.setdefault(class_folder(folder), len(numbers)) for folder in listing.folders[0]],
                          dtype=np.int64)[listing.folders[1]] for split, listing in splits.items() if len(listing)}
    lines = np.bincount(np.concatenate([*of.values(), np.empty(0, dtype=np.int64)]), minlength=len(numbers))
    named, flat = called_after(list(numbers), folder_names or []), np.array([not folder for folder in numbers], dtype=bool)
    if 2 * lines[named >= 0].sum() <= lines.sum():
        named[:] = -1
    owner, problems, checked = named.copy(), [], 0
    for split, folder in of.items():
        labels = splits[split].labels
        own = np.where(owner >= 0, owner, majority(folder, labels, len(numbers)))
        own[flat] = -1
        wrong, having = astray(folder, labels, own, named)
        if (wrong & (owner[folder] < 0)).sum() > STRAY * having:
            own = owner
            wrong, having = astray(folder, labels, own, named)
        positions, checked = np.flatnonzero(wrong), checked + having
        whole = 2 * len(positions) > len(labels)
        for i in positions[:1] if whole else positions:
            words = stray(splits[split], int(i), int(own[folder[i]]), class_names)
            problems.append(Problem("labels and folders", splits[split].where(i), words + whole * (
                f", and so it is with {len(positions):,} of {having:,} lines: the labels are in another order")))
        owner = own
    return problems, checked


def astray(folder: np.ndarray, labels: np.ndarray, owner: np.ndarray, named: np.ndarray) -> tuple[np.ndarray, int]:
    """Which lines (N,) lie in another class's folder, and how many lie in one of a class; owner, named: (F,) labels."""
    known = owner[folder] >= 0
    return known & (owner[folder] != labels) & ((named[folder] >= 0) | np.isin(labels, owner)), int(known.sum())


def stray(listing: Listing, i: int, owner: int, class_names: list[str]) -> str:
    """The words for line i, which lies in the folder of class `owner`."""
    label = class_place(int(listing.labels[i]), class_names).replace("class", "label", 1)
    return f"{label}, but {printable(listing.paths[i])} lies in the folder of {class_place(owner, class_names)}"


def class_folder(folder: bytes) -> bytes:
    """A folder without the parts that name a split: train/cat and val/cat are one class."""
    return b"/".join(part for part in folder.split(b"/") if part not in SPLIT_FOLDERS)


def called_after(folders: list[bytes], class_names: list[str]) -> np.ndarray:
    """(F,) label of the class whose name ends each folder's path, -1 for none. Places365 writes one class as
    /a/arena/hockey, a/arena/hockey and arena-hockey, ImageNet's names may have words after the wnid."""
    label_of: dict[bytes, int] = {}
    for k, name in enumerate(class_names):
        plain = os.fsencode(name).strip(b"/")
        parts = plain.split(b"/")
        label_of[b"-".join(parts[1:] if len(parts) > 1 and len(parts[0]) == 1 else parts)] = k
        if re.match(rb"n\d{8}\b", plain):
            label_of[plain[:9]] = k
    found = np.full(len(folders), -1, dtype=np.int64)
    for number, folder in enumerate(folders):
        parts = folder.split(b"/")
        ends = (b"-".join(parts[i:]) for i in range(len(parts)))
        found[number] = next((label_of[end] for end in ends if end in label_of), -1)
    return found


def majority(folder: np.ndarray, labels: np.ndarray, num_folders: int) -> np.ndarray:
    """(F,) label that more than half of the lines of each folder have, -1 where none has; folder, labels: (N,)."""
    width = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(folder * width + labels, return_counts=True)
    order = np.lexsort((counts, pairs // width))
    top = np.full(num_folders, -1, dtype=np.int64)
    top[(pairs // width)[order]] = order  # of equal folders the last assignment stays: the most frequent label
    lines = np.bincount(folder, minlength=num_folders)
    return np.where((top >= 0) & (2 * counts[top] > lines), (pairs % width)[top], -1)
