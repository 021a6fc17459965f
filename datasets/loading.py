"""Batches whose content is a function of (seed, epoch, position in the epoch's order), however many workers there are."""
import functools
import gc
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from datasets.imageset import ImageSet
from datasets.memory import MemoryBatches, ShiftFlip, fits
from datasets.sampling import epoch_order, repeat_draws
from datasets.shards import ShardImages
from datasets.streaming import ShardBatches
from datasets.transforms import eval_transform, train_transform
from util import signals
from util.seed import derive_seed, keep_random_state, seed_everything

LOADERS = ("fast", "pil")
MOST_WORKERS = 10  # of a process, unless asked


class EpochBatches(Sampler):
    """Micro-batches of keys (index, epoch, position): a new seeded order each epoch, the short tail included.

    order(epoch) -> indices (N,) of an epoch; a permutation that is seeded by (seed, epoch) by default. repeats: copies of
    each, the head of the order making the epoch (`repeat_draws`).
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, order: Callable | None = None, repeats: int = 1):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.draws, self.repeats = order or self._permutation, repeats
        self.set_epoch(0)

    def set_epoch(self, epoch: int, micro_batches: Sequence[int] | None = None) -> None:
        """Choose the epoch that the next iteration takes, and which of its micro-batches: all of them by default."""
        self.epoch = epoch
        self.micro_batches = range(-(-self.num_samples // self.batch_size)) if micro_batches is None else micro_batches

    def __len__(self) -> int:
        return len(self.micro_batches)

    def order(self, epoch: int) -> np.ndarray:
        """Indices (N,) of an epoch, a copy after the other."""
        return repeat_draws(np.asarray(self.draws(epoch)), self.repeats)

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.num_samples, generator=generator)

    def __iter__(self):
        order = self.order(self.epoch).tolist()
        for start in (index * self.batch_size for index in self.micro_batches):
            yield [(index, self.epoch, start + place)
                   for place, index in enumerate(order[start:start + self.batch_size])]


def reader(images: ImageSet, loader: str) -> Callable:
    """index -> picture: a tensor of the fast decoder for "fast", PIL's image for "pil" and for sets that are in memory."""
    if loader not in LOADERS:
        raise ValueError(f"unknown --loader {loader!r}; known: {', '.join(LOADERS)}")
    return images.image if loader == "pil" or images.in_memory else images.pixels


class TrainImages(Dataset):
    """Augmented images by key (index, epoch, position) -> (image uint8, label)."""

    def __init__(self, images: ImageSet, transform: Callable, seed: int, loader: str = "fast"):
        self.images, self.transform, self.seed, self.read = images, transform, seed, reader(images, loader)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> list[tuple[torch.Tensor, int]]:
        # The transforms draw from the global generators, so these are seeded for each sample and put back once.
        with keep_random_state():
            return [self._sample(*key) for key in keys]

    def _sample(self, index: int, epoch: int, position: int) -> tuple[torch.Tensor, int]:
        image = self.read(index)
        seed_everything(derive_seed(self.seed, "sample", epoch, position))
        return self.transform(image), int(self.images.labels[index])


class EvalImages(Dataset):
    """Images in order -> (image uint8, label)."""

    def __init__(self, images: ImageSet, transform: Callable, loader: str = "fast"):
        self.images, self.transform, self.read = images, transform, reader(images, loader)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.read(index)), int(self.images.labels[index])


def one_thread(_worker: int) -> None:
    """A worker is one of many processes on the cores; its own threads would only fight.

    The collector writes to every object that it visits, and so would copy what the imports made, some 80 MB a worker.
    """
    signals.ignore()
    torch.set_num_threads(1)
    gc.freeze()


def worker_count(images: ImageSet, num_workers: int | None, device: torch.device | None = None) -> int:
    """--num_workers, or by default one a usable core, up to MOST_WORKERS; none for images in memory, unless they are augmented
    one by one for a `device` that is no CPU and would wait for one core."""
    if num_workers is not None:
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if images.in_memory and (device is None or device.type == "cpu") else min(MOST_WORKERS, cores)


def train_loader(images: ImageSet, size: tuple[int, int], batch_size: int, seed: int, crop: str = "rrc",
                 scale: tuple[float, float] = (0.2, 1.0), hflip: float = 0.5, auto_augment: str | None = None,
                 num_workers: int | None = None, device: torch.device | None = None,
                 sampler: str = "random", loader: str = "fast", process: int = 0,
                 processes: int = 1, color_jitter: float = 0.0,
                 repeats: int = 1) -> DataLoader | MemoryBatches | ShardBatches:
    """Micro-batches of augmented (images (n, C, H, W) uint8, labels (n,)); see `train_transform` for the settings.

    sampler: a key of datasets.sampling.SAMPLERS; an epoch is len(images) draws of it. repeats: copies of a draw, see
    `repeat_draws`; tar shards, which are for stage 1, are read without either.
    loader: who decodes and resizes images in files; "fast" is torch and torchvision, "pil" the exact reference.

    Call loader.batch_sampler.set_epoch(epoch, micro-batches) each epoch. process, processes: which part of tar shards this
    process reads; of all other sets any process can read any micro-batch. Shifts and flips of images in memory run on the
    device in batches, everything else in workers; which of the two is a matter of the settings alone, never of the machine.
    """
    device = device or torch.device("cpu")
    if isinstance(images, ShardImages):
        transform = train_transform(size, images.record, crop, scale, hflip, auto_augment)
        return ShardBatches(images, transform, batch_size, seed, worker_count(images, num_workers), device, process,
                            processes, loader)
    order = functools.partial(epoch_order, sampler, images.labels, len(images.class_names), seed)
    batches = EpochBatches(len(images), batch_size, seed, None if sampler == "random" else order, repeats)
    if fits(images, size, crop, auto_augment, color_jitter):
        return MemoryBatches(images, ShiftFlip(images.images, crop == "pad", hflip, device), batches)
    transform = train_transform(size, images.record, crop, scale, hflip, auto_augment, color_jitter)
    workers = worker_count(images, num_workers, device)
    return DataLoader(TrainImages(images, transform, seed, loader), batch_sampler=batches, num_workers=workers,
                      pin_memory=device.type == "cuda", persistent_workers=workers > 0, worker_init_fn=one_thread)


def eval_loader(images: ImageSet, size: tuple[int, int], batch_size: int, crop_pct: float = 0.875,
                num_workers: int | None = None, device: torch.device | None = None, loader: str = "fast",
                share: Sequence[int] | None = None) -> DataLoader:
    """Every image once, in order, resized to cover size / crop_pct and cut to the middle; of `share` those indices alone."""
    dataset = EvalImages(images, eval_transform(size, crop_pct), loader)
    return DataLoader(dataset if share is None else Subset(dataset, share), batch_size=batch_size,
                      num_workers=worker_count(images, num_workers), worker_init_fn=one_thread,
                      pin_memory=device is not None and device.type == "cuda")
