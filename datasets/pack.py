"""Write the images of a data set into tar shards, for `--dataset shards`.

    python -m datasets.pack folder --data_path DIR --mean .485 .456 .406 --std .229 .224 .225 --out OUT
    python -m datasets.pack imagenet_1k --data_path PREPARED --out OUT --images_per_shard 5000

Files are copied byte for byte; images that a set holds in memory are written as PNG. The layout is that of datasets/shards.py.
"""
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets import DATASETS, build_dataset
from datasets.decode import UnreadableImage
from datasets.folder import EXTENSIONS, NO_LABEL
from datasets.imageset import FileImages, ImageSet
from datasets.paths import printable
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
    """(extension, bytes) of one image: its file as it is, or a PNG of an image in memory.

    UnreadableImage for a file that is missing or does not begin as an image does; whether the rest of it is whole only
    decoding can tell.
    """
    if not isinstance(images, FileImages):
        stream = io.BytesIO()
        images.image(index).save(stream, "png")
        return "png", stream.getvalue()
    path = images.root / images.ids[index]
    try:
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        words = f"its {len(data)} bytes begin no image" if isinstance(error, UnidentifiedImageError) else words
        raise UnreadableImage(f"cannot read the image {printable(path)} ({words}): replace it or take it out of the data "
                              "set") from None
    extension = path.suffix.lower()
    return (extension if extension in EXTENSIONS else ".img")[1:], data


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
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {printable(out)} is a file: name a folder")
    there = sorted(os.listdir(out)) if out.is_dir() else []
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
    check_out(Path(args.out), args.images_per_shard)
    images = build_dataset(args.name, args.split, args.data_path, args.mean, args.std, args.imb_factor, args.data_seed)
    record = pack(images, args.name, args.split, args.out, args.images_per_shard, args.seed)
    size = sum(shard["bytes"] for shard in record["shards"])
    say(f"wrote {len(images)} images of {images.source} into {len(record['shards'])} shards, {size / 1e9:.2f} GB, in "
        f"{args.out}: --dataset shards --data_path {args.out}")
    return record


if __name__ == "__main__":
    run_command(get_args_parser(), main)
