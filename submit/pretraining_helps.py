"""Does stage 1 help? Bal-BCE from the pretrained encoder against Bal-BCE from random weights, over fine-tuning epochs.

    python -m submit.pretraining_helps --seeds 0 1 2 --epochs 5 20 80

Finished runs of the output folder are not trained again and stand in the table and the figure, so a later call adds seeds or
numbers of epochs.
"""
import argparse
import datetime
import json
from pathlib import Path

import numpy as np

import main_finetune
import main_pretrain
from submit.demo import run_stage, short
from util.args import run_command
from util.figures_compare import curves
from util.run import say

START = {"from the MGP encoder": "mgp", "from random weights": "random"}


def main(args) -> dict[str, dict[int, list[float]]]:
    """Run both starts for every number of epochs and seed; returns {start: {epochs: [overall accuracy a seed]}}."""
    out = Path(args.output_dir or f"runs/pretraining_helps_{datetime.datetime.now():%Y%m%d_%H%M%S}")
    for seed in args.seeds:
        encoder = out / f"seed{seed}" / "mgp"
        run_stage(main_pretrain, "embedded/pretrain", encoder, "--seed", seed, *short(args.pretrain_epochs))
        for start in START.values():
            for epochs in args.epochs:
                flags = ["--finetune", encoder / "last.pth"] if start == "mgp" else []
                run_stage(main_finetune, "embedded/finetune", out / f"seed{seed}" / f"{start}_{epochs}_epochs", *flags,
                          "--seed", seed, *short(epochs), "--eval_every", epochs)
    accuracy = gather(out)
    seeds = sorted({len(values) for points in accuracy.values() for values in points.values()})
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1))
    path = curves(out / "pretraining_helps.png", accuracy, "Bal-BCE on Fashion-MNIST-LT, mean and range of "
                  f"{' or '.join(map(str, seeds))} seed{'s' * (seeds[-1] > 1)} a point", "epochs of fine-tuning",
                  "overall top-1 accuracy (%)", log_x=True)
    say("\noverall accuracy (%), mean +- standard deviation (number of seeds)")
    for epochs in sorted(accuracy["from the MGP encoder"]):
        means = [np.mean(points[epochs]) for points in accuracy.values()]
        cells = [f"{mean:5.1f} +- {np.std(points[epochs], ddof=len(points[epochs]) > 1):.1f} ({len(points[epochs])}) {name}"
                 for mean, (name, points) in zip(means, accuracy.items(), strict=True)]
        say(f"{epochs:>4} epochs: {', '.join(cells)}: {means[0] - means[1]:+.1f}")
    say(f"wrote {path} and accuracy.json beside it")
    return accuracy


def gather(out: Path) -> dict[str, dict[int, list[float]]]:
    """{start: {epochs: [overall accuracy a seed]}} of the finished runs below `out`."""
    accuracy = {}
    for name, start in START.items():
        accuracy[name] = {}
        for path in sorted(out.glob(f"seed*/{start}_*_epochs/metrics.json")):
            epochs = int(path.parent.name.split("_")[1])
            accuracy[name].setdefault(epochs, []).append(json.loads(path.read_text())["overall"])
    return accuracy


def get_args_parser() -> argparse.ArgumentParser:
    """Flags of the study."""
    parser = argparse.ArgumentParser(description="what stage 1 gains, over epochs of stage 2", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--pretrain_epochs", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--output_dir", metavar="DIR")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
