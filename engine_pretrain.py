"""One epoch of masked reconstruction."""
import math
from collections.abc import Callable

from util.loop import epoch_record, micro_batches
from util.lr import Schedule
from util.seed import seeded
from util.steps import Stepper, StepPlan


def train_one_epoch(loader, normalize, stepper: Stepper, plan: StepPlan, schedule: Schedule, epoch: int, mask_ratio: float,
                    seed: int, log_every: int = 50, first_step: int = 0,
                    after_step: Callable[[int], None] | None = None) -> dict:
    """Train the stepper's network over every image once; returns the epoch's line for log.jsonl.

    first_step: steps of the epoch that are done already. after_step: called with the number of steps done, between two.
    """
    network, device, patches = stepper.network.train(), stepper.device, math.prod(stepper.model.grid)
    for (images, _), drawn, weight in micro_batches(loader, stepper, plan, schedule, epoch, seed, log_every, first_step,
                                                    after_step):
        images = normalize(images)
        noise = drawn.of_images("mask", len(images), patches, device)
        with seeded(drawn.seed, device), stepper.autocast():
            loss = network(images, mask_ratio, noise, loss_only=True)
        stepper.backward(loss, weight)
    return epoch_record(stepper, plan, epoch)
