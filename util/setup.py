"""The set-up that both stages share: processes, device, precision, data, steps, optimiser."""
import os
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import build_dataset
from datasets.decode import decode_jpeg
from datasets.imageset import ImageSet
from datasets.longtail import hold_out
from datasets.presence import check_listed
from datasets.skipping import SkipUnreadable
from util.args import check_common
from util.distributed import World, connect, local_device
from util.lr import Schedule, scale_lr
from util.precision import check_compiler, choose_amp, choose_attention, compile_blocks
from util.run import progress, say
from util.seed import derive_seed, seed_everything
from util.steps import Stepper, StepPlan, build_optimizer, derive_accumulation


@dataclass
class Machine:
    """Where the work runs, in which type its matrix products are, and which process of how many this is."""

    device: torch.device
    amp: torch.dtype | None
    world: World


def set_up(args) -> Machine:
    """Check the shared flags, meet the other processes, choose the device and the number type (printed with the reason),
    seed everything.
    """
    check_common(args)
    device = choose_device(args.device)
    world = connect(device.type, args.dist_timeout)
    device = local_device(device)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    amp, reason = choose_amp(args.amp, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    processes = f"{world.size} processes, each on " * (world.size > 1)
    say(f"device {processes}{name}; matrix products in {reason}; seed {args.seed}")
    if args.loader == "fast" and decode_jpeg is None:
        say("note: this torchvision decodes no JPEGs, so Pillow does: the same pictures, slower")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, and reads it at its first use
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(args.deterministic)
    # The same seed everywhere: all processes build the same model.
    seed_everything(derive_seed(args.seed, "start"), device)
    return Machine(device, amp, world)


def check_same_data(images: ImageSet, world: World) -> None:
    """Raise ValueError on the processes that read other images, or name their classes otherwise, than the first one does."""
    first = world.from_first(images.data_hash)
    if images.data_hash != first:
        raise ValueError(f"process {world.rank} reads other images from {images.source} than process 0 (the hash of class "
                         "names, ids and labels differs): give every host the same --data_path")


def choose_device(name: str) -> torch.device:
    """--device: "auto" is cuda where there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError(f"training runs on cpu, cuda, mps or xpu, not on {device.type}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {name}, but torch {torch.__version__} finds no CUDA device here: use --device cpu "
                             "or auto, or install a driver and a CUDA build of torch")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not usable here ({str(error).splitlines()[0]}): use --device "
                         "auto") from None
    return device


def place(model: nn.Module, machine: Machine, grad_checkpointing: bool = False, compiled: bool = False) -> nn.Module:
    """The model on its device, with the attention that is fast there; memory traded for time, or compiled, where asked to."""
    choose_attention(model, machine.device, machine.amp)
    if grad_checkpointing:
        model.set_grad_checkpointing(True)
    if compiled:
        check_compiler(machine.device)
        compile_blocks(model)
    return model.to(machine.device)


def load_images(args, split: str) -> ImageSet:
    """The data set of the flags; both stages read it through here."""
    images = build_dataset(args.dataset, split, args.data_path, args.mean, args.std, args.imb_factor,
                           args.data_seed)
    check_listed(images, args.skip_bad_images if split == "train" else 0, progress)
    return images


def may_skip(args, images: ImageSet) -> ImageSet | SkipUnreadable:
    """Training images of which --skip_bad_images may be unreadable; an evaluation never replaces an image."""
    if args.skip_bad_images and args.dataset == "shards":
        raise ValueError("--skip_bad_images works on images in files, not in shards: leave bad ones out where these are "
                         "made, python -m datasets.pack --skip_bad_images N")
    return SkipUnreadable(images, args.skip_bad_images) if args.skip_bad_images and not images.in_memory else images


def load_for_training(args) -> tuple[ImageSet, ImageSet]:
    """The images of stage 2 to train on and to score: --split of the data, or with --val_fraction a slice of train."""
    train = load_images(args, "train")
    if args.val_fraction is None:
        return may_skip(args, train), load_images(args, args.split)
    rest, held = hold_out(train.labels, train.class_counts, args.val_fraction)
    parts = train.subset(rest), train.subset(held)
    for part, what in zip(parts, ("without", "only"), strict=True):
        part.details |= {"val_fraction": args.val_fraction, "full_class_counts": train.class_counts.tolist()}
        part.source += f", {what} the held-out fraction {args.val_fraction:g}"
    return may_skip(args, parts[0]), parts[1]


def load_scored(args, trained: dict) -> ImageSet:
    """The images that --eval scores: --split, or the slice that the checkpoint's run held out."""
    if args.val_fraction is None:
        return load_images(args, args.split)
    if args.val_fraction != trained["val_fraction"]:
        raise ValueError(f"{args.resume} was trained with --val_fraction {trained['val_fraction']}, so a slice of "
                         f"{args.val_fraction:g} holds images that it has seen: give the same, or leave it out for --split")
    return load_for_training(args)[1]


def in_class_order(images: ImageSet, class_names: list[str], checkpoint: str) -> ImageSet:
    """The images with labels in the order of the checkpoint's class names. ValueError where the classes are others."""
    here = images.class_names
    if here == class_names:
        return images
    if sorted(here) != sorted(class_names):
        only = sorted(set(here) ^ set(class_names))
        raise ValueError(f"{checkpoint} has a head of {len(class_names)} classes ({', '.join(class_names[:3])}, ...), but "
                         f"{images.source} has {len(here)} ({', '.join(here[:3])}, ...), {len(only)} names being in one of "
                         f"them only, such as {only[0]}: evaluate it on the data set that it was trained on")
    say(f"note: classes are in the order of {checkpoint}, which is not that of {images.source}")
    return images.in_order(class_names)


def resolved(args, images: ImageSet) -> dict:
    """The flags as a run keeps them: with the channel statistics that its images have, whether given or the set's own."""
    settings = {name: value for name, value in vars(args).items() if name != "given"}
    return {**settings, "mean": list(images.record.mean), "std": list(images.record.std)}


def plan_steps(args, images: ImageSet, world: World, state: dict | None = None) -> StepPlan:
    """How many images make a micro-batch and a step.

    A run that is continued by another number of processes keeps its images a step: the accumulation is derived from them.
    """
    accum_iter, effective = args.accum_iter, args.effective_batch_size
    if state and effective is None:
        accum_iter, effective = None, state["progress"]["effective_batch_size"]
        if effective % (args.batch_size * world.size):
            raise ValueError(f"{world.size} processes cannot go on with a run of {effective} images a step: that is no "
                             f"multiple of --batch_size {args.batch_size} x {world.size}; start a number of processes that "
                             f"divides {effective // args.batch_size}")
    if state and state["progress"]["processes"] != world.size:
        now = f"{world.size} processes go" if world.size > 1 else "1 process goes"
        say(f"note: {now} on with what {state['progress']['processes']} began, still with {effective} images a step")
    accum_iter = derive_accumulation(args.batch_size, accum_iter, effective, world.size)
    return StepPlan(len(images), args.batch_size, accum_iter, world.size, world.rank, own_parts=args.dataset == "shards")


def build_training(args, model: nn.Module, groups: list[dict], plan: StepPlan, machine: Machine,
                   default_blr: float) -> tuple[Stepper, Schedule]:
    """The model's stepper and its learning rates: --lr, else --blr or the stage's default scaled with the batch."""
    blr = default_blr if args.blr is None else args.blr
    lr = args.lr if args.lr is not None else scale_lr(blr, plan.effective_batch_size)
    for name in ("min_lr", "warmup_lr"):
        if getattr(args, name) > lr:
            raise ValueError(f"--{name} {getattr(args, name):g} is above the learning rate {lr:g}: lower it, or raise --blr or "
                             "--lr")
    optimizer = build_optimizer(groups, lr, tuple(args.opt_betas), args.opt)
    ema = ModelEmaV3(model, decay=args.ema) if args.ema is not None else None
    return Stepper(spread(model, plan, machine), optimizer, machine.device, machine.amp, args.clip_grad, args.max_bad_steps,
                   ema), Schedule(lr, args.min_lr, args.warmup_epochs, args.epochs, args.warmup_lr)


def spread(model: nn.Module, plan: StepPlan, machine: Machine) -> nn.Module:
    """The model in DistributedDataParallel where there are several processes, else itself."""
    if machine.world.size == 1:
        return model
    # No parameter is ever unused. torch forbids a static graph whose first backward pass exchanges nothing.
    return DistributedDataParallel(model, [machine.device] if machine.device.type == "cuda" else None,
                                   gradient_as_bucket_view=True, static_graph=plan.accum_iter == 1)


def describe(plan: StepPlan, schedule: Schedule, machine: Machine, images: ImageSet) -> dict:
    """Settings derived from flags and data, for args.json."""
    return {"device": str(machine.device), "processes": machine.world.size,
            "matrix_products": str(machine.amp or torch.float32), "lr": schedule.lr,
            "accum_iter": plan.accum_iter, "effective_batch_size": plan.effective_batch_size,
            "steps_per_epoch": plan.steps_per_epoch, "num_images": len(images), "data_hash": images.data_hash,
            "data_source": images.source, "class_names": images.class_names, "class_counts": images.class_counts.tolist(),
            **images.details}
