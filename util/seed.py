"""Random draws as functions of what they are drawn for.

No generator outlives a draw: each one is seeded from a key such as (seed, "step", 17, 3), so that a run does not depend
on how many processes or workers it is spread over, nor on what else has drawn before.
"""
import contextlib
import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch


def derive_seed(*key) -> int:
    """A 63-bit seed out of a key of ints and strings; equal keys give equal seeds on every machine and Python."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Draws:
    """What is drawn for one micro-batch of a step.

    An image's own draws (its mask, its dropped paths, what is erased of it) belong to its place in the step, so that they
    stay the same however the step is cut into micro-batches and spread over processes. What mixes images belongs to the
    micro-batch.
    """

    key: tuple  # of the step
    place: int  # of the micro-batch in the step, over all processes
    first: int  # place of its first image in the step
    total: int  # images of a full step

    @property
    def seed(self) -> int:
        """The seed of what the images of the micro-batch draw together."""
        return derive_seed(*self.key, self.place)

    def of_images(self, what: str, n: int, width: int, device: torch.device) -> torch.Tensor:
        """(n, width) uniform in [0, 1): a row for each of the first n images, which depends on its place in the step."""
        generator = torch.Generator(device).manual_seed(derive_seed(*self.key, what))
        # All rows of the step are drawn: a GPU's generator gives other numbers to a tensor of another size.
        return torch.rand(self.total, width, generator=generator, device=device)[self.first:self.first + n]

    def of_image(self, what: str, i: int) -> int:
        """A seed for the i-th image of the micro-batch, which depends on its place in the step."""
        return derive_seed(*self.key, what, self.first + i)


def seed_everything(seed: int, device: torch.device | None = None) -> None:
    """Seed Python's, NumPy's and torch's global generators, and the one of `device` where that is no CPU."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        accelerator = getattr(torch, device.type)
        # manual_seed seeds the current device, which need not be this one.
        with accelerator.device(device) if hasattr(accelerator, "device") else contextlib.nullcontext():
            accelerator.manual_seed(seed)


@contextlib.contextmanager
def keep_random_state(device: torch.device | None = None):
    """Put the global generators (and that of `device`) back as they were, whatever the body has drawn or seeded."""
    accelerator = None if device is None or device.type == "cpu" else getattr(torch, device.type)
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_device = accelerator.get_rng_state(device) if accelerator else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerator:
            accelerator.set_rng_state(on_device, device)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None):
    """Seed the global generators for the body only.

    For library code that draws from them (timm's RandAugment and Mixup, torchvision's transforms).
    """
    with keep_random_state(device):
        seed_everything(seed, device)
        yield


def rng_state() -> dict:
    """State of the CPU generators as plain values and tensors (a checkpoint holds it)."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }


def set_rng_state(state: dict) -> None:
    """Inverse of `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
