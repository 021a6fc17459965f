"""One's own pictures: a tree DIR/<split>/<class>/<image>."""
from pathlib import Path

import numpy as np

from datasets.imageset import FileImages, Record

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


def class_order(names: list[str]) -> list[str]:
    """Folder names in label order: by value where all are whole numbers (2 before 10), else alphabetically."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def folder_images(data_path: str | Path, split: str, record: Record) -> FileImages:
    """The images of DIR/<split>/<class>/*.

    The classes and their order are those of DIR/train (or of DIR/classes.txt, one name a line, where that file is),
    for every split. Raises ValueError where a folder is missing or empty, or a split has a class that train has not.
    """
    root = Path(data_path)
    if not (root / split).is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else None
        found = f"there are: {', '.join(there) or 'no folders'}" if there is not None else "no such folder"
        raise ValueError(f"--data_path {root} has no folder {split}/ ({found}): expected {root}/{split}/<class>/<image>")
    names = class_names(root, split)
    label_of = {name: label for label, name in enumerate(names)}
    paths, labels = [], []
    for folder in sorted(p for p in (root / split).iterdir() if p.is_dir()):
        if folder.name not in label_of:
            raise ValueError(f"{folder} is a class that the training images do not have: known are {len(names)} classes, "
                             f"{', '.join(names[:5])} ...")
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
        paths += [str(p.relative_to(root)) for p in files]
        labels += [label_of[folder.name]] * len(files)
    if not paths:
        raise ValueError(f"no image below {root / split} (extensions {', '.join(sorted(EXTENSIONS))})")
    return FileImages(root, np.array(labels), names, record, np.array(paths), source=str(root / split))


def class_names(root: Path, split: str) -> list[str]:
    """Class names in label order, out of classes.txt or the training folders."""
    listed = root / "classes.txt"
    if listed.is_file():
        return [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    folder = root / ("train" if (root / "train").is_dir() else split)
    return class_order([p.name for p in folder.iterdir() if p.is_dir()])
