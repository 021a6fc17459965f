"""Whether the files of a list are there, by one look at each folder (links, and with their sizes all files, cost a call of the
file system each), and, which takes longer, whether they are images."""
import contextlib
import errno
import hashlib
import os
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from datasets.decode import UnreadableImage
from datasets.imageset import FileImages
from datasets.paths import open_file, printable
from datasets.verifying.listing import Listing, Problem

OK, MISSING, NOWHERE, CIRCLE, EMPTY, DENIED, FOLDER, PIPE, SOCKET, DEVICE = range(10)
KINDS = {stat.S_IFDIR: FOLDER, stat.S_IFIFO: PIPE, stat.S_IFSOCK: SOCKET}  # others are devices
WORDS = {MISSING: "no such file", NOWHERE: "a link that leads nowhere", CIRCLE: "a link that leads in a circle",
         EMPTY: "an empty file (0 bytes)", DENIED: "not to be read (no permission)", FOLDER: "a folder, not a file",
         PIPE: "a pipe, not a file", SOCKET: "a socket, not a file", DEVICE: "a device, not a file"}
EFFECTIVE = os.access in os.supports_effective_ids
WHOLE = 5  # from so many files on, a folder none of whose files is there is one problem, not one a file
THREADS = 16  # that wait for the disk: one of a network answers many questions at once, but each of them late
HINTS = 20  # folders with missing files that are looked at for a cause


@dataclass
class Hint:
    """What is there instead of a missing file: wanted: its path; there: up to three names in the folder that is nearest;
    twin: one of that folder that differs in case or extension alone; above: whether the image lies one folder higher."""

    wanted: str
    there: list[str]
    twin: str | None = None
    above: bool = False


@dataclass
class Scan:
    """status: (N,) uint8, one of OK, MISSING, ...; entries: (F,) files and folders in each folder of the listing;
    folder_faults: why a folder cannot be read, by its number; hints: see Hint, of the first few folders."""

    status: np.ndarray
    entries: np.ndarray
    folder_faults: dict[int, str] = field(default_factory=dict)
    hints: list[Hint] = field(default_factory=list)


def by_folder(listing: Listing) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """(number, path, positions (n,) of its lines) of every folder of a listing."""
    folders, of = listing.folders
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of, minlength=len(folders)))
    for number, (folder, end) in enumerate(zip(folders, ends, strict=True)):
        yield number, folder, order[ends[number - 1] if number else 0:end]


def scan_files(listing: Listing, progress: Callable = lambda folders, total: folders, sizes: bool = False) -> Scan:
    """Look for the files of a listing, one folder at a time in several threads; with `sizes` for empty ones too, which costs
    a call of the file system each. progress(iterable, total) may draw a bar over folders."""
    blob, ends = listing.paths.blob.tobytes(), listing.paths.ends
    starts = np.concatenate([[0], ends[:-1] + 1])[:len(ends)]
    scan = Scan(np.zeros(len(listing), dtype=np.uint8), np.zeros(len(listing.folders[0]), dtype=np.int64))
    root = os.fsencode(listing.root)

    def names(folder: bytes, positions: np.ndarray) -> list[bytes]:
        skip = len(folder) + 1 if folder else 0
        return [blob[start + skip:end] for start, end in zip(starts[positions].tolist(), ends[positions].tolist(), strict=True)]

    with ThreadPoolExecutor(THREADS) as pool:
        looks = pool.map(lambda part: (part[2], *look_for(os.path.join(root, part[1]), names(*part[1:]), sizes)),
                         by_folder(listing))
        for number, (positions, status, there, fault) in enumerate(progress(looks, len(listing.folders[0]))):
            scan.status[positions], scan.entries[number] = status, len(there)
            if fault:
                scan.folder_faults[number] = fault
            missing = positions[np.array(status) == MISSING]
            if len(missing) and len(scan.hints) < HINTS:
                scan.hints.append(hint(root, os.fsencode(listing.paths[missing[0]]), there))
    return scan


def look_for(path: bytes, names: list[bytes], sizes: bool) -> tuple[list[int], list[bytes], str | None]:
    """(status of each of the names in a folder, the names of all that is there, why the folder cannot be read or None)."""
    try:
        with os.scandir(path) as entries:
            there = {entry.name: entry for entry in entries}
    except OSError as error:
        link = os.path.islink(path)
        return [MISSING] * len(names), [], (
            "is a link that leads nowhere" if link and error.errno == errno.ENOENT else
            "is not there" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})")
    status = []
    for name in names:
        entry = there.get(name)
        plain = entry is not None and not sizes and not entry.is_symlink() and entry.is_file()
        status.append(OK if plain else MISSING if entry is None else file_status(entry))
    return status, list(there), None


