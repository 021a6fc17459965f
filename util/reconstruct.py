"""What a masked autoencoder makes of pictures it sees a part of (Figure 7 of the paper), for one's own pictures.

    python -m util.reconstruct --checkpoint runs/mgp/last.pth                        # test images of its data set
    python -m util.reconstruct --checkpoint runs/a/last.pth runs/b/last.pth --images DIR --out compared.png

Several checkpoints stand below one another under the same masks.
"""
from pathlib import Path

import numpy as np
import torch

from datasets.transforms import Normalize
from models_mae import MaskedAutoencoderViT
from util.args import Parser, run_command
from util.figures_pictures import EXAMPLES_PER_ROW, draw_rows, save_print
from util.pictures import add_picture_flags, load_pictures
from util.run import say
from util.seed import derive_seed
from util.setup import choose_device
from util.trained import Trained, load_mae

UNDONE = "norm_pix_loss: patches undone with their true mean and deviation"
AS_PREDICTED = "pixels as predicted"
OWN = "visible patches are the image's own"


def show_masked(model: MaskedAutoencoderViT, normalize: Normalize, batch: torch.Tensor, mask_ratio: float,
                noise: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised images (N, C, H, W) -> (images, masked, reconstructed), each (N, H, W, C) in [0, 1].

    noise (N, L) decides the masks, drawn from the device's generator by default. Removed patches are grey in the second,
    and the network's in the third, where visible ones are the image's own.
    """
    pred, mask = model.reconstruct(batch, mask_ratio, noise)
    gray = normalize(torch.full_like(batch, 127, dtype=torch.uint8))
    shown = batch, torch.where(mask.bool(), gray, batch), torch.where(mask.bool(), pred, batch)
    return tuple(normalize.undo(x).permute(0, 2, 3, 1).cpu().numpy() for x in shown)


def mask_noise(seed: int, images: int, patches: int) -> torch.Tensor:
    """Noise (images, patches) on the CPU; an image's row is a function of seed and place, however many there are."""
    rows = [torch.rand(patches, generator=torch.Generator().manual_seed(derive_seed(seed, "mask", i))) for i in range(images)]
    return torch.stack(rows)


def check_together(models: list[Trained]) -> None:
    """ValueError unless all models can have the same masks and the same pictures above them."""
    first = models[0]
    for other in models[1:]:
        if other.model.grid != first.model.grid:
            here, there = (" x ".join(map(str, trained.model.grid)) for trained in (first, other))
            raise ValueError(f"{other.path} cuts images into {there} patches, {first.path} into {here}, so they cannot share "
                             "masks: draw them one by one")
        if other.record.channels != first.record.channels:
            raise ValueError(f"{other.path} sees images of {other.record.channels} channel(s), {first.path} of "
                             f"{first.record.channels}: draw them one by one")


def row_names(models: list[Trained]) -> list[str]:
    """Run folder (with as many of its parents as tell two apart), model, epochs and what was predicted; never two alike."""
    folders = [Path(trained.path).resolve().parent.parts for trained in models]
    depth = next((n for n in (1, 2, 3) if len({parts[-n:] for parts in folders}) == len(models)), 1)
    names = []
    for trained, parts in zip(models, folders, strict=True):
        predicted = "norm_pix_loss" if trained.settings["norm_pix_loss"] else AS_PREDICTED
        name = f"{'/'.join(parts[-depth:])}\n{trained.settings['model']}\n{trained.epochs} epochs\n{predicted}"
        names.append(name if name not in names else f"{len(names) + 1}: {name}")
    return names


def main(args) -> list[Path]:
    """Draw the figure; returns the two files that were written."""
    if not 0 < args.mask_ratio < 1:
        raise ValueError(f"--mask_ratio must lie between 0 and 1, both excluded, not {args.mask_ratio:g}")
    device = choose_device(args.device)
    models = [load_mae(path, device) for path in args.checkpoint]
    check_together(models)
    images, captions, source = load_pictures(args, models[0])
    noise = mask_noise(args.seed, len(images), models[0].model.grid[0] * models[0].model.grid[1]).to(device)
    rows, normed = {}, [trained.settings["norm_pix_loss"] for trained in models]
    for name, trained in zip(row_names(models), models, strict=True):
        raw, masked, made = show_masked(trained.model, trained.normalize, trained.batch(images, 1.0), args.mask_ratio, noise)
        rows = rows or {"image": raw, "masked": masked}
        rows[name] = made
        say(f"{trained.name}: {UNDONE if trained.settings['norm_pix_loss'] else AS_PREDICTED}; {OWN}")
    title = f"mask ratio {args.mask_ratio:g}, seed {args.seed}; {OWN}" + f"; {UNDONE}" * any(normed)
    per_row = -(-len(images) // -(-len(images) // EXAMPLES_PER_ROW))
    paths = save_print(draw_rows(rows, title, captions, per_row), args.out)
    say(f"{source}, mask ratio {args.mask_ratio:g}, seed {args.seed}: wrote {paths[0]} and {paths[1]}")
    return paths


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("pictures, masked, and what stage-1 checkpoints reconstruct, under the same masks")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="CKPT", help="last.pth files of "
                        "main_pretrain.py")
    add_picture_flags(parser)
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="share of the patches that is removed")
    parser.add_argument("--seed", type=int, default=0, help="decides the masks")
    parser.add_argument("--out", default="reconstructions.png", metavar="FILE.png", help="a PDF is written beside it")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
