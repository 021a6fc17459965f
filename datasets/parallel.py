"""A function over all images of a set, in one process a core, with the same result for any number of processes."""
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from datasets.imageset import ImageSet

CHUNK = 64  # images a task: little to send, and a bar that moves
_shared: tuple = ()  # of a worker process: what `_receive` was given


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_chunks(function: Callable, images: ImageSet, indices: np.ndarray, num_workers: int | None = None,
                progress: Callable = lambda chunks, total: chunks, chunk: int = CHUNK) -> Iterator:
    """function(images, part) for every part (n,) of indices (N,), n up to `chunk`, in order.

    num_workers: processes, one a usable core by default, 0 for this one. function and its result have to be picklable.
    progress(iterable, total) may draw a bar. ValueError where a process dies.
    """
    chunks = [indices[start:start + chunk] for start in range(0, len(indices), chunk)]
    workers = min(usable_cores() if num_workers is None else num_workers, len(chunks))
    if workers == 0:
        yield from progress((function(images, part) for part in chunks), len(chunks))
        return
    pool = ProcessPoolExecutor(workers, initializer=_receive, initargs=(function, images))
    try:
        yield from progress(pool.map(_apply, chunks), len(chunks))
    except BrokenProcessPool:
        raise ValueError(f"one of {workers} processes died while it read images (out of memory, or killed): use a smaller "
                         "--num_workers; with 0 the error itself shows") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _receive(*shared) -> None:
    """The set comes once a process, not with each chunk. Ctrl-C is for the process that waits for the results."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _apply(chunk: np.ndarray):
    function, images = _shared
    return function(images, chunk)
