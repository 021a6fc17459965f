"""One's own pictures: a tree DIR/<split>/<class>/<image>, list files DIR/<split>.txt, or a folder without labels."""
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.imageset import FileImages, Record
from datasets.lists import read_list
from datasets.paths import PathTable, printable

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
NO_LABEL = "(no label)"


def class_order(names: list[str]) -> list[str]:
    """Folder names in label order: by value where all are whole numbers (2 before 10), else alphabetically."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def folder_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """The images of DIR/<split>/<class>/*.

    The classes and their order are those of DIR/train (or of DIR/classes.txt, one name a line, where that file is),
    for every split. Raises ValueError where a folder is missing or empty, a split has a class that train has not, or a
    link leads nowhere.
    """
    root = Path(data_path)
    if not (root / split).is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else None
        found = f"there are: {', '.join(map(printable, there)) or 'no folders'}" if there is not None else "no such folder"
        raise ValueError(f"--data_path {printable(root)} has no folder {split}/ ({found}): expected "
                         f"{printable(root)}/{split}/<class>/<image>, lists with --dataset list, or images without labels with "
                         "--dataset unlabeled (stage 1)")
    names = listed_classes(root) or class_order(subfolders(root / ("train" if (root / "train").is_dir() else split)))
    label_of = {name: label for label, name in enumerate(names)}
    paths, labels = [], []
    for folder in sorted(subfolders(root / split)):
        if folder not in label_of:
            raise ValueError(f"{printable(root / split / folder)} is a class that the training images do not have: known are "
                             f"{len(names)} classes, {', '.join(map(printable, names[:5]))} ...")
        files = sorted(entry.name for entry in image_files(root / split / folder))
        paths += [f"{split}/{folder}/{name}" for name in files]
        labels += [label_of[folder]] * len(files)
    if not paths:
        raise ValueError(f"no image below {printable(root / split)} (extensions {', '.join(sorted(EXTENSIONS))})")
    return FileImages(root, np.array(labels), names, record, PathTable(paths), source=str(root / split))


def list_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """The images of DIR/<split>.txt (`relative/path label` a line) or DIR/<split>.csv, relative to DIR.

    Class names are the lines of DIR/classes.txt, or else the numbers 0 to the largest label of train. Raises ValueError
    for a list that is missing or wrong (with file and line), and for a class without a training image, unless
    classes.txt says that there is such a class.
    """
    root = Path(data_path)
    names = listed_classes(root)
    if names is None:
        path = list_file(root, "train")
        labels = np.unique(read_list(path)[1])
        # Not by counting up to the largest label: one with nine digits would ask for gigabytes.
        if labels[-1] + 1 != len(labels):
            missing = int(np.flatnonzero(labels != np.arange(len(labels)))[0])
            raise ValueError(f"{printable(path)}: class {missing} of 0 to {labels[-1]} has no training image: number the "
                             f"classes without gaps, or name all of them in {printable(root / 'classes.txt')}, one a line")
        names = [str(k) for k in range(len(labels))]
    path = list_file(root, split)
    paths, labels = read_list(path, len(names))
    return FileImages(root, labels, names, record, paths, source=str(path))


def unlabeled_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """Every image below DIR, at any depth, for stage 1; `split` is train. Links to folders are not followed."""
    if split != "train":
        raise ValueError("--dataset unlabeled has no labels, so it is for stage 1 only: use folder or list for stage 2")
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f"--data_path {printable(root)} is no folder")
    paths = sorted(os.path.relpath(entry.path, root) for entry in walk(root))
    if not paths:
        raise ValueError(f"no image below {printable(root)} (extensions {', '.join(sorted(EXTENSIONS))})")
    return FileImages(root, np.zeros(len(paths), dtype=np.int64), [NO_LABEL], record, PathTable(paths), source=str(root))


def walk(folder: Path) -> Iterator[os.DirEntry]:
    """The image files below a folder."""
    yield from image_files(folder)
    with os.scandir(folder) as entries:
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in below:
        yield from walk(Path(path))


def image_files(folder: Path) -> Iterator[os.DirEntry]:
    """Files of `folder` with an image's extension. ValueError for a link that leads nowhere or in a circle."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                continue
            try:
                if entry.is_file():
                    yield entry
                elif not entry.is_dir():
                    raise FileNotFoundError
            except OSError:  # is_file raises for a circle, and is False for a link that leads nowhere
                raise ValueError(f"{printable(entry.path)} is a link that leads to no image: repair or remove it") from None


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, links to folders included."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if os.path.isdir(entry.path)]


def listed_classes(root: Path) -> list[str] | None:
    """Class names in label order out of DIR/classes.txt, None where there is none."""
    path = root / "classes.txt"
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines() if line.strip()]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice or not names:
        raise ValueError(f"{printable(path)} {f'names {printable(twice[0])} twice' if twice else 'names no class'}: expected "
                         "one class a line, in label order")
    return names


def list_file(root: Path, split: str) -> Path:
    """DIR/<split>.txt or DIR/<split>.csv; ValueError where there is neither or both."""
    there = [path for path in (root / f"{split}.txt", root / f"{split}.csv") if path.is_file()]
    if len(there) != 1:
        found = "it has both" if there else "it has neither"
        raise ValueError(f"--dataset list reads {split}.txt or {split}.csv in {printable(root)}, and {found}: lines "
                         "`relative/path label`, or a CSV with the columns path and label")
    return there[0]
