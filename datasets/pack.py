"""Write the images of a data set into tar shards, for `--dataset shards`.

    python -m datasets.pack folder --data_path DIR --mean .485 .456 .406 --std .229 .224 .225 --out OUT
    python -m datasets.pack imagenet_1k --data_path PREPARED --out OUT --images_per_shard 5000

Every file is decoded first, so that no shard holds an unreadable one; --skip_bad_images N leaves up to N of them out. Files are
copied byte for byte; images that a set holds in memory are written as PNG. The layout is that of datasets/shards.py.
"""
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np

from datasets import DATASETS, build_dataset
from datasets.decode import UnreadableImage, named
from datasets.entries import EXTENSIONS, is_folder, mode_of
from datasets.folder import NO_LABEL
from datasets.imageset import FileImages, ImageSet
from datasets.parallel import CHUNK, over_chunks
from datasets.paths import open_file, printable
from datasets.presence import check_listed
from datasets.shards import FILE, FORMAT, webdataset
from util.args import Parser, run_command
from util.checkpoint import replace_file
from util.run import progress, say
from util.seed import derive_seed


class Digest:
    """Passes what is written on to a file, and keeps its SHA-256 and length."""

    def __init__(self, file):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """As of a file."""
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def encoded(images: ImageSet, index: int) -> tuple[str, bytes]:
    """(extension, bytes) of one image: its file as it is, or a PNG of an image in memory. UnreadableImage for a file that is
    gone since it was looked at."""
    if not isinstance(images, FileImages):
        stream = io.BytesIO()
        images.image(index).save(stream, "png")
        return "png", stream.getvalue()
    path = images.root / images.ids[index]
    with named(path, "put it back, and pack again"), open_file(path) as file:
        data = file.read()
    extension = path.suffix.lower()
    return (extension if extension in EXTENSIONS else ".img")[1:], data


def without_unreadable(images: ImageSet, limit: int, num_workers: int | None = None) -> ImageSet:
    """The images of a set that can be decoded; what was left out is in `details`, {"left_out": [[id, why], ...]}.

    Every file is decoded, on all cores. ValueError where more than `limit` cannot be, which names five.
    """
    if not isinstance(images, FileImages):
        return images
    faults = {}
    for part in over_chunks(unreadable, images, np.arange(len(images)), num_workers,
                            lambda chunks, total: progress(chunks, total, f"looking, {CHUNK} images a step")):
        faults |= part
    if not faults:
        return images
    left_out = [[printable(images.ids[i]), faults[i]] for i in sorted(faults)]
    if len(faults) > limit:
        named_few = ", ".join(f"{path} ({why})" for path, why in left_out[:5]) + ", ..." * (len(left_out) > 5)
        raise ValueError(f"{len(faults):,} of {len(images):,} images cannot be read, more than --skip_bad_images {limit} "
                         f"allows: {named_few}: repair them, take them out of the data set, or allow more")
    kept = images.subset(np.setdiff1d(np.arange(len(images)), sorted(faults)))
    if not len(kept):
        raise ValueError(f"none of the {len(images):,} images of {images.source} can be read: nothing to pack")
    kept.details["left_out"] = left_out
    return kept


def unreadable(images: FileImages, indices: np.ndarray) -> dict[int, str]:
    """{index: why} of the images at indices (n,) that cannot be decoded."""
    faults = {}
    for i in indices.tolist():
        try:
            images.pixels(i)
        except UnreadableImage as error:
            faults[i] = error.reason
    return faults


def write_shard(path: Path, images: ImageSet, indices: np.ndarray, first: int) -> dict:
    """Write the images at indices (n,) under the running indices from `first` on; returns the shard's entry."""
    labelled, entry = images.class_names != [NO_LABEL], {}

    def write(file) -> None:
        digest = Digest(file)
        # Keys without a dot and of ASCII, whatever the file was called; a fixed time, so that equal images give equal tars.
        with webdataset().TarWriter(digest, encoder=False, mtime=0) as tar:
            for key, index in enumerate(indices.tolist(), first):
                extension, data = encoded(images, index)
                sample = {"__key__": f"{key:09}", extension: data, "json": json.dumps({"id": str(images.ids[index])}).encode()}
                if labelled:
                    sample["cls"] = str(images.labels[index]).encode()
                tar.write(sample)
        entry.update(file=path.name, images=len(indices), bytes=digest.bytes, sha256=digest.sha256.hexdigest())

    replace_file(path, write)
    return entry


