"""Stage 2, balanced fine-tuning (BFT): the classifier, timm's VisionTransformer, and loading an encoder into it."""
import math

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models_mae import SIZES, LayerNorm, model_shape, patch_grid

MODELS = {f"vit_{size}": shape for size, shape in SIZES.items()}
# What a stage-1 checkpoint holds beside the encoder.
DECODER = ("decoder_", "mask_token")


class Classifier(VisionTransformer):
    """timm's VisionTransformer, which also hands out the penultimate features for losses that need them."""

    def forward(self, x: torch.Tensor, return_features: bool = False):
        """(N, C, H, W) -> logits (N, classes), or (logits, features (N, D)) as they enter the head."""
        features = self.forward_head(self.forward_features(x), pre_logits=True)
        logits = self.head(features)
        return (logits, features) if return_features else logits


class CosineHead(nn.Module):
    """Cosines between the features and one direction a class, (N, D) -> (N, C): LDAM's classifier, without a bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def build_vit(name: str, num_classes: int, img_size=224, in_chans: int = 3, drop_path: float = 0.0,
              global_pool: str = "avg", patch_size: int | None = None, embed_dim: int | None = None,
              depth: int | None = None, num_heads: int | None = None, cosine_head: bool = False,
              layer_scale: float | None = None, head_std: float | None = None) -> Classifier:
    """A classifier of `MODELS` by name. Average pooling over patches with `fc_norm`, or the class token ("token").

    layer_scale: start of the factors that every block's two branches are multiplied with, a channel each (LayerScale).
    The linear head starts with weights of deviation head_std, near zero by default (2e-5) as in MAE's fine-tuning, and bias
    0; cosine_head puts a `CosineHead` in its place, which starts by itself. ValueError for both.
    """
    patch, dim, layers, heads = model_shape(MODELS, name, patch_size, embed_dim, depth, num_heads)
    patch_grid(img_size, patch)
    model = Classifier(
        img_size=img_size, patch_size=patch, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
        embed_dim=dim, depth=layers, num_heads=heads, qkv_bias=True, drop_path_rate=drop_path, norm_layer=LayerNorm,
        init_values=layer_scale)
    if cosine_head:
        if head_std is not None:
            raise ValueError(f"--head_std {head_std:g} is for a linear head, and this loss has one of cosines: leave it out")
        model.head = CosineHead(dim, num_classes)
        return model
    nn.init.trunc_normal_(model.head.weight, std=2e-5 if head_std is None else head_std)
    nn.init.zeros_(model.head.bias)
    return model


def resample_positions(pos_embed: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """(1, 1 + h * w, D) -> (1, 1 + h' * w', D), bicubic; the class token's position stays. Same grid: unchanged."""
    if tuple(grid) == tuple(new_grid):
        return pos_embed
    return resample_abs_pos_embed(pos_embed, list(new_grid), list(grid), num_prefix_tokens=1)


def stored_grid(pos_embed: torch.Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The patch grid of stored positions: the given one, or a square where the checkpoint does not say."""
    patches = pos_embed.shape[1] - 1
    side = math.isqrt(patches)
    if grid is None and side * side != patches:
        raise ValueError(f"the checkpoint has {patches} positions, which is no square grid, and does not say its grid")
    return grid or (side, side)


def load_encoder(model: VisionTransformer, state: dict, grid: tuple[int, int] | None = None) -> dict:
    """Load a stage-1 encoder into a classifier, its positions resampled to the classifier's grid.

    state: a stage-1 state dict; grid: its patch grid (h, w), a square by default. Returns {"loaded": n, "left_out":
    names, "new": names, "resampled": None or (grid, new grid)}. Raises ValueError where the key sets differ otherwise
    than stage 1 and stage 2 must (decoder and final norm left out, head and fc_norm new) or where a shape differs.
    """
    own = model.state_dict()
    encoder = {key: value for key, value in state.items() if not key.startswith(DECODER)}
    if "pos_embed" not in encoder:
        raise ValueError("the checkpoint holds no `pos_embed`, so it is no ViT encoder")
    grid = stored_grid(encoder["pos_embed"], grid)
    if encoder["pos_embed"].shape[-1] == own["pos_embed"].shape[-1]:
        encoder["pos_embed"] = resample_positions(encoder["pos_embed"], grid, model.patch_embed.grid_size)
    # With average pooling timm's final norm is an identity and fc_norm takes its place, fresh as in MAE.
    left_out = {key for key in encoder if key.startswith("norm.") and key not in own}
    new = {key for key in own if key.startswith(("head.", "fc_norm."))}
    check_keys({k: v.shape for k, v in encoder.items() if k not in left_out},
               {k: v.shape for k, v in own.items() if k not in new})
    model.load_state_dict({**own, **{k: v for k, v in encoder.items() if k not in left_out}})
    dropped = left_out | {key for key in state if key.startswith(DECODER)}
    return {"loaded": len(encoder) - len(left_out), "left_out": sorted(dropped), "new": sorted(new),
            "resampled": None if tuple(grid) == tuple(model.patch_embed.grid_size) else (grid, model.patch_embed.grid_size)}


def load_fine_tuned(model: VisionTransformer, state: dict, grid: tuple[int, int]) -> dict:
    """Load a whole classifier, head and all, its positions resampled from the patch grid (h, w) to the model's.

    Returns what `load_encoder` returns. ValueError where names or shapes differ otherwise.
    """
    weights, new_grid = dict(state), tuple(model.patch_embed.grid_size)
    if state["pos_embed"].shape[-1] == model.pos_embed.shape[-1]:
        weights["pos_embed"] = resample_positions(state["pos_embed"], grid, new_grid)
    load_classifier(model, weights)
    return {"loaded": len(weights), "left_out": [], "new": [], "resampled": None if grid == new_grid else (grid, new_grid)}


def check_head_count(model: VisionTransformer, models: dict, trained: dict) -> None:
    """Raise ValueError where weights were trained with another number of heads, which no tensor's shape tells.

    models: the table that trained["model"] is a row of; trained: flags of the run that the weights come from.
    """
    names = ("patch_size", "embed_dim", "depth", "num_heads")
    there, here = model_shape(models, trained["model"], *(trained[name] for name in names))[3], model.blocks[0].attn.num_heads
    if there != here:
        raise ValueError(f"weights of another architecture ({there} heads, not {here}): use --num_heads {there}")


def check_keys(found: dict, expected: dict) -> None:
    """Raise ValueError unless two {name: shape} are equal, naming the first differences of each kind."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [f"{key} {tuple(found[key])} instead of {tuple(expected[key])}"
              for key in expected if key in found and found[key] != expected[key]]
    parts = [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
             for what, names in (("wrong shape:", shapes), ("missing:", missing), ("unexpected:", unexpected)) if names]
    if parts:
        raise ValueError(f"weights of another architecture ({'; '.join(parts)}): use the --model, --patch_size, "
                         "--embed_dim, --depth, --layer_scale and --input_size that the checkpoint was made with")


def load_classifier(model: nn.Module, state: dict) -> None:
    """Load a whole state dict of the same architecture; ValueError with the first differences otherwise."""
    check_keys({key: value.shape for key, value in state.items()},
               {key: value.shape for key, value in model.state_dict().items()})
    model.load_state_dict(state)
