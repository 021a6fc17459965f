"""One training step of both stages beside the implementations that people would take instead.

    python -m benchmarks.step                                        the sizes that a CPU can do, in bf16 and fp32
    python -m benchmarks.step --sizes base_224 large_224 --compile   what a GPU is for

Stage 1 stands beside `ViTMAEForPreTraining` of transformers, stage 2 beside timm's `vit_*` with timm's optimiser, on CPUs also
with timm's own switch to plain attention: the same shapes, batch, number type and process. A step is forward, backward and
optimiser on images that lie on the device. Steps are taken in turns, whose order goes round. Printed are medians: images a
second, their ratio to the other's and the quartiles of the ratios within each round, the share of this machine's own
matrix-product peak (operations of the model / time / peak, the peak measured here with a large product of the same type), and
peak memory where the system tells it. With --compile both sides are compiled: ours block by block, as in training, theirs as a
whole with `model.compile()`, the loss of ViTMAEForPreTraining included, which leaves the compiler the most to fuse. Stage 1
needs transformers (requirements-optional.txt).
"""
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.step_cases import COMPILED, OURS, PLAIN, SIZES, TYPES, Case, Size, step_flops, timed_device
from benchmarks.step_memory import build_measured, free, is_out_of_memory, search_largest
from models_mae import MODELS, model_shape, patch_grid
from util.args import Parser, run_command
from util.precision import check_compiler

COLUMNS = (f"{'size':10}{'stage':>6}{'type':>6}{'batch':>6}  {'':22}{'images/s':>10}{'ratio':>7}{'quartiles':>15}{'of peak':>9}"
           f"{'GiB':>8}")
PRODUCT = {"cuda": 8192, "cpu": 2048}  # rows and columns of the product that shows a device's peak
LARGE = 70 * 2 ** 30  # bytes of a GPU on which large_224 is one of the sizes by default


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
    n = PRODUCT[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=amp or torch.float32) for _ in range(2))
    times = [seconds(torch.mm, (a, b), device) for _ in range(12)]
    return 2 * n ** 3 / statistics.median(times[2:])


def time_rounds(steps: dict[str, Callable], data: tuple, device: torch.device, rounds: int, warmup: int) -> dict[str, list]:
    """{contestant: seconds of its step in every round}; who is first goes round."""
    times, names = {who: [] for who in steps}, list(steps)
    for index in range(-warmup, rounds):
        first = index % len(names)
        for who in names[first:] + names[:first]:
            taken = seconds(steps[who], data, device)
            if index >= 0:
                times[who].append(taken)
    return times


def speed_ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """How many times as fast as theirs: the ratio of the medians, and the quartiles of the rounds' own ratios."""
    paired = np.divide(theirs, ours)
    return statistics.median(theirs) / statistics.median(ours), *np.quantile(paired, (0.25, 0.75))


def like_for_like(case: Case, times: dict[str, list]) -> list[str]:
    """Lines that say how many times as fast ours is, with the same done to both and as people run theirs."""
    other, lines = case.other, []
    pairs = {f"ours / {other}": (OURS, other), f"ours / {PLAIN}": (OURS, PLAIN),
             "both compiled": (COMPILED, case.other_compiled), f"ours compiled / {other} as it is": (COMPILED, other)}
    for label, (one, two) in pairs.items():
        if one in times and two in times:
            ratio, low, high = speed_ratio(times[one], times[two])
            lines.append(f"{label:42}{ratio:22.2f}{low:8.2f} -{high:5.2f}")
    return lines


