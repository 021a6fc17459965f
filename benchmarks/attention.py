"""Which attention is faster here: torch's fused kernel or plain matrix products, for one training step of both stages.

    OMP_NUM_THREADS=1 python -m benchmarks.attention

The two kernels take turns, step by step, on the embedded recipe's networks; medians of images a second, and their ratio. On a
CPU also one layer of the width and heads of MAE's decoder, forward and backward in bf16, over lengths: its weights kept for the
backward pass, or made twice in pieces that stay in the cache (util/piecewise.py).
"""
import argparse
import statistics
import time

import torch

from models_mae import Attention, build_mae
from models_vit import build_vit
from util.losses import build_loss
from util.lr import param_groups
from util.steps import Stepper, build_optimizer

SHAPE = dict(img_size=28, in_chans=1, patch_size=7, embed_dim=96, depth=4, num_heads=3)


def use_fused(model: torch.nn.Module, fused: bool) -> None:
    """Choose the kernel of every attention layer."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def time_steps(model, forward, device, amp, batch: int, rounds: int) -> dict[bool, float]:
    """{fused: images a second}, the median over rounds of alternating steps."""
    stepper = Stepper(model, build_optimizer(param_groups(model, 0.05), 1e-4, (0.9, 0.95)), device, amp)
    seconds = {True: [], False: []}
    for index in range(rounds + 5):
        for fused, times in seconds.items():
            use_fused(model, fused)
            start = time.perf_counter()
            with stepper.autocast():
                loss = forward()
            stepper.backward(loss, 1.0)
            stepper.step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index >= 5:
                times.append(time.perf_counter() - start)
    return {fused: batch / statistics.median(times) for fused, times in seconds.items()}


def time_layer(tokens: int, batch: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of one layer, its weights kept and in pieces."""
    layer, x = Attention(512, 16, qkv_bias=True), torch.randn(batch, tokens, 512)
    layer.fused_attn, milliseconds = False, {False: [], True: []}
    for index in range(rounds + 5):
        for in_pieces, times in milliseconds.items():
            layer.in_pieces = lambda _, answer=in_pieces: answer
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
            out.sum().backward()
            if index >= 5:
                times.append(1e3 * (time.perf_counter() - start))
    return tuple(statistics.median(times) for times in milliseconds.values())


def main(args) -> None:
    """Print the tables."""
    device, threads = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.get_num_threads()
    print(f"{device.type}, {threads} threads, torch {torch.__version__}, batch {args.batch_size}; images a second")
    print(f"{'':24}{'fused':>8}{'plain':>8}{'plain / fused':>15}")
    images, labels = torch.randn(args.batch_size, 1, 28, 28, device=device), torch.arange(args.batch_size, device=device) % 10
    criterion = build_loss("bal_bce", [2000 >> k for k in range(10)]).to(device)
    mae = build_mae("mae_vit_tiny_patch16", **SHAPE, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4).to(device)
    vit = build_vit("vit_tiny_patch16", 10, **SHAPE).to(device)
    steps = {"stage 1": (mae, lambda: mae(images)[0]), "stage 2": (vit, lambda: criterion(vit(images), labels))}
    for name, (model, forward) in steps.items():
        for amp in (None, torch.bfloat16):
            speed = time_steps(model, forward, device, amp, args.batch_size, args.rounds)
            label = f"{name}, {'fp32' if amp is None else 'bf16'}"
            print(f"{label:24}{speed[True]:8.0f}{speed[False]:8.0f}{speed[False] / speed[True]:15.2f}")
    if device.type == "cpu":
        print(f"{'one layer, bf16, ms':24}{'kept':>8}{'pieces':>8}{'pieces / kept':>15}")
        for tokens in (65, 128, 197, 577):
            kept, pieces = time_layer(tokens, 16, args.rounds)
            print(f"{tokens:<3} tokens{'':14}{kept:8.1f}{pieces:8.1f}{pieces / kept:15.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    main(parser.parse_args())
