"""The optimiser step that both stages share: accumulation, precision, clipping, skipping what is not finite."""
import functools
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.lamb import Lamb
from util.seed import Draws

# AdamW in its fused form is the one that knows the flag.
OPTIMIZERS = {"adamw": functools.partial(torch.optim.AdamW, fused=True), "lamb": Lamb}


class NonFiniteError(RuntimeError):
    """Training met too many non-finite steps in a row; `first` is the run's step that the row began with."""

    def __init__(self, message: str, first: int = 0):
        super().__init__(message)
        self.first = first


class MicroBatch(NamedTuple):
    """One forward and backward pass of one process: what it reads and how it counts."""

    step: int  # of the epoch
    place: int  # in the step, over all processes: what its draws are seeded by
    index: int  # of the epoch, over all processes: which images it has
    weight: float  # its share of the step's images; 0 where a process has none left and repeats one to take part
    last: bool  # whether it is the process's last of the step


@dataclass(frozen=True)
class StepPlan:
    """How the samples of an epoch fall into micro-batches, processes and optimiser steps. No sample is left out.

    A step has accum_iter micro-batches a process; its places go round the processes, so that one process with as many
    times the accumulation computes the same micro-batches. The last micro-batch may be short and the last step may have
    fewer of them; every sample of a step counts the same all the same.

    own_parts: every process reads a part of the epoch of its own (tar shards) and cuts that into micro-batches, which
    are then numbered within the process.
    """

    num_samples: int
    batch_size: int
    accum_iter: int
    processes: int = 1
    process: int = 0
    own_parts: bool = False

    @property
    def effective_batch_size(self) -> int:
        return self.batch_size * self.accum_iter * self.processes

    @property
    def steps_per_epoch(self) -> int:
        if self.own_parts:
            return math.ceil(self._part(self.processes - 1) / (self.batch_size * self.accum_iter))
        return math.ceil(self.num_samples / self.effective_batch_size)

    def samples(self, step: int) -> int:
        """Images of a step, over all processes."""
        if not self.own_parts:
            return min(self.effective_batch_size, self.num_samples - step * self.effective_batch_size)
        most = self.batch_size * self.accum_iter
        return sum(max(0, min(most, self._part(process) - step * most)) for process in range(self.processes))

    def draws(self, seed: int, epoch: int, part: MicroBatch) -> Draws:
        """What a micro-batch of an epoch draws in a run of a seed."""
        return Draws((seed, "step", epoch * self.steps_per_epoch + part.step), part.place, part.place * self.batch_size,
                     self.effective_batch_size)

    def micro_batches(self, first_step: int = 0) -> list[MicroBatch]:
        """What this process does in an epoch, from a step on."""
        found = []
        for step in range(first_step, self.steps_per_epoch):
            samples, sizes = self.samples(step), self._sizes(step)
            for i, (index, place, size) in enumerate(sizes):
                found.append(MicroBatch(step, place, index, size / samples, i + 1 == len(sizes)))
        return found

    def _part(self, process: int) -> int:
        """Images of a process that reads a part of its own; the last process has the most."""
        return (process + 1) * self.num_samples // self.processes - process * self.num_samples // self.processes

    def _sizes(self, step: int) -> list[tuple[int, int, int]]:
        """(index, place, images) of this process's micro-batches of a step; one of 0 images where none is left for it."""
        if self.own_parts:
            total, first, stride = self._part(self.process), step * self.accum_iter, 1
        else:
            total, first, stride = self.num_samples, step * self.accum_iter * self.processes + self.process, self.processes
        indices = [first + i * stride for i in range(self.accum_iter) if (first + i * stride) * self.batch_size < total]
        places = [i * self.processes + self.process for i in range(self.accum_iter)]
        if not indices:
            repeated = max(0, first - 1) if self.own_parts else first - self.process
            return [(repeated, self.process, 0)]
        return [(index, place, min(self.batch_size, total - index * self.batch_size))
                for index, place in zip(indices, places, strict=False)]


