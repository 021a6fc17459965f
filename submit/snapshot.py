"""A copy of the code as it is now, so that a job which waits in a queue is not changed by later edits."""
import os
import shutil
import subprocess
from pathlib import Path

from util.args import PROJECT
from util.provenance import REVISION, git_revision

LARGEST_NEW = 1 << 20  # bytes of a file that git does not know; larger ones are data, not code


def take(folder: Path) -> Path:
    """Copy the project's files below `folder`, and return where they are.

    In a git checkout these are the tracked files as they stand in the working tree, and small new ones that git does not
    ignore; elsewhere all files but hidden ones, runs and caches. The revision, which a copy cannot ask git for, lies beside
    them.
    """
    folder.mkdir(parents=True)
    for name in project_files():
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    (folder / REVISION.name).write_text(f"{git_revision() or ''}\n")
    return folder


def project_files() -> list[str]:
    """Paths of the project's files, relative to it."""
    def listed(*flags):
        run = subprocess.run(["git", "ls-files", "-z", *flags], capture_output=True, text=True, check=True, cwd=PROJECT)
        return [name for name in run.stdout.split("\0") if name and (PROJECT / name).is_file()]
    try:
        new = [name for name in listed("--others", "--exclude-standard") if os.path.getsize(PROJECT / name) <= LARGEST_NEW]
        return listed("--cached") + new
    except (OSError, subprocess.CalledProcessError):
        skipped = {"runs", "__pycache__", "output_dir"}
        paths = [path.relative_to(PROJECT) for path in PROJECT.rglob("*") if path.is_file()]
        return [str(path) for path in paths
                if not any(part in skipped or part.startswith(".") for part in path.parts)]
