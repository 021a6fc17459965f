"""One epoch of masked reconstruction."""
import time

from torch import nn

from util.loop import epoch_record, micro_batches
from util.lr import Schedule
from util.seed import seeded
from util.steps import Stepper, StepPlan


def train_one_epoch(model: nn.Module, loader, normalize, stepper: Stepper, plan: StepPlan, schedule: Schedule, epoch: int,
                    mask_ratio: float, seed: int, log_every: int = 50) -> dict:
    """Train over every image once; returns the epoch's line for log.jsonl."""
    model.train()
    start, device = time.perf_counter(), stepper.device
    for (images, _), drawn, weight in micro_batches(loader, stepper, plan, schedule, epoch, seed, log_every):
        images = normalize(images.to(device, non_blocking=True))
        with seeded(drawn, device), stepper.autocast():
            loss, _, _ = model(images, mask_ratio)
        stepper.backward(loss, weight)
    return epoch_record(stepper, plan, epoch, start)