def derive_accumulation(batch_size: int, accum_iter: int | None, effective: int | None, processes: int = 1) -> int:
    """Accumulation out of --effective_batch_size over all processes, or --accum_iter as given (1 by default)."""
    for flag, value in (("--batch_size", batch_size), ("--accum_iter", accum_iter), ("--effective_batch_size", effective)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, not {value}")
    if effective is None:
        return accum_iter or 1
    at_once, spread = batch_size * processes, f" x {processes} processes" if processes > 1 else ""
    if effective % at_once:
        raise ValueError(f"--effective_batch_size {effective} is no multiple of --batch_size {batch_size}{spread} (remainder "
                         f"{effective % at_once}): change one of them")
    if accum_iter not in (None, effective // at_once):
        raise ValueError(f"--effective_batch_size {effective} with --batch_size {batch_size}{spread} means "
                         f"{effective // at_once} accumulation steps, but --accum_iter is {accum_iter}: leave one of them out")
    return effective // at_once


def build_optimizer(groups: list[dict], lr: float, betas: tuple[float, float], name: str = "adamw") -> torch.optim.Optimizer:
    """An optimiser of `OPTIMIZERS`; each skips a step by a flag on the device."""
    return OPTIMIZERS[name](groups, lr=lr, betas=betas)


class Clock:
    """Seconds of an epoch, and how many of them training waited for data; goes on where a checkpoint left it."""

    def __init__(self, seconds: float = 0.0, waited: float = 0.0):
        self.before, self.waited, self.begun = seconds, waited, time.perf_counter()

    def seconds(self) -> float:
        """Seconds of the epoch so far."""
        return self.before + time.perf_counter() - self.begun


class Stepper:
    """Backward and optimiser steps without a device synchronisation; `read` is the only one, at the host's leisure.

    A step whose loss or gradient is not finite changes nothing, the moving average neither: the flag stays on the device
    and makes the fused optimiser skip, and is counted. With several processes the model is in DistributedDataParallel,
    which leaves the same gradient on all of them, so that they skip together.

    network: the model, or DistributedDataParallel around it. ema: timm's ModelEmaV3 of the model, or None.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
                 amp: torch.dtype | None = None, clip_grad: float | None = None, max_bad_steps: int = 20,
                 ema: ModelEmaV3 | None = None):
        self.network, self.ema = network, ema
        self.model = network.module if isinstance(network, DistributedDataParallel) else network
        self.processes = dist.get_world_size() if self.model is not network else 1
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer, self.device, self.amp = optimizer, device, amp
        self.clip_grad, self.max_bad_steps = clip_grad, max_bad_steps
        # Only fp16 overflows; bf16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
        self.step_loss = torch.zeros((), device=device)
        self.total = 0  # steps of the run, skipped ones included
        # These three outlive the epoch: the row of bad steps that is going on, the step it began with, its last norm.
        self.bad_in_row, self.row_began, self.bad_norm = (torch.zeros((), device=device) for _ in range(3))
        self.start_epoch()

    @property
    def trained(self) -> nn.Module:
        """The model to score: the moving average where one is kept."""
        return self.ema.module if self.ema else self.model

    def start_epoch(self) -> None:
        """Set the sums of the epoch to zero: losses times samples, samples, norms, good and bad steps, longest row."""
        self.sums = {name: torch.zeros((), dtype=torch.float32 if self.device.type == "mps" else torch.float64,
                                       device=self.device)
                     for name in ("loss", "samples", "grad_norm", "good", "bad", "longest_bad")}
        self.clock = Clock()

    def autocast(self):
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def gradients_meet(self, last: bool) -> AbstractContextManager:
        """The context of a micro-batch: processes exchange gradients in the last one of a step only."""
        return nullcontext() if last or self.processes == 1 else self.network.no_sync()

    def backward(self, loss: torch.Tensor, weight: float) -> None:
        """Add the gradient of one micro-batch, `weight` being its share of the step's samples."""
        loss = loss * weight
        # DistributedDataParallel takes the mean over processes, and the weights are shares of the sum.
        self.scaler.scale(loss * self.processes if self.processes > 1 else loss).backward()
        self.step_loss += loss.detach()

    def step(self, samples: int) -> None:
        """Finish the optimiser step of `samples` samples, over all processes."""
        if self.processes > 1:
            dist.all_reduce(self.step_loss)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.clip_grad:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm)
        bad = (~(norm.isfinite() & self.step_loss.isfinite())).float()
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = bad
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self._average(1 - bad)
        self._count(norm, bad, samples)

    @torch.no_grad()
    def _average(self, good: torch.Tensor) -> None:
        """timm's update of the moving average, its weight times `good`: 0, on the device, where the step was skipped."""
        weight = (1 - self.ema.decay) * good
        for average, value in zip(self.ema.module.state_dict().values(), self.model.state_dict().values(), strict=True):
            average.lerp_(value, weight.to(average.dtype))

    def _count(self, norm: torch.Tensor, bad: torch.Tensor, samples: int) -> None:
        good = bad == 0
        self.row_began = torch.where(good | (self.bad_in_row > 0), self.row_began, float(self.total))
        self.bad_norm = torch.where(good, self.bad_norm, norm)
        self.bad_in_row = (self.bad_in_row + 1) * bad
        self.sums["loss"] += torch.where(good, self.step_loss, 0.0) * samples
        self.sums["samples"] += samples * (1 - bad)
        self.sums["grad_norm"] += torch.where(good, norm, 0.0)
        self.sums["good"] += 1 - bad
        self.sums["bad"] += bad
        self.sums["longest_bad"] = torch.maximum(self.sums["longest_bad"], self.bad_in_row.to(self.sums["bad"].dtype))
        self.step_loss = torch.zeros_like(self.step_loss)
        self.total += 1

    def read(self, where: str) -> dict:
        """Synchronise once and return the epoch's means so far; `where` (epoch, step, lr) goes into the error.

        Raises NonFiniteError after `max_bad_steps` steps in a row that were not finite.
        """
        sums = self._values()
        if sums["longest_bad"] >= self.max_bad_steps:
            raise self.non_finite(where, int(sums["longest_bad"]))
        return {"train_loss": sums["loss"] / sums["samples"] if sums["samples"] else None,
                "grad_norm": sums["grad_norm"] / sums["good"] if sums["good"] else None,
                "skipped_steps": int(sums["bad"])}

    def non_finite(self, where: str, steps: int | None = None) -> NonFiniteError:
        """The error of a row of bad steps, by default the one that is going on."""
        steps = int(self.bad_in_row.item()) if steps is None else steps
        return NonFiniteError(f"loss or gradient was not finite in {steps} steps in a row ({where}, gradient norm "
                              f"{self.bad_norm.item():g})", int(self.row_began.item()))

    def _values(self) -> dict[str, float]:
        """The sums of the epoch on the host."""
        names = list(self.sums)
        return dict(zip(names, torch.stack([self.sums[name] for name in names]).tolist(), strict=True))

    def state_dict(self) -> dict:
        """What a checkpoint keeps beside the optimiser's own state, between two steps."""
        return {"grad_scaler": self.scaler.state_dict(), "total": self.total, "sums": self._values(),
                "bad": [self.bad_in_row.item(), self.row_began.item(), self.bad_norm.item()],
                "clock": [self.clock.seconds(), self.clock.waited]}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["grad_scaler"])
        self.total, self.clock, self.step_loss = state["total"], Clock(*state["clock"]), torch.zeros((), device=self.device)
        self.sums = {name: torch.full_like(self.sums[name], value) for name, value in state["sums"].items()}
        self.bad_in_row, self.row_began, self.bad_norm = (torch.full((), value, device=self.device) for value in state["bad"])

    def forget_bad_row(self) -> None:
        """Count bad steps anew, where training starts again from a checkpoint."""
        self.bad_in_row = torch.zeros_like(self.bad_in_row)
        self.sums["longest_bad"] = torch.zeros_like(self.sums["longest_bad"])
