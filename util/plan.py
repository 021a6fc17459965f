"""What to train on a folder of pictures, how long it takes here, and what it has to beat; then the commands to type.

    python -m util.plan --data_path DIR                                         from scratch
    python -m util.plan --data_path DIR --finetune mae_pretrain_vit_base.pth    from an encoder that others trained

Reads counts and sizes of the images, times steps of both stages on this device, and writes the two recipes into --out.
"""
import argparse
import os
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from datasets import build_dataset
from datasets.entries import is_file, is_folder
from datasets.imageset import FileImages, ImageSet
from datasets.longtail import hold_out
from datasets.presence import check_listed
from datasets.statistics import channel_statistics
from models_vit import MODELS, model_shape
from util import metrics
from util.args import Parser, run_command
from util.features import open_encoder
from util.plan_cost import Cost, measure
from util.plan_floor import floor
from util.plan_recipe import WORTH, Length, Network, advice, batches, length, longest, networks, recipe, text
from util.precision import choose_amp
from util.run import progress, say
from util.setup import choose_device
from util.trained import Trained
from util.weights import PUBLISHED, open_weights

SIZES_READ, STATISTICS_OF = 500, 2000  # images whose headers, and whose pixels, are looked at
HELD_OUT = 0.2
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = {"L", "1", "LA", "I;16", "I"}
COLUMNS = ("many", "medium", "few", "overall", "balanced_accuracy")


class Pictures(NamedTuple):
    """train and scored: the images; flags: those that name them to both stages; side: the median shorter side in pixels."""

    train: ImageSet
    scored: ImageSet
    flags: dict
    side: float


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("what to train on your images, and what it costs on this device")
    parser.add_argument("--data_path", required=True, metavar="DIR", help="DIR/train/<class>/*, and DIR/test/<class>/* or "
                        "DIR/val/<class>/*, without which a fifth of each class is held out")
    parser.add_argument("--dataset", default="folder", choices=["folder", "list"], help="list: DIR/train.txt, DIR/test.txt")
    parser.add_argument("--finetune", metavar="CKPT", help="encoder to start from, in any form that main_finetune.py takes")
    for name, metavar in (("mean", "M"), ("std", "S")):
        parser.add_argument(f"--{name}", type=float, nargs="+", metavar=metavar, help="of --finetune's channels, where neither "
                            "a file beside the weights nor their form says it")
    parser.add_argument("--hours", type=float, default=12.0, metavar="H", help="time that both stages may take here together")
    parser.add_argument("--out", default="runs/own", metavar="DIR", help="where pretrain.args and finetune.args are written, "
                        "and the runs will be")
    parser.add_argument("--floor_images", type=int, default=2000, metavar="N", help="images at most that the floor is fitted "
                        "to (two of each class in any case), and that it is scored on; 0: no floor")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="type of matrix products")
    return parser


def split_of(root: Path, dataset: str) -> str | None:
    """The split to score, "test" or else "val"; None where DIR has neither."""
    for split in ("test", "val"):
        if is_folder(root / split) if dataset == "folder" else any(is_file(root / f"{split}{end}") for end in (".txt", ".csv")):
            return split
    return None


def look(args, encoder: Trained | None, normalised: str) -> Pictures:
    """Read what there is to train on, and say it in two lines. ValueError where nothing can be trained on it.

    normalised: words for whose channel statistics an encoder's are.
    """
    split = split_of(Path(args.data_path), args.dataset)
    train = build_dataset(args.dataset, "train", args.data_path, (0.0,) * 3, (1.0,) * 3)
    check_listed(train, progress=progress)
    if len(train.class_names) < 2:
        raise ValueError(f"{train.source} has one class, {train.class_names[0]}: a classifier needs two or more")
    sizes, modes = headers(train)
    if encoder:
        mean, std = encoder.record.mean, encoder.record.std
    else:
        channels = 1 if modes <= GRAY else 3
        looked_at = build_dataset(args.dataset, "train", args.data_path, (0.0,) * channels, (1.0,) * channels)
        mean, std, _ = channel_statistics(looked_at, STATISTICS_OF, progress=lambda chunks, total: progress(
            chunks, total, "statistics"))
    mean, std = ([round(float(value), 4) for value in values] for values in (mean, std))
    train = build_dataset(args.dataset, "train", args.data_path, mean, std)
    flags = {"dataset": args.dataset, "data_path": args.data_path, "mean": mean, "std": std}
    counts = train.class_counts
    if split:
        scored = build_dataset(args.dataset, split, args.data_path, mean, std)
        flags |= {"split": split} if split != "test" else {}
        words = f"{len(scored):,} of {split} are scored"
    else:
        train, scored = held_out(train)
        flags["val_fraction"] = HELD_OUT
        words = f"there is no test and no val, so a fifth of each class is held out and scored, {len(scored):,} images"
    shots = ", ".join(f"{int(mask.sum())} {name}" for name, mask in metrics.groups(counts).items())
    say(f"data: {counts.sum():,} training images in {len(counts)} classes, {counts.max():,} down to {counts.min():,} (factor "
        f"{counts.max() / max(1, counts.min()):.4g}; {shots}-shot); {words}")
    short, long = (sorted(map(pick, sizes)) for pick in (min, max))
    side = statistics.median(short)
    say(f"pictures: {'gray' if len(mean) == 1 else 'colour'}, shorter side {short[0]} to {short[-1]} pixels, median {side:g}, "
        f"longer side up to {long[-1]} ({len(sizes):,} looked at); mean {' '.join(map(str, mean))}, deviation "
        f"{' '.join(map(str, std))}{normalised}")
    return Pictures(train, scored, flags, side)


