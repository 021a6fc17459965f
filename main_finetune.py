"""Stage 2, balanced fine-tuning (BFT), and the evaluation of a trained model.

    python main_finetune.py @recipes/embedded/finetune.args --finetune runs/mgp/last.pth --output_dir runs/bft
    python main_finetune.py @recipes/embedded/finetune.args --eval --resume runs/bft/last.pth
"""
import argparse
from collections.abc import Callable

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import nn

from datasets.imageset import ImageSet
from datasets.loading import eval_loader, train_loader
from datasets.sampling import check_prior_rule
from datasets.transforms import Normalize
from engine_finetune import Targets, evaluate, train_one_epoch
from models_mae import MODELS as MAE_MODELS
from models_mae import as_pair, patch_grid
from models_vit import MODELS, build_vit, check_head_count, load_classifier, load_encoder
from util import figures, metrics
from util.args import (
    Parser,
    add_data_flags,
    add_model_flags,
    add_optimizer_flags,
    add_run_flags,
    parse_options,
    run_command,
)
from util.args_finetune import add_augmentation_flags, add_loss_flags, check_finetune
from util.bootstrap import intervals
from util.checkpoint import load_checkpoint
from util.losses import LOSSES, build_loss, read_prior
from util.lr import param_groups
from util.posthoc import METHODS, correct
from util.run import RunFolder, say
from util.setup import Machine, Session, build_training, describe, load_images, place, plan_steps, set_up

BLR = 1e-3  # the paper's, at 256 images
# Flags that decide what the logits of a trained model mean; --eval takes them from the checkpoint.
LOSS_SETTINGS = ("loss", "loss_args", "tau", "test_prior", "sampler", "prior")


def get_args_parser() -> Parser:
    """Flags of stage 2, with MAE's names and defaults, and those of the balanced losses."""
    parser = Parser("LiVT stage 2: balanced fine-tuning, and evaluation")
    add_run_flags(parser)
    add_data_flags(parser, scale=(0.08, 1.0))
    add_model_flags(parser, "vit_base_patch16", MODELS)
    group = parser.add_argument_group("classifier")
    group.add_argument("--finetune", metavar="CKPT", help="stage-1 checkpoint to start from; random weights without it")
    group.add_argument("--nb_classes", type=int, metavar="C", help="checked against the data, which decides")
    group.add_argument("--cls_token", action="store_true", help="classify by the class token instead of the patches' mean")
    group.add_argument("--drop_path", type=float, default=0.1, metavar="P", help="largest stochastic depth")
    add_loss_flags(parser)
    add_augmentation_flags(parser)
    add_optimizer_flags(parser, epochs=50, blr=BLR, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999))
    parser.add_argument("--layer_decay", type=float, default=0.75, metavar="D", help="rate of a layer over the next one's")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval", action="store_true", help="evaluate --resume CKPT and train nothing")
    group.add_argument("--eval_every", type=int, default=1, metavar="EPOCHS", help="epochs between two evaluations")
    group.add_argument("--posthoc", default="none", choices=METHODS, help="with --eval: correct the logits of the trained "
                       "model, by logit adjustment or by Bayes' rule")
    group.add_argument("--split", default="test", choices=["test", "val"], help="what is evaluated")
    group.add_argument("--crop_pct", type=float, default=0.875, metavar="P", help="share of the resized image's side that the "
                       "centre crop of the evaluation takes")
    return parser


def build_model(args, images: ImageSet, cosine_head: bool = False) -> nn.Module:
    """The classifier of the flags, with as many outputs as the data has classes."""
    classes = len(images.class_names)
    if args.nb_classes not in (None, classes):
        raise ValueError(f"--nb_classes {args.nb_classes}, but {images.source} has {classes} classes: leave the flag out")
    return build_vit(args.model, classes, as_pair(args.input_size), images.record.channels, args.drop_path,
                     "token" if args.cls_token else "avg", args.patch_size, args.embed_dim, args.depth, args.num_heads,
                     cosine_head)


