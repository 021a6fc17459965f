"""One epoch of balanced fine-tuning, and the evaluation."""
from collections.abc import Callable

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import nn

from util import signals
from util.distributed import World
from util.loop import epoch_record, micro_batches, worker_deaths
from util.lr import Schedule
from util.run import progress
from util.seed import Draws, seed_everything, seeded
from util.steps import Stepper, StepPlan


class Targets:
    """Mixup, cutmix and label smoothing of one micro-batch: images and labels (n,) -> images and targets.

    Targets are the labels themselves where nothing softens them, else (n, C) distributions.
    """

    def __init__(self, num_classes: int, smoothing: float = 0.0, mixup: Mixup | None = None):
        self.num_classes, self.smoothing, self.mixup = num_classes, smoothing, mixup

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.mixup is None and not self.smoothing:
            return images, labels
        targets = mixup_target(labels, self.num_classes, 1.0, self.smoothing)
        even = len(images) // 2 * 2
        if self.mixup is not None and even:
            # timm mixes pairs, so the last image of an odd micro-batch stays as it is.
            mixed, mixed_targets = self.mixup(images[:even], labels[:even])
            images, targets = torch.cat([mixed, images[even:]]), torch.cat([mixed_targets, targets[even:]])
        return images, targets


def erase_each(erase: RandomErasing | None, images: torch.Tensor, drawn: Draws) -> torch.Tensor:
    """Erase in each of the images (n, C, H, W) what is drawn for it, in place; leaves the global generators seeded."""
    if erase is not None:
        for i, image in enumerate(images):
            seed_everything(drawn.of_image("erase", i), images.device)
            erase(image)
    return images


def train_one_epoch(criterion: nn.Module, loader, normalize, erase, targets: Targets, stepper: Stepper, plan: StepPlan,
                    schedule: Schedule, epoch: int, seed: int, log_every: int = 50, first_step: int = 0,
                    after_step: Callable[[int], None] | None = None) -> dict:
    """Train the stepper's network over every image once; returns the epoch's line for log.jsonl.

    Erasing and mixing act on normalised images on the device: erase as of `erase_each`, targets as `Targets`.
    first_step: steps of the epoch that are done already. after_step: called with the number of steps done, between two.
    """
    criterion.set_epoch(epoch)
    network, device = stepper.network.train(), stepper.device
    for (images, labels), drawn, weight in micro_batches(loader, stepper, plan, schedule, epoch, seed, log_every, first_step,
                                                         after_step):
        with seeded(drawn.seed, device):
            images = erase_each(erase, normalize(images), drawn)
        paths = drawn.of_images("path", len(images), len(stepper.model.drop_paths), device)
        with seeded(drawn.seed, device), stepper.autocast():
            images, soft = targets(images, labels)
            outputs = network(images, criterion.needs_features, paths)
            logits, *features = outputs if criterion.needs_features else (outputs,)
            loss = criterion(logits, soft, *features)
        stepper.backward(loss, weight)
    return epoch_record(stepper, plan, epoch)


@torch.no_grad()
def evaluate(model: nn.Module, loader, normalize, device: torch.device, amp: torch.dtype | None = None,
             world: World | None = None, total: int | None = None, between: Callable[[], None] | None = None):
    """Every image of the loader once -> logits (N, C) float32 and labels (N,), both on the CPU.

    With several processes each one's loader has its `world.share(total)`; the first process gets all `total` rows, in the
    data set's order, and the others None. between: called after each batch, as often on every process.
    """
    world = world or World()
    model.eval()
    logits, labels = [], []
    with signals.held():  # this starts the workers
        batches = iter(loader)
    for _ in progress(range(world.agree(len(loader))), len(loader), "evaluation"):
        with worker_deaths(between if world.size == 1 else None):
            batch = next(batches, None)
        if batch is not None:
            images = normalize(batch[0].to(device, non_blocking=True))
            with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
                logits.append(model(images).float().cpu())
            labels.append(batch[1])
        if between:
            between()
    return tuple(world.collect(torch.cat(rows) if rows else None, total) for rows in (logits, labels))
