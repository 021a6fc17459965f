"""Where a classifier looks: attention rollout (Abnar and Zuidema, ACL 2020), drawn over the pictures.

    python -m util.attention --checkpoint runs/bft/last.pth                # test images of its data set
    python -m util.attention --checkpoint runs/bft/last.pth --images DIR

Rollout follows attention through the layers: how much of each input patch reaches what the head reads. It is the same for
every class, and values and MLPs are left out of it: a hint, not an explanation.
"""
from pathlib import Path

import torch
from torch import nn

from models_vit import Classifier
from util.args import Parser, run_command
from util.figures_pictures import draw_overlays, save_print
from util.metrics import confidence
from util.pictures import add_picture_flags, load_pictures
from util.run import say
from util.setup import choose_device
from util.trained import load_classifier_model, own_pool


def attention_weights(attn: nn.Module, qkv: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) of timm's Attention, (N, heads, T, T), out of what its `qkv` gives, (N, T, 3 D).

    Computed beside the model, whose own attention may be a fused kernel that keeps no weights.
    """
    N, T, _ = qkv.shape
    q, k, _ = qkv.float().reshape(N, T, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)).softmax(dim=-1)


@torch.no_grad()
def attention_rollout(model: Classifier, images: torch.Tensor, pool: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (N, C, H, W) -> logits (N, classes) and rollout over patches (N, h, w), of mean 1.

    R = A_n ... A_1 with A = (mean over heads + identity) / 2, the identity for the residual path. pool: "mean" averages
    the rows of the patch tokens, "cls" takes the class token's. What comes out of the class token's own input says nothing
    about the image and is left out; a patch at 1 weighs as much as in a uniform look.
    """
    rollout = None

    def follow(qkv: nn.Module, _, output: torch.Tensor) -> None:
        nonlocal rollout
        weights = attention_weights(owner[qkv], output).mean(dim=1)
        layer = (weights + torch.eye(weights.shape[1], device=weights.device)) / 2
        rollout = layer if rollout is None else layer @ rollout

    owner = {block.attn.qkv: block.attn for block in model.blocks}
    hooks = [qkv.register_forward_hook(follow) for qkv in owner]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    row = rollout[:, 1:].mean(dim=1) if pool == "mean" else rollout[:, 0]
    patches = row[:, 1:] / row[:, 1:].mean(dim=1, keepdim=True)
    return logits, patches.unflatten(1, model.patch_embed.grid_size)


def main(args) -> list[Path]:
    """Print the predictions and draw the figure; returns the two files that were written."""
    device = choose_device(args.device)
    trained = load_classifier_model(args.checkpoint, device)
    images, captions, source = load_pictures(args, trained)
    batch, pool, activation = trained.batch(images), own_pool(trained), trained.criterion.activation
    logits, maps = attention_rollout(trained.model, batch, pool)
    logits = logits.cpu() * trained.criterion.logit_scale
    predicted = [trained.class_names[k] for k in logits.argmax(dim=1).tolist()]
    shares = [f"{100 * score:.0f} %" for score in confidence(logits, activation)]
    for caption, name, share in zip(captions, predicted, shares, strict=True):
        say(f"{caption}: {name}, {share} ({activation})")
    shown = trained.normalize.undo(batch).permute(0, 2, 3, 1).cpu().numpy()
    read = "mean of the patch tokens" if pool == "mean" else "class token"
    labels = [f"{caption}\n→ {name}\n{share}" for caption, name, share in zip(captions, predicted, shares, strict=True)]
    title = f"attention rollout to the {read}; predicted class and its {activation} score"
    figure = draw_overlays(shown, maps.cpu().numpy(), labels, title, "attention (1 = every patch alike)")
    paths = save_print(figure, args.out)
    say(f"{trained.name}: {source}; {title}: wrote {paths[0]} and {paths[1]}")
    return paths


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("where a trained classifier looks, and what it says")
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="last.pth of main_finetune.py")
    add_picture_flags(parser)
    parser.add_argument("--out", default="attention.png", metavar="FILE.png", help="a PDF is written beside it")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
