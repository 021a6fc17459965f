"""Sweeps: NAME=V1,V2 words to lists of flags."""
import itertools


def points(words: list[str]) -> list[dict[str, str]]:
    """["tau=.5,1", "loss=ce,bal_bce"] -> one {flag: value} for each combination, the last word running fastest.

    ValueError for a word that is none, or a flag that is named twice. No words give one empty point.
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        listed = [value for value in values.split(",") if value]
        if not (equals and name and listed):
            raise ValueError(f"--array takes NAME=V1,V2, such as tau=0.5,1,1.5, not {word!r}")
        if name in axes:
            raise ValueError(f"--array names {name} twice")
        if name in ("output_dir", "resume", "eval"):
            raise ValueError(f"--array {word}: every job has an --{name} of its own")
        axes[name] = listed
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def flags_of(point: dict[str, str]) -> list[str]:
    """{flag: value} -> a command line's words; a blank within a value parts its words."""
    return [word for name, value in point.items() for word in (f"--{name}", *value.split())]


def folder_of(point: dict[str, str]) -> str:
    """A folder's name for a point: tau_0.5-loss_bal_bce; "" for the point without flags."""
    return "-".join(f"{name}_{value}" for name, value in point.items()).replace("/", "_").replace(" ", "_")
