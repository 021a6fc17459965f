"""A prepared data set: list files and a dataset.json beside them; the images stay where they are.

    OUT/dataset.json    name, root (folder of the images), class names and where their order comes from, and for each
                        split its list file, number of images, class counts, source and SHA-256
    OUT/train.txt       `path label` a line, the path relative to root; OUT/val.txt, OUT/test.txt alike
"""
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.described import Count, parse
from datasets.entries import is_file, is_folder, mode_of
from datasets.imageset import FileImages, Record
from datasets.lists import read_list, write_list
from datasets.paths import in_unicode, open_file, printable

FORMAT = "livt-dataset-1"
FILE = "dataset.json"
KEYS = {"name": str, "root": str, "class_order": str, "options": dict, "class_names": [str], "splits": {str: {
    "file": str, "images": Count, "source": str, "sha256": str, "class_counts": [Count]}}}


@dataclass
class Split:
    """Images of one split: paths relative to the root (str, or bytes where no UTF-8), labels (N,), and the words that
    say where the list comes from."""

    paths: list
    labels: np.ndarray
    source: str


def write_prepared(out: str | Path, name: str, root: str | Path, class_names: list[str], class_order: str,
                   splits: dict[str, Split], options: dict | None = None) -> dict:
    """Write a prepared data set and return what dataset.json holds.

    class_order: words, such as "wnid, sorted". options: what else decided the lists, such as a draw's seed. A folder that
    holds another data set, or files that are none of one, is left alone: ValueError.
    """
    out = Path(out)
    check_free(out, name)
    out.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "name": name, "root": str(Path(root).resolve()), "class_order": class_order,
              "options": options or {}, "class_names": list(class_names), "splits": {}}
    for key, split in splits.items():
        path = out / f"{key}.txt"
        write_list(path, split.paths, split.labels)
        record["splits"][key] = {"file": path.name, "images": len(split.labels), "source": split.source,
                                 "sha256": sha256(path),
                                 "class_counts": np.bincount(split.labels, minlength=len(class_names)).tolist()}
    part = out / f"{FILE}.part"
    part.write_text(json.dumps(record, indent=1))
    os.replace(part, out / FILE)
    return record


def check_free(out: Path, name: str) -> None:
    """ValueError where `out` holds something that writing data set `name` there would spoil."""
    if mode_of(out) and not is_folder(out):
        raise ValueError(f"--out {printable(out)} is a file: name a folder")
    if not is_folder(out) or not any(out.iterdir()):
        return
    there = read_description(out)["name"] if is_file(out / FILE) else None
    if there != name:
        held = f"the data set {there}" if there else "other files"
        raise ValueError(f"--out {printable(out)} holds {held}: name an empty or a new folder")


def read_description(folder: str | Path) -> dict:
    """The content of dataset.json in a prepared folder; a root that is relative is so to that folder. ValueError where there is
    none, or none of this format."""
    path = Path(folder) / FILE
    try:
        with open_file(path) as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"cannot read {printable(path)} ({error.strerror or error})") from None
    record = parse(data, path, FORMAT, "prepare the data set again", KEYS)
    if not record:
        raise ValueError(f"{printable(path)} is no description of a prepared data set (format {FORMAT}): make one with "
                         "python -m datasets.prepare")
    for split, entry in record["splits"].items():
        if entry["file"] != f"{split}.txt":
            raise ValueError(f"{printable(path)}: splits.{printable(split)}.file is {printable(entry['file'])}, expected "
                             f"{printable(split)}.txt: prepare the data set again")
    return {**record, "root": os.path.join(folder, record["root"])}


def prepared_images(name: str, data_path: str | Path | None, split: str, record: Record) -> FileImages:
    """One split of data set `name` out of its prepared folder.

    ValueError where data_path is no prepared folder of it, has no such split, or its list or images have moved.
    """
    how = f"python -m datasets.prepare {name} --source DIR --out OUT, then --data_path OUT"
    if data_path is None:
        raise ValueError(f"--dataset {name} needs --data_path, a prepared folder: {how}")
    folder = Path(data_path)
    if not is_file(folder / FILE):
        raise ValueError(f"--data_path {printable(folder)} is no prepared folder (it has no {FILE}): {how}")
    description = read_description(folder)
    if description["name"] != name:
        raise ValueError(f"{printable(folder)} holds the data set {description['name']}, not {name}")
    if split not in description["splits"]:
        raise ValueError(f"{printable(folder)} has no split {split}; it has {', '.join(description['splits'])}: use --split")
    entry = description["splits"][split]
    path, root = folder / entry["file"], Path(description["root"])
    paths, labels = read_list(path, len(description["class_names"]))
    if sha256(path) != entry["sha256"]:
        raise ValueError(f"{printable(path)} is not the list that was prepared (its SHA-256 differs from {FILE}'s): prepare "
                         "the data set again, or use a list of your own with --dataset list")
    if not mode_of(root / paths[0]):
        raise ValueError(f"no image at {printable(root / paths[0])}, the first of {printable(path)}: if the images have moved, "
                         f"set \"root\" in {printable(folder / FILE)} to where they are")
    images = FileImages(root, labels, in_unicode(description["class_names"], printable(folder)), record, paths,
                        source=f"{printable(path)} ({entry['source']})")
    images.list_file = path
    images.details = {"list_sha256": entry["sha256"], "class_order": description["class_order"],
                      "options": description["options"]}
    return images


def sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
