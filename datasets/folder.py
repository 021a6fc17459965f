"""One's own pictures: a tree DIR/<split>/<class>/<image>, list files DIR/<split>.txt, or a folder without labels."""
import os
import shlex
from pathlib import Path

import numpy as np

from datasets.entries import EXTENSIONS, Contents, LeftOut, is_file, is_folder, look, pictures_below
from datasets.imageset import FileImages, Record
from datasets.lists import line_of, read_list, read_text
from datasets.paths import FORMS, PathTable, composed, in_unicode, printable

NO_LABEL = "(no label)"
LOOKED_AT = 5  # folders that are looked into, and named
BESIDE = "lying beside the class folders and not in one"
BELOW = "lying in folders within a class folder: its images lie in itself"
LINKED = "links to folders are not followed"


def class_order(names: list[str]) -> list[str]:
    """Folder names in label order: by value where all are whole numbers (2 before 10), else alphabetically."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def folder_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """The images of DIR/<split>/<class>/*.

    The classes and their order are those of DIR/train (or of DIR/classes.txt, one name a line, where that file is),
    for every split. Pictures that the layout leaves out, and hidden folders, are told in a note. Raises ValueError where a
    folder is missing, empty or cannot be read, a class has no training image (unless classes.txt names it), a split has a
    class that train has not, or a link leads nowhere.
    """
    root, left_out = Path(data_path), LeftOut()
    check_split(root, split)
    listed = listed_classes(root)
    top = contents(root, split, of_classes=True, known=listed or ())
    names = listed or class_order(top.folders if split == "train" or not is_folder(root / "train") else
                                  contents(root, "train", of_classes=True).folders)
    shown, label_of = in_unicode(names, printable(root)), {name: label for label, name in enumerate(names)}
    left_out.keep(split, top, BESIDE)
    paths, labels = [], []
    for folder in top.folders:
        if folder not in label_of:
            raise ValueError(f"{printable(root / split / folder)} {unknown_class(folder, names)}")
        files = class_images(root, f"{split}/{folder}", left_out)
        paths += files
        labels += [label_of[folder]] * len(files)
    if not paths:
        why = "; ".join(left_out.notes()) or f"extensions {', '.join(sorted(EXTENSIONS))}"
        raise ValueError(f"no image below {printable(root / split)} ({why})")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if split == "train" and listed is None and len(empty):
        raise ValueError(f"{printable(root / split / names[empty[0]])} holds no image, so this class has none to train on: "
                         f"remove the folder, or name all classes in {printable(root / 'classes.txt')}, one a line"
                         + "".join(f"; {note}" for note in left_out.notes()))
    left_out.tell()
    return FileImages(root, np.array(labels), shown, record, PathTable(paths), source=printable(root / split))


def unknown_class(folder: str, names: list[str]) -> str:
    """What is wrong with a class folder that is none of `names`, in words."""
    twin = next((name for name in names if composed(name) == composed(folder)), None)
    if twin is not None:
        return f"is {ascii(folder)}, and the class {ascii(twin)} has the same letters: {FORMS}"
    return (f"is a class that the training images do not have: known are {', '.join(map(printable, names[:5]))}"
            f"{', ...' * (len(names) > 5)}, {len(names)} in all")


def check_split(root: Path, split: str) -> None:
    """ValueError where DIR/<split> is no folder; it says what is there, and what to do where that seems to be the classes."""
    if is_folder(root / split):
        return
    there = contents(root, "").folders if is_folder(root) else None
    classes = [name for name in there or () if name not in ("train", "val", "test")]
    if split == "train" and classes and all(contents(root, name).images for name in classes[:LOOKED_AT]):
        few = " ".join(shlex.quote(printable(name)) for name in classes[:LOOKED_AT])
        rest = f" and the {len(classes) - LOOKED_AT:,} others" * (len(classes) > LOOKED_AT)
        raise ValueError(f"--data_path {printable(root)} has no folder train/, and images in folders that may be the classes: "
                         f"put these into it, cd {shlex.quote(printable(root))}; mkdir train; mv {few} train/{rest}")
    found = f"there are: {', '.join(map(printable, there)) or 'no folders'}" if there is not None else "no such folder"
    raise ValueError(f"--data_path {printable(root)} has no folder {split}/ ({found}): expected "
                     f"{printable(root)}/{split}/<class>/<image>, lists with --dataset list, or images without labels with "
                     "--dataset unlabeled (stage 1)")


def class_images(root: Path, folder: str, left_out: LeftOut) -> list[str]:
    """Paths of the images in one class folder, relative to root."""
    inside = contents(root, folder)
    left_out.keep(folder, inside)
    for name in inside.folders:
        left_out.keep_folder(f"{folder}/{name}/", number_below(root / folder / name), BELOW)
    return [f"{folder}/{name}" for name in inside.images]


def contents(root: Path, folder: str, **options) -> Contents:
    """`look` of a folder below root. ValueError where it cannot be read, or holds a link that leads nowhere or an image that
    is no file."""
    try:
        found = look(root / folder, **options)
    except OSError as error:
        raise ValueError(cannot_read(root / folder, error)) from None
    for name, fault in found.faults:
        raise ValueError(f"{printable(root / folder / name)} is {fault}: repair or remove it")
    return found


def number_below(folder: Path) -> int:
    """`pictures_below`. ValueError where a folder cannot be read."""
    try:
        return pictures_below(folder)
    except OSError as error:
        raise ValueError(cannot_read(error.filename or folder, error)) from None


def cannot_read(folder: str | Path, error: OSError) -> str:
    """What to say of a folder that cannot be listed."""
    return f"cannot read the folder {printable(folder)} ({error.strerror}): see that it can be listed, or take it out"


def list_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """The images of DIR/<split>.txt (`relative/path label` a line) or DIR/<split>.csv, relative to DIR.

    Class names are the lines of DIR/classes.txt, or else the numbers 0 to the largest label of train. Raises ValueError
    for a list that is missing or wrong (with file and line), and for a class without a training image, unless
    classes.txt says that there is such a class.
    """
    root = Path(data_path)
    names = listed_classes(root)
    if names is None:
        names = numbered_classes(root, list_file(root, "train"))
    path = list_file(root, split)
    paths, labels = read_list(path, len(names))
    images = FileImages(root, labels, in_unicode(names, printable(root)), record, paths, source=printable(path))
    images.list_file = path
    return images


def numbered_classes(root: Path, path: Path) -> list[str]:
    """The numbers 0 to the largest label of a training list. ValueError where one of them has no image."""
    labels = read_list(path)[1]
    present = np.unique(labels)
    # Not by counting up to the largest label: one with nine digits would ask for gigabytes.
    if present[-1] + 1 != len(present):
        missing = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise ValueError(f"{line_of(path, int(labels.argmax()))}: label {present[-1]}, but class {missing} of 0 to "
                         f"{present[-1]} has no training image: number the classes without gaps, or name all of them in "
                         f"{printable(root / 'classes.txt')}, one a line")
    return [str(k) for k in range(len(present))]


def unlabeled_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """Every image below DIR, at any depth, for stage 1; `split` is train. Hidden folders and links to folders are left out,
    and told in a note. Raises ValueError where a folder cannot be read, or a link leads nowhere."""
    if split != "train":
        raise ValueError("--dataset unlabeled has no labels, so it is for stage 1 only: use folder or list for stage 2")
    root, left_out = Path(data_path), LeftOut()
    if not is_folder(root):
        raise ValueError(f"--data_path {printable(root)} is no folder")
    paths = walk(root, left_out)
    if not paths:
        why = "; ".join(left_out.notes()) or f"extensions {', '.join(sorted(EXTENSIONS))}"
        raise ValueError(f"no image below {printable(root)} ({why})")
    left_out.tell()
    return FileImages(root, np.zeros(len(paths), dtype=np.int64), [NO_LABEL], record, PathTable(paths), source=printable(root))


def walk(root: Path, left_out: LeftOut) -> list[str]:
    """Paths of the images below a folder, relative to it, sorted."""
    paths, below = [], [""]
    while below:
        folder = below.pop()
        inside = contents(root, folder)
        left_out.keep(folder, inside)
        paths += [os.path.join(folder, name) for name in inside.images]
        for path in (os.path.join(folder, name) for name in inside.folders):
            if os.path.islink(root / path):
                left_out.keep_folder(f"{path}/", number_below(root / path), LINKED)
            else:
                below.append(path)
    return sorted(paths)


def listed_classes(root: Path) -> list[str] | None:
    """Class names in label order out of DIR/classes.txt, None where there is none."""
    path = root / "classes.txt"
    if not is_file(path):
        return None
    text = read_text(path, "one class a line, in label order").decode("utf-8", "surrogateescape")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if twice or not names:
        raise ValueError(f"{printable(path)} {f'names {printable(twice[0])} twice' if twice else 'names no class'}: expected "
                         "one class a line, in label order")
    return names


def list_file(root: Path, split: str) -> Path:
    """DIR/<split>.txt or DIR/<split>.csv; ValueError where there is neither or both."""
    there = [path for path in (root / f"{split}.txt", root / f"{split}.csv") if is_file(path)]
    if len(there) != 1:
        found = "it has both" if there else "it has neither"
        raise ValueError(f"--dataset list reads {split}.txt or {split}.csv in {printable(root)}, and {found}: lines "
                         "`relative/path label`, or a CSV with the columns path and label")
    return there[0]
