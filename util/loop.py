"""The loop over an epoch's micro-batches that both engines share."""
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from util import signals
from util.lr import Schedule, set_lr
from util.run import progress, say
from util.seed import Draws
from util.steps import Stepper, StepPlan

try:
    import resource
except ImportError:  # not on Windows
    resource = None

LINE_SECONDS = 30  # an epoch of days tells where it is this often at most, so that a log file stays short


def micro_batches(loader, stepper: Stepper, plan: StepPlan, schedule: Schedule, epoch: int, seed: int, log_every: int,
                  first_step: int = 0, after_step: Callable[[int], None] | None = None) -> Iterator[tuple[list, Draws, float]]:
    """Yield (batch on the device, draws, weight) for this process's micro-batches; the caller runs
    stepper.backward(loss, weight).

    The draws are a function of (run's seed, step, place in the step): they do not depend on what was drawn before, nor on
    which process they are drawn in. The learning rate is set at the start of a step, as MAE
    does, so the very first step has rate 0 and only fills the optimiser's moments.

    first_step: steps of the epoch that a checkpoint has behind it, their sums included. after_step(steps done) is called
    between two steps.
    """
    if not first_step:
        stepper.start_epoch()
    told, parts = time.monotonic(), plan.micro_batches(first_step)
    loader.batch_sampler.set_epoch(epoch, [part.index for part in parts])
    with signals.held():  # the first time this starts the workers
        batches = iter(loader)
    batches = on_device(progress(batches, len(parts), f"epoch {epoch}"), stepper.device)
    step = None
    for part in parts:
        asked = time.perf_counter()
        with worker_deaths(functools.partial(after_step, part.step) if after_step and plan.processes == 1 else None):
            batch = next(batches)
        stepper.clock.waited += time.perf_counter() - asked
        if part.step != step:
            step = part.step
            set_lr(stepper.optimizer, schedule.at(epoch + step / plan.steps_per_epoch))
        with stepper.gradients_meet(part.last):
            yield batch, plan.draws(seed, epoch, part), part.weight
        if not part.last:
            continue
        stepper.step(plan.samples(step))
        if (step + 1) % min(log_every, stepper.max_bad_steps) == 0:
            where = f"epoch {epoch}, step {step}, lr {highest_lr(stepper):.3g}"
            means = stepper.read(where)
            if time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                loss = "none, no finite step" if means["train_loss"] is None else f"{means['train_loss']:.4f}"
                say(f"{where} of {plan.steps_per_epoch} steps: mean loss so far {loss}")
        if after_step:
            after_step(step + 1)


@contextlib.contextmanager
def worker_deaths(listen: Callable[[], None] | None):
    """In the body, which takes a batch: call `listen` where a worker has died after this process was asked to stop.

    A job that is ended loses its processes in any order. `listen` saves and raises Stopped; None where others would have to
    take part, who wait elsewhere.
    """
    try:
        yield
    except RuntimeError as error:
        if listen and signals.received() and "DataLoader worker" in str(error):
            listen()
        raise


def on_device(batches: Iterable, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """Every batch's tensors on `device`; from pinned memory to a GPU they are copied beside what is still being computed."""
    if device.type != "cuda":
        yield from ([part.to(device) for part in batch] for batch in batches)
        return
    copies, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = [part.to(device, non_blocking=True) for part in batch]
        compute.wait_stream(copies)
        for part in moved:
            part.record_stream(compute)  # or the allocator would give its memory to the next copy
        yield moved


def host_memory() -> int | None:
    """Most bytes that this process has ever had resident, its workers not counted; None where the system does not say."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else 1024 * peak


def highest_lr(stepper: Stepper) -> float:
    """The rate of the group that learns fastest: the head's under layer decay."""
    return max(group["lr"] for group in stepper.optimizer.param_groups)


def epoch_record(stepper: Stepper, plan: StepPlan, epoch: int) -> dict:
    """The numbers that both stages log after an epoch."""
    sums = stepper.read(f"epoch {epoch}, lr {highest_lr(stepper):.3g}")
    seconds = stepper.clock.seconds()
    memory = torch.cuda.max_memory_allocated(stepper.device) if stepper.device.type == "cuda" else None
    return {"epoch": epoch, **sums, "lr": highest_lr(stepper),
            "lr_lowest": min(group["lr"] for group in stepper.optimizer.param_groups), "seconds": round(seconds, 3),
            "images_per_second": round(plan.num_samples / seconds, 1), "data_wait": round(stepper.clock.waited / seconds, 4),
            "device_memory_bytes": memory, "host_memory_bytes": host_memory()}
