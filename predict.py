"""Pictures in, class names out: what a trained classifier says of image files.

    python predict.py runs/bft/last.pth photographs --out predictions.csv
    python predict.py exported_folder one.jpg two.png --topk 3 --format json

One row a picture, in the order of the arguments and of names within folders, written as soon as it is known.
"""
import argparse
import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator

import torch

from util.args import Parser, run_command
from util.args_finetune import LOSS_SETTINGS, read_test_prior, trained_loss
from util.posthoc import correct
from util.precision import choose_amp
from util.setup import choose_device
from util.stream import Batch, find_pictures, run_stream, tell, with_bar
from util.trained import Trained, load_classifier_model


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("class names and probabilities of pictures")
    parser.add_argument("checkpoint", metavar="CKPT_OR_DIR", help="last.pth of main_finetune.py, or a folder that "
                        "python -m util.export --format timm made of it")
    parser.add_argument("images", nargs="+", metavar="IMAGES_OR_FOLDER", help="image files, and folders with images at any "
                        "depth")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes a picture; all where there are fewer")
    parser.add_argument("--test_prior", metavar="uniform|none|FILE", help="class distribution of these pictures, to which the "
                        "model is moved: see main_finetune.py --eval")
    parser.add_argument("--format", default="csv", choices=["csv", "json"], help="json is one object a line")
    parser.add_argument("--out", metavar="FILE", help="instead of standard output; there only when all is written")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N")
    parser.add_argument("--num_workers", type=int, metavar="N", help="processes that read images (one a core, up to 10)")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="type of matrix products")
    return parser


def prior_offset(trained: Trained, test_prior: str | None) -> torch.Tensor:
    """What --test_prior adds to the logits (C,), as `main_finetune.py --eval` does; zeros without it.

    ValueError for a prior that is none, and for a model that no formula moves.
    """
    classes = len(trained.class_names)
    asked = read_test_prior(test_prior, classes)
    unchanged = {"loss": None, "loss_args": [], "sampler": "random", "prior": None, "tau": None, "posthoc": "none"}
    trained_loss(argparse.Namespace(resume=trained.path, test_prior=test_prior, **unchanged),
                 {name: trained.settings[name] for name in LOSS_SETTINGS})
    # Moving to another prior adds the same numbers to every row, whatever the logits.
    return correct(torch.zeros(1, classes), trained.criterion, "none", asked).scores[0].float()


def top_classes(trained: Trained, topk: int, offset: torch.Tensor) -> Callable:
    """forward(normalised images) -> (probabilities, classes), (n, topk) each, the most probable first."""
    activation = torch.sigmoid if trained.criterion.activation == "sigmoid" else lambda scores: scores.softmax(dim=1)
    offset = offset.to(trained.normalize.factor.device)

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = trained.model(images).float() * trained.criterion.logit_scale + offset
        return activation(scores).topk(topk, dim=1)
    return forward


class Rows:
    """The text of the rows. Their columns say by which activation scores became probabilities."""

    def __init__(self, trained: Trained, topk: int, form: str):
        self.names, self.kind, self.form = trained.class_names, trained.criterion.activation, form
        columns = [f"{what}_{k}" for k in range(1, topk + 1) for what in ("class", self.kind)]
        self.header = "" if form == "json" else self.csv([["path", *columns]])

    def text(self, batch: Batch, paths) -> str:
        """One row for each picture of the batch that could be read."""
        if batch.outputs is None:
            return ""
        found = zip(batch.indices.tolist(), *(part.tolist() for part in batch.outputs), strict=True)
        rows = ((paths[index], [self.names[k] for k in classes], [round(p, 6) for p in values])
                for index, values, classes in found)
        if self.form == "json":
            return "".join(json.dumps({"path": path, "activation": self.kind, "classes": names, "probabilities": values}) + "\n"
                           for path, names, values in rows)
        return self.csv([[path, *(cell for pair in zip(names, values, strict=True) for cell in pair)]
                         for path, names, values in rows])

    @staticmethod
    def csv(rows: list) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


@contextlib.contextmanager
def written(out: str | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text to a file, which has its name only when all is written, or to standard output.

    Names of files that are no UTF-8 are written with the bytes that they have.
    """
    if out is None:
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield lambda text: print(text, end="", flush=True)
        return
    beside = f"{out}.part"
    try:
        with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file.write
        os.replace(beside, out)
    except OSError as error:
        raise ValueError(f"cannot write --out {out} ({error.strerror}): make room, or name another file") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)


def predictions(trained: Trained, paths, args, amp: torch.dtype | None, offset: torch.Tensor) -> Iterator[str]:
    """The text of the rows, batch by batch; offset (C,) is added to the logits."""
    topk = min(args.topk, len(trained.class_names))
    rows, forward = Rows(trained, topk, args.format), top_classes(trained, topk, offset)
    yield rows.header
    batches = run_stream(trained, paths, forward, args.batch_size, args.num_workers, amp)
    for batch in with_bar(batches, paths, args.batch_size, "predictions"):
        yield rows.text(batch, paths)


def main(args) -> None:
    """Write the rows, and on stderr what they are and which pictures could not be read."""
    for name in ("topk", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"--num_workers must not be negative: {args.num_workers}")
    device = choose_device(args.device)
    amp, reason = choose_amp(args.amp, device)
    trained = load_classifier_model(args.checkpoint, device)
    offset, paths = prior_offset(trained, args.test_prior), find_pictures(args.images)
    kind = trained.criterion.activation
    tell(f"{trained.name}: {len(trained.class_names)} classes, images of {trained.size[0]} x {trained.size[1]}, probabilities "
         f"by {kind} (--loss {trained.settings['loss']})" + ", each class for itself, their sum is not 1" * (kind == "sigmoid")
         + f"; {len(paths):,} images on {device}, matrix products in {reason}")
    try:
        with written(args.out) as write:
            for text in predictions(trained, paths, args, amp, offset):
                write(text)
    except BrokenPipeError:  # the reader of standard output has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if args.out:
        tell(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(get_args_parser(), main)
