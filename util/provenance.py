"""What a run's numbers depend on beside its flags: the code, the libraries, the job."""
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

REVISION = Path(__file__).parent.parent / "git_revision.txt"  # in a copy of the code, which has no .git (submit/snapshot.py)


def git_revision() -> str | None:
    """Commit of the code that runs, with "-dirty" where tracked files differ; None outside a git checkout.

    A copy of the code that a job runs has the revision of its submission.
    """
    if REVISION.is_file():
        return REVISION.read_text().strip() or None
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], capture_output=True,
                             text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def slurm_job() -> str | None:
    """The SLURM job that this is, ARRAY_INDEX in an array; None outside of one."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID")


def versions() -> dict:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "timm": timm.__version__, "numpy": np.__version__, "threads": torch.get_num_threads()}
