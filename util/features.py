"""The features of an encoder for pictures in files, as one file for other programs.

    python -m util.features runs/mgp/last.pth photographs --out features.npz
    python -m util.features mae_pretrain_vit_base.pth photographs --mean .485 .456 .406 --std .229 .224 .225 --out mae.npz

The file holds `features` (N, D) float32 and `paths` (N,), in the same order, without pictures that could not be read.
"""
from pathlib import Path

import numpy as np
import torch

from datasets.imageset import Record
from datasets.paths import printable
from datasets.transforms import Normalize
from models_mae import SIZES, as_pair, check_heads, patch_grid
from models_vit import load_encoder
from util.args import Parser, run_command
from util.checkpoint import replace_file
from util.precision import choose_amp, choose_attention
from util.setup import choose_device
from util.stream import find_pictures, run_stream, tell, with_bar
from util.trained import Trained, classifier, encode, load_encoder_model, own_pool
from util.weights import PATCHES, Weights, open_weights

FOREIGN = ("mean", "std", "input_size", "num_heads")


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("features of an encoder for pictures in files")
    parser.add_argument("checkpoint", metavar="CKPT", help="last.pth of either stage, or weights of MAE, LiVT, timm or Hugging "
                        "Face, a file or a folder")
    parser.add_argument("images", nargs="+", metavar="IMAGES_OR_FOLDER", help="image files, and folders with images at any "
                        "depth")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="where to write features and paths")
    parser.add_argument("--pool", choices=["avg", "token"], help="mean of the patch tokens, or the class token (what a "
                        "classifier was trained with; the mean for encoders without a head)")
    parser.add_argument("--crop_pct", type=float, metavar="P", help="share of the resized image that is seen (the "
                        "checkpoint's; all of it for stage 1)")
    group = parser.add_argument_group("others' weights, which do not say it")
    group.add_argument("--mean", type=float, nargs="+", metavar="M", help="channel means that their images had, in [0, 1] "
                       "(what timm's config.json or Hugging Face's preprocessor_config.json beside them says)")
    group.add_argument("--std", type=float, nargs="+", metavar="S", help="channel deviations")
    group.add_argument("--input_size", type=int, nargs="+", metavar="PIXELS", help="one number, or height and width (what the "
                       "weights' positions are for)")
    group.add_argument("--num_heads", type=int, metavar="N", help="attention heads, where neither the width nor a config.json "
                       "tells")
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=int, default=64, metavar="N")
    group.add_argument("--num_workers", type=int, metavar="N", help="processes that read images (one a core, up to 10)")
    group.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    group.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="type of matrix products")
    return parser


def open_encoder(args, device: torch.device) -> Trained:
    """The encoder of the flags; ValueError where a flag would do nothing, or one is missing."""
    weights = open_weights(args.checkpoint)
    if weights.checkpoint is None:
        return foreign_encoder(weights, args, device)
    given = [f"--{name}" for name in FOREIGN if getattr(args, name) is not None]
    if given:
        raise ValueError(f"{args.checkpoint} is a checkpoint of this project and says {', '.join(given)} itself: leave "
                         f"{'it' if len(given) == 1 else 'them'} out")
    return load_encoder_model(args.checkpoint, device)


def foreign_encoder(weights: Weights, args, device: torch.device) -> Trained:
    """An encoder out of others' weights: its shape is that of the tensors, its images' statistics are the flags', or else those
    that a file beside the weights says."""
    mean, std = (given or said for given, said in zip((args.mean, args.std), weights.statistics or (None, None), strict=True))
    if mean is None or std is None:
        raise ValueError(f"{weights.path} is of {weights.form} and does not say how its images are normalised: give --mean "
                         "and --std (ImageNet's are --mean .485 .456 .406 --std .229 .224 .225)")
    tensors, record = weights.tensors, Record(tuple(mean), tuple(std))
    if PATCHES not in tensors or tensors[PATCHES].ndim != 4:
        raise ValueError(f"{weights.path} has no patch embedding {PATCHES}, so it is no ViT encoder")
    width, channels, patch, _ = tensors[PATCHES].shape
    if channels != record.channels:
        raise ValueError(f"{weights.path} takes images of {channels} channels, mean and std are of {record.channels}: give "
                         "--mean and --std with one number a channel")
    heads = args.num_heads or weights.heads or next((row[3] for row in SIZES.values() if row[1] == width), None)
    if heads is None:
        raise ValueError(f"{weights.path} is {width} wide, which is none of the named sizes, and no tensor tells the number of "
                         "attention heads: give --num_heads")
    check_heads(width, heads)
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch if "pos_embed" in tensors else patch
    size = as_pair(args.input_size) if args.input_size else weights.input_size or (side, side)
    patch_grid(size, patch)
    settings = {"model": "vit_base_patch16", "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads,
                "input_size": list(size), "cls_token": "fc_norm.weight" not in tensors}
    model = classifier(settings, channels, 1)
    load_encoder(model, tensors, weights.grid)
    model.head = torch.nn.Identity()
    choose_attention(model, device, choose_amp("auto", device)[0])
    # Weights with a head were trained to be read where the head does; an autoencoder's may be read anywhere.
    settings["cls_token"] &= "head.weight" in tensors
    return Trained(weights.path, "pretrain", model.to(device).eval(), settings, record, Normalize(record, device),
                   weights.epochs or 0, [], [])


def main(args) -> None:
    """Write the file."""
    if args.batch_size < 1 or (args.num_workers or 0) < 0:
        raise ValueError(f"--batch_size must be at least 1 and --num_workers not negative, not {args.batch_size} and "
                         f"{args.num_workers}")
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        raise ValueError(f"--crop_pct must lie in (0, 1], not {args.crop_pct:g}")
    if not args.out.endswith(".npz") or not Path(args.out).parent.is_dir():
        raise ValueError(f"--out {args.out}: expected a name that ends with .npz, in a folder that is there")
    device = choose_device(args.device)
    amp, reason = choose_amp(args.amp, device)
    trained = open_encoder(args, device)
    pool = {"avg": "mean", "token": "cls", None: own_pool(trained)}[args.pool]
    paths = find_pictures(args.images)
    tell(f"{trained.path}: {'mean of the patch tokens' if pool == 'mean' else 'class token'}, images of {trained.size[0]} x "
         f"{trained.size[1]}; {len(paths):,} images on {device}, matrix products in {reason}")
    features, kept = np.empty((len(paths), trained.model.embed_dim), dtype=np.float32), np.zeros(len(paths), dtype=bool)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return encode(trained.model, images, pool).float()

    batches = run_stream(trained, paths, forward, args.batch_size, args.num_workers, amp, args.crop_pct)
    for batch in with_bar(batches, paths, args.batch_size, "features"):
        if batch.outputs is not None:
            features[batch.indices], kept[batch.indices] = batch.outputs.cpu().numpy(), True
    names = np.array([printable(path) for path, good in zip(paths, kept, strict=True) if good])
    replace_file(Path(args.out), lambda file: np.savez(file, features=features if kept.all() else features[kept], paths=names))
    tell(f"wrote {args.out}: features {len(names):,} x {features.shape[1]}")


if __name__ == "__main__":
    run_command(get_args_parser(), main)
