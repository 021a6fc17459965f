"""Whether two runs are the same one: their settings, and the files that these name."""
from pathlib import Path

# Flags that say where and how a run works, not what it computes: they may change when it is continued.
MAY_CHANGE = {"output_dir", "resume", "device", "num_workers", "log_every", "save_every", "save_steps", "data_path",
              "max_bad_steps", "skip_bad_images", "grad_checkpointing", "compile", "dist_timeout"}


def settings_difference(now: dict, then: dict, there: str) -> list[str]:
    """The settings that a continued run must keep and that differ, each as `--flag now (then there)`.

    there: the folder that the other run was started in, to which its relative paths belong.
    """
    # A flag that the other run's version did not know has no value to differ from.
    names = sorted((set(now) & set(then)) - MAY_CHANGE)
    return [f"--{name} {now[name]} ({then[name]} there)" for name in names
            if now[name] != then[name] and not (name == "finetune" and same_file(now[name], then[name], there))]


def same_file(one: str | None, other: str | None, there: str = "") -> bool:
    """Whether two paths name one file, however they are written; `other` as it was written in the folder `there`."""
    return None not in (one, other) and (one == other or Path(one).resolve() == Path(there, other).resolve())
