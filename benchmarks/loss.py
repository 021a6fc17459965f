"""Cost of the losses: `python -m benchmarks.loss` prints one table, forward and backward at (1024, 8142).

The logits are bfloat16, as a head under autocast gives them, and need a gradient. Every loss is timed in turn with
its plain loss, round after round; "ratio" is the median over the rounds of loss / plain measured side by side.
"peak" is the most memory alive above what is held before the call (logits, targets, features), the gradient of the
logits included, as a multiple of the bytes of the bfloat16 logits. On the CPU it is read from the allocator's events
(torch.profiler), so temporaries inside kernels count; on CUDA from torch.cuda.max_memory_allocated.
The two torch rows are PyTorch's own losses on the same inputs, for comparison.
"""
import argparse
import os
import statistics
import time

import torch
import torch.nn.functional as F

from util.losses import LOSSES, build_loss

PLAIN = {"bal_ce": "ce", "cb_ce": "ce", "focal": "ce", "ldam": "ce", "lade": "ce", "ib": "ce", "mislas": "ce",
         "bal_bce": "bce", "cb_bce": "bce", "nt_bce": "bce", "nt_bal_bce": "nt_bce"}


def torch_ce(logits, targets, features=None):
    return F.cross_entropy(logits, targets)


def torch_bce(logits, targets, features=None):
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


def make_inputs(args, device):
    """-> class counts, bfloat16 logits (N, C) with grad, {"hard": (N,), "mixed": (N, C)} targets, features (N, 768)."""
    generator = torch.Generator().manual_seed(0)
    n, c = args.rows, args.classes
    counts = [max(2, int(1000 * 500 ** (-k / (c - 1)))) for k in range(c)]
    logits = torch.randn(n, c, generator=generator).to(device, torch.bfloat16).requires_grad_()
    labels = torch.randint(c, (n,), generator=generator).to(device)
    share = torch.rand(n, 1, generator=generator).to(device)
    mixed = torch.zeros(n, c, device=device).scatter_(1, labels[:, None], share)
    mixed.scatter_add_(1, labels.flip(0)[:, None], 1 - share)
    features = torch.randn(n, 768, generator=generator).to(device, torch.bfloat16).requires_grad_()
    return counts, logits, {"hard": labels, "mixed": mixed}, features


def run_once(loss, logits, targets, features):
    """One forward and backward under bfloat16 autocast -> seconds."""
    logits.grad = features.grad = None
    cuda = logits.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(logits.device.type, torch.bfloat16):
        value = loss(logits, targets, features=features if getattr(loss, "needs_features", False) else None)
    value.backward()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(loss, logits, targets, features):
    """Most bytes alive at once during one call, above those alive before it."""
    logits.grad = features.grad = None
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(loss, logits, targets, features)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run_once(loss, logits, targets, features)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def measure(name, losses, inputs, rounds):
    """-> [(targets, milliseconds, ratio to the plain loss or None, peak as a multiple of the logits)]."""
    _, logits, targets, features = inputs
    result = []
    for kind, target in targets.items():
        loss, plain = losses[name], losses.get(PLAIN.get(name))
        run_once(loss, logits, target, features)
        times, ratios = [], []
        for _ in range(rounds):
            base = run_once(plain, logits, target, features) if plain is not None else None
            times.append(run_once(loss, logits, target, features))
            if base is not None:
                ratios.append(times[-1] / base)
        peak = peak_bytes(loss, logits, target, features) / (logits.numel() * logits.element_size())
        result.append((kind, 1e3 * statistics.median(times), statistics.median(ratios) if ratios else None, peak))
    return result


def get_args_parser():
    parser = argparse.ArgumentParser("python -m benchmarks.loss", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", default=1, type=int, help="CPU threads")
    parser.add_argument("--rounds", default=11, type=int, help="timed runs of each loss, each beside its plain loss")
    parser.add_argument("--rows", default=1024, type=int, help="batch size")
    parser.add_argument("--classes", default=8142, type=int)
    return parser


def main(args):
    """Print the table of all losses."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own log lines would tear the table apart
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    inputs = make_inputs(args, device)
    losses = {"torch ce": torch_ce, "torch bce": torch_bce}
    for name in LOSSES:
        losses[name] = build_loss(name, inputs[0]).to(device)
        losses[name].set_epoch(10**6)  # past every warm-up
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads {args.threads}"
    print(f"({args.rows}, {args.classes}) bfloat16 logits, autocast, forward + backward, "
          f"{where}, torch {torch.__version__}, medians of {args.rounds}")
    print(f"{'loss':<12}{'targets':<9}{'ms':>9}  {'plain':<8}{'ratio':>6}{'peak':>7}")
    for name in losses:
        for kind, ms, ratio, peak in measure(name, losses, inputs, args.rounds):
            shown = "-" if ratio is None else f"{ratio:.2f}"
            print(f"{name:<12}{kind:<9}{ms:9.1f}  {PLAIN.get(name, '-'):<8}{shown:>6}{peak:7.2f}", flush=True)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
