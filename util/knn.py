"""Accuracy of the nearest neighbours in a trained encoder's features: whether stage 1 learns, in a minute.

    python -m util.knn --checkpoint runs/mgp/last.pth --random

The k nearest training images vote for their class with weight exp(cosine / temperature) (Wu et al., CVPR 2018).
"""
import torch
import torch.nn.functional as F

from util import metrics
from util.args import Parser, run_command
from util.probes import Features, add_probe_flags, probes, report

BLOCK_VALUES = 2**26  # cosines at once: 256 MB


def knn_shares(train: Features, queries: torch.Tensor, num_classes: int, k: int, temperature: float) -> torch.Tensor:
    """Share of the weighted vote that each class gets: queries (M, D) -> (M, num_classes) on the CPU, rows sum to 1.

    Blocks of queries meet all training features on the device these are on. ValueError where there are fewer than k.
    """
    if k > len(train.labels):
        raise ValueError(f"--k {k}, but there are {len(train.labels)} training images: use a smaller --k")
    keys, labels = F.normalize(train.values, dim=1), train.labels.to(train.values.device)
    shares = []
    for block in F.normalize(queries, dim=1).split(max(1, BLOCK_VALUES // len(keys))):
        cosine, neighbours = (block @ keys.T).topk(k, dim=1)
        weights = (cosine / temperature).softmax(dim=1)
        votes = torch.zeros(len(block), num_classes, device=block.device)
        shares.append(votes.scatter_add_(1, labels[neighbours], weights).cpu())
    return torch.cat(shares)


def main(args) -> dict[str, dict]:
    """Print the table; returns {row: result of metrics.evaluate_logits}."""
    if args.k < 1:
        raise ValueError(f"--k must be at least 1, not {args.k}")
    if not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature must be a finite number above 0, not {args.temperature:g}")
    results = {}
    for probe in probes(args):
        shares = knn_shares(probe.train, probe.test.values, len(probe.class_counts), args.k, args.temperature)
        results[f"{args.k}-NN, {probe.name}"] = metrics.evaluate_logits(shares, probe.test.labels, probe.class_counts)
    report(results)
    return results


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("k-nearest-neighbour accuracy of a trained encoder")
    add_probe_flags(parser)
    parser.add_argument("--k", type=int, default=20, metavar="K", help="neighbours that vote")
    parser.add_argument("--temperature", type=float, default=0.07, metavar="T", help="a vote weighs exp(cosine / T)")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
