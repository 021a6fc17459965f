"""A data set as it lies on the disk, right or wrong. `build_dataset` stops at the first thing that is wrong; this goes on
and keeps all of them, for `datasets.verify`."""
import hashlib
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets import DATASETS, LAYOUTS, embedded
from datasets.cifar import CLASSES, official_files
from datasets.entries import EXTENSIONS, Contents, LeftOut, is_file, is_folder, look, pictures_below
from datasets.folder import BELOW, BESIDE, LINKED, NO_LABEL, class_order, list_file, listed_classes, unknown_class
from datasets.lists import rows
from datasets.paths import PathTable, in_unicode, printable
from datasets.prepared import FILE, read_description
from datasets.records import RECORDS
from datasets.shards import FILE as SHARDS_FILE
from datasets.shards import ShardImages
from datasets.shards import read_description as read_shards_description
from datasets.verifying.listing import CLASSES_FILE, EMPTY_CLASS, LEFT_OUT, LINES, UNCHANGED, Listing, Problem

SPLITS = ("train", "val", "test")
CANNOT = "this folder cannot be read ({})"
NO_IMAGE = f"no image in its folders (extensions {', '.join(sorted(EXTENSIONS))})"


@dataclass
class Inventory:
    """All splits that are there, in the order train, val, test. options: of datasets.prepare; checked: kinds of problems
    that reading finds, beside those of files and classes; problems: what was wrong while reading; left_out: what lies in
    the folders and is not read."""

    name: str
    root: Path
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, Listing] = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    shards: ShardImages | None = None

    @property
    def has_lists(self) -> bool:
        """Whether list files say which images there are."""
        return LINES in self.checked

    @property
    def has_files(self) -> bool:
        """Whether each image is a file."""
        return READERS[self.name] not in (read_arrays, read_shards)

    def report(self, kind: str, place, words: str) -> None:
        """Keep a problem."""
        self.problems.append(Problem(kind, printable(place), words))


def take_inventory(name: str, data_path: str | None) -> Inventory:
    """Read data set `name` of DATASETS. ValueError where there is nothing of it at data_path to be looked at."""
    if name not in READERS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(READERS)}")
    if (data_path is None) != (name == "embedded"):
        raise ValueError("embedded ships with the project: leave out --data_path" if data_path is not None else
                         f"{name} needs --data_path DIR: {LAYOUTS.get(name, 'where its files are')}")
    if data_path == "":
        raise ValueError("--data_path is empty (an unset variable?): name a folder")
    if name == "shards":
        return read_shards(name, str(data_path))
    if data_path is not None and not is_folder(data_path):
        raise ValueError(f"--data_path {printable(data_path)} is no folder")
    found = READERS[name](name, Path(data_path or embedded.FILE.parent))
    for path, number, why in found.left_out.pictures:
        what = "is left out" if number == 1 and not path.endswith("/") else f"{number:,} picture{'s' * (number != 1)} left out"
        found.report(LEFT_OUT, path, f"{what}, {why}")
    return found


def read_lines(found: Inventory, split: str, path: Path, num_classes: int | None) -> None:
    """Add the lines of a list file that are right as a split, and those that are wrong as problems."""
    paths, labels, lines = [], array("q"), array("q")
    try:
        for number, name, label in rows(path, lambda number, words: found.report(LINES, f"{path.name}:{number}", words),
                                        num_classes):
            paths.append(name)
            labels.append(label)
            lines.append(number)
        if not paths:
            found.report(LINES, path.name, "has no line that can be read: expected `relative/path label`")
    except ValueError as error:
        found.report(LINES, path.name, str(error))
    found.splits[split] = Listing(split, found.root, path.name, PathTable(paths), np.array(labels, dtype=np.int64),
                                  np.array(lines, dtype=np.int64))


