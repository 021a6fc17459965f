"""Prepare a public data set: write its lists and a dataset.json; the images stay where they are.

    python -m datasets.prepare imagenet_lt  --source ILSVRC2012 --lists ImageNet_LT --out data/imagenet_lt
    python -m datasets.prepare imagenet_bal --source ILSVRC2012 --per_class 160 --out data/imagenet_bal
    python -m datasets.prepare imagenet_1k  --source ILSVRC2012 --out data/imagenet_1k
    python -m datasets.prepare inat18       --source iNat2018 --out data/inat18
    python -m datasets.prepare places_lt    --source Places365 --lists Places_LT --out data/places_lt
    python -m datasets.prepare cifar100_lt  --out data/cifar

Then train with `--dataset NAME --data_path OUT`.
"""
import os
from pathlib import Path

import numpy as np

from datasets import build_dataset
from datasets.cifar import CLASSES, download
from datasets.entries import is_folder, mode_of
from datasets.longtail import draw, indices_hash
from datasets.paths import printable
from datasets.prepared import Split, check_free, write_prepared
from datasets.preparing.classes import IMAGENET, INAT, PLACES, ClassRule, check_evaluation, training_classes
from datasets.preparing.sources import OFFICIAL, Listing, find_lists, read_listing, read_val_labels, val_labels
from datasets.preparing.trees import class_tree, find_images, folders_below, read_class_tree
from datasets.records import OFFICIAL_CLASSES, OFFICIAL_SIZES, official_counts
from util.args import Parser, run_command
from util.metrics import groups
from util.run import say

BY_LISTS = {"imagenet_lt": IMAGENET, "places_lt": PLACES, "inat18": INAT}
BY_TREE = ("imagenet_1k", "imagenet_bal")
NAMES = (*BY_LISTS, *BY_TREE, *CLASSES)
PER_CLASS = 160  # Table 8 of the paper and its released draw; section 5.1 says 116


def prepare_lists(name: str, source: Path, given: list[Path], out: Path) -> dict:
    """imagenet_lt, places_lt and inat18: official lists over a tree of the original images. Returns dataset.json."""
    rule, files = BY_LISTS[name], find_lists(name, given, source)
    tree = folders_below(source)
    train = read_listing(files["train"])
    folders = training_classes(train, rule)
    names = train.class_names or [os.fsdecode(folder) for folder in folders]
    splits = {"train": _split(train, source, tree, folders, rule)}
    for split in (key for key in ("val", "test") if key in files):
        listing = read_listing(files[split])
        check_evaluation(listing, rule, train.path, names, folders)
        splits[split] = _split(listing, source, tree, folders, rule)
    return write_prepared(out, name, source, names, f"{rule.order} ({files['train'].name})", splits)


def _split(listing: Listing, source: Path, tree: dict, folders: list[bytes] | None, rule: ClassRule) -> Split:
    paths = find_images(listing, source, tree, folders, rule.spellings)
    words = f"{printable(listing.path)}, {printable(listing.names[0])} is {printable(paths[0])}"
    return Split(paths, listing.labels, words)


def prepare_tree(name: str, source: Path, given: list[Path], out: Path, per_class: int, data_seed: int) -> dict:
    """imagenet_1k, and imagenet_bal: the tree train/<wnid>/*, or a draw of per_class images of each class of it.

    The test images are ILSVRC2012's validation images: val/<wnid>/*, or a flat folder with their labels in a file.
    """
    tree = folders_below(source)
    folder = class_tree(source, tree, "train")
    if folder is None:
        raise ValueError(f"--source {printable(source)} has no folder train/<wnid>/ (such as train/n01440764), down to "
                         "ILSVRC/Data/CLS-LOC/train: name the folder that holds train and val of ILSVRC2012")
    paths, labels, wnids = read_class_tree(source, folder, tree[folder])
    words, options = f"all files of {printable(folder)}/<wnid>", {}
    if name == "imagenet_bal":
        counts = np.bincount(labels)
        if counts.min() < per_class:
            raise ValueError(f"--per_class {per_class}: {printable(folder)}/{printable(wnids[counts.argmin()])} has only "
                             f"{counts.min()} images: ask for at most that, or unpack the images again")
        drawn = draw(labels, np.full(len(wnids), per_class), data_seed)
        options = {"per_class": per_class, "data_seed": data_seed, "indices_hash": indices_hash(drawn)}
        words = f"{per_class} a class, draw {data_seed}, of {len(labels)} files of {printable(folder)}/<wnid>"
        paths, labels = [paths[index] for index in drawn.tolist()], labels[drawn]
    splits = {"train": Split(paths, labels, words), "test": _validation(source, tree, given, wnids)}
    names = [os.fsdecode(wnid) for wnid in wnids]
    return write_prepared(out, name, source, names, f"{IMAGENET.order} (folders of {printable(folder)})", splits, options)


def _validation(source: Path, tree: dict, given: list[Path], wnids: list[bytes]) -> Split:
    """ILSVRC2012's validation images: by --lists, or by their folders, or by a file of their labels in `source`."""
    folder, path = class_tree(source, tree, "val"), val_labels(given, source)
    if folder is not None and not given:
        paths, labels, _ = read_class_tree(source, folder, tree[folder], wnids)
        return Split(paths, labels, f"all files of {printable(folder)}/<wnid>")
    if path is None:
        raise ValueError(f"{printable(source)} has no folder val/<wnid>/, and no file that labels the validation images: give "
                         "ImageNet_LT_test.txt or Kaggle's LOC_val_solution.csv with --lists")
    names = [os.fsdecode(wnid) for wnid in wnids]
    listing = read_val_labels(path, names)
    check_evaluation(listing, IMAGENET, source, names, wnids)
    return _split(listing, source, tree, wnids, IMAGENET)