def held_out(train: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The training images without a fifth of each class, and that fifth, as --val_fraction makes them."""
    counts = train.class_counts
    parts = [train.subset(part) for part in hold_out(train.labels, counts, HELD_OUT)]
    parts[0].details["full_class_counts"] = counts.tolist()
    if not len(parts[1]):
        raise ValueError(f"{train.source} has no class of two images, and there is no test to score: add images")
    return parts[0], parts[1]


def headers(images: FileImages) -> tuple[list[tuple[int, int]], set[str]]:
    """(width, height) of an even sample of the images, and the modes that Pillow finds, out of the headers alone."""
    sizes, modes = [], set()
    for index in np.linspace(0, len(images) - 1, min(SIZES_READ, len(images))).astype(int).tolist():
        path = images.root / images.ids[index]
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                modes.add(image.mode)
        except (UnidentifiedImageError, OSError) as error:
            kind = "list" if images.list_file else "folder"
            raise ValueError(f"cannot read the image {path} ({error.__class__.__name__}): find all of these with python -m "
                             f"datasets.verify {kind} --data_path {shlex.quote(str(images.root))} --decode") from None
    return sizes, modes


def start_of(args, device: torch.device) -> tuple[Trained | None, str]:
    """The encoder of --finetune, and words that say whose channel statistics its images are normalised with."""
    if not args.finetune:
        if args.mean or args.std:
            raise ValueError("--mean and --std are those of the images of an encoder: give them with --finetune")
        return None, ""
    weights, mean, std = open_weights(args.finetune), args.mean, args.std
    words = ", those given" if mean and std else f", those of {args.finetune}"
    if weights.form == PUBLISHED and not (weights.statistics or mean or std):
        mean, std = IMAGENET
        words = ", ImageNet's, as MAE's published weights have them: give --mean and --std for weights of other images"
    flags = {"checkpoint": args.finetune, "mean": mean, "std": std, "input_size": None, "num_heads": None}
    return open_encoder(argparse.Namespace(**flags), device), words


def network_of(encoder: Trained) -> Network:
    """The network that an encoder is, at the size of its images."""
    settings = encoder.settings
    name = settings["model"].removeprefix("mae_")
    shape = model_shape(MODELS, name, *(settings[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")))
    named = next((row for row, numbers in MODELS.items() if numbers[1:] == shape[1:]), name)
    return Network(named.removeprefix("vit_"), encoder.size, *shape, small=shape[1] < MODELS["vit_tiny_patch16"][1])


def choose(args, data: Pictures, candidates: list[Network], device, amp) -> tuple[Network, Cost, Length]:
    """The largest of the networks (the smallest first) for which --hours are enough; says what each would take."""
    images, scored, chosen = len(data.train), len(data.scored), None
    for network in candidates:
        cost = measure(network, data.train, device, amp, batches(network, images)[1], not args.finetune)
        epochs = longest(images) if not args.finetune else (0, longest(images)[1])
        hours = sum(cost.hours(images, scored, epochs, 10))
        share = min(1.0, args.hours / hours)
        memory = "" if cost.memory is None else f", {cost.memory / 2**30:.1f} GiB with {cost.batch_size} images at a time"
        say(f"timed: {network.words}: {hours_of(hours)} for {' + '.join(str(n) for n in epochs if n)} epochs{memory}")
        if chosen is None or share >= WORTH:
            chosen = network, cost, length(network, images, share, not args.finetune)
        if share < WORTH:
            break  # a larger one takes longer still
    return chosen


def hours_of(hours: float) -> str:
    """A time for a person."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def propose(args, data: Pictures, network: Network, cost: Cost, plan: Length) -> None:
    """Say what is proposed, and what it takes."""
    first, second = cost.hours(len(data.train), len(data.scored), plan.epochs, plan.evaluations)
    stages = f"{hours_of(first)} + {hours_of(second)} = " * (not args.finetune) + hours_of(first + second)
    epochs = f"{plan.epochs[0]} epochs of stage 1 and {plan.epochs[1]} of stage 2" if not args.finetune else \
        f"{plan.epochs[1]} epochs of stage 2"
    batch = " and ".join(map(str, dict.fromkeys(plan.batches if not args.finetune else plan.batches[1:])))
    source = "the settings of the demo's recipes" if network.small else "the settings of the paper's Tables 9 and 10"
    say(f"plan: {network.words}; {epochs} with {batch} images a step ({cost.batch_size} at a time), Bal-BCE; {source}; "
        f"{stages} on this device, of --hours {args.hours:g}")
    if first + second > 1.1 * args.hours:
        say(f"note: that is more than --hours {args.hours:g} although it is short: use a faster device, or more time")
    if len(data.train.class_names) <= 20:
        say("note: with so few classes Bal-CE may be better: a second run with --loss bal_ce tells")
    say("note: pictures are mirrored at random: add --hflip 0 to both stages where left and right matter (text, digits)")


def write_recipes(args, data: Pictures, network: Network, cost: Cost, plan: Length) -> list[str]:
    """Write the recipes into --out and return the commands that use them."""
    out = Path(args.out)
    stages = ["finetune"] if args.finetune else ["pretrain", "finetune"]
    # What was timed is what is to run.
    given = {name: getattr(args, name) for name in ("device", "amp") if name in args.given}
    flags = recipe({**data.flags, **given}, network, plan, cost.batch_size)
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        title = f"Made by python -m util.plan for {data.train.source}: {network.words}."
        (out / f"{stage}.args").write_text(text(title, flags[stage]), encoding="utf-8")
    start = args.finetune or f"{args.out}/mgp/last.pth"
    looked_at = Path(args.data_path) / data.flags.get("split", "train" if "val_fraction" in data.flags else "test")
    if args.dataset == "list":
        looked_at = Path(args.data_path)
    commands = [["python", "main_pretrain.py", f"@{args.out}/pretrain.args", "--output_dir", f"{args.out}/mgp"]]
    commands = commands[:len(stages) - 1] + [
        ["python", "main_finetune.py", f"@{args.out}/finetune.args", "--finetune", start, "--output_dir", f"{args.out}/bft"],
        ["python", "-m", "util.report", f"{args.out}/bft", "--out", f"{args.out}/report.html"],
        ["python", "predict.py", f"{args.out}/bft/last.pth", str(looked_at), "--out", f"{args.out}/predictions.csv"]]
    return [shlex.join(command) for command in commands]


def check_flags(args) -> None:
    """ValueError for numbers that cannot be, and where --out cannot be written or holds recipes already."""
    if not 0 < args.hours < float("inf"):
        raise ValueError(f"--hours must be a finite number above 0, not {args.hours:g}")
    if args.floor_images < 0:
        raise ValueError(f"--floor_images must not be negative: {args.floor_images}")
    above = next(path for path in (Path(args.out).absolute(), *Path(args.out).absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out {args.out} cannot be written: {above} is {'not writable' if above.is_dir() else 'no folder'}; "
                         "give another --out")
    there = [name for name in ("pretrain.args", "finetune.args", "mgp", "bft") if (Path(args.out) / name).exists()]
    if there:
        raise ValueError(f"{args.out} has {', '.join(there)} already: give another --out, or remove them")


def main(args) -> list[str]:
    """Print the plan and write its recipes; returns the commands."""
    check_flags(args)
    device = choose_device(args.device)
    amp, reason = choose_amp(args.amp, device)
    encoder, normalised = start_of(args, device)
    data = look(args, encoder, normalised)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    say(f"device: {where}; matrix products in {reason}")
    say(f"start: {advice(len(data.train), args.finetune)}")
    candidates = [network_of(encoder)] if encoder else networks(data.side, len(data.train))
    network, cost, plan = choose(args, data, candidates, device, amp)
    propose(args, data, network, cost, plan)
    commands = write_recipes(args, data, network, cost, plan)
    if args.floor_images:
        found = floor(data.train, data.scored, args.floor_images, network.size, encoder, amp)
        say(f"floor, which training has to beat:\n{metrics.format_table(dict([found]), COLUMNS)}" if found else
            "no floor: it would need a class of two training images")
    seen = "  # trained on four fifths of them: new pictures tell more" * ("val_fraction" in data.flags)
    say("next:\n" + "\n".join(f"  {command}" for command in commands) + seen)
    return commands


if __name__ == "__main__":
    run_command(get_args_parser(), main)
