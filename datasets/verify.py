"""Whether a data set is right, before training: what is there, what is wrong and where, and why that may be.

    python -m datasets.verify NAME --data_path DIR [--decode] [--show 20] [--report FILE]

Without --decode it looks at lists, folders, links and sizes and takes seconds; no image is opened. With --decode every image
is read and decoded as in training, on all cores. Of tar shards all bytes are read in both cases, for their SHA-256. Ends with a
table, and with exit code 0 where all is right, 1 where something is wrong, 2 where the command is.
"""
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import FACTORS, records
from datasets.entries import is_file, is_folder, such_as
from datasets.folder import NO_LABEL
from datasets.imageset import FileImages, Record
from datasets.longtail import longtail_counts_of
from datasets.parallel import CHUNK, over_chunks
from datasets.paths import printable
from datasets.shards import ShardImages
from datasets.verifying import checks
from datasets.verifying.causes import PLACES_STANDARD_MOST, Facts, likely_causes
from datasets.verifying.inventory import READERS, SPLITS, Inventory, take_inventory
from datasets.verifying.listing import EMPTY_CLASS, Problem
from datasets.verifying.scan import MISSING, OK, Scan, file_problems, read_images, scan_files
from datasets.verifying.tars import READABLE, SHARDS, tar_problems
from datasets.verifying.verdict import Row, Verdict, plural, table
from util.args import Parser, run_command
from util.metrics import FEW_BELOW, MANY_ABOVE, groups
from util.run import progress, say

ANY_RECORD = Record((0.0,) * 3, (1.0,) * 3)  # decoding needs the number of channels alone


def shape(counts: np.ndarray) -> tuple[str, str]:
    """(largest and smallest class, number of many, medium and few classes) of class counts (C,)."""
    return (f"{counts.max():,} / {counts.min():,}" if len(counts) else "no class",
            " / ".join(f"{int(mask.sum()):,}" for mask in groups(counts).values()) if len(counts) else "no class")


def check_reading(found: Inventory, verdict: Verdict) -> None:
    """What was wrong already while lists and folders were read."""
    verdict.notes += found.left_out.hidden_note()
    if found.name in ("folder", "list") and "test" not in found.splits:
        verdict.notes.append("there is no split test, which stage 2 scores: it needs --split val or --val_fraction")
    others = [name for name in names_in(found.root) if name not in SPLITS and not name.startswith(".")
              and os.path.isdir(found.root / name)] if found.name == "folder" else []
    if others:
        verdict.notes.append(f"only train, val and test are read, and not {such_as(others)}")
    for kind in found.checked:
        verdict.check(kind, "none wrong", [problem for problem in found.problems if problem.kind == kind], "all right")


def check_counts(found: Inventory, verdict: Verdict) -> dict[str, np.ndarray]:
    """Sizes of splits and classes against the official ones; returns images of every class (C,) by split."""
    num_classes, sizes = len(found.class_names), records.OFFICIAL_SIZES.get(found.name, {})
    counts = {split: np.bincount(listing.labels, minlength=num_classes) for split, listing in found.splits.items()}
    for split, listing in found.splits.items():
        wrong = sizes.get(split, len(listing)) != len(listing)
        verdict.problems += wrong * [Problem(f"{split}: images", listing.place, f"{len(listing):,} images, expected "
                                             f"{sizes.get(split, 0):,}")]
        verdict.compare(f"{split}: images", f"{sizes[split]:,}" if split in sizes else None, f"{len(listing):,}")
    verdict.rows += [Row(f"{split}: images", f"{size:,}", "no such split", None) for split, size in sizes.items()
                     if split not in counts]
    if found.name in ("unlabeled", "shards"):
        return counts
    classes = records.OFFICIAL_CLASSES.get(found.name)
    verdict.compare("classes", None if classes is None else f"{classes:,}", f"{num_classes:,}")
    for split, own in counts.items():
        expected = checks.expected_counts(found.name, split, num_classes, found.options)
        if split == "train":
            wanted = (None, None) if expected is None else shape(expected)
            verdict.compare("train: largest / smallest class", wanted[0], shape(own)[0])
            verdict.compare("train: many / medium / few", wanted[1], shape(own)[1])
        if expected is not None:
            each = "the official ones" if len(set(expected.tolist())) > 1 else f"{expected[0]:,} of each"
            verdict.check(f"{split}: images a class", "all equal",
                          checks.count_problems(split, own, expected, found.class_names), each)
    missing = [problem for problem in found.problems if problem.kind == EMPTY_CLASS]
    if found.has_files and "train" not in counts:
        missing.append(Problem(EMPTY_CLASS, found.name, "there is no split train, so no class has a training image"))
    elif "train" in counts:
        missing += checks.empty_classes(counts["train"], found.class_names)
    verdict.check(EMPTY_CLASS, "none", missing, "none")
    return counts


