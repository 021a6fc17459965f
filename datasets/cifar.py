"""CIFAR-10 and CIFAR-100 as torchvision reads them from the official files, in memory."""
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from datasets.imageset import ArrayImages, Record
from datasets.paths import printable

CLASSES = {"cifar10_lt": CIFAR10, "cifar100_lt": CIFAR100}


def cifar_images(name: str, data_path: str | Path | None, split: str, record: Record) -> ArrayImages:
    """The 50,000 training or 10,000 test images of `name`, all classes in the official order of their labels.

    ids are positions in the official files. ValueError where the files are missing or damaged, or for split "val".
    """
    how = f"python -m datasets.prepare {name} --out DIR downloads them"
    if data_path is None:
        raise ValueError(f"--dataset {name} needs --data_path DIR with the official files: {how}")
    if split == "val":
        raise ValueError(f"--dataset {name} has no split val: use --split test")
    kind = CLASSES[name]
    try:
        data = kind(str(data_path), train=split == "train", download=False)
    except (RuntimeError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"no whole copy of {kind.__name__} in {printable(data_path)}, expected {kind.base_folder}/ there "
                         f"({reason}): {how}") from None
    return ArrayImages(data.data, np.array(data.targets), data.classes, record, np.arange(len(data.targets)),
                       source=f"{data_path}/{kind.base_folder}:{split}")


def download(name: str, out: str | Path) -> None:
    """Fetch the official files into `out`, or check those that are there. ValueError where neither can be done."""
    kind = CLASSES[name]
    try:
        kind(str(out), train=True, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot fetch {kind.url} ({reason}): put that file into {printable(out)}, from a machine with "
                         "network, and give the same command again") from None


def official_files(name: str) -> dict[str, str]:
    """MD5 (32 hex digits) of every official file of `name` by its path below --data_path; empty for a set that is no CIFAR."""
    if name not in CLASSES:
        return {}
    kind = CLASSES[name]
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {f"{kind.base_folder}/{file}": md5 for file, md5 in files}