def with_loss_defaults(args, num_classes: int):
    """A copy of the flags in which loss, tau, test prior (a file by its numbers) and smoothing are filled in."""
    prior, loss = read_test_prior(args.test_prior, num_classes), args.loss or "bal_bce"
    filled = {"loss": loss, "tau": 1.0 if args.tau is None else args.tau, "test_prior": "uniform" if prior is None else prior}
    if args.smoothing is None:
        smooths = loss in LOSSES and LOSSES[loss].smooths_labels
        filled["smoothing"] = 0.0 if smooths else 0.1
    return argparse.Namespace(**{**vars(args), **filled})


def read_test_prior(value: str | None, num_classes: int) -> str | list[float] | None:
    """--test_prior: unset, a word, or the probabilities in a file."""
    return value if value in (None, "uniform", "none") else read_prior(value, num_classes).tolist()


def build_criterion(args, class_counts, class_names: list[str]) -> nn.Module:
    """The loss of the flags. Its prior is the class distribution that the sampler draws, unless --prior says otherwise."""
    counts = check_prior_rule(args.loss, args.sampler, args.prior, class_counts, class_names)
    criterion = build_loss(args.loss, counts, tau=args.tau, test_prior=args.test_prior, class_names=class_names,
                           **parse_options(args.loss_args))
    if not criterion.uses_prior and (args.tau, args.test_prior) != (1.0, "uniform"):
        raise ValueError(f"--loss {args.loss} has no logit bias, so --tau and --test_prior would do nothing: leave them out, "
                         "or use bal_ce or bal_bce")
    return criterion


def check_loss_flags(args, criterion: nn.Module) -> None:
    """ValueError for flags that this loss makes void or doubles; prints a line where a schedule in it never begins."""
    if criterion.smooths_labels and args.smoothing:
        raise ValueError(f"--loss {args.loss} smooths labels by itself, so --smoothing {args.smoothing:g} would smooth them "
                         "twice: leave it out, or write --smoothing 0 behind the recipe that has it")
    begins = criterion.scheduled_epoch
    if begins is not None and begins >= args.epochs:
        words = f"the second part of --loss {args.loss} begins at epoch {begins}, and --epochs {args.epochs} ends before it"
        if parse_options(args.loss_args).keys() & {"warmup_epochs", "drw_epoch"}:
            raise ValueError(f"{words}: lower it in --loss_args, or train longer")
        say(f"note: {words}, so it never acts (--loss_args warmup_epochs=N moves it)")


def start_weights(args, model: nn.Module, criterion: nn.Module) -> str:
    """The head's bias, and the encoder of --finetune; returns words that say what was loaded."""
    if args.head_bias == "prior":
        bias = criterion.initial_bias()
        with torch.no_grad():
            model.head.bias.copy_(bias)
    if not args.finetune:
        return "random weights"
    state = load_checkpoint(args.finetune, "pretrain")
    tell_differences(args, state["args"], ("mean", "std"), args.finetune)
    check_head_count(model, MAE_MODELS, state["args"])
    patch = state["args"]["patch_size"] or model.patch_embed.patch_size[0]
    report = load_encoder(model, state["model"], patch_grid(as_pair(state["args"]["input_size"]), patch))
    words = f"encoder of {args.finetune} ({report['loaded']} tensors; {len(report['left_out'])} left out, decoder and norm; "
    words += f"{len(report['new'])} new, {', '.join(report['new'])})"
    if report["resampled"]:
        words += ", positions resampled {} -> {}".format(*report["resampled"])
    return words


def tell_differences(args, trained: dict, names: tuple[str, ...], source: str) -> None:
    """Print one line where images are prepared otherwise than they were for the weights of `source`."""
    different = [f"--{name} {getattr(args, name)} ({trained[name]} there)" for name in names
                 if getattr(args, name) != trained[name]]
    if different:
        say(f"note: images are prepared otherwise than for {source}: {', '.join(different)}")


def build_targets(args, num_classes: int) -> Targets:
    """Mixup, cutmix and smoothing of the flags."""
    mixup = None
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None:
        mixup = Mixup(args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode,
                      label_smoothing=args.smoothing, num_classes=num_classes)
    return Targets(num_classes, args.smoothing, mixup)


