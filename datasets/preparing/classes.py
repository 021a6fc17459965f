"""Which class a folder of a public data set is, and whether its labels are in the order that they should be."""
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.paths import printable
from datasets.preparing.sources import Listing

WNID = re.compile(rb"n\d{8}")


@dataclass(frozen=True)
class ClassRule:
    """How a data set names its classes by folders.

    class_of: {folder of a list: class in it, or None where images of many classes lie together}, over all folders at once.
    spellings: functions class -> folder that a tree may keep it in.  order: where labels come from, in words.
    disorder(label, class, class before) -> why the label is wrong, or None.
    """

    class_of: Callable[[Iterable[bytes]], dict[bytes, bytes | None]]
    spellings: tuple[Callable[[bytes], bytes], ...]
    order: str
    disorder: Callable[[int, bytes, bytes | None], str | None]


def wnid_of(folders: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """train/n01440764 -> n01440764, val -> None."""
    last = {folder: folder.rpartition(b"/")[2] for folder in folders}
    return {folder: name if WNID.fullmatch(name) else None for folder, name in last.items()}


def scene_of(folders: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """data_256/a/apartment_building/outdoor -> apartment_building/outdoor, val_256 -> None.

    The class is what is left without the folders that all have in common, and without the letter that some trees put
    before. apartment_building-outdoor, as another publisher has it, is the same class.
    """
    parts = {folder: folder.split(b"/") for folder in folders}
    shared = os.path.commonpath(parts) if all(parts) else b""
    depth = len(shared.split(b"/")) if shared else 0
    parts = {folder: names[depth:] for folder, names in parts.items()}
    if all(len(names) > 1 and names[0] == names[1][:1] for names in parts.values()):
        parts = {folder: names[1:] for folder, names in parts.items()}
    return {folder: b"/".join(names).replace(b"-", b"/") or None for folder, names in parts.items()}


def category_of(folders: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """train_val2018/Plantae/7291 -> 7291; None where the last folder is no number."""
    last = {folder: folder.rpartition(b"/")[2] for folder in folders}
    return {folder: name if name.isdigit() else None for folder, name in last.items()}


def _wnid_disorder(label: int, name: bytes, before: bytes | None) -> str | None:
    if before is not None and name <= before:
        return f"comes after {printable(before)}: ImageNet's labels are the order of the sorted wnids"
    return None


def _category_disorder(label: int, name: bytes, _before: bytes | None) -> str | None:
    if int(name) != label:
        return ("is another category_id: iNaturalist's labels are its category ids (in a list by sorted folder names, 10 comes "
                "before 2)")
    return None


IMAGENET = ClassRule(wnid_of, (bytes,), "wnid, sorted", _wnid_disorder)
PLACES = ClassRule(
    scene_of,
    (bytes, lambda name: name.replace(b"/", b"-"),
     lambda name: name[:1] + b"/" + name, lambda name: name[:1] + b"/" + name.replace(b"/", b"-")),
    "label of the training list, the name is its class folder",
    lambda *_: None)
INAT = ClassRule(category_of, (), "category_id", _category_disorder)


def classes_in(listing: Listing, rule: ClassRule) -> dict[int, tuple[bytes, int]] | None:
    """{label: (its class folder, the first image of it)}, None where the list has no class folders.

    ValueError where a label has two class folders, a class folder two labels, or only some images one.
    """
    folders = [name.rpartition(b"/")[0] for name in listing.names]
    # Images of one folder and label are alike, so each such pair is looked at once.
    pairs: dict[tuple[bytes, int], int] = {}
    for index, pair in enumerate(zip(folders, listing.labels.tolist(), strict=True)):
        pairs.setdefault(pair, index)
    class_of = rule.class_of(dict.fromkeys(folders))
    if not any(class_of.values()):
        return None
    of_label: dict[int, tuple[bytes, int]] = {}
    of_class: dict[bytes, tuple[int, int]] = {}
    for (folder, label), index in pairs.items():
        name = class_of[folder]
        if name is None:
            raise ValueError(f"{listing.where(index)}: {printable(listing.names[index])} is in no class folder, unlike others "
                             "of the list")
        first, at = of_label.setdefault(label, (name, index))
        if first != name:
            raise ValueError(f"{listing.where(index)}: label {label} is the class folder {printable(name)} here, and "
                             f"{printable(first)} at {listing.where(at)}: a label must be one class")
        known, at = of_class.setdefault(name, (label, index))
        if known != label:
            raise ValueError(f"{listing.where(index)}: the class folder {printable(name)} has label {label} here, and {known} "
                             f"at {listing.where(at)}: a class must have one label")
    return of_label


def training_classes(listing: Listing, rule: ClassRule) -> list[bytes] | None:
    """Class folders in label order, of a training list; None where it has none, which only INAT's may.

    ValueError as `classes_in`, and for labels with gaps or in another order than the data set's.
    """
    counts = np.bincount(listing.labels, minlength=len(listing.class_names or []))
    if (counts == 0).any():
        raise ValueError(f"{printable(listing.path)}: no training image has label {counts.argmin()}, the labels go to "
                         f"{len(counts) - 1} ({listing.where(int(listing.labels.argmax()))}): expected no gaps")
    classes = classes_in(listing, rule)
    if classes is None:
        if listing.class_names is None:
            raise ValueError(f"{listing.where(0)}: {printable(listing.names[0])} is in no class folder, and a training list "
                             "without them does not say what its labels are: is it the official list?")
        return None
    before = None
    for label in range(len(counts)):
        name, index = classes[label]
        if reason := rule.disorder(label, name, before):
            raise ValueError(f"{listing.where(index)}: label {label} is {printable(name)}, which {reason}")
        before = name
    return [classes[label][0] for label in range(len(counts))]


def check_evaluation(listing: Listing, rule: ClassRule, train: Path, names: list[str], folders: list[bytes] | None) -> None:
    """ValueError where an evaluation list has a label or a class that training has not, or has differently.

    train: where the classes of training come from, their names, and their class folders if known, both in label order.
    """
    if listing.labels.max() >= len(names):
        index = int((listing.labels >= len(names)).argmax())
        raise ValueError(f"{listing.where(index)}: label {listing.labels[index]}, but the labels of the {len(names)} classes "
                         f"of {printable(train)} end at {len(names) - 1}")
    if listing.class_names not in (None, names):
        raise ValueError(f"{printable(listing.path)} has other categories than {printable(train)}: take both from one release")
    for label, (name, index) in (classes_in(listing, rule) or {}).items():
        if folders is not None and name != folders[label]:
            raise ValueError(f"{listing.where(index)}: label {label} is {printable(name)} here and {printable(folders[label])} "
                             f"in {printable(train)}: take all lists from one publisher")
