"""Which pictures a command shows: files and folders, or a few of a data set."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import DATASETS
from datasets.entries import EXTENSIONS, LeftOut, is_file, is_folder
from datasets.folder import NO_LABEL, walk
from datasets.imageset import FileImages, ImageSet
from util.args import Parser
from util.trained import Trained, load_split


def add_picture_flags(parser: Parser) -> None:
    """--images, or the data set to take pictures from, and how many."""
    group = parser.add_argument_group("pictures")
    group.add_argument("--images", nargs="+", metavar="PATH", help="image files, and folders with images at any depth; "
                       "without the flag, pictures of the checkpoint's data set, an equal number of each class")
    group.add_argument("--dataset", metavar="NAME", help=f"of this data set: one of {', '.join(DATASETS)}")
    group.add_argument("--data_path", metavar="DIR", help="where its images are (the checkpoint's)")
    group.add_argument("--split", choices=["train", "val", "test"], help="of this split (test; train of sets for stage 1)")
    group.add_argument("--num", type=int, default=8, metavar="N", help="at most so many pictures")


def load_pictures(args, trained: Trained) -> tuple[list[Image.Image], list[str], str]:
    """The pictures of the flags, in the model's channels: (images, captions, words that say where they are from).

    Captions are the names of the classes, or of the files where there are none. ValueError for flags that contradict each
    other, a path that is no image, and a folder without one.
    """
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, not {args.num}")
    if args.images is None:
        images = load_split(trained, args.split, args.dataset, args.data_path)
        order = in_turn(images)[:args.num]
        captions = [caption(images, i) for i in order]
        source = images.source
    else:
        for name in ("dataset", "data_path", "split"):
            if getattr(args, name) is not None:
                raise ValueError(f"--images names the pictures, so --{name} {getattr(args, name)} would do nothing: leave one "
                                 "of them out")
        paths = [path for given in args.images for path in image_paths(given)]
        images = FileImages(Path(), np.zeros(len(paths)), ["picture"], trained.record, paths, source="--images")
        order = range(len(paths))[:args.num]
        captions, source = [Path(paths[i]).stem for i in order], " ".join(args.images)
    return [images.image(i) for i in order], captions, f"{len(order)} of {len(images)} images of {source}"


def image_paths(given: str) -> list[str]:
    """The image files that a path of --images stands for: itself, or those below it by name."""
    path = Path(given)
    if is_folder(path):
        left_out = LeftOut()
        found = [str(path / name) for name in walk(path, left_out)]
        left_out.tell()
        if not found:
            raise ValueError(f"--images {given}: no image below it (extensions {', '.join(sorted(EXTENSIONS))})")
        return found
    if not is_file(path):
        raise ValueError(f"--images {given}: no such file or folder")
    return [str(path)]


def in_turn(images: ImageSet) -> Sequence[int]:
    """Indices in the order to show: by `spread`, or as they come where there is no list of labels (tar shards)."""
    return spread(images.labels).tolist() if hasattr(images, "labels") else range(len(images))


def caption(images: ImageSet, index: int) -> str:
    """The class of an image, without classes the name of its file, and of tar shards its number."""
    if not hasattr(images, "labels"):
        return str(index)
    return Path(str(images.ids[index])).stem if images.class_names == [NO_LABEL] else images.class_names[images.labels[index]]


def spread(labels: np.ndarray) -> np.ndarray:
    """Indices (N,) of the first image of every class in label order, then of the second of each, and so on."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - first
    return np.lexsort((labels, place))
