"""Stage 2, balanced fine-tuning (BFT), and the evaluation of a trained model.

    python main_finetune.py @recipes/embedded/finetune.args --finetune runs/mgp/last.pth --output_dir runs/bft
    python main_finetune.py @recipes/embedded/finetune.args --eval --resume runs/bft/last.pth
"""
from collections.abc import Callable

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import nn

from datasets.imageset import ImageSet
from datasets.loading import eval_loader, train_loader
from datasets.transforms import Normalize
from engine_finetune import Targets, evaluate, train_one_epoch
from models_mae import as_pair
from models_vit import MODELS, build_vit, check_head_count, load_resampled
from util import figures, metrics, signals
from util.args import (
    Parser,
    add_data_flags,
    add_model_flags,
    add_optimizer_flags,
    add_run_flags,
    run_command,
)
from util.args_finetune import (
    add_augmentation_flags,
    add_loss_flags,
    build_criterion,
    check_finetune,
    check_loss_flags,
    read_test_prior,
    trained_loss,
    with_checkpoint_flags,
    with_loss_defaults,
)
from util.bootstrap import intervals
from util.checkpoint import trained_weights, writing
from util.lr import param_groups
from util.posthoc import METHODS, correct
from util.run import RunFolder, say
from util.session import Session
from util.setup import (
    Machine,
    build_training,
    check_same_data,
    describe,
    in_class_order,
    load_for_training,
    load_scored,
    place,
    plan_steps,
    resolved,
    set_up,
)
from util.start import begin, open_classifier, start_weights, tell_differences
from util.weights import tell

BLR = 1e-3  # the paper's, at 256 images


def get_args_parser() -> Parser:
    """Flags of stage 2, with MAE's names and defaults, and those of the balanced losses."""
    parser = Parser("LiVT stage 2: balanced fine-tuning, and evaluation")
    add_run_flags(parser)
    add_data_flags(parser, scale=(0.08, 1.0))
    add_model_flags(parser, "vit_base_patch16", MODELS)
    group = parser.add_argument_group("classifier")
    group.add_argument("--head_order", choices=["official", "string_sorted"], help="load the head of others' weights, whose "
                       "rows are in label order, or in that of labels sorted as strings (LiVT's iNat18 heads)")
    group.add_argument("--nb_classes", type=int, metavar="C", help="checked against the data, which decides")
    group.add_argument("--cls_token", action="store_true", help="classify by the class token instead of the patches' mean")
    group.add_argument("--drop_path", type=float, default=0.1, metavar="P", help="largest stochastic depth")
    group.add_argument("--layer_scale", type=float, metavar="INIT", help="multiply every block's branches with learned factors "
                       "that start here (none by default)")
    group.add_argument("--head_std", type=float, metavar="S", help="deviation of the head's first weights (2e-5 by default, as "
                       "MAE fine-tunes; LAMB, whose steps follow a tensor's norm, leaves that slowly)")
    add_loss_flags(parser)
    add_augmentation_flags(parser)
    add_optimizer_flags(parser, epochs=50, blr=BLR, min_lr=1e-6, warmup_epochs=5, betas=(0.9, 0.999))
    parser.add_argument("--layer_decay", type=float, default=0.75, metavar="D", help="rate of a layer over the next one's")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval", action="store_true", help="evaluate --resume CKPT and train nothing; data set, "
                       "model, sizes and normalisation are the checkpoint's where no flag is given for them")
    group.add_argument("--eval_every", type=int, default=1, metavar="EPOCHS", help="epochs between two evaluations")
    group.add_argument("--val_fraction", type=float, metavar="F", help="hold this share of every class's training images "
                       "out and score them instead of --split, to choose settings on")
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
                     cosine_head, args.layer_scale, args.head_std)


def build_targets(args, num_classes: int) -> Targets:
    """Mixup, cutmix and smoothing of the flags."""
    mixup = None
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None:
        mixup = Mixup(args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode,
                      label_smoothing=args.smoothing, num_classes=num_classes)
    return Targets(num_classes, args.smoothing, mixup)


