"""Memory of benchmarks.step's contestants: the most that a step needs, and the largest batch that a GPU has it for."""
import gc
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from benchmarks.step_cases import COMPILED, OURS, Case

SMALLEST = 64  # where the search for the largest batch begins, and the unit of what it finds
CLEAR_REFS = Path("/proc/self/clear_refs")


def largest_batch(fits: Callable[[int], bool]) -> int:
    """The largest batch that `fits`, a multiple of SMALLEST: doubled as long as it does, then halved in between until an
    eighth of it is left. Raises ValueError where the smallest does not fit.
    """
    if not fits(SMALLEST):
        raise ValueError(f"--largest begins at a batch of {SMALLEST}, which the GPU has too little memory for: give a smaller "
                         "--batch_size instead")
    batch = SMALLEST
    while fits(2 * batch):
        batch *= 2
    beyond = 2 * batch
    while beyond - batch > max(SMALLEST, batch // 8):
        between = (batch + beyond) // (2 * SMALLEST) * SMALLEST
        batch, beyond = (between, beyond) if fits(between) else (batch, between)
    return batch


def search_largest(case: Case, names: list[str]) -> int:
    """The largest batch at which each of the contestants makes its step while all the others' weights and moments lie there.

    Compiled ones are stood for by what they are compiled from, which needs no less: every size would be compiled anew.
    """
    uncompiled = {COMPILED: OURS, case.other_compiled: case.other}
    steps = [case.build(uncompiled.get(who, who)) for who in names]
    try:
        return largest_batch(lambda batch: fits(case, steps, batch))
    finally:
        steps.clear()
        free()


def fits(case: Case, steps: list[Callable], batch: int) -> bool:
    """Whether the GPU has the memory for two steps of this batch of each of them."""
    try:
        data = case.draw(batch)
        for step in 2 * steps:
            step(*data)
        return True
    except torch.OutOfMemoryError:
        pass
    data = None
    free()
    if batch > SMALLEST:
        fits(case, steps, SMALLEST)  # or the gradients of the step that failed would take room in the next try
    return False


def free() -> None:
    """Give the GPU's memory back that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; Linux says them."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def host_memory(case: Case, who: str, batch: int) -> int:
    """Most bytes that this process, which does nothing else, has resident over three steps beyond what its imports take."""
    if case.stage == 1:
        import transformers.models.vit_mae.modeling_vit_mae  # noqa: F401  before the first reading, whoever is measured
    before = resident("VmRSS")
    CLEAR_REFS.write_text("5")  # forget the highest reading so far
    step, data = case.build(who), case.draw(batch)
    for _ in range(3):
        step(*data)
    return resident("VmHWM") - before


def in_own_process(function: Callable, *arguments):
    """Its result in a process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(function, *arguments).result()


def build_measured(case: Case, who: str, data: tuple) -> tuple[Callable, int | None]:
    """A contestant's step, and the most memory that it needs, weights and moments included.

    None where the system does not tell, and of compiled steps on a CPU, where the compiler's own memory would count.
    """
    if case.device.type == "cuda":
        before = torch.cuda.memory_allocated(case.device)
        torch.cuda.reset_peak_memory_stats(case.device)
        step = case.build(who)
        for _ in range(3):
            step(*data)
        return step, torch.cuda.max_memory_allocated(case.device) - before
    if not CLEAR_REFS.exists() or who in (COMPILED, case.other_compiled):
        return case.build(who), None
    # One reading differs from the next by some 5 %, by where the allocator puts things.
    readings = [in_own_process(host_memory, case, who, len(data[0])) for _ in range(3)]
    return case.build(who), statistics.median(readings)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU, torch's allocator on a CPU, or the system, which ends the process then, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError | BrokenProcessPool) or "DefaultCPUAllocator" in str(error)
