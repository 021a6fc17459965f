"""What every data set looks like to the rest: images, labels, class names, one record of statistics."""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.decode import UnreadableImage, read_image, read_pixels  # noqa: F401  the error belongs to image()


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

    `source` names where the list of images comes from. `in_memory` says whether loading needs workers.
    """

    in_memory = False

    def __init__(self, labels: np.ndarray, class_names: list[str], record: Record, ids: np.ndarray, source: str):
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
    def data_hash(self) -> str:
        """SHA-256 over class names, ids and labels in order: two sets of one hash list the same images."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        digest.update("\n".join(map(str, self.ids)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


class ArrayImages(ImageSet):
    """Images held in memory: images (N, H, W) or (N, H, W, 3) uint8."""

    in_memory = True

    def __init__(self, images: np.ndarray, labels, class_names, record: Record, ids, source: str):
        super().__init__(labels, class_names, record, ids, source)
        self.images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


class FileImages(ImageSet):
    """Images in files below `root`; ids are their paths relative to it."""

    def __init__(self, root: Path, labels, class_names, record: Record, ids, source: str):
        super().__init__(labels, class_names, record, ids, source)
        self.root = root

    def image(self, index: int) -> Image.Image:
        return read_image(os.path.join(self.root, self.ids[index]), self.record.channels)

    def pixels(self, index: int) -> torch.Tensor:
        """The same picture through the fast decoder: (C, H, W) uint8, channels last in memory."""
        return read_pixels(os.path.join(self.root, self.ids[index]), self.record.channels)