def build_erasing(args, device: torch.device) -> RandomErasing | None:
    """timm's random erasing of normalised images on the device; None at probability 0."""
    return RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, device=device) if args.reprob else None


def score(model, criterion, loader, normalize, machine: Machine, counts, total: int,
          between: Callable[[], None] | None = None) -> tuple[dict, torch.Tensor | None, torch.Tensor | None]:
    """Evaluate `total` images: metrics, and on the first process logits (N, C) as the activation takes them and labels (N,)."""
    world = machine.world
    logits, labels = evaluate(model, loader, normalize, machine.device, machine.amp, world, total, between)
    if world.first:
        logits = logits * criterion.logit_scale
    result = metrics.evaluate_logits(logits, labels, counts, criterion.activation) if world.first else None
    return world.from_first(result), logits, labels


def scored_split(args) -> str:
    """What was scored, in words for tables and metrics.json."""
    return args.split if args.val_fraction is None else f"held-out {args.val_fraction:g} of train"


def write_results(run: RunFolder, result: dict, logits, labels, images: ImageSet, counts: np.ndarray, provenance: dict) -> None:
    """metrics.json, predictions.npz and the figures of one evaluation; counts (C,) decide the groups."""
    if logits is None:  # the first process has them, and writes
        return
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
    return evaluate_checkpoint(args) if args.eval else finetune(args)


def build_loaders(args, train: ImageSet, test: ImageSet, machine: Machine):
    """What this process trains on, and what it scores."""
    size, world = as_pair(args.input_size), machine.world
    return (train_loader(train, size, args.batch_size, args.seed, args.train_crop, tuple(args.scale), args.hflip,
                         None if args.aa == "none" else args.aa, args.num_workers, machine.device, args.sampler,
                         args.loader, world.rank, world.size, args.color_jitter, args.repeated_aug),
            eval_loader(test, size, args.batch_size, args.crop_pct, args.num_workers, machine.device, args.loader,
                        world.share(len(test))))


@signals.remembered()
def finetune(args) -> dict:
    """Run stage 2; returns the metrics of the last epoch."""
    machine = set_up(args)
    world, (train, test) = machine.world, load_for_training(args)
    for images in (train, test):
        check_same_data(images, world)
    normalize = Normalize(test.record, machine.device)
    args = with_loss_defaults(args, len(train.class_names))
    criterion = build_criterion(args, train.class_counts, train.class_names).to(machine.device)
    check_loss_flags(args, criterion)
    run = RunFolder(args.output_dir or "output_dir")
    args, settings, state, words = begin(args, run, "finetune", train)
    plan = plan_steps(args, train, world, state)
    loader, test_loader = build_loaders(args, train, test, machine)
    model = place(build_model(args, train, criterion.cosine_head), machine, args.grad_checkpointing, args.compile)
    begun = {}
    if state is None:
        start, begun = start_weights(args, settings, model, criterion, train.class_names)
        words += f", {start}"
    parts = param_groups(model, args.weight_decay, args.layer_decay)
    stepper, schedule = build_training(args, model, parts, plan, machine, BLR)
    session = Session("finetune", settings, run, stepper, train, plan, schedule, loader.batch_sampler, world, args.save_every,
                      args.save_steps)
    session.restore(state)
    run.create(settings, {**describe(plan, schedule, machine, train), **begun}, session.log_lines, session.epoch)
    say(f"stage 2, {args.model}, {args.loss}: {len(train)} images of {train.source}, {plan.steps_per_epoch} steps of "
        f"{plan.effective_batch_size} images an epoch, lr {schedule.lr:.3g}; {words}; run folder {run.path}")

    erase, targets, scored = build_erasing(args, machine.device), build_targets(args, len(train.class_names)), None

    def train_epoch(epoch: int, first_step: int, after_step) -> dict:
        return train_one_epoch(criterion, loader, normalize, erase, targets, stepper, plan, schedule, epoch, args.seed,
                               args.log_every, first_step, after_step)

    def score_now():
        return score(stepper.trained, criterion, test_loader, normalize, machine, train.group_counts, len(test),
                     session.listen)

    def finish(epoch: int, record: dict) -> dict:
        nonlocal scored
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            scored = score_now()
            record["eval"] = {key: scored[0][key] for key in ("overall", "many", "medium", "few", "ece", "mce")}
        return {**record, **run.log_bad_images(train)}

    session.listen()  # to what came since the start
    session.train(args.epochs, train_epoch, finish)

    # A finished run that is started again has trained nothing, so its weights are scored once more.
    result, logits, labels = scored or score_now()
    with writing(run.path):
        if world.first:
            figures.training_curves(run.figures / "training.png", run.records())
            run.log_settings(settings, result)
        write_results(run, result, logits, labels, test, train.group_counts, {
            "epoch": args.epochs - 1, "split": scored_split(args), "epoch_chosen_by": "nothing, the last one"})
        run.close()
    say(metrics.format_table({f"{args.loss}, {scored_split(args)}": result}))
    return result


