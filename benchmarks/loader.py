"""How many images a second one core loads: `python -m benchmarks.loader` prints one table.

"usual" is the pipeline as most write it: PIL opens and converts, torchvision's RandomResizedCrop (bicubic) and flip on the
PIL image, for fine-tuning timm's RandAugment, then ToTensor and Normalize, and timm's random erasing. "pil" and "fast" are
this project's two loaders. They hand over uint8: what the device does with a batch afterwards (normalise, erase) has rows
of its own, measured on this core too, and "all" counts it in. Every row includes reading the file, seeding where it is
done, and collating a batch. The rows take turns, a batch each, in an order drawn for every round; seconds are of CPU time,
so that neighbours on the machine count little; medians over the rounds and ratios of them.
"""
import argparse
import io
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance
from timm.data.random_erasing import RandomErasing
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from datasets.imageset import FileImages, Record
from datasets.loading import train_loader
from datasets.transforms import BICUBIC, Normalize, rand_augment

RECORD = Record((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
STAGES = {"pretraining": ((0.2, 1.0), None), "fine-tuning": ((0.08, 1.0), RAND_AUGMENT)}


def make_photographs(folder: Path, count: int) -> None:
    """Variants (crop, flip, brightness, colour) of scikit-learn's two photographs: 500 x 375, quality 90."""
    from sklearn.datasets import load_sample_images
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draw = np.random.default_rng(0)
    for i in range(count):
        image = photographs[i % len(photographs)]
        width = int(draw.integers(500, 4 * image.height // 3 + 1))
        height = 3 * width // 4
        left, top = (int(draw.integers(0, room + 1)) for room in (image.width - width, image.height - height))
        image = image.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image
        for change in (ImageEnhance.Brightness, ImageEnhance.Color):
            image = change(image).enhance(float(draw.uniform(0.8, 1.2)))
        image.save(folder / f"{i:03}.jpg", quality=90)


def usual_transform(size: int, scale: tuple[float, float], auto_augment: str | None) -> transforms.Compose:
    """The usual training transform, PIL image -> float tensor."""
    steps = [transforms.RandomResizedCrop(size, scale, interpolation=BICUBIC), transforms.RandomHorizontalFlip()]
    # This project's, because timm's own raises once in a while with new versions of Pillow.
    steps += [rand_augment(auto_augment, (size, size), RECORD)] if auto_augment else []
    steps += [transforms.ToTensor(), transforms.Normalize(RECORD.mean, RECORD.std)]
    return transforms.Compose([*steps, RandomErasing(0.25, mode="pixel", device="cpu")] if auto_augment else steps)


def usual_batch(paths: list[Path], transform) -> list[torch.Tensor]:
    """A batch as torchvision's ImageFolder and a DataLoader make it."""
    samples = []
    for path in paths:
        with open(path, "rb") as file:
            samples.append((transform(Image.open(file).convert("RGB")), 0))
    return default_collate(samples)


def candidates(images: FileImages, size: int) -> dict:
    """{row: a call that does its work once for every image}."""
    paths = [images.root / name for name in images.ids]
    rows = {"decode, PIL": lambda: [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths],
            "decode, torchvision": lambda: [decode_jpeg(read_file(str(path)), ImageReadMode.RGB) for path in paths]}
    for stage, (scale, auto_augment) in STAGES.items():
        transform = usual_transform(size, scale, auto_augment)
        rows[f"{stage}, usual"] = lambda transform=transform: usual_batch(paths, transform)
        for kind in ("pil", "fast"):
            loader = train_loader(images, (size, size), len(images), 0, scale=scale, auto_augment=auto_augment,
                                  num_workers=0, loader=kind)
            rows[f"{stage}, {kind}"] = lambda loader=loader: next(iter(loader))[0]
    batch, cpu = rows["fine-tuning, fast"](), torch.device("cpu")
    normalize, erase = Normalize(RECORD, cpu), RandomErasing(0.25, mode="pixel", device="cpu")
    normalized = normalize(batch)
    return {**rows, "device: normalise": lambda: normalize(batch), "device: erase": lambda: erase(normalized)}


def measure(rows: dict, rounds: int, count: int) -> dict[str, float]:
    """{row: milliseconds an image}, the median over rounds in which the rows take turns; the first round warms up."""
    times, draw = {name: [] for name in rows}, random.Random(0)
    for _ in range(rounds + 1):
        for name in draw.sample(list(rows), len(rows)):  # no row always comes behind the same one
            start = time.process_time()
            rows[name]()
            times[name].append(1e3 * (time.process_time() - start) / count)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def table(times: dict[str, float]) -> str:
    """The rows; "x usual" compares what a worker does, "all" with the device's part counted in."""
    lines = [f"{'':<24}{'images/s':>9}{'ms/image':>10}{'x usual':>9}{'all':>7}"]
    for name, value in times.items():
        stage, kind = name.split(", ") if ", " in name else (name, "")
        line = f"{name:<24}{1e3 / value:9.0f}{value:10.3f}"
        if stage in STAGES:
            after = times["device: normalise"] + (times["device: erase"] if STAGES[stage][1] else 0)
            usual = times[f"{stage}, usual"]
            line += f"{usual / value:9.2f}{usual / (value if kind == 'usual' else value + after):7.2f}"
        lines.append(line)
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--images", metavar="DIR", help="JPEG files below this folder instead of scikit-learn's photographs")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="images, the first ones by name: a batch")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="side of the crops")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    return parser


def main(args) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.images or folder)
        if not args.images:
            make_photographs(root, args.count)
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not names:
            raise SystemExit(f"error: no .jpg or .jpeg file below --images {args.images}")
        names = names[:args.count]
        images = FileImages(root, np.zeros(len(names), int), ["all"], RECORD, np.array(names), str(root))
        with Image.open(root / names[0]) as first:
            shape = f"{first.width} x {first.height}"
        times = measure(candidates(images, args.size), args.rounds, len(names))
        kilobytes = sum((root / name).stat().st_size for name in names) / len(names) / 1e3
    print(f"{len(names)} JPEGs, the first {shape}, {kilobytes:.0f} kB on average, to {args.size} x {args.size}; one core, "
          f"medians of {args.rounds}; torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
          f"{PIL.__version__}")
    print(table(times))


if __name__ == "__main__":
    main(get_args_parser().parse_args())
