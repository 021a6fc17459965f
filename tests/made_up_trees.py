"""Made-up data sets with the folders, file names and lists of the public ones; the images are links to a few tiny JPEGs."""
import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.records import OFFICIAL_CLASSES, official_counts

SMALL = (5, 3, 2, 4)  # training images a class
# Evaluation images of each class in the official lists.
EVALUATION = {"imagenet": {"val": 20, "test": 50}, "places": {"val": 20, "test": 100}, "inat": {"test": 3}}
SCENES = ["airfield", "apartment_building/outdoor", "arena/hockey", "bakery/shop", "balcony/exterior", "balcony/interior"]
KINGDOMS = ["Plantae", "Insecta", "Aves", "Fungi"]
LIST_NAMES = {"imagenet": "ImageNet_LT_{}.txt", "places": "Places_LT_{}.txt", "inat": "iNaturalist18_{}.txt"}


@dataclass
class Made:
    """source: top of the tree.  lists: folder of the official lists.  classes: class folders in label order.
    labels: {split: {path of an image below `source`: its label}}, the truth."""

    source: Path
    lists: Path
    classes: list[str]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)


def build(name: str, root: Path, images: float | Sequence[int] = SMALL, evaluation: dict[str, int] | None = None,
          tree: str = "", lists: str = "", below: str = "", spare: int = 1) -> Made:
    """Make root/source and root/lists.

    name: imagenet (for imagenet_lt, _bal and _1k), places or inat.
    images: training images of each class, or a fraction of the official counts, at least one a class.
    evaluation: images a class of {split: number}, 2 by default; EVALUATION has the official numbers.
    tree, lists: where an image lies, and how the lists write that; see `_path`, of which "" is the official form.
    below: folders of the tree above train.  spare: images of each class in the training folders that no list names.
    """
    counts = images
    if isinstance(images, float):
        official = official_counts({"imagenet": "imagenet_lt", "places": "places_lt", "inat": "inat18"}[name])
        counts = np.maximum(1, official * images).astype(int).tolist()
    made = Made(root / "source", root / "lists", class_folders(name, len(counts)))
    made.lists.mkdir(parents=True)
    jpegs = tiny_jpegs(root)
    splits = images_of(name, counts, evaluation or dict.fromkeys(EVALUATION[name], 2), spare)
    for split, entries in splits.items():
        place = {_path(name, tree, made.classes[label], origin, file): (origin, label, file) for origin, label, file in entries}
        link_all([os.path.join(made.source, below, path) for path in place], jpegs)
        made.labels[split] = {os.path.join(below, path): label for path, (_, label, _) in place.items()}
        if split != "spare":
            write_lists(name, lists, made, split, list(place.values()))
    return made


def images_of(name: str, counts: Sequence[int], evaluation: dict[str, int], spare: int) -> dict[str, list]:
    """{split: [(folder it comes from, train or val, label, file name)]} in an order without system, the same each time."""
    number, next_of = 0, [0] * len(counts)
    splits: dict[str, list] = {}
    # The split val is made of training images, but for iNaturalist, which calls its test images val.
    for split, wanted in {"train": counts, **evaluation, "spare": spare}.items():
        entries = []
        for label in range(len(counts)):
            for _ in range(wanted if isinstance(wanted, int) else wanted[label]):
                number, next_of[label] = number + 1, next_of[label] + 1
                origin = "val" if split == "test" else "train"
                entries.append((origin, label, file_name(name, origin, label, next_of[label], number)))
        splits[split] = [entries[i] for i in np.random.default_rng(len(entries)).permutation(len(entries))]
    return splits


def file_name(name: str, origin: str, label: int, in_class: int, number: int) -> str:
    """As the publishers name them: in Places every class counts from 1, the validation images are counted through."""
    if name == "inat":
        return f"{number * 2654435761 % 2**32:08x}{number:024x}.jpg"
    if origin == "val":
        return f"ILSVRC2012_val_{number:08}.JPEG" if name == "imagenet" else f"Places365_val_{number:08}.jpg"
    return f"{wnid(label)}_{in_class}.JPEG" if name == "imagenet" else f"{in_class:08}.jpg"


