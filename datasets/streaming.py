"""Micro-batches out of tar shards: every image once an epoch, over any number of workers and processes."""
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datasets.shards import Part, Sample, ShardImages, decode, webdataset
from util import signals
from util.seed import derive_seed, keep_random_state, seed_everything

BUFFER = 1000  # images that a reader shuffles among, compressed: about 110 MB of ImageNet's
CHUNK = 32  # most images that a worker hands over at once


def shard_order(num_shards: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the shards in an epoch: a permutation (num_shards,) seeded by (seed, epoch)."""
    # RandomState, because numpy promises never to change its stream (as in datasets/longtail.py).
    return np.random.RandomState(np.random.MT19937(derive_seed(seed, "shards", epoch))).permutation(num_shards)


def reader_parts(counts: np.ndarray, order: np.ndarray, reader: int, readers: int) -> list[Part]:
    """What one of `readers` readers reads of an epoch: parts of shards, in order.

    counts (S,): images of each shard; order: permutation (S,). The epoch is the shards laid end to end in that order, N
    images, and reader r has places r N / R up to (r + 1) N / R of it, rounded down. So every image has one reader, and the
    readers' numbers of images differ by one at most, however the shards are cut.
    """
    total = int(np.sum(counts))
    first, last = reader * total // readers, (reader + 1) * total // readers
    parts, begin = [], 0
    for shard in np.asarray(order).tolist():
        count = int(counts[shard])
        start, stop = max(first - begin, 0), min(last - begin, count)
        if start < stop:
            parts.append(Part(shard, start, stop))
        begin += count
    return parts


class Epoch:
    """Which epoch the next iteration reads, and from which of this process's micro-batches on, in memory that the workers
    share: they live longer than an epoch.

    total: images of an epoch; own: micro-batches of this process; workers: readers of it; readers: all there are.
    """

    def __init__(self, total: int, own: int, batch_size: int, workers: int, readers: int):
        self.own, self.batch_size, self.readers = own, batch_size, readers
        # Chunks come from the workers in turn, and in so many turns all of them are full.
        self.full = total // readers // CHUNK * workers
        self._values = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.set_epoch(0)

    def set_epoch(self, epoch: int, micro_batches: Sequence[int] | None = None) -> None:
        """Choose the epoch and its micro-batches: consecutive ones up to the last, which may stand twice."""
        self.micro_batches = range(self.own) if micro_batches is None else micro_batches
        self.left_out = (self.micro_batches[0] if len(self.micro_batches) else self.own) * self.batch_size
        self._values.copy_(torch.tensor([epoch, min(self.left_out // CHUNK, self.full)]))

    @property
    def epoch(self) -> int:
        """The epoch that is read next."""
        return int(self._values[0])

    @property
    def skipped(self) -> int:
        """Chunks at its beginning that are read and not decoded; all full."""
        return int(self._values[1])


class ShardReader(IterableDataset):
    """Chunks of augmented (images (k, C, H, W) uint8, labels (k,)): the part of an epoch that this worker reads."""

    def __init__(self, images: ShardImages, transform: Callable, seed: int, epoch: Epoch, process: int, processes: int,
                 loader: str):
        self.images, self.transform, self.seed, self.epoch, self.loader = images, transform, seed, epoch, loader
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker, epoch = get_worker_info(), self.epoch.epoch
        if worker:
            torch.set_num_threads(1)  # one of many processes on the cores: its own threads would only fight
            signals.ignore()
        place, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        samples = self.samples(epoch, place, workers)
        for _ in islice(samples, len(range(place, self.epoch.skipped, workers)) * CHUNK):
            pass  # training has these behind it
        while chunk := list(islice(samples, CHUNK)):
            # The transforms draw from the global generators, so these are seeded for each sample and put back once.
            with keep_random_state():
                images = torch.stack([self._augmented(sample, epoch) for sample in chunk])
            yield images, torch.tensor([sample.label for sample in chunk])

    def samples(self, epoch: int, worker: int, workers: int) -> Iterator[Sample]:
        """The images of an epoch that worker `worker` of the `workers` of this process reads, shuffled."""
        reader, readers = self.process * workers + worker, self.processes * workers
        order = shard_order(len(self.images.shards), self.seed, epoch)
        parts = reader_parts(self.images.counts, order, reader, readers)
        shuffle = webdataset().shuffle(BUFFER, initial=BUFFER,
                                       rng=random.Random(derive_seed(self.seed, "buffer", epoch, reader)))
        return shuffle(sample for part in parts for sample in self.images.read(part))

    def _augmented(self, sample: Sample, epoch: int) -> torch.Tensor:
        image = decode(sample.data, sample.name, self.images.record.channels, self.loader)
        seed_everything(derive_seed(self.seed, "sample", epoch, sample.index))
        return self.transform(image)


class ShardBatches:
    """Stands for a DataLoader: micro-batches of augmented (images (n, C, H, W) uint8, labels (n,)) out of shards.

    An epoch has every image once, in ceil(N / batch_size) micro-batches, all full but the last. How a sample is augmented
    is a function of (seed, epoch, its running index). The order, and so which samples share a micro-batch, is a function of
    (seed, epoch, number of readers), since every reader shuffles what it reads: another number of workers is the same epoch
    in another order, and only the same number repeats a run. A reader is one of `workers` workers of one of `processes`
    processes; this is process `process`, and N its own images, one more or less than another's.
    """

    def __init__(self, images: ShardImages, transform: Callable, batch_size: int, seed: int, workers: int = 0,
                 device: torch.device | None = None, process: int = 0, processes: int = 1,
                 loader: str = "fast"):
        self.num_samples = (process + 1) * len(images) // processes - process * len(images) // processes
        self.batch_size = batch_size
        self.batch_sampler = Epoch(len(images), -(-self.num_samples // batch_size), batch_size, max(1, workers),
                                   processes * max(1, workers))
        self.pin_memory = device is not None and device.type == "cuda"
        reader = ShardReader(images, transform, seed, self.batch_sampler, process, processes, loader)
        self.chunks = DataLoader(reader, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def __len__(self) -> int:
        return len(self.batch_sampler.micro_batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        wanted, batch, skipped = len(self), None, self.batch_sampler.skipped * CHUNK
        with signals.held():  # the first time this starts the workers
            chunks = iter(self.chunks)
        for batch in cut(chunks, self.batch_size, self.num_samples - skipped, self.pin_memory,
                         self.batch_sampler.left_out - skipped):
            yield batch
            wanted -= 1
        if wanted and batch is not None:
            yield batch  # to take part in a step for which this process has no image left


def cut(chunks: Iterable, batch_size: int, num_samples: int, pin_memory: bool = False, dropped: int = 0) -> Iterator[tuple]:
    """Chunks of (images (k, ...), labels (k,)), num_samples in all -> batches of batch_size, the last one shorter.

    The first `dropped` samples are left out.
    """
    left, filled = num_samples - dropped, 0
    for images, labels in chunks:
        images, labels, dropped = images[dropped:], labels[dropped:], max(0, dropped - len(images))
        while len(images):
            if not filled:
                assert left, f"readers gave more than the {num_samples} samples of the epoch"
                size = min(batch_size, left)
                batch = (images.new_empty((size, *images.shape[1:]), pin_memory=pin_memory), labels.new_empty(size))
            taken = min(size - filled, len(images))
            batch[0][filled:filled + taken], batch[1][filled:filled + taken] = images[:taken], labels[:taken]
            images, labels, filled = images[taken:], labels[taken:], filled + taken
            if filled == size:
                yield batch
                left, filled = left - size, 0
    assert not left, f"readers gave {left} samples less than the {num_samples} of the epoch"