def prepare_cifar(name: str, out: Path) -> dict:
    """Download the official files into `out`; the long tail is drawn in training. Returns counts like dataset.json's."""
    download(name, out)
    splits = {split: build_dataset(name, split, str(out)) for split in ("train", "test")}
    return {"class_names": splits["train"].class_names, "splits": {
        split: {"images": len(images), "class_counts": images.class_counts.tolist()} for split, images in splits.items()}}


def format_counts(record: dict) -> str:
    """A table of the splits of a dataset.json: images, classes that have any, images of the largest and the smallest class.

    many, medium, few: classes of more than 100, 20 to 100, and fewer than 20 training images.
    """
    lines = [["split", "images", "classes", "largest", "smallest", "many", "medium", "few"]]
    for split, entry in record["splits"].items():
        counts = np.array(entry["class_counts"])
        sizes = [mask.sum() for mask in groups(counts).values()] if split == "train" else ["-"] * 3
        lines.append([split, f"{entry['images']:,}", f"{(counts > 0).sum():,}", f"{counts.max():,}", f"{counts.min():,}",
                      *map(str, sizes)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def differences(name: str, record: dict) -> list[str]:
    """What a prepared set has differently from the official one, a line each; empty where nothing is known to differ."""
    words = []
    for split, size in OFFICIAL_SIZES[name].items():
        images = record["splits"][split]["images"] if split in record["splits"] else None
        if images is None:
            words.append(f"no split {split}: {OFFICIAL[name][0][split]} was not found")
        elif images != size:
            words.append(f"{split} has {images:,} images, the official one {size:,}")
    if len(record["class_names"]) != OFFICIAL_CLASSES[name]:
        return [*words, f"{len(record['class_names']):,} classes, officially {OFFICIAL_CLASSES[name]:,}"]
    official = official_counts(name)
    counts = np.array(record["splits"]["train"]["class_counts"])
    if official is not None and (counts != official).any():
        wrong = np.flatnonzero(counts != official)
        label = wrong[0]
        words.append(f"{len(wrong):,} classes have other numbers of training images than officially, the first is {label} "
                     f"({printable(record['class_names'][label])}): {counts[label]:,}, officially {official[label]:,}")
    return words


def check(args) -> None:
    """Raise ValueError for flags that the set does not take, or lacks."""
    if args.name not in NAMES:
        raise ValueError(f"nothing to prepare for {args.name!r}; known: {', '.join(NAMES)} (folder, list and unlabeled are "
                         "used as they are)")
    for flag in ("per_class", "data_seed"):
        if getattr(args, flag) is not None and args.name != "imagenet_bal":
            raise ValueError(f"--{flag} {getattr(args, flag)} chooses the draw of imagenet_bal, which {args.name} has not: "
                             "leave it out")
    if args.per_class is not None and args.per_class < 1:
        raise ValueError(f"--per_class must be at least 1, not {args.per_class}")
    if args.name in CLASSES:
        if args.source is not None or args.lists:
            raise ValueError(f"{args.name} is downloaded into --out: leave out --source and --lists")
        return
    if args.source is None:
        raise ValueError(f"{args.name} needs --source DIR, the folder that holds the original images")
    if not is_folder(args.source):
        raise ValueError(f"--source {printable(args.source)} is no folder")
    for path in args.lists:
        if not mode_of(path):
            raise ValueError(f"--lists {printable(path)} does not exist")


def main(args) -> dict:
    """Prepare, and print what is there; returns the content of dataset.json (for CIFAR its class names and counts)."""
    check(args)
    out = Path(args.out)
    try:
        if args.name in CLASSES:
            record = prepare_cifar(args.name, out)
        else:
            check_free(out, args.name)
            record = _prepare_files(args, Path(args.source), [Path(path) for path in args.lists], out)
    except OSError as error:
        raise ValueError(f"cannot read or write {printable(error.filename or out)} ({error.strerror}): see that --source can "
                         "be read and --out written") from None
    say(f"{args.name} in {printable(out)}\n\n{format_counts(record)}\n")
    if args.name in CLASSES:
        say("train is the long tail of imbalance factor 100, drawn when it is read; --imb_factor chooses another")
        return record
    different = differences(args.name, record)
    for words in different:
        say(f"note: {words}")
    if different:
        say(f"note: this is another publisher's list or a part of the set; python -m datasets.verify {args.name} --data_path "
            f"{printable(out)} looks closer")
    return record


def _prepare_files(args, source: Path, given: list[Path], out: Path) -> dict:
    if args.name in BY_LISTS:
        return prepare_lists(args.name, source, given, out)
    per_class = PER_CLASS if args.per_class is None else args.per_class
    return prepare_tree(args.name, source, given, out, per_class, args.data_seed or 0)


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("write the lists of a public data set over its original images")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--source", metavar="DIR", help="folder of the original images; lists may name other folders above")
    parser.add_argument("--lists", nargs="+", default=[], metavar="PATH", help="official lists or annotations, or their "
                        "folders (also looked for in --source); for imagenet_1k and imagenet_bal the labels of a flat val "
                        "folder, ImageNet_LT_test.txt or LOC_val_solution.csv")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder for the lists and dataset.json, for "
                        "CIFAR of the download")
    parser.add_argument("--per_class", type=int, metavar="N", help=f"images of each class of imagenet_bal ({PER_CLASS} by "
                        "default, as Table 8 says; section 5.1 says 116)")
    parser.add_argument("--data_seed", type=int, metavar="S", help="which draw of imagenet_bal (0 by default)")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
