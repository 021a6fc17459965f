"""Likely causes of what `datasets.verify` found wrong: one line each, from what has gone wrong before for others."""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from datasets import records
from datasets.paths import PathTable
from datasets.verifying.scan import Hint

INAT_CLASSES = {5089: 2017, 1010: 2019, 10000: 2021}
INAT_TRAIN = {579_184: 2017, 265_213: 2019, 268_243: 2019, 2_686_843: 2021, 500_000: 2021}
PLACES_STANDARD_MOST = 5000  # images of the largest class folder of Places365-Standard; Challenge's go up to 40,000
CIFAR_FOLDERS = {"cifar10_lt": "cifar-10-batches-py", "cifar100_lt": "cifar-100-python"}


@dataclass
class Facts:
    """What the heuristics look at. counts: images of every class (C,) by split; paths: by split; root: folder of the images;
    hints: what is there instead of missing files (scan.py); missing, listed: files; top: names in the root;
    largest_folder: entries of the fullest folder that train lists."""

    name: str
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    paths: dict[str, PathTable] = field(default_factory=dict)
    root: str = ""
    hints: list[Hint] = field(default_factory=list)
    missing: int = 0
    listed: int = 0
    top: list[str] = field(default_factory=list)
    largest_folder: int = 0

    def size(self, split: str) -> int:
        """Images of a split, 0 where it is not there."""
        return int(self.counts[split].sum()) if split in self.counts else 0

    def official(self, split: str) -> int:
        """Images that the split should have, 0 where nobody knows."""
        return records.OFFICIAL_SIZES.get(self.name, {}).get(split, 0)

    def names(self, text: str) -> bool:
        """Whether a path in a list, or a file that lies where others are missing, has this in its name."""
        return any(text.encode() in paths.to_bytes() for paths in self.paths.values()) or any(
            text in name for hint in self.hints for name in hint.there)


def class_order(facts: Facts) -> str | None:
    """The official class counts, at other classes."""
    official, found = records.official_counts(facts.name), facts.counts.get("train")
    if official is None or found is None or len(found) != len(official) or labels_from_one(facts):
        return None
    differ = np.flatnonzero(found != official)
    off = np.abs(np.sort(found) - np.sort(official)).sum()
    if not len(differ) or off > 0.001 * official.sum():
        return None
    if 2 * len(differ) < len(found):
        return (f"the counts of classes {', '.join(map(str, differ[:6]))}{' ...' if len(differ) > 6 else ''} are the official "
                "ones, but of one another: their labels are swapped") if not off else None
    text = np.array(sorted(range(len(official)), key=str))
    if (found == official[text]).mean() > 0.9:
        return ("the labels follow folder names sorted as strings (0, 1, 10, 100, ...): prepare the data set with "
                "datasets.prepare, which orders them by value")
    return ("the labels are in another class order (the official counts are all there, but at other classes): prepare the "
            "data set again from the official lists")


def labels_from_one(facts: Facts) -> str | None:
    """Class 0 empty everywhere, no other class empty in train; where folders are the classes nobody counts."""
    found = facts.counts.get("train")
    if facts.name == "folder" or found is None or len(found) < 2:
        return None
    if any(counts[0] for counts in facts.counts.values()) or not (found[1:] > 0).all():
        return None
    return "the labels count from 1 (label 0 has no image, every other has some): subtract 1 from each"


def whole_ilsvrc(facts: Facts) -> str | None:
    """ImageNet-1K's size where a part of it is meant."""
    if facts.name in ("imagenet_lt", "imagenet_bal") and facts.size("train") == records.OFFICIAL_SIZES["imagenet_1k"]["train"]:
        return f"these lists are the whole ILSVRC2012, {facts.size('train'):,} images: take the list of {facts.name}"
    return None


def ilsvrc_year(facts: Facts) -> str | None:
    """File names of another year."""
    for year in (2010, 2011, 2013, 2014, 2015, 2017):
        if facts.name.startswith("imagenet") and facts.names(f"ILSVRC{year}_"):
            return f"these are ILSVRC{year} names: the lists are over ILSVRC2012, whose files are called ILSVRC2012_val_..."
    return None


def places_challenge(facts: Facts) -> str | None:
    """Places365-Challenge has file names of the Standard set, and other images behind them."""
    if facts.name != "places_lt" or not (facts.largest_folder > PLACES_STANDARD_MOST or "challenge" in facts.root.lower()):
        return None
    return "this is Places365-Challenge; the lists are over Places365-Standard, whose files have the same names"


