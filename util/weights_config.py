"""What the JSON files beside weights say: Hugging Face's, timm's, and those of this project's exports.

A file that holds something else than is expected is a ValueError, in one line with its path; null says nothing, as no key does.
"""
import json
from pathlib import Path

from models_mae import as_pair

EXPORTED = "livt"  # where config.json of an export keeps what a checkpoint holds beside the weights
EXPORT_KINDS = {"stage": str, "args": dict, "progress": dict, "class_names": list, "class_counts": list}
WORDS = {str: "a string", dict: "an object", list: "a list"}


def read_object(path: Path) -> dict:
    """The JSON object in a file, {} where there is no file. ValueError where it is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({getattr(error, 'strerror', None) or 'no JSON'}): use another copy of the "
                         "folder") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object: use another copy of the folder")
    return found


def wrong(path: Path, name: str, value, expected: str) -> ValueError:
    """The error for a value that is not what it should be."""
    shown = json.dumps(value)
    return ValueError(f"{path} says {name} {shown[:60]}{'...' * (len(shown) > 60)}, expected {expected}: correct it, or use "
                      "another copy of the folder")


def part(path: Path, config: dict, name: str) -> dict:
    """The object under a name; {} where there is none."""
    found = config.get(name)
    if not isinstance(found, dict | None):
        raise wrong(path, name, found, WORDS[dict])
    return found or {}


def is_count(value) -> bool:
    """Whether a JSON value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def heads_of(path: Path, config: dict, decoder: bool = False) -> int | None:
    """Attention heads, as Hugging Face's or timm's config.json at `path` says; decoder: those of ViTMAE's decoder."""
    hugging_faces, model_args = "decoder_" * decoder + "num_attention_heads", part(path, config, "model_args")
    timms = None if decoder else model_args.get("num_heads")
    for name, heads in ((hugging_faces, config.get(hugging_faces)), ("num_heads", timms)):
        if heads is not None:
            if not is_count(heads):
                raise wrong(path, name, heads, "a whole number above 0")
            return heads
    return None


def size_of(path: Path, config: dict) -> tuple[int, int] | None:
    """Height and width of the images, as Hugging Face's or timm's config.json at `path` says."""
    size = config.get("image_size")
    if size is not None:
        if not is_count(size) and not is_counts(size, 1) and not is_counts(size, 2):
            raise wrong(path, "image_size", size, "pixels, one number or height and width")
        return as_pair(size)
    size = part(path, config, "pretrained_cfg").get("input_size")
    if size is not None and not is_counts(size, 3):
        raise wrong(path, "input_size", size, "channels, height and width")
    return as_pair(size[1:]) if size else None


def is_counts(value, length: int) -> bool:
    """Whether a JSON value is a list of so many whole numbers above 0."""
    return isinstance(value, list) and len(value) == length and all(map(is_count, value))


def statistics_of(path: Path, config: dict) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the channels, as timm's config.json at `path` or Hugging Face's preprocessor_config.json beside it
    says; None where neither does."""
    beside = path.with_name("preprocessor_config.json")
    hugging_face, timms = read_object(beside), part(path, config, "pretrained_cfg")
    for file, found, names in ((beside, hugging_face, ("image_mean", "image_std")), (path, timms, ("mean", "std"))):
        values = [found.get(name) for name in names]
        if None in values or found.get("do_normalize") is False:
            continue
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, list) or not value or not all(type(number) in (int, float) for number in value):
                raise wrong(file, name, value, "a list of numbers, one a channel")
        return tuple(values[0]), tuple(values[1])
    return None


def exported(path: Path, config: dict, tensors: dict) -> dict | None:
    """The checkpoint that a folder of util/export.py stands for, out of its config.json; None for other folders.

    ValueError where something of it is missing, or of another kind.
    """
    kept = config.get(EXPORTED)
    if kept is None:
        return None
    missing = sorted(set(EXPORT_KINDS) - set(kept)) if isinstance(kept, dict) else EXPORT_KINDS
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)} under {EXPORTED!r}: export the checkpoint again")
    for name, kind in EXPORT_KINDS.items():
        if not isinstance(kept[name], kind):
            raise wrong(path, f"{EXPORTED}.{name}", kept[name], WORDS[kind])
    size = kept["args"].get("input_size")
    if not is_count(size) and not is_counts(size, 1) and not is_counts(size, 2):
        raise wrong(path, f"{EXPORTED}.args.input_size", size, "pixels, one number or height and width")
    return {"model": tensors, "ema": None, **{name: kept[name] for name in EXPORT_KINDS}}