def build_erasing(args, device: torch.device) -> Callable:
    """timm's random erasing of normalised images on the device; does nothing at probability 0."""
    return RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, device=device) if args.reprob else nn.Identity()


def score(model, criterion, loader, normalize, machine: Machine, counts) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Evaluate: metrics, logits (N, C) as the activation takes them, and labels (N,)."""
    logits, labels = evaluate(model, loader, normalize, machine.device, machine.amp)
    logits = logits * criterion.logit_scale
    return metrics.evaluate_logits(logits, labels, counts, criterion.activation), logits, labels


def write_results(run: RunFolder, result: dict, logits, labels, images: ImageSet, counts: np.ndarray, provenance: dict) -> None:
    """metrics.json, predictions.npz and the figures of one evaluation; counts (C,) are those of the training images."""
    run.write_json("metrics.json", {**result, "intervals": intervals(logits, labels, counts, result["activation"]),
                                    **provenance, "data_source": images.source, "class_names": images.class_names,
                                    "class_counts": counts.tolist()})
    run.write_predictions(logits, labels, images.ids)
    names = images.class_names
    accuracy = [float("nan") if a is None else a for a in result["per_class_accuracy"]]
    figures.per_class_accuracy(run.figures / "per_class_accuracy.png", accuracy, counts, names)
    hits = logits.argmax(1) == labels
    figures.reliability_diagram(run.figures / "reliability.png", {
        kind: metrics.calibration(metrics.confidence(logits, kind), hits) for kind in dict.fromkeys(
            (result["activation"], "softmax"))})
    confusion = metrics.confusion_matrix(logits.argmax(1), labels, len(names))
    figures.confusion(run.figures / "confusion.png", confusion, names, counts)


def main(args) -> dict:
    """Run stage 2 or --eval; returns the metrics of the evaluation (the last epoch's after training)."""
    check_finetune(args)
    machine = set_up(args)
    test = load_images(args, args.split)
    size, normalize = as_pair(args.input_size), Normalize(test.record, machine.device)
    test_loader = eval_loader(test, size, args.batch_size, args.crop_pct, args.num_workers, machine.device)
    if args.eval:
        return evaluate_checkpoint(args, machine, test_loader, normalize, test)

    train = load_images(args, "train")
    args = with_loss_defaults(args, len(train.class_names))
    criterion = build_criterion(args, train.class_counts, train.class_names).to(machine.device)
    check_loss_flags(args, criterion)
    model = place(build_model(args, train, criterion.cosine_head), machine)
    loader = train_loader(train, size, args.batch_size, args.seed, args.train_crop, tuple(args.scale), args.hflip,
                          None if args.aa == "none" else args.aa, args.num_workers, machine.device, args.sampler)
    plan = plan_steps(args, len(train))
    groups = param_groups(model, args.weight_decay, args.layer_decay)
    stepper, schedule = build_training(args, model, groups, plan, machine, BLR)
    run = RunFolder(args.output_dir or "output_dir")
    settings = dict(vars(args))
    state, words = run.find_start("finetune", settings, args.resume)
    session = Session("finetune", settings, run, model, stepper, train)
    first = session.restore(state)
    if state is None:
        words += f", {start_weights(args, model, criterion)}"
    run.create(settings, describe(plan, schedule, machine, train), log_lines=first)
    say(f"stage 2, {args.model}, {args.loss}: {len(train)} images of {train.source}, {plan.steps_per_epoch} steps of "
        f"{plan.effective_batch_size} images an epoch, lr {schedule.lr:.3g}; {words}; run folder {run.path}")

    erase, targets = build_erasing(args, machine.device), build_targets(args, len(train.class_names))
    scored = None
    for epoch in range(first, args.epochs):
        record = train_one_epoch(model, criterion, loader, normalize, erase, targets, stepper, plan, schedule, epoch,
                                 args.seed, args.log_every)
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            scored = score(model, criterion, test_loader, normalize, machine, train.class_counts)
            record["eval"] = {key: scored[0][key] for key in ("overall", "many", "medium", "few", "ece", "mce")}
        run.log(record)
        if (epoch + 1) % args.save_every == 0 or epoch + 1 == args.epochs:
            session.save(epoch + 1)

    figures.training_curves(run.figures / "training.png", run.records())
    # A finished run that is started again has trained nothing, so its weights are scored once more.
    result, logits, labels = scored or score(model, criterion, test_loader, normalize, machine, train.class_counts)
    write_results(run, result, logits, labels, test, train.class_counts, {"epoch": args.epochs - 1, "split": args.split})
    run.close()
    say(metrics.format_table({f"{args.loss}, {args.split}": result}))
    return result


def trained_loss(args, settings: dict) -> argparse.Namespace:
    """The loss flags of the checkpoint's `settings`; ValueError where a flag of --eval asks for others."""
    trained = argparse.Namespace(**{name: settings[name] for name in LOSS_SETTINGS})
    if args.loss not in (None, trained.loss):
        raise ValueError(f"{args.resume} was trained with --loss {trained.loss}, not {args.loss}: leave the flag out, or write "
                         f"--loss {trained.loss} behind the recipe that has it")
    for name, unset in (("loss_args", []), ("sampler", "random"), ("prior", None)):
        if getattr(args, name) not in (unset, getattr(trained, name)):
            raise ValueError(f"{args.resume} was trained with --{name} {getattr(trained, name)}, which --eval cannot change to "
                             f"{getattr(args, name)}: leave the flag out")
    if trained.prior == "data" and (args.posthoc != "none" or args.test_prior):
        raise ValueError(f"{args.resume} was trained with --sampler {trained.sampler} --prior data: the images that it saw and "
                         "the prior of its loss differ, and no formula undoes both: leave --posthoc and --test_prior out")
    if args.tau not in (None, trained.tau) and args.posthoc != "logit_adjust":
        raise ValueError(f"{args.resume} was trained with --tau {trained.tau:g}, not {args.tau:g}, which --eval cannot change: "
                         "leave the flag out, or add --posthoc logit_adjust, whose strength it is")
    return trained


def evaluate_checkpoint(args, machine: Machine, loader, normalize, test: ImageSet) -> dict:
    """--eval: score exactly the file that --resume names; written only into a new --output_dir.

    The loss, which decides the activation and what the logits fit, is the checkpoint's.
    """
    state = load_checkpoint(args.resume, "finetune")
    there, here, counts = state["class_names"], test.class_names, state["class_counts"]
    if there != here:
        raise ValueError(f"{args.resume} has a head of {len(there)} classes ({', '.join(there[:3])}, ...), but {test.source} "
                         f"has {len(here)} ({', '.join(here[:3])}, ...): evaluate it on the data set that it was trained on")
    tell_differences(args, state["args"], ("mean", "std", "input_size", "crop_pct"), args.resume)
    trained, asked = trained_loss(args, state["args"]), read_test_prior(args.test_prior, len(here))
    criterion = build_criterion(trained, counts, there)
    model = place(build_model(args, test, criterion.cosine_head), machine)
    check_head_count(model, MODELS, state["args"])
    load_classifier(model, state["model"])
    run = RunFolder(args.output_dir) if args.output_dir else None
    if run:
        run.check_empty()
        run.check_writable()
    _, logits, labels = score(model, criterion, loader, normalize, machine, counts)
    logits, activation = correct(logits, criterion, args.posthoc, asked, args.tau)
    logits = logits.float()  # as predictions.npz holds them, so that it gives the same numbers again
    words = f", posthoc {args.posthoc}" * (args.posthoc != "none") + f", test prior {args.test_prior}" * bool(args.test_prior)
    result = metrics.evaluate_logits(logits, labels, counts, activation)
    say(metrics.format_table({f"{args.resume}, {args.split}{words}": result}))
    if run:
        run.create(dict(vars(args)), {"checkpoint": args.resume, "class_counts": counts, "data_hash": test.data_hash})
        provenance = {"epoch": state["progress"]["epoch"] - 1, "split": args.split, "corrected": words.lstrip(", ") or None}
        write_results(run, result, logits, labels, test, np.array(counts), provenance)
        say(f"wrote metrics.json, predictions.npz and figures into {run.path}")
    return result


if __name__ == "__main__":
    run_command(get_args_parser(), main)
