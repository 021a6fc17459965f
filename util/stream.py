"""Picture files through a model, as many as there are: neither a list of rows nor one of names is ever held."""
import heapq
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.decode import UnreadableImage
from datasets.entries import EXTENSIONS, LeftOut, is_file, is_folder, look
from datasets.folder import LINKED, cannot_read, number_below
from datasets.imageset import FileImages
from datasets.loading import one_thread, reader, worker_count
from datasets.paths import PathTable, printable
from datasets.transforms import eval_transform
from util.trained import Trained


class Batch(NamedTuple):
    """indices (n,) int64 of pictures that could be read and what the model gave for them, a tensor or several of n rows; None
    for none. bad: (index, why) of those that could not."""

    indices: np.ndarray
    outputs: object
    bad: list[tuple[int, str]]


def find_pictures(given: list[str]) -> PathTable:
    """The image files that are named, and those in the folders that are named, at any depth and in the order of names.

    What a folder has beside them is told in a note. A link that leads nowhere is among them, to be told as unreadable.
    ValueError for a path that is not there, and where there is no image at all.
    """
    left_out = LeftOut()
    paths = PathTable(path for one in given for path in (below(one, left_out) if is_folder(one) else [existing(one)]))
    left_out.tell()
    if not len(paths):
        raise ValueError(f"no image below {', '.join(map(printable, given))} (extensions {', '.join(sorted(EXTENSIONS))})")
    return paths


def existing(path: str) -> str:
    """A named file. ValueError where there is none."""
    if not is_file(path):
        raise ValueError(f"no such file or folder: {printable(path)}")
    return path


def below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Paths of the images in a folder, then of those in its folders; only the names of one folder are held at a time."""
    try:
        inside = look(folder)
    except OSError as error:
        raise ValueError(cannot_read(folder, error)) from None
    left_out.keep(folder, inside)
    for name in heapq.merge(inside.images, (name for name, _ in inside.faults)):
        yield os.path.join(folder, name)
    for path in (os.path.join(folder, name) for name in inside.folders):
        if os.path.islink(path):
            left_out.keep_folder(f"{path}/", number_below(Path(path)), LINKED)
        else:
            yield from below(path, left_out)


class Pictures(Dataset):
    """Pictures ready for a model, by index -> (index, image uint8 or None, why not)."""

    def __init__(self, images: FileImages, transform: Callable, loader: str):
        self.images, self.transform, self.read = images, transform, reader(images, loader)

    def __len__(self) -> int:
        return len(self.images.ids)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None, str]:
        try:
            return index, self.transform(self.read(index)), ""
        except UnreadableImage as error:
            return index, None, error.reason


def gather(samples: list) -> tuple[torch.Tensor, torch.Tensor | None, list[tuple[int, str]]]:
    """A batch of `Pictures` -> indices (n,), images (n, C, H, W) or None where none could be read, and the bad ones."""
    good = [(index, image) for index, image, _ in samples if image is not None]
    bad = [(index, why) for index, image, why in samples if image is None]
    images = torch.stack([image for _, image in good]) if good else None
    return torch.tensor([index for index, _ in good], dtype=torch.int64), images, bad


@torch.inference_mode()
def run_stream(trained: Trained, paths: PathTable, forward: Callable, batch_size: int, num_workers: int | None = None,
               amp: torch.dtype | None = None, crop_pct: float | None = None) -> Iterator[Batch]:
    """Batches of every picture once, in order; forward(normalised images (n, C, H, W)) -> a tensor, or a tuple of them.

    A batch is handed over while the device works on the next one, so that writing it costs no time there.
    """
    device = trained.normalize.factor.device
    images = FileImages(Path(), np.zeros(0), [], trained.record, paths, "")
    transform = eval_transform(trained.size, trained.crop_pct if crop_pct is None else crop_pct)
    loader = DataLoader(Pictures(images, transform, trained.settings.get("loader", "fast")), batch_size, collate_fn=gather,
                        num_workers=min(worker_count(images, num_workers), -(-len(paths) // batch_size)),
                        worker_init_fn=one_thread, pin_memory=device.type == "cuda")
    waiting = None
    for indices, batch, bad in loader:
        outputs = None
        if batch is not None:
            with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                outputs = forward(trained.normalize(batch.to(device, non_blocking=True)))
        if waiting is not None:
            yield waiting
        waiting = Batch(indices.numpy(), outputs, bad)
    yield waiting


def with_bar(batches: Iterator[Batch], paths: PathTable, batch_size: int, what: str) -> Iterator[Batch]:
    """The batches, with a bar on a terminal; pictures that could not be read are told on stderr, each and in sum.

    ValueError at the end where none of all could be read.
    """
    # Rows that are printed on the same terminal would break the bar.
    shown = sys.stderr.isatty() and not sys.stdout.isatty()
    bad = 0
    with tqdm(total=len(paths), desc=what, unit=" images", leave=False, disable=not shown) as bar:
        for batch in batches:
            for index, why in batch.bad:
                bar.write(f"unreadable, skipped: {printable(paths[index])} ({why})", file=sys.stderr)
            bad += len(batch.bad)
            yield batch
            bar.update(min(batch_size, len(batch.indices) + len(batch.bad)))
    if bad == len(paths):
        raise ValueError(f"none of {bad:,} images could be read: see the lines above")
    if bad:
        tell(f"{bad:,} of {len(paths):,} images could not be read and were skipped")


def tell(message: str) -> None:
    """One line on stderr: stdout may be the result."""
    print(message, file=sys.stderr, flush=True)
