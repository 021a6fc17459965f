"""Fashion-MNIST sets by the CIFAR rule, out of the embedded images: stand-ins where CIFAR-10 or a factor is not to be had.

Training images are drawn from the embedded set's train and val together (2,200 to 210 a class), so that a factor of 10 leaves
enough of them; the test images are the embedded set's. Classes stand in the order of their sizes there. Nothing was tuned on
either.
"""
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import embedded
from datasets.longtail import draw, longtail_counts_of

FACTORS = {"fashion_100": 100.0, "fashion_10": 10.0, "fashion_bal": 1.0}
N_MAX = 2000  # images of the largest class at most, the embedded set's
TEST_IMAGES = None  # all of the embedded set's


def available() -> tuple[np.ndarray, np.ndarray]:
    """Training images (N, 28, 28) uint8 of the embedded set's train and val, and their labels (N,)."""
    parts = [embedded.load(split)[:2] for split in ("train", "val")]
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def class_order() -> np.ndarray:
    """The embedded set's labels (10,), largest class first."""
    return np.argsort(-np.bincount(embedded.load("train")[1]), kind="stable")


def counts_of(name: str) -> np.ndarray:
    """Training images of every class (10,) in the order of the class names of the set: the CIFAR rule with its factor."""
    have = np.bincount(available()[1])[class_order()]
    return longtail_counts_of(np.minimum(have, N_MAX), FACTORS[name])


def file_name(label: int) -> str:
    """The folder of a class of the embedded set."""
    return embedded.CLASS_NAMES[label].replace("/", "-")


def make(name: str, folder: Path) -> Path:
    """Write DIR/train/<class>/*.png, DIR/test/<class>/*.png and DIR/classes.txt unless they are there; returns the folder."""
    done = folder / "classes.txt"  # written last
    if done.is_file():
        return folder
    images, labels = available()
    order = class_order()
    counts = np.empty(len(order), dtype=np.int64)
    counts[order] = counts_of(name)
    chosen = draw(labels, counts, 0)
    test_images, test_labels = (part[:TEST_IMAGES] for part in embedded.load("test")[:2])
    names = [file_name(label) for label in range(len(order))]
    for split, pixels, classes in (("train", images[chosen], labels[chosen]), ("test", test_images, test_labels)):
        for label, word in enumerate(names):
            (folder / split / word).mkdir(parents=True, exist_ok=True)
            for place in np.flatnonzero(classes == label):
                Image.fromarray(pixels[place]).save(folder / split / word / f"{place:05}.png")
    done.write_text("".join(f"{names[label]}\n" for label in order))
    return folder
