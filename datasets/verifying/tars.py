"""Tar shards against what their shards.json says of them."""
import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from datasets.decode import UnreadableImage
from datasets.entries import mode_of
from datasets.parallel import over_chunks
from datasets.paths import kind_of, printable
from datasets.shards import FILE, READ_ERRORS, Part, ShardImages, decode, is_url, locate, reason, webdataset
from datasets.verifying.listing import Problem

SHARDS, READABLE = "shards", "images readable"
BLOCK = 1 << 20


def tar_problems(images: ShardImages, whole: bool, num_workers: int | None, bar: Callable) -> list[Problem]:
    """Problems of kind SHARDS: tars that are not there, or have another size or SHA-256 than they were written with; with
    `whole` those of kind READABLE too, images that cannot be decoded. Every byte is read, a shard at a time on each core."""
    parts = over_chunks(partial(check_tars, whole=whole), images, np.arange(len(images.shards)), num_workers, bar, chunk=1)
    return [problem for part in parts for problem in part]


def check_tars(images: ShardImages, indices: np.ndarray, whole: bool) -> list[Problem]:
    """The problems of the shards at indices (n,)."""
    problems = []
    for index in indices.tolist():
        file = images.shards[index]["file"]
        problems += [Problem(SHARDS, file, words) for words in check_tar(images.place, images.shards[index])]
        # A tar that is another one is not taken apart: what is wrong with it has been said.
        if whole and not problems:
            problems += check_samples(images, index)
    return problems


def check_tar(place: str, shard: dict) -> list[str]:
    """What is wrong with the bytes of one shard."""
    path, digest, size = locate(place, shard["file"]), hashlib.sha256(), 0
    try:
        if not is_url(place) and (mode := mode_of(path)) and kind_of(mode) != "a file":
            return [f"is {kind_of(mode)}, not a file"]
        with webdataset().gopen(path) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                size += len(block)
    except READ_ERRORS as error:
        return [f"cannot be read ({reason(error)}): copy it again, or pack the set again"]
    if size != shard["bytes"]:
        return [f"has {size:,} bytes, not the {shard['bytes']:,} of {FILE}: copy it again, or pack the set again"]
    if digest.hexdigest() != shard["sha256"]:
        return [f"has other bytes than it was written with (its SHA-256 differs from that in {FILE}): copy it again, or pack "
                "the set again"]
    return []


def check_samples(images: ShardImages, index: int) -> list[Problem]:
    """The images of one shard that cannot be decoded, and what does not fit its description."""
    file, problems = images.shards[index]["file"], []
    try:
        for sample in images.read(Part(index, 0, int(images.counts[index]))):
            try:
                decode(sample.data, sample.name, images.record.channels)
            except UnreadableImage as error:
                problems.append(Problem(READABLE, f"{file}: {sample.index:09}", printable(str(error))))
    except UnreadableImage as error:
        problems.append(Problem(SHARDS, file, str(error)))
    return problems