def inat_year(facts: Facts) -> str | None:
    """iNaturalist of another year, by its classes, its size or its folders."""
    if facts.name != "inat18":
        return None
    classes = max((len(counts) for counts in facts.counts.values()), default=0)
    year = INAT_CLASSES.get(classes) or INAT_TRAIN.get(facts.size("train")) or next(
        (year for year in (2017, 2019, 2021) if facts.names(f"train_val{year}/") or facts.names(f"train{year}/")), None)
    return f"this is iNaturalist {year}; inat18 is iNaturalist 2018, 8,142 classes" if year else None


def test_is_train(facts: Facts) -> str | None:
    """An evaluation list that is the training list."""
    for split in ("val", "test"):
        train, other = facts.paths.get("train"), facts.paths.get(split)
        if train is not None and other is not None and len(train) == len(other) > 0 and (
                np.array_equal(np.sort(list(map(hash, train))), np.sort(list(map(hash, other))))):
            return f"the {split} list is the training list"
    return None


def swapped_evaluation(facts: Facts) -> str | None:
    """The lists val and test in each other's place."""
    val, test = facts.official("val"), facts.official("test")
    if val and test and val != test and (facts.size("test") == val or facts.size("val") == test):
        return f"the lists val and test are swapped: val has {val:,} images, test {test:,}"
    return None


def train_holds_evaluation(facts: Facts) -> str | None:
    """Training and evaluation images in one list."""
    for split in ("test", "val"):
        train, other = facts.official("train"), facts.official(split)
        if train and other and facts.size("train") == train + other:
            return f"the training list has the {other:,} images of {split} in it"
    return None


def other_set(facts: Facts) -> str | None:
    """The size of another data set's training list."""
    for name, sizes in records.OFFICIAL_SIZES.items():
        if facts.official("train") and name not in (facts.name, "imagenet_1k") and facts.size("train") == sizes.get("train"):
            return f"this is the training list of {name}"
    return None


def other_ending(facts: Facts) -> str | None:
    """Files that are there under a name that differs in case or extension."""
    for hint in facts.hints:
        if hint.twin:
            return (f"the files are called otherwise than in the list, such as {hint.twin} where the list has {hint.wanted}: "
                    "write the names into the list as they are")
    return None


def other_depth(facts: Facts) -> str | None:
    """Files that lie one folder higher than listed."""
    for hint in facts.hints:
        if hint.above:
            return f"the images lie one folder higher than the list has them, {hint.wanted}: prepare the data set again"
    return None


def other_root(facts: Facts) -> str | None:
    """Most files missing: the folder that paths are relative to is another."""
    if not 2 * facts.missing > facts.listed or other_ending(facts) or other_depth(facts):
        return None
    there = ", ".join(facts.top[:6]) + (" ..." if len(facts.top) > 6 else "")
    return (f"the paths are relative to another folder, or the images are not unpacked: the list begins with "
            f"{facts.hints[0].wanted}, and {facts.root} has {there or 'nothing in it'}")


def cifar_files(facts: Facts) -> str | None:
    """The archive as it was downloaded, or the other CIFAR."""
    if facts.name not in CIFAR_FOLDERS or CIFAR_FOLDERS[facts.name] in facts.top:
        return None
    others = [name for name, folder in CIFAR_FOLDERS.items() if name != facts.name and folder in facts.top]
    if others:
        return f"this is the folder of {others[0]}"
    archives = [name for name in facts.top if name.startswith("cifar") and name.endswith((".tar.gz", ".tgz", ".tar"))]
    if archives:
        return f"{archives[0]} is not unpacked: tar xf {archives[0]}"
    inside = [name for name in facts.top if name in ("data_batch_1", "train", "meta", "batches.meta")]
    return f"--data_path names the folder {CIFAR_FOLDERS[facts.name]} itself: name the one above" if inside else None


CAUSES: tuple[Callable[[Facts], str | None], ...] = (
    whole_ilsvrc, other_set, inat_year, train_holds_evaluation, swapped_evaluation, test_is_train, labels_from_one, class_order,
    places_challenge, ilsvrc_year, other_ending, other_depth, other_root, cifar_files)


def likely_causes(facts: Facts) -> list[str]:
    """Every cause that fits, most likely first."""
    return [words for words in (cause(facts) for cause in CAUSES) if words]
