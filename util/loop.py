"""The loop over an epoch's micro-batches that both engines share."""
import time
from collections.abc import Iterator

import torch

from util.lr import Schedule, set_lr
from util.run import progress, say
from util.seed import derive_seed
from util.steps import Stepper, StepPlan

LINE_SECONDS = 30  # an epoch of days tells where it is this often at most, so that a log file stays short


def micro_batches(loader, stepper: Stepper, plan: StepPlan, schedule: Schedule, epoch: int, seed: int,
                  log_every: int) -> Iterator[tuple[list, int, float]]:
    """Yield (batch, seed, weight) for every micro-batch of an epoch; the caller runs stepper.backward(loss, weight).

    The seed is a function of (run's seed, step, place in the step): what is drawn for a micro-batch does not depend on
    what was drawn before. The learning rate is set at the start of a step, as MAE does, so the very first step has
    rate 0 and only fills the optimiser's moments.
    """
    stepper.start_epoch()
    told = time.monotonic()
    loader.batch_sampler.set_epoch(epoch)
    for index, batch in enumerate(progress(loader, len(loader), f"epoch {epoch}")):
        step, place, samples, last = plan.place(index)
        if place == 0:
            set_lr(stepper.optimizer, schedule.at(epoch + step / plan.steps_per_epoch))
        yield batch, derive_seed(seed, "step", epoch * plan.steps_per_epoch + step, place), len(batch[0]) / samples
        if last:
            stepper.step(samples)
            if (step + 1) % log_every == 0:
                where = f"epoch {epoch}, step {step}, lr {highest_lr(stepper):.3g}"
                means = stepper.read(where)
                if time.monotonic() - told >= LINE_SECONDS:
                    told = time.monotonic()
                    loss = "none, no finite step" if means["train_loss"] is None else f"{means['train_loss']:.4f}"
                    say(f"{where} of {plan.steps_per_epoch} steps: mean loss so far {loss}")


def highest_lr(stepper: Stepper) -> float:
    """The rate of the group that learns fastest: the head's under layer decay."""
    return max(group["lr"] for group in stepper.optimizer.param_groups)


def epoch_record(stepper: Stepper, plan: StepPlan, epoch: int, start: float) -> dict:
    """The numbers that both stages log after an epoch that began at `start` (time.perf_counter)."""
    sums = stepper.read(f"epoch {epoch}, lr {highest_lr(stepper):.3g}")
    seconds = time.perf_counter() - start
    memory = torch.cuda.max_memory_allocated(stepper.device) if stepper.device.type == "cuda" else None
    return {"epoch": epoch, **sums, "lr": highest_lr(stepper),
            "lr_lowest": min(group["lr"] for group in stepper.optimizer.param_groups), "seconds": round(seconds, 3),
            "images_per_second": round(plan.num_samples / seconds, 1), "device_memory_bytes": memory}
