"""All losses from the same encoder, side by side, with the post-hoc corrections of the plain ones.

    python -m submit.losses_study --seeds 0 1 2 --epochs 12                      the embedded set
    python -m submit.losses_study --seeds 0 1 2 --epochs 12 --mixed              with mixup .8 and cutmix 1
    python -m submit.losses_study --recipe cifar100_lt_small --data_path DIR --rows bce bal_bce

A run that has finished is not trained again, so seeds may be run side by side and gathered by a last call.
"""
import argparse
import json
from pathlib import Path

import numpy as np

import main_finetune
import main_pretrain
from submit.demo import COLUMNS, run_stage, short
from util import metrics
from util.args import parse_options, run_command
from util.losses import LOSSES, build_loss
from util.posthoc import correct
from util.run import say

# Row: flags. The start of the head's bias can decide a comparison, so both stand for the two losses of the paper.
ROWS = {name: ["--loss", name, "--head_bias", "zero" if name == "ldam" else "prior"] for name in LOSSES}
ROWS |= {f"{name}, head bias 0": ["--loss", name, "--head_bias", "zero"] for name in ("bce", "bal_bce")}
POSTHOC = {"ce": ("bayes",), "bce": ("logit_adjust", "bayes"), "bal_ce": ("bayes",), "bal_bce": ("bayes",)}


def corrected(folder: Path) -> dict[str, dict]:
    """{method: metrics} of the corrections of one finished run, out of its predictions and without the model."""
    settings = json.loads((folder / "args.json").read_text())
    args, counts = settings["args"], settings["class_counts"]
    predictions = np.load(folder / "predictions.npz")
    criterion = build_loss(args["loss"], counts, tau=args["tau"], test_prior=args["test_prior"],
                           **parse_options(args["loss_args"]))
    results = {}
    for method in POSTHOC.get(args["loss"], ()):
        scores, activation = correct(predictions["logits"], criterion, method)
        results[method] = metrics.evaluate_logits(scores, predictions["labels"], counts, activation)
    return results


def run_seed(args, seed: int, out: Path) -> dict[str, dict]:
    """One encoder and every row from it: {row: metrics}, the corrections behind their row."""
    data = ["--data_path", args.data_path] if args.data_path else []
    encoder = Path(args.encoder.format(seed=seed)) if args.encoder else out / f"seed{seed}" / "mgp" / "last.pth"
    if not args.encoder:
        run_stage(main_pretrain, f"{args.recipe}/pretrain", encoder.parent, "--seed", seed, *data, *short(args.pretrain_epochs))
    mixed = ["--mixup", 0.8, "--cutmix", 1] if args.mixed else []
    rows = {}
    for row in args.rows:
        folder = out / f"seed{seed}" / (row.replace(", head bias 0", "_zero") + "_mixed" * args.mixed)
        rows[row] = run_stage(main_finetune, f"{args.recipe}/finetune", folder, "--finetune", encoder, "--seed", seed,
                              "--eval_every", 1000, *data, *ROWS[row], *mixed, *short(args.epochs))
        rows |= {f"{row} + {method}": result for method, result in corrected(folder).items()}
    return rows


def main(args) -> dict[str, dict]:
    """Run every seed; prints means and standard deviations, returns {row: {column: mean}}."""
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}; known: {'; '.join(ROWS)}")
    out = Path(args.output_dir)
    seeds = [run_seed(args, seed, out) for seed in args.seeds]
    mean = {row: {c: average([seed[row][c] for seed in seeds]) for c in COLUMNS} for row in seeds[0]}
    spread = {row: {c: deviation([seed[row][c] for seed in seeds]) for c in ("few", "overall")} for row in seeds[0]}
    say(f"\n{args.recipe}{', mixup and cutmix' * args.mixed}, mean over seeds {args.seeds}, last epoch, test images\n")
    say(metrics.format_table(mean, COLUMNS))
    if len(seeds) > 1:
        say("\nstandard deviation over seeds\n" + metrics.format_table(spread, ("few", "overall")))
    (out / f"table{'_mixed' * args.mixed}.json").write_text(json.dumps({"mean": mean, "std": spread}, indent=1))
    return mean


def average(values: list) -> float | None:
    """Mean, or None for a group without classes."""
    return None if None in values else float(np.mean(values))


def deviation(values: list) -> float | None:
    """Sample standard deviation, or None where there is none."""
    return None if None in values or len(values) < 2 else float(np.std(values, ddof=1))


def get_args_parser() -> argparse.ArgumentParser:
    """Flags of the study."""
    parser = argparse.ArgumentParser(description="all losses from the same encoder", allow_abbrev=False)
    parser.add_argument("--recipe", default="embedded", help="folder in recipes/ with pretrain.args and finetune.args")
    parser.add_argument("--data_path", metavar="DIR")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"of {'; '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", metavar="CKPT", help="stage-1 checkpoints to start from instead of pretraining, {seed} "
                        "being replaced: runs/demo/seed{seed}/mgp/last.pth")
    parser.add_argument("--pretrain_epochs", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--epochs", type=int, metavar="N", help="of fine-tuning, instead of the recipe's")
    parser.add_argument("--mixed", action="store_true", help="mixup .8 and cutmix 1")
    parser.add_argument("--output_dir", default="runs/losses_study", metavar="DIR")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
