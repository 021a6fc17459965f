"""The optimiser step that both stages share: accumulation, precision, clipping, skipping what is not finite."""
import math
from dataclasses import dataclass

import torch
from torch import nn


class NonFiniteError(RuntimeError):
    """Training met too many non-finite steps in a row."""


@dataclass(frozen=True)
class StepPlan:
    """How the samples of an epoch fall into micro-batches and optimiser steps. No sample is left out.

    The last micro-batch may be short and the last step may have fewer micro-batches; every sample of a step counts
    the same all the same.
    """

    num_samples: int
    batch_size: int
    accum_iter: int

    @property
    def effective_batch_size(self) -> int:
        return self.batch_size * self.accum_iter

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_samples / self.effective_batch_size)

    def place(self, index: int) -> tuple[int, int, int, bool]:
        """Micro-batch of the epoch -> (step of the epoch, place in the step, samples in the step, last of the step?)."""
        step, place = divmod(index, self.accum_iter)
        samples = min(self.effective_batch_size, self.num_samples - step * self.effective_batch_size)
        return step, place, samples, (place + 1) * self.batch_size >= samples


def derive_accumulation(batch_size: int, accum_iter: int | None, effective: int | None) -> int:
    """Accumulation out of --effective_batch_size, or --accum_iter as given (1 by default)."""
    for flag, value in (("--batch_size", batch_size), ("--accum_iter", accum_iter), ("--effective_batch_size", effective)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, not {value}")
    if effective is None:
        return accum_iter or 1
    if effective % batch_size:
        raise ValueError(f"--effective_batch_size {effective} is no multiple of --batch_size {batch_size} (remainder "
                         f"{effective % batch_size}): change one of them")
    if accum_iter not in (None, effective // batch_size):
        raise ValueError(f"--effective_batch_size {effective} with --batch_size {batch_size} means {effective // batch_size}"
                         f" accumulation steps, but --accum_iter is {accum_iter}: leave one of them out")
    return effective // batch_size


def build_optimizer(groups: list[dict], lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW in its fused form, which skips a step by a flag on the device."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


class Stepper:
    """Backward and optimiser steps without a device synchronisation; `read` is the only one, at the host's leisure.

    A step whose loss or gradient is not finite changes nothing: the flag stays on the device and makes the fused
    optimiser skip, and is counted.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
                 amp: torch.dtype | None = None, clip_grad: float | None = None, max_bad_steps: int = 20):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.device, self.amp = optimizer, device, amp
        self.clip_grad, self.max_bad_steps = clip_grad, max_bad_steps
        # Only fp16 overflows; bf16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
        self.step_loss = torch.zeros((), device=device)
        self.bad_in_row = torch.zeros((), device=device)  # outlives the epoch
        self.start_epoch()

    def start_epoch(self) -> None:
        """Set the sums of the epoch to zero: losses times samples, samples, norms, good and bad steps, longest row."""
        self.sums = {name: torch.zeros((), dtype=torch.float32 if self.device.type == "mps" else torch.float64,
                                       device=self.device)
                     for name in ("loss", "samples", "grad_norm", "good", "bad", "longest_bad")}

    def autocast(self):
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def backward(self, loss: torch.Tensor, weight: float) -> None:
        """Add the gradient of one micro-batch, `weight` being its share of the step's samples."""
        loss = loss * weight
        self.scaler.scale(loss).backward()
        self.step_loss += loss.detach()

    def step(self, samples: int) -> None:
        """Finish the optimiser step of `samples` samples."""
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
        self._count(norm, bad, samples)

    def _count(self, norm: torch.Tensor, bad: torch.Tensor, samples: int) -> None:
        good = bad == 0
        self.bad_in_row = (self.bad_in_row + 1) * bad
        self.sums["loss"] += torch.where(good, self.step_loss, 0.0) * samples
        self.sums["samples"] += samples * (1 - bad)
        self.sums["grad_norm"] += torch.where(good, norm, 0.0)
        self.sums["good"] += 1 - bad
        self.sums["bad"] += bad
        self.sums["longest_bad"] = torch.maximum(self.sums["longest_bad"], self.bad_in_row.to(self.sums["bad"].dtype))
        self.step_loss = torch.zeros_like(self.step_loss)

    def read(self, where: str) -> dict:
        """Synchronise once and return the epoch's means so far; `where` (epoch, step, lr) goes into the error.

        Raises NonFiniteError after `max_bad_steps` steps in a row that were not finite.
        """
        names = list(self.sums)
        sums = dict(zip(names, torch.stack([self.sums[name] for name in names]).tolist(), strict=True))
        if sums["longest_bad"] >= self.max_bad_steps:
            raise NonFiniteError(
                f"loss or gradient was not finite in {int(sums['longest_bad'])} steps in a row ({where}); the weights are "
                "those before them: lower --blr, set --clip_grad 1, or use --amp off")
        return {"train_loss": sums["loss"] / sums["samples"] if sums["samples"] else None,
                "grad_norm": sums["grad_norm"] / sums["good"] if sums["good"] else None,
                "skipped_steps": int(sums["bad"])}

    def state_dict(self) -> dict:
        """What a checkpoint keeps beside the optimiser's own state."""
        return {"grad_scaler": self.scaler.state_dict(), "bad_in_row": self.bad_in_row.item()}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["grad_scaler"])
        self.bad_in_row = torch.full((), float(state["bad_in_row"]), device=self.device)