def evaluate_checkpoint(args) -> dict:
    """--eval: score exactly the file that --resume names; written only into a new --output_dir.

    Model, size, pooling, normalisation, data set and class order are the checkpoint's where no flag was given for them; the
    loss, which decides the activation and what the logits fit, always is.
    """
    weights, state = open_classifier(args)
    args = with_checkpoint_flags(args, state["args"])
    machine = set_up(args)
    test = in_class_order(load_scored(args, state["args"]), state["class_names"], args.resume)
    check_same_data(test, machine.world)
    tell_differences(resolved(args, test), state["args"], ("mean", "std", "input_size", "crop_pct"), args.resume)
    trained, asked = trained_loss(args, state["args"]), read_test_prior(args.test_prior, len(test.class_names))
    criterion = build_criterion(trained, state["class_counts"], test.class_names)
    model = place(build_model(args, test, criterion.cosine_head), machine)
    check_head_count(model, MODELS, state["args"])
    tell(weights, load_resampled(model, trained_weights(state), weights.grid, "patch_size" in args.given))
    run = RunFolder(args.output_dir) if args.output_dir else None
    if run and machine.world.first:
        run.check_empty()
        run.check_writable()
    normalize = Normalize(test.record, machine.device)
    world, counts = machine.world, np.array(state["progress"]["group_counts"])
    loader = eval_loader(test, as_pair(args.input_size), args.batch_size, args.crop_pct, args.num_workers, machine.device,
                         args.loader, world.share(len(test)))
    _, logits, labels = score(model, criterion, loader, normalize, machine, counts, len(test))
    if not world.first:
        return world.from_first(None)
    logits, activation = correct(logits, criterion, args.posthoc, asked, args.tau)
    logits = logits.float()  # as predictions.npz holds them, so that it gives the same numbers again
    words = f", posthoc {args.posthoc}" * (args.posthoc != "none") + f", test prior {args.test_prior}" * bool(args.test_prior)
    result = metrics.evaluate_logits(logits, labels, counts, activation)
    say(metrics.format_table({f"{args.resume}, {scored_split(args)}{words}": result}))
    if run:
        run.create(resolved(args, test), {"checkpoint": args.resume, "class_counts": state["class_counts"],
                                          "data_hash": test.data_hash, "data_source": test.source, **test.details})
        epochs = state["progress"]["epoch"]  # None of others' weights that do not say
        provenance = {"epoch": epochs and epochs - 1, "split": scored_split(args), "epoch_chosen_by":
                      "nothing, the checkpoint's", "corrected": words.lstrip(", ") or None}
        with writing(run.path):
            write_results(run, result, logits, labels, test, counts, provenance)
    say(f"wrote metrics.json, predictions.npz and figures into {run.path}" if run else "nothing is written: --output_dir DIR "
        "keeps metrics, predictions and figures")
    return world.from_first(result)


if __name__ == "__main__":
    run_command(get_args_parser(), main)
