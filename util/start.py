"""What a run starts from: a checkpoint, the weights of --finetune, the head's bias; and the classifier that --eval scores."""
import argparse

import torch
from torch import nn

from models_mae import MODELS as MAE_MODELS
from models_mae import MaskedAutoencoderViT
from models_vit import MODELS, check_head_count, load_autoencoder, load_encoder, load_resampled
from util.args_finetune import LOSS_SETTINGS
from util.checkpoint import check_stage
from util.losses import LOSSES
from util.run import RunFolder, say
from util.setup import load_images, resolved
from util.weights import Weights, by_official_ids, open_weights, tell

# What --eval cannot read out of weights that are not this project's.
NEEDED = ("dataset", "model", "input_size", "loss")


def begin(args, run: RunFolder, stage: str, images) -> tuple[argparse.Namespace, dict, dict | None, str]:
    """The flags, the settings that the run keeps, its checkpoint (None at the beginning), and words that say where it starts.

    A --resume that names weights alone becomes --finetune, and a line says so. Raises ValueError as `RunFolder.find_start`, and
    where --finetune names weights too.
    """
    form = weights_alone(args, run)
    if form:
        args = argparse.Namespace(**{**vars(args), "finetune": args.resume})
    settings = resolved(args, images)
    state, words = run.find_start(stage, settings, None if form else args.resume)
    if form and state is None:
        say(f"note: --resume {args.resume} holds weights alone ({form}), so training starts at epoch 0 from them, as with "
            "--finetune")
    return args, settings, state, words


def weights_alone(args, run: RunFolder) -> str | None:
    """Where the weights of --resume come from, in words, if they are nothing that a run goes on from; else None."""
    if not args.resume:
        return None
    if run.has_checkpoint():  # whatever has become of the file
        again = all(run.began_with(flag, args.resume) for flag in ("resume", "finetune"))
        return "those that it began with" if again else None
    weights = open_weights(args.resume)
    if weights.checkpoint and "format" in weights.checkpoint:
        return None
    if args.finetune:
        raise ValueError(f"--resume {args.resume} holds weights alone ({weights.form}), to start from like those of --finetune "
                         f"{args.finetune}: give one of the two, as --finetune")
    return weights.form


def start_autoencoder(args, settings: dict, model: MaskedAutoencoderViT) -> tuple[str, dict]:
    """Load --finetune's encoder, and its decoder where it has one, into stage 1's model; lines say what was loaded.

    settings and what it returns as of `start_weights`.
    """
    if not args.finetune:
        return "random weights", {"finetune_epochs": None}
    weights = open_weights(args.finetune)
    check_heads_of(weights, model)
    decoder_heads = weights.decoder_heads
    if weights.checkpoint:
        trained, first = weights.checkpoint["args"], weights.checkpoint["stage"] == "pretrain"
        tell_differences(settings, trained, ("mean", "std") + ("norm_pix_loss",) * first, args.finetune)
        check_head_count(model, MAE_MODELS if first else MODELS, trained)
        decoder_heads = trained["decoder_num_heads"] if first else None
    report = load_autoencoder(model, weights.tensors, weights.grid, "patch_size" in args.given)
    here, decoder = model.decoder_blocks[0].attn.num_heads, "mask_token" not in report["new"]
    if decoder and decoder_heads not in (None, here):
        raise ValueError(f"weights of another architecture ({decoder_heads} heads in the decoder, not {here}): use "
                         f"--decoder_num_heads {decoder_heads}")
    tell(weights, report)
    if not decoder:
        say(f"note: {weights.path} has no decoder, so the decoder starts from random weights")
    return f"encoder{' and decoder' * decoder} of {args.finetune}", {"finetune_epochs": epochs_of(weights)}


def start_weights(args, settings: dict, model: nn.Module, criterion: nn.Module,
                  class_names: list[str]) -> tuple[str, dict]:
    """The head's bias, and the weights of --finetune.

    Returns words that say what was loaded, and what args.json keeps of it: finetune_epochs, [epochs behind the weights, all
    of their run's], None of random and others' weights.
    """
    if args.head_bias == "prior":
        bias = criterion.initial_bias()
        with torch.no_grad():
            model.head.bias.copy_(bias)
    if not args.finetune:
        return "random weights", {"finetune_epochs": None}
    weights = open_weights(args.finetune)
    return load_start(args, weights, settings, model, class_names), {"finetune_epochs": epochs_of(weights)}


def epochs_of(weights: Weights) -> list[int] | None:
    """[epochs behind them, all of their run's]; None where nothing says so. A line warns where the first are fewer."""
    if not weights.checkpoint or weights.epochs is None:
        return None
    done, whole = weights.epochs, weights.checkpoint["args"]["epochs"]
    if done < whole:
        what = "an encoder" if weights.checkpoint["stage"] == "pretrain" else "a classifier"
        say(f"warning: {weights.path} is of {what} with {done} of {whole} epochs behind it: its run has not ended")
    return [done, whole]