def wnid(label: int) -> str:
    """Made up, sorted."""
    return f"n{1440764 + 977 * label:08}"


@functools.cache
def class_folders(name: str, classes: int) -> list[str]:
    """Class folders in label order."""
    if name == "imagenet":
        return [wnid(label) for label in range(classes)]
    if name == "inat":
        return [str(label) for label in range(classes)]
    names = SCENES + [f"{chr(97 + i % 26)}_scene_{i}" for i in range(OFFICIAL_CLASSES["places_lt"] - len(SCENES))]
    return sorted(names[:classes])


def _path(name: str, form: str, folder: str, origin: str, file: str) -> str:
    """Path of an image in a publisher's form.

    imagenet: train/<wnid>/, val/<wnid>/; "flat": val/ without folders.
    places: train/<class>/, val/<class>/; "flat": val/ without folders; "hyphen": indoor and outdoor after a hyphen;
    "data_256": data_256/<letter>/<class>/ and val_256/.
    inat: train_val2018/<kingdom>/<category>/; "folders": train/<category>/, val/<category>/.
    """
    if name == "inat":
        return f"{origin}/{folder}/{file}" if form == "folders" else f"train_val2018/{kingdom(int(folder))}/{folder}/{file}"
    if form == "data_256":
        return f"data_256/{folder[0]}/{folder}/{file}" if origin == "train" else f"val_256/{file}"
    if form == "flat" and origin == "val":
        return f"val/{file}"
    return f"{origin}/{folder.replace('/', '-') if form == 'hyphen' else folder}/{file}"


def kingdom(label: int) -> str:
    """Neighbours share one, as officially."""
    return KINGDOMS[label // 50 % len(KINGDOMS)]


def write_lists(name: str, form: str, made: Made, split: str, entries: list) -> None:
    """The official file of a split; form "json" for inat's annotations, else as `_path`."""
    official = {"test": "val"}.get(split, split) if name == "inat" else split
    if form == "json":
        (made.lists / f"{official}2018.json").write_text(json.dumps(annotations(made.classes, entries)))
        return
    lines = [f"{_path(name, form, made.classes[label], origin, file)} {label}\n" for origin, label, file in entries]
    (made.lists / LIST_NAMES[name].format(official)).write_text("".join(lines))


def annotations(classes: list[str], entries: list) -> dict:
    """With the fields of the official files; ids, categories and annotations are in other orders than the images."""
    ids = [610_639 * (i + 1) % 1_000_003 for i in range(len(entries))]
    images = [{"license": 3, "file_name": _path("inat", "", classes[label], origin, file), "rights_holder": f"holder of {file}",
               "height": 600, "width": 800, "id": i} for i, (origin, label, file) in zip(ids, entries, strict=True)]
    of_image = [{"id": i, "image_id": i, "category_id": entry[1]} for i, entry in zip(ids, entries, strict=True)]
    categories = [{"id": i, "name": f"Genus species{i}", "supercategory": kingdom(i)} for i in range(len(classes))]
    return {"info": {"year": 2018}, "licenses": [{"id": 3, "name": "CC", "url": ""}], "images": images,
            "annotations": of_image[::-1], "categories": categories[::-1]}


def tiny_jpegs(root: Path, number: int = 3) -> list[Path]:
    """A few JPEGs of 8 x 8, for links to lead to; hidden, so that no search below `root` meets them."""
    folder, draw = root / ".jpegs", np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.jpg" for i in range(number)]
    for path in paths:
        Image.fromarray(draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(path)
    return paths


def link_all(paths: list[str], jpegs: list[Path]) -> None:
    """Links at these paths, in turn to each of the JPEGs."""
    targets = [os.path.abspath(path) for path in jpegs]
    for folder in {os.path.dirname(path) for path in paths}:
        os.makedirs(folder, exist_ok=True)
    for i, path in enumerate(paths):
        os.symlink(targets[i % len(targets)], path)
