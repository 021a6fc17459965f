"""Does stage 1 help? Bal-BCE from the pretrained encoder against Bal-BCE from random weights, over fine-tuning epochs.

    python -m submit.pretraining_helps --seeds 0 1 2 --epochs 5 20 80
"""
import argparse
import datetime
import json
from pathlib import Path

import numpy as np

import main_finetune
import main_pretrain
from submit.demo import run_stage, short
from util.figures_compare import curves
from util.run import say

START = {"from the MGP encoder": True, "from random weights": False}


def main(args) -> dict[str, dict[int, list[float]]]:
    """Run both starts for every number of epochs and seed; returns {start: {epochs: [overall accuracy a seed]}}."""
    out = Path(args.output_dir or f"runs/pretraining_helps_{datetime.datetime.now():%Y%m%d_%H%M%S}")
    accuracy = {name: {epochs: [] for epochs in args.epochs} for name in START}
    for seed in args.seeds:
        encoder = out / f"seed{seed}" / "mgp"
        run_stage(main_pretrain, "embedded/pretrain", encoder, "--seed", seed, *short(args.pretrain_epochs))
        for name, pretrained in START.items():
            for epochs in args.epochs:
                flags = ["--finetune", encoder / "last.pth"] if pretrained else []
                folder = out / f"seed{seed}" / f"{'mgp' if pretrained else 'random'}_{epochs}_epochs"
                result = run_stage(main_finetune, "embedded/finetune", folder, *flags, "--seed", seed, *short(epochs),
                                   "--eval_every", epochs)
                accuracy[name][epochs].append(result["overall"])
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1))
    path = curves(out / "pretraining_helps.png", accuracy, "Bal-BCE on Fashion-MNIST-LT, mean and range over "
                  f"{len(args.seeds)} seed{'s' * (len(args.seeds) > 1)}", "epochs of fine-tuning",
                  "overall top-1 accuracy (%)", log_x=True)
    say(f"\noverall accuracy (%), mean +- standard deviation over seeds {args.seeds}")
    for epochs in args.epochs:
        means = [np.mean(values[epochs]) for values in accuracy.values()]
        cells = [f"{mean:5.1f} +- {np.std(values[epochs], ddof=min(1, len(args.seeds) - 1)):.1f} {name}"
                 for mean, (name, values) in zip(means, accuracy.items(), strict=True)]
        say(f"{epochs:>4} epochs: {', '.join(cells)}: {means[0] - means[1]:+.1f}")
    say(f"wrote {path} and accuracy.json beside it")
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
    main(get_args_parser().parse_args())
