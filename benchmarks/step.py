"""One training step of both stages beside the implementations that people would take instead.

    python -m benchmarks.step                                        the sizes that a CPU can do, in bf16 and fp32
    python -m benchmarks.step --sizes base_224 large_224 --compile   what a GPU is for

Stage 1 stands beside `ViTMAEForPreTraining` of transformers, stage 2 beside timm's `vit_*` with timm's optimiser: the same
shapes, batch, number type and process, steps taken in turns. A step is forward, backward and optimiser on images that lie on
the device. Printed are medians: images a second, their ratio to the other's, the share of this machine's own
matrix-product peak (operations of the model / time / peak, the peak measured here with a large product of the same type), and
peak memory. `pip install transformers` for stage 1; the project does not need it otherwise.
"""
import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.step_cases import CHECKPOINTED, COMPILED, OTHERS, SIZES, contestants, draw, step_flops

TYPES = {"bf16": torch.bfloat16, "fp32": None}
COLUMNS = f"{'size':10}{'stage':>6}{'type':>6}{'batch':>6}  {'':15}{'images/s':>10}{'ratio':>7}{'of peak':>9}{'GiB':>8}"


def seconds(step: Callable, data: tuple, device: torch.device) -> float:
    """Wall-clock of one step, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step(*data)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matmul_peak(device: torch.device, amp) -> float:
    """Operations a second of a large matrix product of this type on this device: the median of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=amp or torch.float32) for _ in range(2))
    times = [seconds(torch.mm, (a, b), device) for _ in range(12)]
    return 2 * n ** 3 / statistics.median(times[2:])


def largest_batch(size, stage: int, device: torch.device, amp) -> int:
    """The largest power of two, from 64 on, that a step of every contestant has memory for."""
    batch = 64
    while all(fits(contestants(stage)[who], size, device, amp, 2 * batch) for who in (OTHERS[stage], "ours")):
        batch *= 2
    return batch


def fits(build: Callable, size, device: torch.device, amp, batch: int) -> bool:
    """Whether the GPU has the memory for two steps of this batch."""
    try:
        step, data = build(size, device, amp), draw(size, batch, device)
        for _ in range(2):
            step(*data)
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        step = data = None
        gc.collect()
        torch.cuda.empty_cache()


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; Linux says them."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def host_memory(name: str, stage: int, who: str, word: str, batch: int) -> int:
    """Most bytes that this process, which does nothing else, has resident over three steps beyond what its imports take."""
    if stage == 1:
        import transformers.models.vit_mae.modeling_vit_mae  # noqa: F401  before the first reading, whoever is measured
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest reading so far
    step = contestants(stage)[who](SIZES[name], torch.device("cpu"), TYPES[word])
    data = draw(SIZES[name], batch, torch.device("cpu"))
    for _ in range(3):
        step(*data)
    return resident("VmHWM") - before


def in_own_process(function: Callable, *arguments):
    """Its result in a process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(function, *arguments).result()


def build_all(name: str, stage: int, device: torch.device, word: str, batch: int, who_else: list) -> tuple[dict, dict, tuple]:
    """Each one's step and the most memory that it needs, weights and moments included; and the data."""
    data, steps, memory = draw(SIZES[name], batch, device), {}, {}
    for who in (OTHERS[stage], "ours", *who_else):
        build = contestants(stage)[who]
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        steps[who] = build(SIZES[name], device, TYPES[word])
        if device.type == "cuda":
            for _ in range(3):
                steps[who](*data)
            memory[who] = torch.cuda.max_memory_allocated(device) - before
        else:
            # One reading differs from the next by some 5 %, by where the allocator puts things.
            memory[who] = statistics.median(in_own_process(host_memory, name, stage, who, word, batch) for _ in range(3))
    return steps, memory, data


def compare(name: str, stage: int, word: str, device: torch.device, args) -> None:
    """Print one line of the table a contestant."""
    size = SIZES[name]
    batch = args.batch_size or (size.gpu_batch if device.type == "cuda" else size.cpu_batch)
    if args.largest:
        batch = largest_batch(size, stage, device, TYPES[word])
    steps, memory, data = build_all(name, stage, device, word, batch,
                                    [COMPILED] * args.compile + [CHECKPOINTED] * args.grad_checkpointing)
    peak, times = matmul_peak(device, TYPES[word]), {who: [] for who in steps}
    for index in range(args.rounds + args.warmup):
        for who, step in steps.items():
            taken = seconds(step, data, device)
            if index >= args.warmup:
                times[who].append(taken)
    medians = {who: statistics.median(values) for who, values in times.items()}
    for who, median in medians.items():
        share = step_flops(size, stage) * batch / median / peak
        print(f"{name:10}{stage:6}{word:>6}{batch:6}  {who:15}{batch / median:10.1f}{medians[OTHERS[stage]] / median:7.2f}"
              f"{share:9.1%}{memory[who] / 2**30:8.2f}", flush=True)
    print(f"{'':30}{'peak':15}{peak / 1e12:10.2f} TFLOP/s", flush=True)


def get_args_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["demo", "tiny_32", "base_224"])
    parser.add_argument("--stages", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--batch_size", type=int, help="by default one for each size and kind of device")
    parser.add_argument("--largest", action="store_true", help="on a GPU: the largest batch that all have memory for")
    parser.add_argument("--compile", action="store_true", help="time this project's compiled step too")
    parser.add_argument("--grad_checkpointing", action="store_true", help="and what recomputing the blocks' activations costs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3, help="rounds that do not count")
    return parser


def main(args) -> None:
    """Print the table."""
    device = torch.device(args.device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{what}, torch {torch.__version__}, medians of {args.rounds} steps in turns\n{COLUMNS}", flush=True)
    for name in args.sizes:
        for stage in args.stages:
            for word in args.types:
                compare(name, stage, word, device, args)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
