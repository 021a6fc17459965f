"""Tar shards of webdataset's layout, for stage 1 on millions of images on a shared disk or in object storage.

    OUT/shards.json         name, split and source of the packed set, class names and counts, channel statistics, and for
                            each shard its file, number of images, bytes and SHA-256
    OUT/shard-000000.tar    for each image, in running order: 000000000.jpg, the file's own bytes; 000000000.cls, its label,
                            where there are labels; 000000000.json, the id that it had in the packed set

`python -m datasets.pack` writes them, webdataset opens them and takes the tars apart, and datasets/streaming.py says who
reads what in an epoch.
"""
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets.decode import UnreadableImage, decode_image, decode_pixels, named
from datasets.described import Count, parse
from datasets.entries import mode_of
from datasets.folder import NO_LABEL
from datasets.imageset import ImageSet, Record
from datasets.paths import kind_of, printable

FORMAT = "livt-shards-1"
FILE = "shards.json"
AGAIN = "copy it again, or pack the set again"
KEYS = {"name": str, "split": str, "source": str, "details": dict, "seed": int, "class_names": [str], "class_counts": [Count],
        "mean": [float], "std": [float], "shards": [{"file": str, "images": Count, "bytes": Count, "sha256": str}]}
PLACES = ('a folder that python -m datasets.pack has filled, its address such as https://HOST/DIR, or a command that writes '
          'one {file} of it, such as "pipe:aws s3 cp s3://BUCKET/DIR/{file} -"')
REMEDY = ("pack the set again, where it is whole; python -m datasets.pack leaves out a few unreadable images with "
          "--skip_bad_images N")
READ_ERRORS = (OSError, tarfile.TarError, ValueError, EOFError)


class Part(NamedTuple):
    """Images start to stop, counted within the shard."""

    shard: int
    start: int
    stop: int


class Sample(NamedTuple):
    """One image of a shard: its running index, label, file's bytes, and what a message calls it."""

    index: int
    label: int
    data: bytes
    name: str


def webdataset():
    """The module. ValueError, with the command that installs it, where it is missing."""
    try:
        import webdataset
    except ImportError:
        raise ValueError("tar shards need webdataset, which is not installed: pip install 'webdataset>=0.2.86'") from None
    return webdataset


def is_url(place: str) -> bool:
    """Whether webdataset opens a place by a scheme or a command; else it is a local folder."""
    return re.match(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def locate(place: str, file: str) -> str:
    """What webdataset has to open for one file of a folder, an address, or a command with {file} in it."""
    if not is_url(place):
        return os.path.abspath(os.path.join(place, file))
    if "{file}" in place:
        return place.replace("{file}", file)
    if place.startswith("pipe:"):
        raise ValueError(f"--data_path {printable(place)} has no {{file}} in its command: expected {PLACES}")
    return f"{place.rstrip('/')}/{file}"


def reason(error: Exception) -> str:
    """Why webdataset could not read, without what it adds to an error on the way."""
    words = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
    words = " ".join(str(words).split()).split(" @ <")[0]
    command = re.search(r": exit (-?\d+) \(read\)", words)
    return f"its command ended with exit code {command[1]}" if command else words


def read_description(place: str) -> dict:
    """The content of shards.json. ValueError where it cannot be read, is damaged, or is none of this format."""
    path = locate(place, FILE)
    try:
        if not is_url(place) and (mode := mode_of(path)) and not stat.S_ISREG(mode):
            raise OSError(f"{kind_of(mode)}, not a file")
        with webdataset().gopen(path) as stream:
            data = stream.read()
    except READ_ERRORS as error:
        raise ValueError(f"cannot read {printable(path)} ({reason(error)}): --data_path of --dataset shards is "
                         f"{PLACES}") from None
    record = parse(data, path, FORMAT, AGAIN, KEYS)
    if not record:
        raise ValueError(f"{printable(path)} is no description of tar shards (format {FORMAT}): make one with python -m "
                         "datasets.pack")
    # The names go into a shell where the place is a command.
    wrong = [shard["file"] for shard in record["shards"] if not re.fullmatch(r"shard-\d+\.tar", shard["file"])]
    if wrong:
        raise ValueError(f"{printable(path)} names the shard {printable(wrong[0])}: expected shard-000000.tar and so on")
    files = [shard["file"] for shard in record["shards"]]
    if len(set(files)) < len(files):
        raise ValueError(f"{printable(path)} names {next(file for file in files if files.count(file) > 1)} twice: {AGAIN}")
    images, counts = sum(shard["images"] for shard in record["shards"]), record["class_counts"]
    if not images or images != sum(counts) or len(counts) != len(record["class_names"]):
        raise ValueError(f"{printable(path)} has {len(record['class_names'])} class_names, class_counts of {len(counts)} "
                         f"classes and {sum(counts)} images, and shards of {images} images, which do not fit: {AGAIN}")
    try:
        Record(tuple(record["mean"]), tuple(record["std"]))
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}: {AGAIN}") from None
    return record


