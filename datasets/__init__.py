"""Data sets by name: `build_dataset(name, split, ...)`."""
import os

from datasets import embedded
from datasets.cifar import cifar_images
from datasets.embedded import load as load_embedded
from datasets.folder import folder_images, list_images, unlabeled_images
from datasets.imageset import ArrayImages, ImageSet, Record
from datasets.longtail import draw, longtail_counts_of
from datasets.prepared import prepared_images
from datasets.records import RECORDS
from datasets.shards import PLACES, shard_images


def _embedded(name: str, data_path: str | None, split: str, record: Record) -> ImageSet:
    if data_path is not None:
        raise ValueError("--dataset embedded ships with the project: leave out --data_path")
    images, labels, ids = load_embedded(split)
    return ArrayImages(images, labels, embedded.CLASS_NAMES, record, ids, source=f"{embedded.FILE.name}:{split}")


# What --data_path has to name for a set whose place nobody knows but its owner.
LAYOUTS = {
    "folder": "a tree DIR/train/<class>/*, DIR/test/<class>/*",
    "list": "DIR/train.txt and DIR/test.txt, lines `relative/path label`, or .csv with the columns path and label",
    "unlabeled": "a folder with images at any depth, for stage 1",
    "shards": PLACES,
}

# Each takes (name, data_path, split, record).
DATASETS = {
    "embedded": _embedded,
    "cifar10_lt": cifar_images,
    "cifar100_lt": cifar_images,
    "imagenet_lt": prepared_images,
    "imagenet_bal": prepared_images,
    "imagenet_1k": prepared_images,
    "inat18": prepared_images,
    "places_lt": prepared_images,
    "folder": lambda _, *where: folder_images(*where),
    "list": lambda _, *where: list_images(*where),
    "unlabeled": lambda _, *where: unlabeled_images(*where),
    "shards": shard_images,
}
# Sets that come balanced, or may be: `--imb_factor` draws a long tail out of their training images.
FACTORS = {"cifar10_lt": 100.0, "cifar100_lt": 100.0, "folder": None, "list": None}
# Sets that are read into memory as a whole, so that loading needs no workers.
IN_MEMORY = {"embedded", "cifar10_lt", "cifar100_lt"}
# Sets whose files hold their statistics: the record is None where no flag gives others.
OWN_STATISTICS = {"shards"}


def build_dataset(name: str, split: str, data_path: str | None = None, mean: tuple[float, ...] | None = None,
                  std: tuple[float, ...] | None = None, imb_factor: float | None = None,
                  data_seed: int | None = None) -> ImageSet:
    """One split ("train", "val" or "test") of a data set of `DATASETS`.

    mean, std: channel statistics in [0, 1], instead of the set's own; a set without a record needs them.
    imb_factor: draw a long tail of this factor out of the training images, for the sets of FACTORS (100 by default for
    CIFAR, no draw for one's own); data_seed: which draw, 0 by default. The draw is a function of (labels, imb_factor,
    data_seed) alone, and the hash of its indices is in `details`. ValueError for an unknown name or split, a missing
    path, statistics that are missing or impossible, and a draw that cannot be.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    if data_path is not None and not os.fspath(data_path):
        raise ValueError("--data_path is empty (an unset variable?): name a folder")
    if data_path is None and name in LAYOUTS:
        raise ValueError(f"--dataset {name} needs --data_path DIR: {LAYOUTS[name]}")
    images = DATASETS[name](name, data_path, split, find_record(name, mean, std))
    factor = check_draw(name, imb_factor, data_seed)
    if factor is None or split != "train":
        return images
    counts = longtail_counts_of(images.class_counts, factor, images.class_names)
    seed = data_seed or 0
    images = images.subset(draw(images.labels, counts, seed))
    images.details |= {"imb_factor": factor, "data_seed": seed}
    images.source += f", imbalance factor {factor:g}, draw {seed}"
    return images


def find_record(name: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Record | None:
    """Channel statistics of the flags, or the set's own, None for those that read them from their files.

    ValueError where there are neither: nothing is guessed.
    """
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std go together: give both or neither")
    if mean is not None:
        return Record(tuple(mean), tuple(std))
    if name in OWN_STATISTICS:
        return None
    if name not in RECORDS:
        raise ValueError(f"--dataset {name} needs the channel statistics of your images: --mean and --std, numbers in [0, 1], "
                         f"one a channel, which python -m datasets.statistics {name} --data_path DIR prints (ImageNet's are "
                         "--mean .485 .456 .406 --std .229 .224 .225)")
    return RECORDS[name]


def check_draw(name: str, imb_factor: float | None, data_seed: int | None) -> float | None:
    """The imbalance factor to draw with, None for none. ValueError for flags that would do nothing."""
    if imb_factor is not None and name not in FACTORS:
        raise ValueError(f"--dataset {name} is what it is: --imb_factor is for {', '.join(FACTORS)}")
    factor = FACTORS.get(name) if imb_factor is None else imb_factor
    if data_seed is not None and factor is None:
        raise ValueError(f"--data_seed {data_seed} chooses the draw of a long tail, and --dataset {name} makes none here: "
                         "leave it out" + ", or give --imb_factor" * (name in FACTORS))
    return factor