def pack(images: ImageSet, name: str, split: str, out: str | Path, images_per_shard: int = 2000, seed: int = 0) -> dict:
    """Write shards and, last, shards.json into the new or empty folder `out`; returns what shards.json holds.

    The images stand in an order seeded by `seed`: a reader shuffles among neighbours only, and sets come class by class.
    ValueError where `out` holds anything or cannot be written.
    """
    out = Path(out)
    check_out(out, images_per_shard)
    order = np.random.RandomState(np.random.MT19937(derive_seed(seed, "pack"))).permutation(len(images))
    starts, shards = range(0, len(images), images_per_shard), []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for first in progress(starts, len(starts), "shards"):
            path = out / f"shard-{len(shards):06}.tar"
            shards.append(write_shard(path, images, order[first:first + images_per_shard], first))
        record = {"format": FORMAT, "name": name, "split": split, "source": images.source, "details": images.details,
                  "seed": seed, "class_names": images.class_names, "class_counts": images.class_counts.tolist(),
                  "mean": list(images.record.mean), "std": list(images.record.std), "images": len(images), "shards": shards}
        replace_file(out / FILE, lambda file: file.write(json.dumps(record, indent=1).encode()))
    except OSError as error:
        raise ValueError(f"cannot write into --out {printable(out)} ({error.strerror}): name another folder") from None
    return record


def check_out(out: Path, images_per_shard: int) -> None:
    """ValueError where `out` is no new or empty folder, or shards would hold nothing."""
    if images_per_shard < 1:
        raise ValueError(f"--images_per_shard must be at least 1, not {images_per_shard}")
    if mode_of(out) and not is_folder(out):
        raise ValueError(f"--out {printable(out)} is a file: name a folder")
    try:
        there = sorted(os.listdir(out)) if is_folder(out) else []
    except OSError as error:
        raise ValueError(f"cannot read --out {printable(out)} ({error.strerror}): name another folder") from None
    if FILE in there:
        raise ValueError(f"--out {printable(out)} holds shards already: name a new or empty folder")
    if there:
        raise ValueError(f"--out {printable(out)} holds other files, such as {printable(there[0])}: name a new or empty "
                         "folder, or empty it where a pack has broken off")


def get_args_parser() -> Parser:
    """Flags of the command; those that name the data set are the stages'."""
    parser = Parser("write the images of a data set into tar shards")
    names = [name for name in DATASETS if name != "shards"]
    parser.add_argument("name", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder of the shards, new or empty")
    parser.add_argument("--split", default="train", choices=["train", "val", "test"])
    parser.add_argument("--images_per_shard", type=int, default=2000, metavar="N", help="2000 photographs of ImageNet's size "
                        "make a tar of about 220 MB")
    parser.add_argument("--seed", type=int, default=0, help="decides the order in which the images are written")
    parser.add_argument("--skip_bad_images", type=int, default=0, metavar="N", help="unreadable images that may be left out")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes that look whether images can be read (one a "
                        "core by default, 0: none)")
    parser.add_argument("--data_path", metavar="DIR", help="where the images are")
    parser.add_argument("--mean", type=float, nargs="+", metavar="M", help="channel means in [0, 1], kept with the shards, "
                        "for sets without a record of their own")
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="channel deviations in [0, 1]")
    parser.add_argument("--imb_factor", type=float, metavar="F", help="draw a long tail out of the training images first")
    parser.add_argument("--data_seed", type=int, metavar="S", help="which draw that is (0 by default)")
    return parser


def main(args) -> dict:
    """Pack one split; returns what shards.json holds."""
    webdataset()
    for name in ("skip_bad_images", "num_workers"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} must not be negative: {getattr(args, name)}")
    check_out(Path(args.out), args.images_per_shard)
    images = build_dataset(args.name, args.split, args.data_path, args.mean, args.std, args.imb_factor, args.data_seed)
    check_listed(images, args.skip_bad_images, progress)
    images = without_unreadable(images, args.skip_bad_images, args.num_workers)
    record = pack(images, args.name, args.split, args.out, args.images_per_shard, args.seed)
    left_out = images.details.get("left_out", [])
    if left_out:
        say("\n  ".join([f"left out, because unreadable (listed in {FILE}): {len(left_out)}",
                         *(f"{path}\t{why}" for path, why in left_out)]))
    size = sum(shard["bytes"] for shard in record["shards"])
    say(f"wrote {len(images)} images of {images.source} into {len(record['shards'])} shards, {size / 1e9:.2f} GB, in "
        f"{args.out}: --dataset shards --data_path {args.out}")
    return record


if __name__ == "__main__":
    run_command(get_args_parser(), main)
