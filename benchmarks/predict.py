"""What predict.py costs beside the model itself: `python -m benchmarks.predict` prints one ratio.

"bare" is the model alone on one batch of normalised images that lies on the device, as often as there are images, with the
same batch size, number type and threads; "predict.py" reads files, decodes, resizes, normalises, runs the model and writes
rows. Blocks of the two take turns: a block of predict.py is a whole run of it, over files of its own, its workers' start
included (and printed, as the time until the first rows are there), and what it needs of memory is looked at after each
block. Medians over blocks, and their ratio. How much there is to decode decides: --file_size 500 375 makes files like
photographs.
"""
import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.embedded import load
from datasets.imageset import Record
from datasets.transforms import Normalize
from models_vit import MODELS, build_vit
from predict import get_args_parser as predict_parser
from predict import predictions
from util.losses import build_loss
from util.precision import choose_amp, choose_attention
from util.setup import choose_device
from util.stream import find_pictures
from util.trained import Trained

RECORD = Record((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = 1000
GRAIN = 32  # of 255; gives 500 x 375 about the 110 kB that ImageNet's files have


def jpegs(size: tuple[int, int]) -> list[bytes]:
    """JPEGs of width and height `size` out of the embedded set; enlarged ones get the grain that a photograph has."""
    images, draws, found = load("train")[0][:200], np.random.RandomState(0), []
    for image in images:
        picture = Image.fromarray(np.asarray(image)).convert("RGB")
        if size != picture.size:
            pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) + draws.normal(0, GRAIN, (*size[::-1], 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def write_files(folder: Path, files: list[bytes], count: int, blocks: int) -> list[Path]:
    """`count` files of these contents in turn, in `blocks` folders."""
    folders = [folder / f"{block:03}" for block in range(blocks)]
    for block, place in enumerate(folders):
        place.mkdir()
        for i in range(block * count // blocks, (block + 1) * count // blocks):
            (place / f"{i:05}.jpg").write_bytes(files[i % len(files)])
    return folders


def made_up(name: str, size: int, device: torch.device) -> Trained:
    """A classifier with random weights, as predict.py holds one."""
    model = build_vit(name, CLASSES, size)
    choose_attention(model, device, choose_amp("auto", device)[0])
    names = [f"class {k}" for k in range(CLASSES)]
    settings = {"input_size": [size], "crop_pct": 0.875, "loss": "bal_bce"}
    return Trained("made up", "finetune", model.to(device).eval(), settings, RECORD, Normalize(RECORD, device), 0, names,
                   [1] * CLASSES, build_loss("bal_bce", [1] * CLASSES))


@torch.inference_mode()
def bare(trained: Trained, images: int, batch_size: int, amp: torch.dtype | None) -> float:
    """Images a second of the model alone."""
    device = trained.normalize.factor.device
    batch = torch.randn(batch_size, 3, *trained.size, device=device)
    start = time.perf_counter()
    for first in range(0, images, batch_size):
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            output = trained.model(batch[:images - first])
    output.float().cpu()  # waits for the device
    return images / (time.perf_counter() - start)


def predicting(trained: Trained, folder: Path, args, amp: torch.dtype | None) -> tuple[float, float]:
    """Images a second of predict.py, looking for the files and writing the rows included, and seconds until the first rows."""
    start, first = time.perf_counter(), None
    paths, text = find_pictures([str(folder)]), io.StringIO()
    for rows in predictions(trained, paths, args, amp, torch.zeros(CLASSES)):
        if first is None and text.tell():  # the header came before
            first = time.perf_counter() - start
        text.write(rows)
    if text.getvalue().count("\n") != len(paths) + 1:
        raise AssertionError("predict.py has not written one row a picture")
    return len(paths) / (time.perf_counter() - start), first


def resident() -> float:
    """Memory of this process in MB, where Linux tells; nan elsewhere."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
    return float("nan")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="files, all blocks together")
    parser.add_argument("--file_size", type=int, nargs=2, default=[28, 28], metavar=("W", "H"), help="pixels of the files")
    parser.add_argument("--blocks", type=int, default=10, metavar="N")
    parser.add_argument("--model", default="vit_tiny_patch16", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N")
    parser.add_argument("--num_workers", type=int, metavar="N", help="as of predict.py")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"])
    return parser


def main(args) -> None:
    """Print the medians and the ratio."""
    device = choose_device(args.device)
    amp, reason = choose_amp(args.amp, device)
    trained = made_up(args.model, args.size, device)
    flags = ["-", "-", "--batch_size", str(args.batch_size)]
    flags += ["--num_workers", str(args.num_workers)] if args.num_workers is not None else []
    theirs = predict_parser().parse_args(flags)
    rates, memory, starts = {"bare": [], "predict.py": []}, [], []
    files = jpegs(tuple(args.file_size))
    with tempfile.TemporaryDirectory() as folder:
        folders = write_files(Path(folder), files, args.images, args.blocks)
        bare(trained, args.batch_size * 2, args.batch_size, amp)
        for block, place in enumerate(folders):
            count = len(list(place.iterdir()))
            turns = {"bare": lambda count=count: (bare(trained, count, args.batch_size, amp), None),
                     "predict.py": lambda place=place: predicting(trained, place, theirs, amp)}
            for name in list(turns)[::1 if block % 2 else -1]:
                rate, first = turns[name]()
                rates[name].append(rate)
                starts += [first] if first is not None else []
            memory.append(resident())
    kilobytes = sum(map(len, files)) / len(files) / 1000
    print(f"{args.images:,} JPEGs of {args.file_size[0]} x {args.file_size[1]} ({kilobytes:.0f} kB) in {args.blocks} blocks, "
          f"{args.model} at {args.size}, batches of {args.batch_size} on {device}, {torch.get_num_threads()} threads, matrix "
          f"products in {reason}")
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<12}{middle[name]:9.1f} images/s   (blocks {min(values):.1f} to {max(values):.1f})")
    pairs = [one / other for one, other in zip(rates["predict.py"], rates["bare"], strict=True)]
    ratio = middle["predict.py"] / middle["bare"]
    print(f"ratio       {ratio:9.3f}            (median of the blocks' own {statistics.median(pairs):.3f})")
    print(f"start       {statistics.median(starts):9.2f} s until the first rows")
    print(f"memory      {memory[0]:9.0f} MB after the first block, {memory[-1]:.0f} MB after the last")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