def load_start(args, weights: Weights, settings: dict, model: nn.Module, class_names: list[str]) -> str:
    """Load --finetune's encoder into the classifier; three lines say what was loaded.

    With --head_order its head too, and all of a classifier of the same classes in the same order that this project trained.

    Returns words for the line of the run. settings: flags of this run, for a note where its images are prepared otherwise.
    """
    if weights.checkpoint:
        trained = weights.checkpoint["args"]
        tell_differences(settings, trained, ("mean", "std"), args.finetune)
        check_head_count(model, MODELS if weights.checkpoint["stage"] == "finetune" else MAE_MODELS, trained)
    check_heads_of(weights, model)
    tensors = ordered(args, weights)
    if weights.checkpoint and weights.checkpoint["stage"] == "finetune" and weights.checkpoint["class_names"] == class_names:
        if args.head_bias != "zero":
            raise ValueError(f"--head_bias {args.head_bias} does nothing where --finetune is a classifier of the same classes, "
                             "which brings its head's bias: leave it out")
        tell(weights, load_resampled(model, tensors, weights.grid, "patch_size" in args.given))
        return f"classifier of {args.finetune}, head included"
    if args.head_order:
        check_classes(weights, settings["model"], model.num_classes)
    tell(weights, load_encoder(model, tensors, weights.grid, args.head_order is not None, "patch_size" in args.given))
    return f"{'encoder and head' if args.head_order else 'encoder'} of {args.finetune}"


def tell_differences(settings: dict, trained: dict, names: tuple[str, ...], source: str) -> None:
    """Print one line where images are prepared otherwise than they were for the weights of `source`."""
    different = [f"--{name} {settings[name]} ({trained[name]} there)" for name in names if settings[name] != trained[name]]
    if different:
        say(f"note: images are prepared otherwise than for {source}: {', '.join(different)}")


def ordered(args, weights: Weights) -> dict:
    """The tensors with the head's rows in label order. ValueError for --head_order of weights whose class names are known."""
    if not args.head_order:
        return weights.tensors
    if weights.checkpoint:
        raise ValueError(f"{weights.path} is a checkpoint of this project and names its classes, so --head_order "
                         f"{args.head_order} would do nothing right: leave it out")
    return by_official_ids(weights.tensors) if args.head_order == "string_sorted" else weights.tensors


def check_heads_of(weights: Weights, model: nn.Module) -> None:
    """ValueError where config.json tells another number of attention heads, which no tensor's shape does."""
    here = model.blocks[0].attn.num_heads
    if weights.heads not in (None, here):
        raise ValueError(f"weights of another architecture ({weights.heads} heads, not {here}): use --num_heads "
                         f"{weights.heads}")


def check_classes(weights: Weights, where: str, classes: int) -> None:
    """ValueError where weights have no head, or one of another number of classes than `where` has."""
    if "head.weight" not in weights.tensors:
        raise ValueError(f"{weights.path} has no head: give it to --finetune (without --head_order) to train one")
    if len(weights.tensors["head.weight"]) != classes:
        raise ValueError(f"{weights.path} has a head of {len(weights.tensors['head.weight'])} classes, but {where} has "
                         f"{classes}: give the data set that it was trained on, or train a new head with --finetune")


def open_classifier(args) -> tuple[Weights, dict]:
    """The weights of --resume for --eval, and the checkpoint that they are: foreign ones with what the flags say of them."""
    weights = open_weights(args.resume)
    if weights.checkpoint:
        check_stage(args.resume, weights.checkpoint, "finetune")
        if "group_counts" not in weights.checkpoint["progress"]:
            raise ValueError(f"{args.resume} is of an earlier version, which did not keep what its evaluation needs: train "
                             "again")
        ordered(args, weights)
        return weights, weights.checkpoint
    return weights, foreign_checkpoint(args, weights)


def foreign_checkpoint(args, weights: Weights) -> dict:
    """A checkpoint of stage 2 out of weights that say neither their task nor their images: these are the flags'.

    Classes and their training images (for the groups, and the prior of a correction) are the data set's; the pooling follows
    from which norm the weights have. One line says what was assumed. ValueError for flags that are needed, and where the
    head has other classes.
    """
    missing = [name for name in NEEDED if name not in args.given]
    if missing:
        raise ValueError(f"{weights.path} is of {weights.form.removeprefix('a ')} and does not say what it is for: give "
                         f"{', '.join(f'--{name}' for name in missing)}"
                         + " (which decides how its outputs become scores)" * ("loss" in missing))
    train = load_images(args, "train")
    check_classes(weights, train.source, len(train.class_names))
    balanced = args.loss in LOSSES and LOSSES[args.loss].uses_prior
    tau = 1.0 if args.tau is None or args.posthoc == "logit_adjust" else args.tau
    # As the released code trains: its losses have the bias of Thm. 1 and 2.
    loss = {"loss": args.loss, "tau": tau, "test_prior": "none" if balanced else "uniform"}
    settings = {**vars(args), **{name: loss.get(name, getattr(args, name)) for name in LOSS_SETTINGS},
                "mean": list(train.record.mean), "std": list(train.record.std), "val_fraction": None,
                "cls_token": "fc_norm.weight" not in weights.tensors,
                "num_heads": args.num_heads or weights.heads}
    counts = train.class_counts.tolist()
    order = "labels sorted as strings" if args.head_order == "string_sorted" else f"{train.source}"
    say(f"assumed: rows of the head in the order of {order}; pooling over the "
        f"{'class token' if settings['cls_token'] else 'patches'}; images normalised by {settings['mean']} and "
        f"{settings['std']}; trained with --loss {args.loss}" + f", tau {tau:g} and --test_prior none" * balanced)
    return {"stage": "finetune", "args": settings, "model": ordered(args, weights), "ema": None, "class_counts": counts,
            "class_names": train.class_names, "progress": {"epoch": weights.epochs, "group_counts": counts}}
