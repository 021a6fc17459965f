"""Which attention is faster here: torch's fused kernel or plain matrix products, for one training step of both stages.

    OMP_NUM_THREADS=1 python -m benchmarks.attention

The two kernels take turns, step by step, on the embedded recipe's networks and on ViT-Tiny for images of 32 and 224 px; medians
of images a second, their ratio, and which one training takes (util.precision.choose_attention). On a CPU also one layer of the
width and heads of MAE's decoder, forward and backward in bf16, over lengths: its weights kept for the backward pass, or made
twice in pieces that stay in the cache (util/piecewise.py).
"""
import math
import statistics
import time

import torch

from benchmarks.step_cases import SIZES, TYPES, Case, Size, timed_device
from models_mae import Attention, build_mae
from models_vit import build_vit
from util.args import Parser, run_command
from util.losses import build_loss
from util.lr import param_groups
from util.precision import choose_attention
from util.steps import Stepper, build_optimizer

# name: (networks and batch, share of --rounds)
STEPS = {"28_7": (SIZES["demo"], 1.0), "32_4": (SIZES["tiny_32"], 0.1), "224_16": (Size("tiny_patch16", 224, 16, 4, 4), 0.1)}
LAYER = "layer"


def use_fused(model: torch.nn.Module, fused: bool) -> None:
    """Choose the kernel of every attention layer."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def time_steps(model, forward, device, amp, batch: int, rounds: int) -> dict[bool, float]:
    """{fused: images a second}, the median over rounds of alternating steps; two more come first and do not count."""
    stepper = Stepper(model, build_optimizer(param_groups(model, 0.05), 1e-4, (0.9, 0.95)), device, amp)
    seconds = {True: [], False: []}
    for index in range(-2, rounds):
        for fused, times in seconds.items():
            use_fused(model, fused)
            start = time.perf_counter()
            with stepper.autocast():
                loss = forward()
            stepper.backward(loss, 1.0)
            stepper.step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index >= 0:
                times.append(time.perf_counter() - start)
    return {fused: batch / statistics.median(times) for fused, times in seconds.items()}


def compare_steps(name: str, size: Size, device: torch.device, rounds: int) -> None:
    """Print a line a stage and number type."""
    images, targets = Case(name, size, 1, "fp32", device).draw(size.cpu_batch)
    criterion = build_loss("bal_bce", [2000 - k for k in range(size.classes)]).to(device)
    mae = build_mae(f"mae_vit_{size.model}", **size.shape, **size.decoder_shape).to(device)
    vit = build_vit(f"vit_{size.model}", size.classes, **size.shape).to(device)
    steps = {1: (mae, lambda: mae(images)[0]), 2: (vit, lambda: criterion(vit(images), targets))}
    for stage, (model, forward) in steps.items():
        for word, amp in TYPES.items():
            speed = time_steps(model, forward, device, amp, size.cpu_batch, rounds)
            choose_attention(model, device, amp)
            rule = "fused" if model.blocks[0].attn.fused_attn else "plain"
            patches = (size.img_size // size.patch_size) ** 2
            print(f"{name:8}{patches:8}{size.cpu_batch:6}{stage:6}{word:>6}{speed[True]:9.1f}{speed[False]:9.1f}"
                  f"{speed[False] / speed[True]:15.2f}{rule:>7}", flush=True)


def time_layer(tokens: int, batch: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of one layer, its weights kept and in pieces."""
    layer, x = Attention(512, 16, qkv_bias=True), torch.randn(batch, tokens, 512)
    layer.fused_attn, milliseconds = False, {False: [], True: []}
    for index in range(-2, rounds):
        for in_pieces, times in milliseconds.items():
            layer.in_pieces = lambda _, answer=in_pieces: answer
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
            out.sum().backward()
            if index >= 0:
                times.append(1e3 * (time.perf_counter() - start))
    return tuple(statistics.median(times) for times in milliseconds.values())


def get_args_parser() -> Parser:
    """The command's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    parser.add_argument("--parts", nargs="+", choices=[*STEPS, LAYER], default=[*STEPS, LAYER], help="image and patch size of "
                        "steps; the single layer, on a CPU")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="of the smallest networks and the layer; larger "
                        "networks have a tenth of them")
    return parser


def main(args) -> None:
    """Print the tables."""
    if args.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, not {args.rounds}")
    device = timed_device(args.device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{what}, torch {torch.__version__}; images a second, and what training takes")
    print(f"{'':8}{'patches':>8}{'batch':>6}{'stage':>6}{'type':>6}{'fused':>9}{'plain':>9}{'plain / fused':>15}{'takes':>7}")
    for name in args.parts:
        if name != LAYER:
            size, share = STEPS[name]
            compare_steps(name, size, device, math.ceil(share * args.rounds))
    if LAYER in args.parts and device.type == "cpu":
        print(f"{'one layer, bf16, ms':24}{'kept':>8}{'pieces':>8}{'pieces / kept':>15}")
        for tokens in (65, 128, 197, 577):
            kept, pieces = time_layer(tokens, 16, args.rounds)
            print(f"{tokens:<3} tokens{'':14}{kept:8.1f}{pieces:8.1f}{pieces / kept:15.2f}", flush=True)


if __name__ == "__main__":
    run_command(get_args_parser(), main)
