"""The files that define a public data set: where they are looked for, and which images and labels they name."""
import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.entries import is_file, is_folder
from datasets.lists import line_of, read_list, read_text, wrong_path
from datasets.paths import encodable, printable

# Names that the publishers give these files, split by split; of two alternatives the first that is whole is taken.
OFFICIAL = {
    "imagenet_lt": ({split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")},),
    "places_lt": ({split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")},),
    "inat18": ({"train": "train2018.json", "test": "val2018.json"},
               {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}),
}
SPLIT = re.compile(r"(?:^|[_.-])(train|val|test)(?:2018)?$", re.IGNORECASE)
# The labels of the flat ILSVRC2012 validation images.
VAL_LABELS = ("ImageNet_LT_test.txt", "LOC_val_solution.csv")


@dataclass
class Listing:
    """What one file says: names (N,) as bytes, labels (N,) int64, and class names where the file has such.

    where(index) is the place of an image in the file, for a message.
    """

    path: Path
    names: list[bytes]
    labels: np.ndarray
    where: Callable[[int], str]
    class_names: list[str] | None = None


def find_lists(name: str, given: Sequence[Path], source: Path) -> dict[str, Path]:
    """{split: file} for `name`, out of --lists (files, or folders that hold them) and then of `source`.

    A file that is given may have a name of its own, whose stem ends with train, val or test. ValueError where train or
    test is in none of them, and for a file whose split is unclear or given twice.
    """
    chosen: dict[str, Path] = {}
    for path in (path for path in given if not is_folder(path)):
        split = split_of(name, path)
        if split in chosen:
            raise ValueError(f"--lists gives {printable(chosen[split])} and {printable(path)} for the split {split}: give one")
        chosen[split] = path
    folders = [path for path in given if is_folder(path)] + [source]
    for names in OFFICIAL[name]:
        found = dict(chosen)
        for split, file in names.items():
            there = next((folder / file for folder in folders if is_file(folder / file)), None)
            if split not in found and there is not None:
                found[split] = there
        if {"train", "test"} <= set(found):
            return found
    wanted = ", or ".join(" and ".join(names[split] for split in ("train", "test")) for names in OFFICIAL[name])
    raise ValueError(f"{name} needs its official files {wanted}, which are not together in "
                     f"{', '.join(map(printable, folders))}: name their folder, or the files, with --lists")


def split_of(name: str, path: Path) -> str:
    """The split that a file's name says, in this project's words: iNaturalist evaluates on its val."""
    if not is_file(path):
        raise ValueError(f"--lists {printable(path)} is no file and no folder")
    match = SPLIT.search(path.stem)
    split = match.group(1).lower() if match else None
    known = OFFICIAL[name][-1]
    if name == "inat18":
        split = {"val": "test", "train": "train"}.get(split)
    if split not in known:
        raise ValueError(f"--lists {printable(path)}: the name does not say which split this is; expected names like "
                         f"{', '.join(known.values())}")
    return split


def read_listing(path: Path) -> Listing:
    """A list of `path label` lines, or iNaturalist's annotations where the file ends with .json. ValueError as these."""
    if path.suffix.lower() == ".json":
        return read_annotations(path)
    paths, labels = read_list(path)
    return Listing(path, [tidy(os.fsencode(name)) for name in paths], labels, lambda index: line_of(path, index))


def tidy(name: bytes) -> bytes:
    """A path without empty parts and dots, which some publishers begin theirs with."""
    if b"./" in name or b"//" in name:
        return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    return name


def read_annotations(path: Path) -> Listing:
    """images[].{file_name, id}, annotations[].{image_id, category_id}, categories[].{id, name} of a COCO-style file.

    The label is the category_id. Class names are the categories' where these are unique, Unicode and not empty, else the ids.
    ValueError for what is no such file: no JSON, keys that are missing, an image without a category or with two, an
    annotation without image, category ids with gaps, file names that leave the root or are no Unicode.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_slim)
    except OSError as error:
        raise ValueError(f"cannot read {printable(path)} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is no whole JSON ({error}): fetch it again") from None
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) and part for part in parts):
        raise ValueError(f"{printable(path)} needs the lists images, annotations and categories, as in train2018.json")
    images, annotations, categories = parts
    class_names = _category_names(path, categories)
    ids = _numbers(path, "images", images, (str, int))[:, 0]
    labels = _category_of(path, ids, _numbers(path, "annotations", annotations, (int, int)), len(class_names))
    names = []
    for index, (file_name, _) in enumerate(images):
        if not encodable(file_name):  # JSON can write half a character, which is no file's name
            raise ValueError(f"{printable(path)}: images[{index}]: {ascii(file_name)} is no Unicode: is it the official file?")
        names.append(tidy(file_name.encode()))
        if reason := wrong_path(names[-1]):
            raise ValueError(f"{printable(path)}: images[{index}]: {reason}")
    return Listing(path, names, labels, lambda index: f"{printable(path)}: images[{index}]", class_names)


def _slim(entry: dict):
    """(file_name, id) of an image, (image_id, category_id) of an annotation, others as they are: a fifth of the memory."""
    for keys in (("file_name", "id"), ("image_id", "category_id")):
        if keys[0] in entry and keys[1] in entry:
            return entry[keys[0]], entry[keys[1]]
    return entry


def _numbers(path: Path, key: str, entries: list, types: tuple[type, type]) -> np.ndarray:
    """The whole numbers of pairs as (N, 1 or 2) int64. ValueError where an entry is no pair of these types."""
    expected = "file_name and id" if key == "images" else "image_id and category_id"
    for index, entry in enumerate(entries):
        if not isinstance(entry, tuple) or type(entry[0]) is not types[0] or type(entry[1]) is not types[1]:
            raise ValueError(f"{printable(path)}: {key}[{index}] needs {expected}, the ids whole numbers: is it the official "
                             "file?")
    columns = [column for column in (0, 1) if types[column] is int]
    flat = (entry[column] for entry in entries for column in columns)
    try:
        return np.fromiter(flat, dtype=np.int64, count=len(entries) * len(columns)).reshape(-1, len(columns))
    except OverflowError:
        raise ValueError(f"{printable(path)}: {key} have ids beyond 64 bits: is it the official file?") from None


def _category_of(path: Path, ids: np.ndarray, annotations: np.ndarray, classes: int) -> np.ndarray:
    """The category (N,) of images with ids (N,), by annotations (M, 2) of image id and category id."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(again):
        raise ValueError(f"{printable(path)}: images[{order[again[0] + 1]}] has the id {ids[order[again[0]]]} of another image")
    place = np.searchsorted(ids[order], annotations[:, 0]).clip(max=len(ids) - 1)
    index, category = order[place], annotations[:, 1]
    for wrong, words in ((ids[index] != annotations[:, 0], "has an image_id that no image has"),
                         ((category < 0) | (category >= classes), f"has a category_id outside 0 to {classes - 1}")):
        if wrong.any():
            raise ValueError(f"{printable(path)}: annotations[{wrong.argmax()}] {words}: is it the official file?")
    labels = np.full(len(ids), -1, dtype=np.int64)
    labels[index] = category
    second = labels[index] != category
    if second.any():
        raise ValueError(f"{printable(path)}: annotations[{second.argmax()}] gives an image a second category: expected one")
    if (labels < 0).any():
        raise ValueError(f"{printable(path)}: images[{labels.argmin()}] has no annotation: the labels of test2018 were not "
                         "published, use train2018.json and val2018.json")
    return labels


def _category_names(path: Path, categories: list) -> list[str]:
    """Class names in the order of the ids, which must be 0 to C - 1."""
    names = {entry.get("id"): entry.get("name") for entry in categories if isinstance(entry, dict)}
    gap = next((label for label in range(len(categories)) if label not in names), None)
    if gap is not None:
        raise ValueError(f"{printable(path)}: none of the {len(categories)} categories has the id {gap}; labels are "
                         f"category ids, so these must be 0 to {len(categories) - 1}")
    ordered = [names[label] for label in range(len(categories))]
    usable = all(isinstance(name, str) and name.strip() and encodable(name) for name in ordered)
    return ordered if usable and len(set(ordered)) == len(ordered) else [str(label) for label in range(len(categories))]


def val_labels(given: Sequence[Path], source: Path) -> Path | None:
    """The file with the labels of ILSVRC2012's flat validation images: of --lists, else in `source`; None without one.

    Accepted are lists of `path label` by sorted wnid, such as ImageNet_LT_test.txt, and Kaggle's LOC_val_solution.csv.
    ValueError for others: the devkit's ILSVRC2012_validation_ground_truth.txt numbers the classes in its own order.
    """
    for path in given:
        if "ground_truth" in path.name:
            raise ValueError(f"--lists {printable(path)}: the devkit numbers classes in an order of its own, which this file "
                             f"does not say: give {' or '.join(VAL_LABELS)}, or sort val into folders by wnid, as "
                             "torchvision.datasets.ImageNet does")
    if len(given) > 1:
        raise ValueError(f"--lists takes one file here, the labels of the validation images, not {len(given)}")
    if not given or is_folder(given[0]):
        there = (folder / file for folder in (*given, source) for file in VAL_LABELS)
        path = next((path for path in there if is_file(path)), None)
        if path is None and given:
            raise ValueError(f"--lists {printable(given[0])} holds neither {' nor '.join(VAL_LABELS)}")
        return path
    if given[0].name not in VAL_LABELS and split_of("imagenet_lt", given[0]) != "test":
        raise ValueError(f"--lists {printable(given[0])}: expected the labels of ILSVRC2012's validation images, "
                         f"{' or '.join(VAL_LABELS)}")
    return given[0]


def read_val_labels(path: Path, wnids: list[str]) -> Listing:
    """A file of `val_labels`; wnids in label order. ValueError for a wnid that is none of them, and as `read_list`."""
    if path.name != "LOC_val_solution.csv":
        return read_listing(path)
    label_of, names, labels = {wnid: label for label, wnid in enumerate(wnids)}, [], []
    for index, row in enumerate(csv.reader(read_text(path).decode("utf-8", "surrogateescape").splitlines())):
        if index == 0:
            continue
        wnid = (row[1].split() or [""])[0] if len(row) == 2 else ""
        if wnid not in label_of:
            raise ValueError(f"{printable(path)}:{index + 1}: {printable(wnid)!r} is none of the {len(wnids)} classes of train")
        names.append(os.fsencode(f"{row[0]}.JPEG"))
        labels.append(label_of[wnid])
    if not names:
        raise ValueError(f"{printable(path)} names no image: expected the columns ImageId and PredictionString")
    return Listing(path, names, np.array(labels, dtype=np.int64), lambda index: f"{printable(path)}:{index + 2}")