def check_files(found: Inventory, verdict: Verdict, bar: Callable) -> dict[str, Scan]:
    """Whether the files are there; returns the scan of every split."""
    problems, scans = [problem for problem in found.problems if problem.kind in ("files", "links")], {}
    for split, listing in found.splits.items():
        if listing.paths is not None and is_folder(found.root):
            scans[split] = scan_files(listing, lambda folders, total, split=split: bar(folders, total, f"{split}: folders"),
                                      sizes=True)
            problems += file_problems(listing, scans[split])
    for kind, good in {"files": f"{sum(map(len, found.splits.values())):,} there", "links": "none wrong"}.items():
        own = [problem for problem in problems if problem.kind == kind]
        if kind == "files" or scans:
            verdict.check(kind, good, own, "all there" if kind == "files" else "all lead to images")
    if found.name == "places_lt" and "train" in scans and len(scans["train"].entries):
        most = int(scans["train"].entries.max())
        folder = printable(found.splits["train"].folders[0][int(scans["train"].entries.argmax())])
        verdict.check("folders of Places365-Standard", f"{most:,}", [] if most <= PLACES_STANDARD_MOST else [Problem(
            "folders of Places365-Standard", folder, f"{most:,} files, and a class of Places365-Standard has at most "
            f"{PLACES_STANDARD_MOST:,}")], f"at most {PLACES_STANDARD_MOST:,} files")
    return scans


def check_paths(found: Inventory, verdict: Verdict) -> None:
    """What stands in the lists more than once, and labels that contradict the folders."""
    keys = {split: checks.path_keys(listing) for split, listing in found.splits.items()}
    twice = [problem for split, listing in found.splits.items() for problem in checks.listed_twice(listing, keys[split])]
    verdict.check("listed twice", "none", twice, "none")
    train = found.splits.get("train")
    if train is not None and len(keys) > 1:
        verdict.check("in train and evaluation", "none", [
            problem for split, listing in found.splits.items() if split != "train"
            for problem in checks.shared_paths(train, keys["train"], listing, keys[split])], "none")
    folder_names = found.class_names
    if found.name == "inat18":
        folder_names = [str(k) for k in range(len(found.class_names))]
    elif found.name == "list" and not is_file(found.root / "classes.txt"):
        folder_names = None
    problems, lines = checks.label_problems(found.splits, found.class_names, folder_names)
    if lines:
        verdict.check("labels and folders", f"{lines:,} lines agree", problems, "one class a folder")
    else:
        verdict.compare("labels and folders", None, "no class folders")


def check_content(found: Inventory, scans: dict[str, Scan], verdict: Verdict, num_workers: int | None, bar: Callable) -> None:
    """Read and decode every image that is there."""
    hashes, problems, read = {}, [], 0
    for split, scan in scans.items():
        listing = found.splits[split]
        images = FileImages(listing.root, listing.labels, found.class_names, ANY_RECORD, listing.paths, listing.place)
        indices, parts, faults, warned = np.flatnonzero(scan.status == OK), [], {}, {}
        what = f"{split}: {CHUNK} images a step"
        for part, wrong, damaged in over_chunks(read_images, images, indices, num_workers,
                                                lambda chunks, total, what=what: bar(chunks, total, what)):
            parts.append(part)
            faults |= wrong
            warned |= damaged
        hashes[split] = np.zeros(len(listing), dtype=np.uint64)
        hashes[split][indices] = np.concatenate([*parts, np.empty(0, dtype=np.uint64)])
        problems += [Problem("images readable", listing.where(i), faults[i]) for i in sorted(faults)]
        read += len(indices)
        verdict.notes += [f"{listing.called(i)} can be read, and is damaged ({warned[i]})" for i in sorted(warned)]
    verdict.check("images readable", f"{read:,} decoded", problems, "all")
    if "train" in hashes:
        verdict.notes += checks.copies_within(found.splits["train"], hashes["train"])
    if "train" in hashes and len(hashes) > 1:
        verdict.check("same file in train and evaluation", "none", [
            problem for split, listing in found.splits.items() if split != "train" for problem in checks.shared_content(
                found.splits["train"], hashes["train"], listing, hashes[split])], "none")


def check_shards(images: ShardImages, decode: bool, verdict: Verdict, num_workers: int | None, bar: Callable) -> None:
    """Read the tars, and with `decode` decode what is in them."""
    problems = tar_problems(images, decode, num_workers, lambda tars, total: bar(tars, total, SHARDS))
    own = {kind: [problem for problem in problems if problem.kind == kind] for kind in (SHARDS, READABLE)}
    verdict.check(SHARDS, f"{len(images.shards):,} unchanged", own[SHARDS], "size and SHA-256")
    if decode:
        verdict.check(READABLE, f"{len(images):,} decoded", own[READABLE], "all")
    else:
        verdict.compare(READABLE, None, "not looked at (--decode)")


