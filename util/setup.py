"""The set-up that both stages share: device, precision, data, optimiser, where a run starts from, its checkpoints."""
from dataclasses import dataclass

import torch
from torch import nn

from datasets import build_dataset
from datasets.imageset import ImageSet
from datasets.skipping import SkipUnreadable
from util.args import check_common
from util.checkpoint import save_checkpoint
from util.distributed import check_single_process
from util.lr import Schedule, scale_lr
from util.precision import choose_amp, choose_attention
from util.run import RunFolder, say
from util.seed import derive_seed, rng_state, seed_everything, set_rng_state
from util.steps import Stepper, StepPlan, build_optimizer, derive_accumulation


@dataclass
class Machine:
    """Where the work runs and in which type its matrix products are."""

    device: torch.device
    amp: torch.dtype | None


def set_up(args) -> Machine:
    """Check the shared flags, choose the device and the number type (printed with the reason), seed everything."""
    check_common(args)
    check_single_process()
    device = choose_device(args.device)
    amp, reason = choose_amp(args.amp, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    say(f"device {name}; matrix products in {reason}; seed {args.seed}")
    seed_everything(derive_seed(args.seed, "start"), device)
    return Machine(device, amp)


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


def place(model: nn.Module, machine: Machine) -> nn.Module:
    """The model on its device, with the attention that is fast there."""
    choose_attention(model, machine.device)
    return model.to(machine.device)


def load_images(args, split: str) -> ImageSet:
    """The data set of the flags; both stages read it through here. An evaluation never replaces an image."""
    images = build_dataset(args.dataset, split, args.data_path, args.mean, args.std)
    skips = args.skip_bad_images and split == "train" and not images.in_memory
    return SkipUnreadable(images, args.skip_bad_images) if skips else images


def plan_steps(args, num_samples: int) -> StepPlan:
    """How many images make a micro-batch and a step."""
    accum_iter = derive_accumulation(args.batch_size, args.accum_iter, args.effective_batch_size)
    return StepPlan(num_samples, args.batch_size, accum_iter)


def build_training(args, model: nn.Module, groups: list[dict], plan: StepPlan, machine: Machine,
                   default_blr: float) -> tuple[Stepper, Schedule]:
    """The model's stepper and its learning rates: --lr, else --blr or the stage's default scaled with the batch."""
    blr = default_blr if args.blr is None else args.blr
    lr = args.lr if args.lr is not None else scale_lr(blr, plan.effective_batch_size)
    if args.min_lr > lr:
        raise ValueError(f"--min_lr {args.min_lr:g} is above the learning rate {lr:g}: lower it, or raise --blr or --lr")
    optimizer = build_optimizer(groups, lr, tuple(args.opt_betas))
    return Stepper(model, optimizer, machine.device, machine.amp, args.clip_grad, args.max_bad_steps), \
        Schedule(lr, args.min_lr, args.warmup_epochs, args.epochs)


def describe(plan: StepPlan, schedule: Schedule, machine: Machine, images: ImageSet) -> dict:
    """Settings derived from flags and data, for args.json."""
    return {"device": str(machine.device), "matrix_products": str(machine.amp or torch.float32), "lr": schedule.lr,
            "accum_iter": plan.accum_iter, "effective_batch_size": plan.effective_batch_size,
            "steps_per_epoch": plan.steps_per_epoch, "num_images": len(images), "data_hash": images.data_hash,
            "data_source": images.source, "class_names": images.class_names, "class_counts": images.class_counts.tolist(),
            "mean": list(images.record.mean), "std": list(images.record.std)}


@dataclass
class Session:
    """A run that can be saved and continued: its folder, model, optimiser and data."""

    stage: str
    args: dict
    run: RunFolder
    model: nn.Module
    stepper: Stepper
    images: ImageSet

    def save(self, epoch: int) -> None:
        """Write last.pth after `epoch` whole epochs."""
        save_checkpoint(self.run.last, {
            "stage": self.stage, "model": self.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(), "scaler": self.stepper.state_dict(), "ema": None,
            "progress": {"epoch": epoch, "data_hash": self.images.data_hash}, "rng": rng_state(), "args": self.args,
            "class_counts": self.images.class_counts.tolist(), "class_names": self.images.class_names})

    def restore(self, state: dict | None) -> int:
        """Load a checkpoint into model and optimiser; returns the epoch to go on with, 0 from scratch."""
        if state is None:
            return 0
        if state["progress"]["data_hash"] != self.images.data_hash:
            raise ValueError("the checkpoint was trained on other images (the hash of ids and labels differs): use the "
                             "same --data_path, or another --output_dir")
        self.model.load_state_dict(state["model"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.stepper.load_state_dict(state["scaler"])
        set_rng_state(state["rng"])
        return state["progress"]["epoch"]
