"""Opening weights that others trained, and this project's own: whatever the file, MAE's names come out.

A form is told by the keys of what a file holds, never by the file's name. Nothing in a file is run: torch files open with
`weights_only`, and of all classes argparse.Namespace alone is allowed, which MAE and LiVT keep beside their weights.
"""
import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models_mae import as_pair
from util.checkpoint import DamagedCheckpoint, check_format, check_readable, is_own, read_torch, trained_weights
from util.run import say
from util.weights_config import exported, heads_of, read_object, size_of, statistics_of
from util.weights_hf import from_hf, is_hf

FILES = ("model.safetensors", "pytorch_model.bin")  # what a folder of timm's or Hugging Face's holds
CONFIG = "config.json"
PATCHES = "patch_embed.proj.weight"
PUBLISHED = "the published form of MAE and LiVT"
Tensors = dict[str, torch.Tensor]


@dataclass
class Weights:
    """tensors: by MAE's names, floats in float32; form: where they come from, in words; checkpoint: the whole of this
    project's own, None for others; heads and input_size: of the encoder, where something says so; epochs: whole epochs
    behind them, where known; statistics: mean and deviation of the images' channels, where a file beside others' weights
    says so; decoder_heads: as heads, of a decoder."""

    path: str
    form: str
    tensors: Tensors
    checkpoint: dict | None = None
    heads: int | None = None
    input_size: tuple[int, int] | None = None
    epochs: int | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    decoder_heads: int | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """The patch grid (h, w) of the stored positions; None where nothing says so, and a square is meant."""
        if self.input_size is None or PATCHES not in self.tensors:
            return None
        patch = self.tensors[PATCHES].shape[-1]
        return self.input_size[0] // patch, self.input_size[1] // patch


def plain_tensors(state) -> Tensors | None:
    """A state dict by MAE's and timm's names, as it is; None for anything else. DataParallel's prefix is taken off."""
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return None
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def own(state) -> Tensors | None:
    """This project's checkpoints, by their format: the moving average where the run kept one; {} of one that is not whole."""
    if not is_own(state):
        return None
    return trained_weights(state) if {"ema", "model"} <= state.keys() else {}


def hugging_face(state) -> Tensors | None:
    """ViTMAEForPreTraining, ViTForImageClassification and their encoders alone."""
    tensors = plain_tensors(state)
    return from_hf(tensors) if tensors and is_hf(tensors) else None


def bare(state) -> Tensors | None:
    """State dicts of timm's VisionTransformer, and MAE's that lie in a file without anything beside them."""
    tensors = plain_tensors(state)
    return tensors if tensors and PATCHES in tensors else None


def published(state) -> Tensors | None:
    """MAE's and LiVT's files, {"model": weights, "args": Namespace, ...}."""
    return within(state, "model")


def script(state) -> Tensors | None:
    """The files of timm's training script, {"state_dict": weights, ...}."""
    return within(state, "state_dict")


def within(state, name: str) -> Tensors | None:
    """The weights under a name of what a file holds."""
    return bare(state.get(name)) if isinstance(state, dict) else None


# Each takes what a file holds and gives the weights by MAE's names, or None where it is not of this form.
FORMS: dict[str, Callable[[object], Tensors | None]] = {
    "a checkpoint of this project": own,
    "Hugging Face's form": hugging_face,
    "timm's form": bare,
    PUBLISHED: published,
    "the form of timm's training script": script,
}


def open_weights(path: str | Path) -> Weights:
    """The weights in a file, or in a folder of timm's or Hugging Face's (FILES, with a config.json).

    Raises ValueError, in one line, for a file that is missing, damaged, would need to run code, or is of no form of FORMS.
    """
    file, config = find_file(Path(path))
    state = read_safetensors(file) if is_safetensors(file) else read_torch(file, (argparse.Namespace,))
    form, tensors = next(((form, found) for form, translate in FORMS.items() if (found := translate(state)) is not None),
                         (None, None))
    if form is None:
        found = f"the keys {', '.join(map(str, list(state)[:3]))}" if isinstance(state, dict) else type(state).__name__
        raise DamagedCheckpoint(f"{path} holds no weights of a ViT that are known here, found {found}: expected "
                                f"{', or '.join(FORMS)}")
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    checkpoint = state if FORMS[form] is own else exported(file.with_name(CONFIG), config, tensors)
    if checkpoint:
        if FORMS[form] is own:
            check_format(file, state, None)
        size, epochs = as_pair(checkpoint["args"]["input_size"]), (checkpoint["progress"] or {}).get("epoch")
        form = form if FORMS[form] is own else "an export of this project"
        form += f" (stage {1 if checkpoint['stage'] == 'pretrain' else 2}, {'?' if epochs is None else epochs} epochs)"
        return Weights(str(path), form, tensors, checkpoint, input_size=size, epochs=epochs)
    epoch = state.get("epoch") if FORMS[form] in (published, script) else None
    beside, folder = file.with_name(CONFIG), Path(path).is_dir()
    return Weights(str(path), form, tensors, None, heads_of(beside, config), size_of(beside, config),
                   epoch + 1 if isinstance(epoch, int) else None, statistics_of(beside, config) if folder else None,
                   heads_of(beside, config, decoder=True))


def find_file(path: Path) -> tuple[Path, dict]:
    """The file with the weights, and what config.json in its folder says ({} for a file that was named itself)."""
    if not path.is_dir():
        check_readable(path)
        return path, {}
    there = [path / name for name in FILES if (path / name).is_file()]
    if not there:
        raise ValueError(f"no weights in the folder {path}: expected {' or '.join(FILES)} in it (one file, no shards), or "
                         "the path of a file")
    return there[0], read_object(path / CONFIG)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: the length of a header, and the header, which is JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU. DamagedCheckpoint where it is none."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({str(error).splitlines()[0]}): use another copy") from None


def tell(weights: Weights, report: dict) -> None:
    """Three lines: what of the weights was loaded, what was left out or is new, and what was resampled.

    report: as `models_vit.load_encoder` or `load_autoencoder` returns it.
    """
    say(f"weights of {weights.path}, {weights.form}: {report['loaded']} tensors loaded")
    say(f"left out: {summary(report['left_out'])}; new, with their start values: {summary(report['new'])}")
    words = "patch embedding resampled {0} x {0} -> {1} x {1} pixels; ".format(*report["patches"]) if report["patches"] else ""
    words += "learned " * report.get("learned", False)
    if report.get("computed"):
        say(words + "positions not resampled: the fixed sin-cos ones, {} -> {}".format(*report["computed"]))
    else:
        say(words + ("positions resampled {} -> {}".format(*report["resampled"]) if report["resampled"] else
                     "positions not resampled: the patch grid is the same"))


def summary(names: list[str]) -> str:
    """Names of tensors, those of one module counted together."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    return ", ".join(f"{module} ({count} tensors)" if count > 1 else module for module, count in counts.items()) or "nothing"


def by_official_ids(tensors: Tensors) -> Tensors:
    """The weights with the rows of their head in the order of the labels 0 .. C - 1, where they are in that of the labels
    sorted as strings (0, 1, 10, 100, ...), as a tree of folders named by labels gives it."""
    if "head.weight" not in tensors:
        raise ValueError("--head_order string_sorted puts the rows of a head in order, and these weights have none: leave it "
                         "out")
    # Row i is of label order[i]; so label k is found at the place of k in `order`.
    order = torch.tensor([int(name) for name in sorted(map(str, range(len(tensors["head.weight"]))))])
    return {**tensors, **{key: tensors[key][order.argsort()] for key in ("head.weight", "head.bias") if key in tensors}}