def read_prepared(name: str, folder: Path) -> Inventory:
    """A folder of datasets.prepare."""
    if not is_file(folder / FILE):
        raise ValueError(f"--data_path {printable(folder)} is no prepared folder (it has no {FILE}): "
                         f"python -m datasets.prepare {name} --source DIR --out OUT makes one")
    description = read_description(folder)
    if description["name"] != name:
        raise ValueError(f"{printable(folder)} holds the data set {description['name']}, not {name}")
    found = Inventory(name, Path(description["root"]), description["class_names"], options=description["options"],
                      checked=(LINES, UNCHANGED))
    if not is_folder(found.root):
        found.report("files", found.root, f"no such folder of images: set \"root\" in {printable(folder / FILE)} to where "
                     "they are now")
    for split in (split for split in SPLITS if split in description["splits"]):
        entry = description["splits"][split]
        path = folder / entry["file"]
        read_lines(found, split, path, len(found.class_names))
        data = path.read_bytes() if is_file(path) else b""
        if data and hashlib.sha256(data).hexdigest() != entry["sha256"]:
            unix = hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest() == entry["sha256"]
            now, then = len(found.splits[split]), entry["images"]
            how = ("only its line ends were changed, to CRLF" if unix else "it has as many lines, and others" if now == then
                   else f"{now:,} lines can be read, {then:,} were written")
            found.report(UNCHANGED, entry["file"], f"is not the list that was prepared, its SHA-256 differs from "
                         f"that in {FILE} ({how}): prepare the data set again")
    return found


def read_lists(name: str, root: Path) -> Inventory:
    """DIR/<split>.txt or DIR/<split>.csv of one's own."""
    found = Inventory(name, root, checked=(LINES,))
    there = [split for split in SPLITS if any(is_file(root / f"{split}{ending}") for ending in (".txt", ".csv"))]
    if not there:
        raise ValueError(f"no list in {printable(root)}: {LAYOUTS['list']}")
    classes_of(found)
    for split in there:
        try:
            path = list_file(root, split)
        except ValueError as error:
            found.report(LINES, split, str(error))
            continue
        read_lines(found, split, path, len(found.class_names) if found.class_names else None)
        if not found.class_names:
            number_classes(found, found.splits[split])
    return found


def number_classes(found: Inventory, first: Listing) -> None:
    """Classes 0 to the largest label of train, or of the first split that there is. N images have at most N classes, which
    a mistyped label does not pass."""
    good = first.labels < len(first)
    found.class_names = [str(k) for k in range(first.labels[good].max(initial=-1) + 1)]
    if good.all():
        return
    for i in np.flatnonzero(~good):
        found.report(LINES, first.where(i), f"label {first.labels[i]}, but {len(first):,} images have at most as many "
                     "classes: number the classes from 0 without gaps")
    found.splits[first.split] = Listing(first.split, first.root, first.place, first.paths.take(np.flatnonzero(good)),
                                        first.labels[good], first.lines[good])


def classes_of(found: Inventory) -> None:
    """Keep the names of classes.txt in `found`, none where it is not there or cannot be used."""
    if is_file(found.root / CLASSES_FILE):
        found.checked = (*found.checked, CLASSES_FILE)
        try:
            found.class_names = listed_classes(found.root)
        except ValueError as error:
            found.report(CLASSES_FILE, CLASSES_FILE, str(error))


def read_folder(name: str, root: Path) -> Inventory:
    """A tree DIR/<split>/<class>/<image>."""
    found = Inventory(name, root, checked=(LEFT_OUT,))
    there = [split for split in SPLITS if is_folder(root / split)]
    if not there:
        raise ValueError(f"no folder train/, val/ or test/ in {printable(root)}: {LAYOUTS['folder']}")
    classes_of(found)
    listed, folders = found.class_names, {}
    for split in there:
        top = contents(found, split, of_classes=True, known=listed)
        found.left_out.keep(split, top, BESIDE)
        folders[split] = top.folders
    names = listed or class_order(folders[there[0]])
    try:
        found.class_names = in_unicode(names, printable(root))
    except ValueError as error:
        found.report("class names", root, str(error))
        found.checked += ("class names",)
        found.class_names = [*map(printable, names)]
    label_of = {name: label for label, name in enumerate(names)}
    for split in there:
        paths, labels = [], []
        for folder in folders[split]:
            if folder not in label_of:
                found.report(EMPTY_CLASS, f"{split}/{folder}", unknown_class(folder, names))
                continue
            files = class_images(found, f"{split}/{folder}")
            paths += files
            labels += [label_of[folder]] * len(files)
        if not paths:
            found.report("files", f"{split}/", NO_IMAGE)
        found.splits[split] = Listing(split, root, split, PathTable(paths), np.array(labels, dtype=np.int64))
    return found


