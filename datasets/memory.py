"""Small sets that stay on the device and are augmented there, a micro-batch at a time."""
import numpy as np
import torch

from datasets.imageset import ArrayImages
from util.seed import derive_seed


def in_batches(crop: str, auto_augment: str | None, color_jitter: float = 0.0) -> bool:
    """Whether shifts and flips are all that these settings do to an image."""
    return crop in ("pad", "none") and auto_augment is None and not color_jitter


def fits(images, size: tuple[int, int], crop: str, auto_augment: str | None, color_jitter: float = 0.0) -> bool:
    """Whether shifts and flips are all that these settings do to images which are in memory at the right size."""
    return (isinstance(images, ArrayImages) and in_batches(crop, auto_augment, color_jitter)
            and tuple(images.images.shape[1:3]) == tuple(size))


class ShiftFlip:
    """Random shifts by up to an eighth (black outside) and horizontal flips of a whole micro-batch by one gather."""

    def __init__(self, images: np.ndarray, shifts: bool, hflip: float, device: torch.device):
        """images (N, H, W) or (N, H, W, C) uint8; they are kept padded on `device`, (N, C, H + 2 p, W + 2 q)."""
        pixels = torch.from_numpy(np.array(images))
        pixels = (pixels.unsqueeze(-1) if pixels.ndim == 3 else pixels).permute(0, 3, 1, 2)
        self.size, self.hflip = pixels.shape[2:], hflip
        self.pad = tuple(side // 8 for side in self.size) if shifts else (0, 0)
        (p, q) = self.pad
        self.images = torch.nn.functional.pad(pixels, (q, q, p, p)).contiguous().to(device)

    def __call__(self, indices: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """indices (n,), draws (n, 3) uniform in [0, 1) for row, column and flip -> (n, C, H, W) uint8."""
        device = self.images.device
        rows, columns = (torch.arange(side, device=device).expand(len(indices), -1) for side in self.size)
        columns = torch.where(draws[:, 2:] < self.hflip, self.size[1] - 1 - columns, columns)
        top, left = ((draws[:, i] * (2 * self.pad[i] + 1)).long() for i in (0, 1))
        rows, columns = rows + top[:, None], columns + left[:, None]
        channels = torch.arange(self.images.shape[1], device=device)[None, :, None, None]
        return self.images[indices[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]


class MemoryBatches:
    """Stands for a DataLoader: micro-batches of (images (n, C, H, W) uint8, labels (n,)), both on the device.

    The draws of a sample are the row of its position in a table that is seeded by (seed, epoch).
    """

    def __init__(self, images: ArrayImages, augment: ShiftFlip, batch_sampler):
        self.augment, self.batch_sampler = augment, batch_sampler
        self.labels = torch.tensor(images.labels, device=augment.images.device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self):
        sampler, device = self.batch_sampler, self.labels.device
        seed = derive_seed(sampler.seed, "sample", sampler.epoch)
        table = torch.from_numpy(np.random.default_rng(seed).random((sampler.num_samples, 3)))
        # To the device once an epoch: a copy for each micro-batch would wait for the device.
        order, table = torch.as_tensor(sampler.order(sampler.epoch)).to(device), table.to(device)
        for start in (index * sampler.batch_size for index in sampler.micro_batches):
            indices, draws = (whole[start:start + sampler.batch_size] for whole in (order, table))
            yield self.augment(indices, draws), self.labels[indices]