def compare(case: Case, args) -> None:
    """Print the lines of one case: one a contestant, the peak, and the ratios of like to like.

    Raises ValueError for a batch that the device has no memory for.
    """
    names = case.contestants(args.compile, args.grad_checkpointing)
    batch = args.batch_size or (case.size.gpu_batch if case.device.type == "cuda" else case.size.cpu_batch)
    try:
        batch = search_largest(case, names) if args.largest else batch
        data, peak = case.draw(batch), matmul_peak(case.device, case.amp)
        built = {who: build_measured(case, who, data) for who in names}
        times = time_rounds({who: step for who, (step, _) in built.items()}, data, case.device, args.rounds, args.warmup)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"too little memory on {case.device} for {case.name}, stage {case.stage}, {case.word} at a batch of "
                         f"{batch} with {len(names)} contestants: give a smaller --batch_size") from None
    for who, values in times.items():
        ratio, low, high = speed_ratio(values, times[names[0]])
        between = "" if who == names[0] else f"{low:8.2f} -{high:5.2f}"
        median, memory = statistics.median(values), built[who][1]
        share = step_flops(case.size, case.stage) * batch / median / peak
        print(f"{case.name:10}{case.stage:6}{case.word:>6}{batch:6}  {who:22}{batch / median:10.1f}{ratio:7.2f}{between:>15}"
              f"{share:9.1%}{'-' if memory is None else format(memory / 2**30, '.2f'):>8}")
    print(f"{'':30}{'peak':22}{peak / 1e12:10.4g} TFLOP/s")
    print("".join(f"{'':5}{line}\n" for line in like_for_like(case, times)), flush=True)


def chosen_sizes(args, device: torch.device) -> dict[str, Size]:
    """{name: size}: --model's, or --sizes, by default those that the device can do in reasonable time."""
    if args.model is None:
        for name in ("input_size", "patch_size"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} {getattr(args, name)} does nothing without --model: name one, or use --sizes")
        large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE
        return {name: SIZES[name] for name in args.sizes or ["demo", "tiny_32", "base_224"] + ["large_224"] * large}
    if args.sizes:
        raise ValueError(f"--model {args.model} and --sizes {' '.join(args.sizes)} both choose the model: give one")
    patch_size, *_ = model_shape(MODELS, args.model, args.patch_size)
    side, name = args.input_size or 224, args.model.removeprefix("mae_vit_")
    patch_grid(side, patch_size)
    return {f"{name.split('_')[0]}_{side}": Size(name, side, patch_size, 8, 64)}


def check(args, device: torch.device) -> None:
    """Raise ValueError for flags that cannot be, and for what is not installed, before anything is timed."""
    for name in ("rounds", "warmup", "batch_size", "input_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.largest and device.type != "cuda":
        raise ValueError(f"--largest looks for what a GPU has memory for, and the device is {device.type}: leave it out, or "
                         "give a --batch_size")
    if args.largest and args.batch_size is not None:
        raise ValueError(f"--largest and --batch_size {args.batch_size} both choose the batch: give one")
    if 1 in args.stages and find_spec("transformers") is None:
        raise ValueError("stage 1 is compared with transformers' ViTMAEForPreTraining, and transformers is not installed: pip "
                         "install -r requirements-optional.txt, or use --stages 2")
    if args.compile:
        check_compiler(device)


def get_args_parser() -> Parser:
    """The command's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="all that the device can do in reasonable time by default")
    parser.add_argument("--model", metavar="NAME", help=f"instead of --sizes: one of {', '.join(MODELS)}")
    parser.add_argument("--input_size", type=int, metavar="PIXELS", help="of --model's images, 224 by default")
    parser.add_argument("--patch_size", type=int, metavar="PIXELS", help="instead of --model's")
    parser.add_argument("--stages", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--batch_size", type=int, metavar="N", help="by default one for each size and kind of device")
    parser.add_argument("--largest", action="store_true", help="on a GPU: the largest batch that all have memory for")
    parser.add_argument("--compile", action="store_true", help="time the compiled steps of both sides too")
    parser.add_argument("--grad_checkpointing", action="store_true", help="and what recomputing the blocks' activations costs")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="rounds before, which do not count")
    return parser


def main(args) -> None:
    """Print the table."""
    device = timed_device(args.device)
    check(args, device)
    sizes = chosen_sizes(args, device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{what}, torch {torch.__version__}, medians of {args.rounds} steps in turns\n{COLUMNS}", flush=True)
    for name, size in sizes.items():
        for stage in args.stages:
            for word in args.types:
                compare(Case(name, size, stage, word, device), args)
                free()
                torch.compiler.reset()  # all models have code in common, of which torch compiles only so many variants


if __name__ == "__main__":
    run_command(get_args_parser(), main)
