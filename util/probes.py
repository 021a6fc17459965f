"""Features of a trained encoder, for the probes (util/knn.py, util/linprobe.py) that tell cheaply whether it has learnt."""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from datasets import DATASETS
from datasets.imageset import ImageSet
from datasets.loading import eval_loader
from util import metrics
from util.args import Parser
from util.precision import choose_amp
from util.run import progress, say
from util.setup import choose_device
from util.trained import STAGE_1_ONLY, Trained, encode, load_encoder_model, load_split, own_pool

COLUMNS = ("many", "medium", "few", "overall")


class Features(NamedTuple):
    """values (N, D) float32 on the device they were made on; labels (N,) int64 on the CPU."""

    values: torch.Tensor
    labels: torch.Tensor


class Probe(NamedTuple):
    """One row of the table: whose features, those of training and of evaluated images, training images of each class (C,).
    """

    name: str
    train: Features
    test: Features
    class_counts: np.ndarray


def add_probe_flags(parser: Parser) -> None:
    """The encoder, the images, and how features are made."""
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="last.pth of either stage")
    parser.add_argument("--dataset", metavar="NAME", help=f"the checkpoint's by default; one of {', '.join(DATASETS)}")
    parser.add_argument("--data_path", metavar="DIR", help="where the images are (the checkpoint's)")
    parser.add_argument("--imb_factor", type=float, metavar="F", help="long tail drawn out of the training images (the "
                        "checkpoint's)")
    parser.add_argument("--data_seed", type=int, metavar="S", help="which draw that is (the checkpoint's)")
    parser.add_argument("--split", default="test", choices=["test", "val"], help="what is evaluated")
    parser.add_argument("--features", choices=["mean", "cls"], help="mean of the patch tokens, or the class token (what a "
                        "classifier was trained with; the mean for stage 1)")
    parser.add_argument("--crop_pct", type=float, metavar="P", help="share of the resized image that is seen (the "
                        "checkpoint's; all of it for stage 1)")
    parser.add_argument("--random", action="store_true", help="also untrained weights of the same architecture, to compare")
    parser.add_argument("--batch_size", type=int, default=256, metavar="N")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes that load images")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="type of the encoder's matrix "
                        "products")


def check_probe_flags(args) -> None:
    """Raise ValueError for numbers that cannot be."""
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, not {args.batch_size}")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"--num_workers must not be negative: {args.num_workers}")
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        raise ValueError(f"--crop_pct must lie in (0, 1], not {args.crop_pct:g}")


def probes(args) -> Iterator[Probe]:
    """The features of the flags: those of the checkpoint, then with --random those of untrained weights."""
    check_probe_flags(args)
    device = choose_device(args.device)
    amp, _ = choose_amp(args.amp, device)
    for untrained in (False, True)[:1 + args.random]:
        trained = load_encoder_model(args.checkpoint, device, untrained)
        if (args.dataset or trained.settings["dataset"]) in STAGE_1_ONLY:
            raise ValueError(f"--dataset {args.dataset or trained.settings['dataset']} has no labelled images to evaluate: "
                             "name others with --dataset and --data_path")
        pool = args.features or own_pool(trained)
        train, test = (load_split(trained, split, args.dataset, args.data_path, args.imb_factor, args.data_seed)
                       for split in ("train", args.split))
        if not untrained:
            say(f"features of {len(train)} images of {train.source}, evaluated on {len(test)} of {test.source}: "
                f"{'mean of the patch tokens' if pool == 'mean' else 'class token'}")
        parts = [features(trained, images, pool, args.batch_size, args.crop_pct, args.num_workers, amp)
                 for images in (train, test)]
        yield Probe("untrained weights" if untrained else trained.name, *parts, train.group_counts)


@torch.no_grad()
def features(trained: Trained, images: ImageSet, pool: str, batch_size: int = 256, crop_pct: float | None = None,
             num_workers: int | None = None, amp: torch.dtype | None = None) -> Features:
    """Every image once, in order, through the encoder (`encode`); crop_pct None is the checkpoint's."""
    device = trained.normalize.factor.device
    loader = eval_loader(images, trained.size, batch_size, crop_pct or trained.crop_pct, num_workers, device,
                         trained.settings.get("loader", "fast"))
    values, labels = [], []
    for batch, batch_labels in progress(loader, len(loader), "features"):
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            tokens = encode(trained.model, trained.normalize(batch.to(device, non_blocking=True)), pool)
        values.append(tokens.float())
        labels.append(batch_labels)
    return Features(torch.cat(values), torch.cat(labels))


def report(results: dict[str, dict]) -> None:
    """Print the table of {name: result of metrics.evaluate_logits}."""
    say(metrics.format_table(results, COLUMNS))
