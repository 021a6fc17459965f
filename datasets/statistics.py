"""Channel statistics of one's own images, in the form that --mean and --std take.

    python -m datasets.statistics folder --data_path DIR [--split train] [--limit N] [--gray]

Of pixels in [0, 1], and every image weighs the same whatever its size: the mean over images of an image's channel mean,
and the deviation sqrt(mean over images of E[x^2] - mean^2) of all pixels, not the mean of the images' own deviations. (The
record of CIFAR, from the released code, has the latter: (.2023, .1994, .2010), where the pixels' are (.2470, .2435, .2616).)
The flags go to stdout alone, for $(...); the number of images goes to stderr.
"""
import sys
from collections.abc import Callable

import numpy as np

from datasets import DATASETS, build_dataset
from datasets.imageset import ImageSet
from datasets.parallel import CHUNK, over_chunks
from datasets.presence import check_listed
from datasets.records import RECORDS
from util.args import Parser, run_command
from util.run import progress, say
from util.seed import derive_seed

VALUES = np.arange(256, dtype=np.float64) / 255


def sums(images: ImageSet, indices: np.ndarray) -> np.ndarray:
    """float64 (2, C): sums over the images at indices of each channel's mean and mean square, of pixels in [0, 1]."""
    total = np.zeros((2, images.record.channels))
    for i in indices.tolist():
        image = images.image(i)
        shares = np.array(image.histogram(), dtype=np.float64).reshape(-1, 256) / (image.width * image.height)
        total += shares @ VALUES, shares @ VALUES**2
    return total


def channel_statistics(images: ImageSet, limit: int | None = None, num_workers: int | None = None,
                       progress: Callable = lambda chunks, total: chunks) -> tuple[np.ndarray, np.ndarray, int]:
    """(mean (C,), deviation (C,), number of images used), float64; the same for any number of workers.

    limit: a sample of so many images, a function of (limit, N). ValueError for an unreadable image, which it names, and for
    images of one colour, by whose deviation nothing can be divided.
    """
    indices = np.arange(len(images))
    if limit is not None and limit < len(images):
        # RandomState, because numpy promises never to change its stream.
        random = np.random.RandomState(np.random.MT19937(derive_seed("statistics", len(images))))
        indices = np.sort(random.permutation(len(images))[:limit])
    total = sum(over_chunks(sums, images, indices, num_workers, progress), np.zeros((2, images.record.channels)))
    mean, square = total / len(indices)
    std = np.sqrt(np.maximum(square - mean**2, 0))  # below 0 by a last digit where all pixels are equal
    if (std < 5e-5).any():
        raise ValueError(f"a channel of {images.source} has the deviation {std.min():.1g}: its pixels are all alike, and "
                         "dividing by that makes no input; look at the images")
    return mean, std, len(indices)


def flags(mean: np.ndarray, std: np.ndarray) -> str:
    """`--mean ... --std ...`."""
    return " ".join(["--mean", *(f"{m:.4f}" for m in mean), "--std", *(f"{s:.4f}" for s in std)])


def open_images(name: str, data_path: str | None, split: str, gray: bool) -> ImageSet:
    """The split with a placeholder for the statistics that nobody knows yet."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    channels = 1 if gray else RECORDS[name].channels if name in RECORDS else 3
    if gray and name in RECORDS and build_dataset(name, split, data_path).in_memory:
        raise ValueError(f"--gray converts image files as they are read, and {name} is in memory as it is: leave it out")
    return build_dataset(name, split, data_path, (0.0,) * channels, (1.0,) * channels)


def main(args) -> tuple[np.ndarray, np.ndarray]:
    """Print the flags; returns mean and deviation, each (C,)."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {args.limit}")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"--num_workers must not be negative: {args.num_workers}")
    images = open_images(args.name, args.data_path, args.split, args.gray)
    check_listed(images, progress=progress)
    mean, std, used = channel_statistics(images, args.limit, args.num_workers,
                                         lambda chunks, total: progress(chunks, total, f"{CHUNK} images a step"))
    say(flags(mean, std))
    print(f"({used:,} of the {len(images):,} images of {images.source})", file=sys.stderr)
    return mean, std


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("channel mean and deviation of images, as flags")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--data_path", metavar="DIR", help="where the images are")
    parser.add_argument("--split", default="train", help="train, val or test")
    parser.add_argument("--limit", type=int, metavar="N", help="a random sample of N images (all by default)")
    parser.add_argument("--gray", action="store_true", help="of the images as gray, for one number each")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes (one a core by default, 0: none)")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