def class_images(found: Inventory, folder: str) -> list[str]:
    """Paths of the images in one class folder, relative to the root."""
    inside = contents(found, folder)
    found.left_out.keep(folder, inside)
    for name in inside.folders:
        keep_folder(found, f"{folder}/{name}", BELOW)
    return [f"{folder}/{name}" for name in inside.images]


def keep_folder(found: Inventory, folder: str, why: str) -> None:
    """Count the pictures of a folder that is left out."""
    try:
        found.left_out.keep_folder(f"{folder}/", pictures_below(found.root / folder), why)
    except OSError as error:
        found.report("files", os.path.relpath(error.filename or folder, found.root), CANNOT.format(error.strerror))


def contents(found: Inventory, folder: str, **options) -> Contents:
    """`look` of a folder below the root; what is wrong with it is reported."""
    try:
        inside = look(found.root / folder, **options)
    except OSError as error:
        found.report("files", folder or ".", CANNOT.format(error.strerror))
        return Contents([], [], [], [], [])
    for name, fault in inside.faults:
        found.report("links" if fault.startswith("a link") else "files", os.path.join(folder, name), f"is {fault}: repair or "
                     "remove it")
    return inside


def read_unlabeled(name: str, root: Path) -> Inventory:
    """Every image below DIR; links to folders are not followed, as in training."""
    found, paths, below = Inventory(name, root, [NO_LABEL], checked=(LEFT_OUT,)), [], [""]
    while below:
        folder = below.pop()
        inside = contents(found, folder)
        found.left_out.keep(folder, inside)
        paths += [os.path.join(folder, image) for image in inside.images]
        for path in (os.path.join(folder, sub) for sub in inside.folders):
            if os.path.islink(root / path):
                keep_folder(found, path, LINKED)
            else:
                below.append(path)
    if not paths:
        found.report("files", ".", NO_IMAGE)
    found.splits["train"] = Listing("train", root, ".", PathTable(sorted(paths)), np.zeros(len(paths), dtype=np.int64))
    return found


def read_arrays(name: str, root: Path) -> Inventory:
    """A set in memory, whose files have a known hash: torchvision's MD5 of CIFAR, the project's SHA-256."""
    found = Inventory(name, root)
    for path, md5 in official_files(name).items():
        how = f"python -m datasets.prepare {name} --out DIR downloads it"
        if not is_file(root / path):
            found.report("files", path, f"no such file: {how}")
        elif hashlib.md5((root / path).read_bytes()).hexdigest() != md5:
            found.report("files", path, f"is damaged, its MD5 is not {md5}: remove it, {how} again")
    for split in SPLITS if not found.problems else ():
        if split == "val" and name in CLASSES:
            continue
        try:
            images = DATASETS[name](name, None if name == "embedded" else root, split, RECORDS[name])
        except ValueError as error:
            found.report("files", split, str(error))
            continue
        found.class_names = images.class_names
        found.splits[split] = Listing(split, root, images.source, None, images.labels)
    return found


def read_shards(name: str, place: str) -> Inventory:
    """Tar shards, of which shards.json says how many images of each class they hold."""
    description = read_shards_description(place)
    images = ShardImages(place, description)
    found = Inventory(name, Path(place), images.class_names, shards=images)
    labels = np.repeat(np.arange(len(images.class_names)), images.class_counts)
    found.splits[description["split"]] = Listing(description["split"], found.root, SHARDS_FILE, None, labels)
    return found


READERS: dict[str, Callable[[str, Path], Inventory]] = {
    "embedded": read_arrays, "cifar10_lt": read_arrays, "cifar100_lt": read_arrays,
    **dict.fromkeys(("imagenet_lt", "imagenet_bal", "imagenet_1k", "inat18", "places_lt"), read_prepared),
    "folder": read_folder, "list": read_lists, "unlabeled": read_unlabeled, "shards": read_shards,
}
