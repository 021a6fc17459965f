"""What stage 2 starts from: the weights of --finetune, and the head's bias."""
import torch
from torch import nn

from models_mae import MODELS as MAE_MODELS
from models_mae import as_pair, patch_grid
from models_vit import MODELS, check_head_count, load_encoder, load_fine_tuned
from util.checkpoint import load_checkpoint, trained_weights
from util.run import say


def start_weights(args, settings: dict, model: nn.Module, criterion: nn.Module, class_names: list[str]) -> str:
    """The head's bias, and the weights of --finetune; returns words that say what was loaded."""
    if args.head_bias == "prior":
        bias = criterion.initial_bias()
        with torch.no_grad():
            model.head.bias.copy_(bias)
    if not args.finetune:
        return "random weights"
    state = load_checkpoint(args.finetune)
    tell_differences(settings, state["args"], ("mean", "std"), args.finetune)
    stage_1 = state["stage"] == "pretrain"
    check_head_count(model, MAE_MODELS if stage_1 else MODELS, state["args"])
    patch = state["args"]["patch_size"] or model.patch_embed.patch_size[0]
    grid = patch_grid(as_pair(state["args"]["input_size"]), patch)
    if not stage_1:
        check_same_classes(args, state["class_names"], class_names)
        load_fine_tuned(model, trained_weights(state), grid)
        return f"classifier of {args.finetune}, head included"
    report = load_encoder(model, trained_weights(state), grid)
    words = f"encoder of {args.finetune} ({report['loaded']} tensors; {len(report['left_out'])} left out, decoder and norm; "
    words += f"{len(report['new'])} new, {', '.join(report['new'])})"
    if report["resampled"]:
        words += ", positions resampled {} -> {}".format(*report["resampled"])
    return words


def check_same_classes(args, there: list[str], here: list[str]) -> None:
    """ValueError unless the head of a classifier that --finetune names fits the data, and nothing else was asked of it."""
    if there != here:
        raise ValueError(f"{args.finetune} is a classifier of {len(there)} classes ({', '.join(there[:3])}, ...), the data "
                         f"have {len(here)} ({', '.join(here[:3])}, ...): start from the stage-1 checkpoint that it "
                         "began with, or train on the same classes in the same order")
    if args.head_bias != "zero":
        raise ValueError(f"--head_bias {args.head_bias} does nothing where --finetune is a classifier, which brings its head's "
                         "bias: leave it out")


def tell_differences(settings: dict, trained: dict, names: tuple[str, ...], source: str) -> None:
    """Print one line where images are prepared otherwise than they were for the weights of `source`."""
    different = [f"--{name} {settings[name]} ({trained[name]} there)" for name in names if settings[name] != trained[name]]
    if different:
        say(f"note: images are prepared otherwise than for {source}: {', '.join(different)}")
