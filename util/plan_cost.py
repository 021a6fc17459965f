"""What training costs on this device: seconds and bytes of steps that are made, and of images that are read."""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from datasets.imageset import ImageSet
from datasets.loading import EvalImages, TrainImages, worker_count
from datasets.transforms import eval_transform, train_transform
from models_mae import build_mae
from models_vit import build_vit
from util.loop import host_memory
from util.losses import build_loss
from util.lr import param_groups
from util.plan_recipe import Network
from util.precision import choose_attention
from util.steps import Stepper, build_optimizer

ENOUGH = 1.0  # seconds of steps that make a measurement
ROUNDS = 3
LOOKED_AT = 64  # images that are read
FULL = 0.8  # share of a GPU's memory that a step may take


@dataclass(frozen=True)
class Cost:
    """Seconds an image: of training in stage 1 (0 where it is not made) and 2 and of an evaluation, loading included.

    batch_size: images of a process and micro-batch that they were measured with; memory: bytes at the peak, of the GPU, or
    of this process on a CPU; None where nothing tells.
    """

    pretrain: float
    finetune: float
    evaluate: float
    batch_size: int
    memory: int | None

    def hours(self, images: int, scored: int, epochs: tuple[int, int], evaluations: int) -> tuple[float, float]:
        """Hours of the two stages over `images`, with `evaluations` of `scored` images in the second."""
        first, second = (epochs[0] * images * self.pretrain, epochs[1] * images * self.finetune)
        return first / 3600, (second + evaluations * scored * self.evaluate) / 3600


def measure(network: Network, images: ImageSet, device: torch.device, amp: torch.dtype | None, largest: int,
            pretrain: bool = True) -> Cost:
    """The cost of both stages, or with pretrain False of the second, with a micro-batch of at most `largest` images, on a GPU
    the fastest that its memory holds."""
    reading = loading(network, images, device)
    batch_size, seconds, memory = min(64, largest), None, None
    while True:
        try:
            measured = steps(network, images, device, amp, batch_size, pretrain)
        except torch.OutOfMemoryError:
            if seconds is None and batch_size > 1:
                batch_size //= 2
                continue
            break
        used = peak_memory(device)
        if seconds and sum(measured) > 0.97 * sum(seconds):
            break  # more images at once are hardly faster
        fitted, seconds, memory = batch_size, measured, used
        if device.type != "cuda" or 2 * batch_size > largest \
                or 2 * used > FULL * torch.cuda.get_device_properties(device).total_memory:
            break
        batch_size *= 2
    if seconds is None:
        raise ValueError(f"{network.words} does not fit into the memory of {device} with one image: use a smaller --model")
    total = [together(step, read, device) for step, read in zip(seconds, reading, strict=True)]
    return Cost(*total, fitted, memory)


def steps(network: Network, images: ImageSet, device: torch.device, amp: torch.dtype | None, batch: int,
          pretrain: bool) -> list[float]:
    """Seconds an image of a step of stage 1 (0 without it), of stage 2, and of a forward pass, with `batch` at a time."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    channels, classes = images.record.channels, len(images.class_names)
    pixels = torch.randn(batch, channels, *network.size, device=device)
    found = [seconds_of(first_stage(network, pixels, device, amp), device) / batch if pretrain else 0.0]
    vit = build_vit(f"vit_{network.name}", classes, network.size, channels, 0.1, "avg", network.patch, network.width,
                    network.depth, network.heads)
    criterion = build_loss("bal_bce", images.class_counts).to(device)
    targets = torch.full((batch, classes), 1 / classes, device=device)
    found.append(seconds_of(training(vit, lambda: criterion(vit(pixels), targets), device, amp, batch), device) / batch)
    vit.eval()

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            vit(pixels)
    return [*found, seconds_of(forward, device) / batch]


def first_stage(network: Network, pixels: torch.Tensor, device: torch.device, amp: torch.dtype | None) -> Callable[[], None]:
    """A function that makes one step of stage 1."""
    width, depth, heads = network.decoder
    mae = build_mae(f"mae_vit_{network.name}", network.size, pixels.shape[1], network.patch, network.width, network.depth,
                    network.heads, decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads, norm_pix_loss=True)
    return training(mae, lambda: mae(pixels, loss_only=True), device, amp, len(pixels))


def training(model: nn.Module, loss: Callable, device: torch.device, amp: torch.dtype | None, batch: int) -> Callable[[], None]:
    """A function that makes one optimiser step of the model as a run makes it."""
    choose_attention(model, device, amp)
    model.to(device).train()
    stepper = Stepper(model, build_optimizer(param_groups(model, 0.05), 1e-4, (0.9, 0.95)), device, amp)

    def step() -> None:
        with stepper.autocast():
            value = loss()
        stepper.backward(value, 1.0)
        stepper.step(batch)
    return step


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """The median of a few calls, the first one left out, which finds kernels and memory."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    times = []
    while len(times) < ROUNDS or sum(times) < ENOUGH:
        wait()
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
        if sum(times) > 10 * ENOUGH:
            break  # a step of many seconds is told well enough by one
    return statistics.median(times)


def loading(network: Network, images: ImageSet, device: torch.device) -> list[float]:
    """Seconds that the machine takes to read an image as the two stages and an evaluation do, its workers together."""
    crop, auto_augment, scale = network.augmentation
    chosen = torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).long().tolist()
    keys = [(index, 0, place) for place, index in enumerate(chosen)]
    found = []
    for policy, smallest in ((None, 0.2), (auto_augment, scale)):
        data = TrainImages(images, train_transform(network.size, images.record, crop, (smallest, 1.0), 0.5, policy), 0)
        found.append(reading_time(lambda data=data: data.__getitems__(keys), len(keys)))
    data = EvalImages(images, eval_transform(network.size, network.crop_pct))
    found.append(reading_time(lambda: [data[index] for index in chosen], len(chosen)))
    workers = worker_count(images, None)
    return [seconds / workers for seconds in found]


def reading_time(read: Callable, count: int) -> float:
    """Seconds an image of one thread, once the files are in the system's memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        read()
        begun = time.perf_counter()
        read()
        return (time.perf_counter() - begun) / count
    finally:
        torch.set_num_threads(threads)


def together(step: float, read: float, device: torch.device) -> float:
    """Seconds an image of a step and of reading: one after the other where both are on the same cores, else the longer."""
    return step + read if device.type == "cpu" else max(step, read)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that were in use at most: of the GPU since `steps` began, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_memory()