def shard_images(name: str, data_path: str | Path, split: str, record: Record | None) -> "ShardImages":
    """The shards below a folder, an address or a command (PLACES); `record`: statistics instead of those in shards.json.

    ValueError where there are none, webdataset is missing, or a local shard is missing or not as long as it was written,
    and for a split other than train: labels in shards are for keeping, stage 2 reads the set that was packed.
    """
    if split != "train":
        raise ValueError(f"--dataset {name} is for stage 1 only: use the data set that was packed for stage 2")
    place = str(data_path)
    description = read_description(place)
    for shard in [] if is_url(place) else description["shards"]:
        path = locate(place, shard["file"])
        mode = mode_of(path)
        size = os.path.getsize(path) if stat.S_ISREG(mode) else None
        if size != shard["bytes"]:
            found = (f"has {size} bytes, not the {shard['bytes']} of {FILE}" if size is not None else
                     f"is {kind_of(mode)}, not a file" if mode else "is missing")
            raise ValueError(f"the shard {printable(path)} {found}: {AGAIN}")
    return ShardImages(place, description, record)


class ShardImages(ImageSet):
    """Images in tar shards, in their running order. Labels and ids stay in the shards: there is no list of them."""

    def __init__(self, place: str, description: dict, record: Record | None = None):
        self.place, self.shards = place, description["shards"]
        self.class_names = description["class_names"]
        self.record = record or Record(tuple(description["mean"]), tuple(description["std"]))
        self.source = f"{place} ({description['name']} {description['split']}, {len(self.shards)} shards)"
        self.counts = np.array([shard["images"] for shard in self.shards], dtype=np.int64)
        self.firsts = np.cumsum(self.counts) - self.counts
        self._class_counts = np.array(description["class_counts"], dtype=np.int64)
        self.details = {"packed": {key: description[key] for key in ("name", "split", "source", "details", "seed")}}

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def class_counts(self) -> np.ndarray:
        """Images of every class, (C,) int64."""
        return self._class_counts

    @property
    def data_hash(self) -> str:
        """SHA-256 over class names and the shards' SHA-256: two sets of one hash hold the same bytes in the same order."""
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update("".join(shard["sha256"] for shard in self.shards).encode())
        return digest.hexdigest()

    def image(self, index: int) -> Image.Image:
        """As of ImageSet. Reads the image's shard up to it, so it is for looking at a few, not for training."""
        index = range(len(self))[index]
        shard = int(np.searchsorted(self.firsts, index, side="right")) - 1
        place = index - int(self.firsts[shard])
        sample, = self.read(Part(shard, place, place + 1))
        return decode(sample.data, sample.name, self.record.channels)

    def read(self, part: Part) -> Iterator[Sample]:
        """The images of a part, in order. UnreadableImage names the shard where it is not what shards.json says.

        A tar has no table of contents: what lies before the part is read and dropped, what lies behind is not read.
        """
        path, count = locate(self.place, self.shards[part.shard]["file"]), int(self.counts[part.shard])
        found = 0
        with contextlib.closing(tar_samples(path)) as samples:
            for found, sample in enumerate(samples, 1):
                if found > count:
                    raise UnreadableImage(f"the shard {printable(path)} has more than the {count} images of {FILE}: copy "
                                          "both again, or pack the set again")
                if found > part.start:
                    yield self._parse(sample, int(self.firsts[part.shard]) + found - 1, path)
                if found == part.stop < count:
                    return  # the rest is another reader's; the last reader of a shard also sees whether it ends there
        if found < count:
            raise UnreadableImage(f"the shard {printable(path)} ends after {found} of the {count} images of {FILE}: copy it "
                                  "again, or pack the set again")

    def _parse(self, sample: dict, index: int, path: str) -> Sample:
        files = [key for key in sample if not key.startswith("__") and key not in ("cls", "json")]
        label = sample.get("cls", b"0" if self.class_names == [NO_LABEL] else b"")
        if (sample["__key__"] != f"{index:09}" or len(files) != 1 or "json" not in sample
                or not label.isdigit() or int(label) >= len(self.class_names)):
            raise UnreadableImage(f"the shard {printable(path)} holds {printable(sample['__key__'])} ("
                                  f"{', '.join(key for key in sample if not key.startswith('__'))}) where {index:09} with an "
                                  f"image, a label below {len(self.class_names)} and its id belong: pack the set again")
        name = f"{index:09}.{files[0]} of the shard {printable(path)}, which was {packed_id(sample['json'])}"
        return Sample(index, int(label), sample[files[0]], name)


def packed_id(data: bytes) -> str:
    """The id that an image had in the packed set, as a message prints it."""
    try:
        return printable(str(json.loads(data)["id"]))
    except (ValueError, TypeError, KeyError):
        return "an image of no id"


def tar_samples(path: str) -> Iterator[dict]:
    """webdataset's samples of one tar, {extension: bytes} and "__key__"; UnreadableImage where it cannot be read."""
    source = {"url": path}
    try:
        yield from webdataset().tarfile_samples(iter([source]))
    except READ_ERRORS as error:
        raise UnreadableImage(f"cannot read the shard {printable(path)} ({reason(error)}): copy it again, or pack the set "
                              "again") from None
    finally:
        # A command whose output is no longer wanted ends by a signal, which webdataset takes for a failure.
        with contextlib.suppress(OSError):
            if "stream" in source:
                source["stream"].close()


def decode(data: bytes, name: str, channels: int, loader: str = "pil") -> Image.Image | torch.Tensor:
    """The picture in a file's bytes, as `datasets.decode` gives it for "pil" or "fast". UnreadableImage calls it `name`."""
    with named(name, REMEDY):
        return (decode_image if loader == "pil" else decode_pixels)(io.BytesIO(data), channels)
