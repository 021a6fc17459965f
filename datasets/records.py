"""What is known of each named data set, channel statistics and official sizes; both stages read them here."""
import json
from pathlib import Path

import numpy as np

from datasets import embedded
from datasets.imageset import Record

COUNTS = Path(__file__).parent / "class_counts"
_IMAGENET_1K = Record((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = Record((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

# Means and deviations of R, G, B in [0, 1], those of the released code.
RECORDS = {
    "embedded": Record((embedded.MEAN,), (embedded.STD,)),
    "cifar10_lt": _CIFAR,
    "cifar100_lt": _CIFAR,
    "imagenet_lt": Record((0.479672, 0.457713, 0.407721), (0.278976, 0.271203, 0.286062)),
    "imagenet_bal": Record((0.480767, 0.457071, 0.407718), (0.279940, 0.272481, 0.286038)),
    "imagenet_1k": _IMAGENET_1K,
    "inat18": Record((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
    "places_lt": _IMAGENET_1K,
}

# Images of each official split. ImageNet-BAL's training images are a draw of this project, see `datasets.prepare`.
OFFICIAL_SIZES = {
    "imagenet_lt": {"train": 115_846, "val": 20_000, "test": 50_000},
    "imagenet_bal": {"test": 50_000},
    "imagenet_1k": {"train": 1_281_167, "test": 50_000},
    "inat18": {"train": 437_513, "test": 24_426},
    "places_lt": {"train": 62_500, "val": 7_300, "test": 36_500},
}
OFFICIAL_CLASSES = {"imagenet_lt": 1000, "imagenet_bal": 1000, "imagenet_1k": 1000, "inat18": 8142, "places_lt": 365}


def official_counts(name: str) -> np.ndarray | None:
    """Training images of every class (C,) int64 of imagenet_lt, inat18 or places_lt, in label order; None for others."""
    path = COUNTS / f"{name}.json"
    return np.array(json.loads(path.read_text()), dtype=np.int64) if path.is_file() else None
