"""The embedded data set: a long-tailed Fashion-MNIST (10 classes, 28 x 28, grey) that ships with the code.

`load(split)` reads it; `build.py` makes the file out of the official ones; README.md says what is in it.
"""

import functools
import hashlib
import io
from pathlib import Path

import numpy as np

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = ("train", "val", "test")
FILE = Path(__file__).parent / "fashion_mnist_lt.npz"
FILE_SHA256 = "fad05990b6150cbbf31cf1c965f0e80476602f4e34e2313d1c4c10c94381f236"
# Of the arrays, however they are compressed: content_sha256().
CONTENT_SHA256 = "dda9caa0e5346139856669545d36b34bd1bad18f8a2145bd682a5015a5560ed8"
MEAN = 0.355209  # of the train images scaled to [0, 1]; there is one channel, grey
STD = 0.364323


def load(split):
    """One split, "train" (long-tailed, 4,479 images), "val" (2,000, for tuning) or "test" (5,000).

    Returns (images uint8 (N, 28, 28), 0 black to 255; labels int64 (N,), indices into CLASS_NAMES;
    ids int64 (N,), ascending positions in the official training file, or in the official test file for "test").
    The arrays are read once a process and are read-only.
    Raises ValueError for another split, and for a file that is missing or whose SHA-256 is not FILE_SHA256.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded data set; known: {', '.join(SPLITS)}")
    return _read(split, Path(FILE), FILE_SHA256)


def content_sha256(arrays):
    """SHA-256 (64 hex digits) over name, dtype, shape and bytes of the arrays, a dict in file order."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def _read(split, path, expected):
    """load() for a file at path whose SHA-256 has to be expected."""
    remedy = f"restore it with git, or rebuild it: python -m datasets.embedded.build --source DIR --out {path}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the embedded data set {path} ({error.strerror}); {remedy}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise ValueError(f"embedded data set {path}: found SHA-256 {found}, expected {expected}; {remedy}")
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        images, labels, ids = (file[f"{split}_{part}"] for part in ("images", "labels", "ids"))
    arrays = images, labels.astype(np.int64), ids.astype(np.int64)
    for array in arrays:
        array.flags.writeable = False
    return arrays
