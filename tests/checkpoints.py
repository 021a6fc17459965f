"""Checkpoints with random weights, as main_pretrain.py and main_finetune.py write them, without training."""
import torch

import main_finetune
import main_pretrain
from util.checkpoint import save_checkpoint

SHAPE = ["--dataset", "folder", "--mean", ".4", ".5", ".3", "--std", ".2", ".3", ".25", "--input_size", "16", "24",
         "--patch_size", "4", "--embed_dim", "16", "--depth", "2", "--num_heads", "2"]
DECODER = ["--decoder_embed_dim", "8", "--decoder_depth", "1", "--decoder_num_heads", "2"]
NAMES, COUNTS = ["cat", "dog", "elk"], [24, 12, 5]


def write_again(path, state):
    """A checkpoint that was opened and changed, under its name."""
    save_checkpoint(path, {name: value for name, value in state.items() if name != "format"})


def write(path, stage, args, model):
    with torch.no_grad():  # heads, biases and tokens begin at zero or near it, where little can go wrong
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0
    settings = {name: value for name, value in vars(args).items() if name != "given"}
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"epoch": 7, "data_hash": "", "group_counts": COUNTS}
    save_checkpoint(path, {"stage": stage, "model": model.state_dict(), "optimizer": {}, "scaler": {}, "ema": None,
                           "progress": progress, "rng": {}, "args": settings, "class_counts": COUNTS, "class_names": NAMES})
    return model.eval()


def write_mae(path, *flags):
    """-> the autoencoder that lies at `path`; later flags win."""
    argv = [*SHAPE, *DECODER, "--model", "mae_vit_tiny_patch16", *map(str, flags)]
    args = main_pretrain.get_args_parser().parse_args(argv)
    return write(path, "pretrain", args, main_pretrain.build_model(args, len(args.mean)))


def write_classifier(path, *flags):
    """-> the classifier that lies at `path`, of three classes."""
    argv = [*SHAPE, "--model", "vit_tiny_patch16", *map(str, flags)]
    args = main_finetune.with_loss_defaults(main_finetune.get_args_parser().parse_args(argv), 3)
    cosine = main_finetune.build_criterion(args, COUNTS, NAMES).cosine_head
    model = main_finetune.build_vit(args.model, 3, main_finetune.as_pair(args.input_size), len(args.mean), 0.0,
                                    "token" if args.cls_token else "avg", args.patch_size, args.embed_dim, args.depth,
                                    args.num_heads, cosine, args.layer_scale)
    return write(path, "finetune", args, model)
