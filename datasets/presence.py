"""Whether the files of a list are there, before anything is read of them."""
from collections.abc import Callable

import numpy as np

from datasets.imageset import FileImages, ImageSet
from datasets.lists import rows
from datasets.paths import printable
from datasets.verifying.listing import Listing
from datasets.verifying.scan import OK, WORDS, scan_files


def check_listed(images: ImageSet, limit: int = 0, progress: Callable = lambda folders, total, what: folders) -> None:
    """ValueError where more than `limit` files of a list are not there or no files; it names the first with file and line.

    All are looked for, by one look at each folder in several threads: a call of the file system for each folder and each
    link, not for each file. What a folder itself listed is not looked for again. progress(iterable, total, what) may draw
    a bar.
    """
    if not isinstance(images, FileImages) or images.list_file is None:
        return
    listing = Listing("", images.root, "", images.ids, images.labels)
    what = f"folders of {printable(images.list_file.name)}"
    scan = scan_files(listing, lambda folders, total: progress(folders, total, what))
    wrong = np.flatnonzero(scan.status != OK)
    if len(wrong) <= limit:
        return
    first = int(wrong[0])
    path, fault = images.ids[first], scan.folder_faults.get(int(listing.folders[1][first]))
    words = f"is {WORDS[int(scan.status[first])]} below {printable(images.root)}" + f" (its folder {fault})" * bool(fault)
    raise ValueError(f"{printable(images.list_file)}:{line_with(images, path)}: {printable(path)} {words}; {len(wrong):,} of "
                     f"{len(images):,} files cannot be read: put them back, or take their lines out")


def line_with(images: FileImages, path: str) -> int:
    """Line of the list that names a path."""
    wanted = path.encode("utf-8", "surrogateescape")
    return next(number for number, name, _ in rows(images.list_file, lambda *_: None) if name == wanted)