def verify(found: Inventory, decode: bool = False, num_workers: int | None = None,
           bar: Callable = lambda iterable, total, what: iterable) -> tuple[Verdict, dict[str, np.ndarray], list[str]]:
    """All checks: (verdict, images of every class (C,) by split, likely causes of what is wrong)."""
    verdict = Verdict()
    check_reading(found, verdict)
    counts = check_counts(found, verdict)
    scans = {} if found.shards else check_files(found, verdict, bar)
    if found.shards:
        check_shards(found.shards, decode, verdict, num_workers, bar)
    if found.has_lists:
        check_paths(found, verdict)
    if decode and not found.shards:
        check_content(found, scans, verdict, num_workers, bar)
    elif scans:
        verdict.compare("images readable", None, "not looked at (--decode)")
    if not verdict.problems:
        return verdict, counts, []
    largest = scans["train"].entries.max(initial=0) if "train" in scans else 0
    return verdict, counts, likely_causes(Facts(
        found.name, counts, {split: listing.paths for split, listing in found.splits.items() if listing.paths is not None},
        str(found.root), [hint for scan in scans.values() for hint in scan.hints],
        sum(int((scan.status == MISSING).sum()) for scan in scans.values()), sum(len(scan.status) for scan in scans.values()),
        names_in(found.root), int(largest)))


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def overview(found: Inventory, counts: dict[str, np.ndarray]) -> list[str]:
    """What is there, in words, and the class sizes as a histogram."""
    lines = [f"{found.name}, images in {printable(found.shards.place if found.shards else found.root)}", ""]
    for split, own in counts.items():
        line = f"{split:<6} {own.sum():,} images"
        if found.class_names != [NO_LABEL] and own.any():
            most, least = int(own.argmax()), int(own.argmin())
            line += f" in {len(own):,} classes, " + (f"{own[most]:,} of each" if own[most] == own[least] else (
                f"from {own[most]:,} of {checks.class_place(most, found.class_names)} down to {own[least]:,} of "
                f"{checks.class_place(least, found.class_names)}"))
        lines.append(line)
    train = counts.get("train")
    if found.class_names == [NO_LABEL] or train is None or not train.any():
        return lines
    if FACTORS.get(found.name):
        train = longtail_counts_of(train, FACTORS[found.name], found.class_names)
        lines.append(f"       of train, --imb_factor {FACTORS[found.name]:g} (the default) draws {train.sum():,}")
    many, medium, few = (int(mask.sum()) for mask in groups(train).values())
    return [*lines, "", f"classes by training images: {many:,} many (over {MANY_ABOVE}), {medium:,} medium, {few:,} few "
            f"(under {FEW_BELOW})",
            checks.histogram(train)]


def describe(verdict: Verdict, causes: list[str], show: int | None) -> list[str]:
    """Problems by kind, at most `show` of each (None: all), likely causes, and notes, as lines."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in verdict.problems):
        own = [problem for problem in verdict.problems if problem.kind == kind]
        lines += ["", f"{kind}: {plural(len(own), 'problem')}"]
        lines += [f"  {problem.place}: {problem.words}" for problem in own[:show]]
        if show is not None and len(own) > show:
            lines.append(f"  and {len(own) - show:,} more")
    lines += [*[""] * bool(causes), *(f"likely cause: {cause}" for cause in causes)]
    return [*lines, *[""] * bool(verdict.notes), *(f"note: {note}" for note in verdict.notes)]


def main(args) -> int:
    """Print what is there, what is wrong and the table; returns the exit code."""
    if args.show < 0:
        raise ValueError(f"--show must not be negative: {args.show}")
    reads = args.decode or args.name == "shards"
    if args.num_workers is not None and (args.num_workers < 0 or not reads):
        raise ValueError(f"--num_workers {args.num_workers} must not be negative" if reads else
                         f"--num_workers {args.num_workers} is for --decode: without it no image is read")
    found = take_inventory(args.name, args.data_path)
    if args.decode and not found.has_files and not found.shards:
        raise ValueError(f"--decode reads image files; {args.name} is in memory, and its files are checked by their hash: "
                         "leave it out")
    verdict, counts, causes = verify(found, args.decode, args.num_workers, progress)
    start, end = overview(found, counts), table(verdict.rows)
    if args.report:
        try:
            Path(args.report).write_text("\n".join([*start, *describe(verdict, causes, None), *end, ""]), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot write --report {printable(args.report)} ({error.strerror})") from None
    say("\n".join([*start, *describe(verdict, causes, args.show), *end]))
    return int(bool(verdict.problems) or any(row.right is False for row in verdict.rows))


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("whether a data set is right, and what is wrong with it")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(READERS)}")
    parser.add_argument("--data_path", metavar="DIR", help="where it is, as for training")
    parser.add_argument("--decode", action="store_true", help="read and decode every image too")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes that decode, or read shards (one a core by "
                        "default, 0: none)")
    parser.add_argument("--show", type=int, default=20, metavar="K", help="problems of a kind that are printed")
    parser.add_argument("--report", metavar="FILE", help="write everything, all problems included, into this file")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), lambda args: sys.exit(main(args)))