def file_status(entry: os.DirEntry) -> int:
    """OK, or what is wrong with an entry that is no plain file."""
    try:
        result = entry.stat()
    except OSError as error:
        return {errno.ENOENT: NOWHERE, errno.ELOOP: CIRCLE}.get(error.errno, DENIED)
    if not stat.S_ISREG(result.st_mode):
        return KINDS.get(stat.S_IFMT(result.st_mode), DEVICE)
    if not result.st_size:
        return EMPTY
    # What everybody may read costs no second call.
    readable = result.st_mode & stat.S_IROTH or os.access(entry.path, os.R_OK, effective_ids=EFFECTIVE)
    return OK if readable else DENIED


def hint(root: bytes, wanted: bytes, there: list[bytes]) -> Hint:
    """What lies near a missing file; `there`: the names in its folder."""
    folder, _, name = wanted.rpartition(b"/")
    stem = os.path.splitext(name.lower())[0]
    twin = next((other for other in sorted(there) if os.path.splitext(other.lower())[0] == stem), None)
    above = os.path.lexists(os.path.join(root, os.path.dirname(folder), name)) if folder else False
    shown = sorted(there)[:3]
    while not there and folder and not shown:
        folder = os.path.dirname(folder)
        at = os.path.join(root, folder)
        shown = sorted(os.listdir(at))[:3] if os.path.isdir(at) and os.access(at, os.R_OK | os.X_OK) else []
    return Hint(printable(wanted), [*map(printable, shown)], None if twin is None else printable(twin), above)


def file_problems(listing: Listing, scan: Scan) -> list[Problem]:
    """Every file that is not there or no file, once a folder where a whole folder is missing."""
    problems = []
    for number, folder, positions in by_folder(listing):
        path, fault = printable(os.path.join(os.fsencode(listing.root), folder)), scan.folder_faults.get(number)
        missing = positions[scan.status[positions] == MISSING]
        if fault or len(missing) == len(positions) >= WHOLE:
            words = f"the folder {path} {fault}" if fault else f"no image that is listed in {path} is there"
            problems.append((positions[0], Problem("files", listing.where(positions[0]), f"{words} ({len(positions):,} "
                                                   f"image{'s' * (len(positions) > 1)}, the first on this line)")))
            continue
        for i in positions[scan.status[positions] != OK].tolist():
            state = int(scan.status[i])
            problems.append((i, Problem("links" if state in (NOWHERE, CIRCLE) else "files", listing.where(i),
                                        f"{listing.subject(i)}is {WORDS[state]}")))
    return [problem for _, problem in sorted(problems, key=lambda pair: pair[0])]


def read_images(images: FileImages, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str], dict[int, str]]:
    """Read and decode the images at indices (n,): 64-bit hashes of the files' bytes, (n,) uint64, 0 for a file that cannot
    be read; what is wrong, by index; and what libjpeg warned of while it read an image all the same, by index."""
    hashes, faults, warned = np.zeros(len(indices), dtype=np.uint64), {}, {}
    with warnings.catch_warnings(action="ignore"), written_to_stderr() as written:  # of images that are read all the same
        for place, i in enumerate(indices.tolist()):
            path = os.path.join(images.root, images.ids[i])
            try:
                with open_file(path) as file:
                    data = file.read()
                hashes[place] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
                if data:
                    images.pixels(i)
                else:
                    faults[i] = f"{printable(path)} is an empty file (0 bytes)"
            except OSError as error:
                faults[i] = f"{printable(path)} cannot be read ({error.strerror or error})"
            except UnreadableImage as error:
                faults[i] = str(error)
            words = written()
            if words and i not in faults:
                warned[i] = printable(words)
    return hashes, faults, warned


@contextlib.contextmanager
def written_to_stderr() -> Iterator[Callable[[], str]]:
    """Keeps what is written to the process's stderr in the body; the function that it gives returns what is new. Libraries in
    C write their warnings there, without the name of the file that they are about."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        seen, kept = 0, os.dup(2)

        def new() -> str:
            nonlocal seen
            start, seen = seen, os.fstat(file.fileno()).st_size
            text = os.pread(file.fileno(), seen - start, start) if seen > start else b""
            return " ".join(text.decode(errors="replace").split())

        os.dup2(file.fileno(), 2)
        try:
            yield new
        finally:
            os.dup2(kept, 2)
            os.close(kept)
