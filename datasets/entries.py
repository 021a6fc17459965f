"""What lies in a folder: images, folders, and what is passed over, which is counted and told and never dropped in silence."""
import errno
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from datasets.paths import kind_of, printable

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".gif"}
# Pictures all the same, which not every Pillow reads: a data set must not depend on what is installed.
OTHER_PICTURES = {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".pbm", ".tga", ".dib", ".apng", ".psd", ".dng", ".cr2",
                  ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
NO_PICTURES = {".txt", ".csv", ".json", ".xml", ".md", ".html", ".db", ".ini", ".py"}  # not worth a look inside
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")


class Contents(NamedTuple):
    """Names of what lies in a folder, each sorted. pictures: images with an ending that is not read; hidden: files and folders
    whose name begins with a dot; faults: (name, what is wrong) of links that lead nowhere and of images that are no files."""

    images: list[str]
    folders: list[str]
    pictures: list[str]
    hidden: list[str]
    faults: list[tuple[str, str]]


def look(folder: str | Path, of_classes: bool = False, known: Collection[str] = ()) -> Contents:
    """What lies in `folder`. Raises OSError.

    of_classes: its folders are classes, so that a link that leads nowhere is a fault whatever its name; known: names that
    are not passed over although they are hidden.
    """
    found = Contents([], [], [], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            fault = fault_of(entry)
            if entry.name.startswith(".") and entry.name not in known:
                found.hidden.append(entry.name)
            elif fault:
                named = ending in EXTENSIONS or ending in OTHER_PICTURES
                if named or entry.is_symlink() and (of_classes or not ending):
                    found.faults.append((entry.name, fault))
            elif entry.is_dir():
                found.folders.append(entry.name)
            elif ending in EXTENSIONS:
                found.images.append(entry.name)
            elif is_picture(entry.path):
                found.pictures.append(entry.name)
    for names in found:
        names.sort()
    return found


def fault_of(entry: os.DirEntry) -> str | None:
    """What an entry is that is no file and no folder, and leads to none; None for these."""
    if not entry.is_symlink() and (entry.is_file() or entry.is_dir()):
        return None
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        how = {errno.ENOENT: "leads nowhere", errno.ELOOP: "leads in a circle"}.get(error.errno, f"fails ({error.strerror})")
        return f"a link that {how}, to {printable(os.readlink(entry.path))}" if entry.is_symlink() else error.strerror
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f"{kind_of(mode)} and no image"


def is_picture(path: str) -> bool:
    """Whether a file is a picture by its ending, or by its first bytes where the ending says nothing."""
    ending = os.path.splitext(path)[1].lower()
    if ending in EXTENSIONS or ending in OTHER_PICTURES or ending in NO_PICTURES:
        return ending not in NO_PICTURES
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(BEGINNINGS) or start[:4] == b"RIFF" and start[8:] == b"WEBP" or start[4:11] in (
        b"ftyphei", b"ftypavi", b"ftypmif")


def pictures_below(folder: str | Path) -> int:
    """Number of pictures in a folder and those in it, without hidden ones; links to folders in it are not followed."""
    number, below = 0, [os.fspath(folder)]
    while below:
        here = below.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(".") or fault_of(entry):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_file():
                    number += is_picture(entry.path)
    return number


class LeftOut:
    """What a reader passes over. pictures: (path, number, why) of images; hidden: paths of files and folders."""

    def __init__(self):
        self.pictures: list[tuple[str, int, str]] = []
        self.hidden: list[str] = []

    def keep(self, folder: str, contents: Contents, images: str = "") -> None:
        """Add what is passed over of a folder; with `images` its images too, and why."""
        for name in contents.pictures:
            ending = os.path.splitext(name)[1].lower()
            why = (f"images ending with {printable(ending)} are not read" if ending else
                   "its name has no image's ending, such as .jpg or .png")
            self.pictures.append((os.path.join(folder, name), 1, why))
        self.pictures += [(os.path.join(folder, name), 1, images) for name in contents.images if images]
        self.hidden += [os.path.join(folder, name) for name in contents.hidden]

    def keep_folder(self, path: str, number: int, why: str) -> None:
        """Add a folder with `number` images, none of which is read; nothing where there are none."""
        if number:
            self.pictures.append((path, number, why))

    def notes(self) -> list[str]:
        """One line for each reason: how many, why, and the first of them."""
        notes = []
        for why in dict.fromkeys(why for *_, why in self.pictures):
            own = [(path, number) for path, number, other in self.pictures if other == why]
            total = sum(number for _, number in own)
            notes.append(f"{total:,} picture{'s' * (total != 1)} left out, {why}: {such_as([path for path, _ in own])}")
        return notes + self.hidden_note()

    def hidden_note(self) -> list[str]:
        """The line about what is hidden, none where nothing is."""
        number = len(self.hidden)
        plural = "s" * (number != 1)
        return [f"{number:,} hidden file{plural} or folder{plural} left out: {such_as(self.hidden)}"] * bool(number)

    def tell(self) -> None:
        """Print the notes on stderr: stdout may be a command's result."""
        for note in self.notes():
            print(f"note: {note}", file=sys.stderr)


def such_as(paths: list[str]) -> str:
    """The first three, and dots for the others."""
    return ", ".join(map(printable, paths[:3])) + ", ..." * (len(paths) > 3)


def is_folder(path: str | Path) -> bool:
    """As os.path.isdir; ValueError for a link that leads nowhere, and where it may not be looked at."""
    return stat.S_ISDIR(mode_of(path))


def is_file(path: str | Path) -> bool:
    """Whether there is a file; ValueError as `is_folder`, and for what is there and is no file, such as a pipe."""
    mode = mode_of(path)
    if mode and not stat.S_ISREG(mode):
        raise ValueError(f"{printable(path)} is {kind_of(mode)}, not a file: move it away")
    return mode != 0


def mode_of(path: str | Path) -> int:
    """Mode of what a path leads to, 0 where there is nothing."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise ValueError(f"{printable(path)} is a link that leads nowhere, to {printable(os.readlink(path))}: repair or "
                             "remove it") from None
        return 0
    except OSError as error:
        raise ValueError(f"cannot look at {printable(path)} ({error.strerror}): see that it can be read") from None
