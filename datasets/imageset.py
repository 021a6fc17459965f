"""What every data set looks like to the rest: images, labels, class names, one record of statistics."""
import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.decode import read_image, read_pixels
from datasets.longtail import indices_hash
from datasets.paths import PathTable


@dataclass(frozen=True)
class Record:
    """Channel means and deviations in [0, 1]; as many as there are channels: 1 (gray) or 3 (RGB)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"--mean and --std take one number (gray) or three (RGB) each, not {len(self.mean)} and "
                             f"{len(self.std)}")
        if not all(0 <= m <= 1 for m in self.mean) or not all(0 < s <= 1 for s in self.std):
            raise ValueError(f"--mean {self.mean} and --std {self.std} must be of pixels in [0, 1], the deviations above 0")

    @property
    def channels(self) -> int:
        return len(self.mean)


class ImageSet:
    """Labelled images. labels (N,) int64; class_names in label order; ids (N,), unique within the set.

    `source` names where the list of images comes from, `details` is what else args.json has to keep of it.
    `in_memory` says whether loading needs workers.
    """

    in_memory = False

    def __init__(self, labels: np.ndarray, class_names: list[str], record: Record, ids: np.ndarray | PathTable, source: str):
        self.details: dict = {}
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names, self.record, self.ids, self.source = list(class_names), record, ids, source

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image as PIL holds it: mode "L" for one channel, "RGB" for three."""
        raise NotImplementedError

    @property
    def class_counts(self) -> np.ndarray:
        """Images of every class, (C,) int64."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @property
    def group_counts(self) -> np.ndarray:
        """Images (C,) that decide whether a class is many-, medium- or few-shot: those before any were held out."""
        return np.array(self.details.get("full_class_counts", self.class_counts), dtype=np.int64)

    @property
    def data_hash(self) -> str:
        """SHA-256 over class names, ids and labels in order: two sets of one hash list the same images."""
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        ids = self.ids.to_bytes() if isinstance(self.ids, PathTable) else "\n".join(map(str, self.ids)).encode()
        digest.update(ids)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """The images at indices (n,), in that order; their hash is kept in `details`."""
        part = copy.copy(self)
        part.labels = self.labels[indices]
        part.ids = self.ids.take(indices) if isinstance(self.ids, PathTable) else self.ids[indices]
        part.details = {**self.details, "indices_hash": indices_hash(indices)}
        return part

    def in_order(self, class_names: list[str]) -> "ImageSet":
        """The same images with labels that count in the order of class_names, which has the same names."""
        place = {name: k for k, name in enumerate(class_names)}
        part = copy.copy(self)
        part.labels = np.array([place[name] for name in self.class_names], dtype=np.int64)[self.labels]
        part.class_names = list(class_names)
        return part


class ArrayImages(ImageSet):
    """Images held in memory: images (N, H, W) or (N, H, W, 3) uint8."""

    in_memory = True

    def __init__(self, images: np.ndarray, labels, class_names, record: Record, ids, source: str):
        super().__init__(labels, class_names, record, ids, source)
        channels = 1 if images.ndim == 3 else images.shape[3]
        if channels != record.channels:
            raise ValueError(f"{source} has {channels} channels, --mean and --std are of {record.channels}: leave them out, "
                             "or give one number a channel")
        self.images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def subset(self, indices: np.ndarray) -> "ArrayImages":
        """As of ImageSet."""
        part = super().subset(indices)
        part.images = self.images[indices]
        return part


class FileImages(ImageSet):
    """Images in files below `root`; ids are their paths relative to it. list_file: what lists them, None where the folders
    themselves were read."""

    list_file: Path | None = None

    def __init__(self, root: Path, labels, class_names, record: Record, ids, source: str):
        super().__init__(labels, class_names, record, ids, source)
        self.root = root

    def image(self, index: int) -> Image.Image:
        return read_image(os.path.join(self.root, self.ids[index]), self.record.channels)

    def pixels(self, index: int) -> torch.Tensor:
        """The same picture through the fast decoder: (C, H, W) uint8, channels last in memory."""
        return read_pixels(os.path.join(self.root, self.ids[index]), self.record.channels)
