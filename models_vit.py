"""Stage 2, balanced fine-tuning (BFT): the classifier, timm's VisionTransformer; and loading weights, of stage 1 too."""
import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath, resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models_mae import SIZES, Attention, LayerNorm, MaskedAutoencoderViT, model_shape, patch_grid
from util.pos_embed import sincos_2d

MODELS = {f"vit_{size}": shape for size, shape in SIZES.items()}
# What a checkpoint holds beside the encoder that no classifier has: a decoder, and Hugging Face's pooler.
DECODER = ("decoder_", "mask_token", "pooler.")
# What decides the shapes of a classifier, of stage 1's encoder, and of its decoder.
CLASSIFIER_FLAGS = "--model, --patch_size, --embed_dim, --depth, --layer_scale and --input_size"
ENCODER_FLAGS = "--model, --patch_size, --embed_dim, --depth and --input_size"
DECODER_FLAGS = "--decoder_embed_dim and --decoder_depth"


class DrawnDropPath(DropPath):
    """timm's DropPath of one branch, whose draws come from outside: before each pass in training `draw` is called."""

    factors: torch.Tensor | None = None  # (N, 1, 1)

    def draw(self, uniform: torch.Tensor) -> None:
        """uniform (N,) in [0, 1): the branch is dropped for the images whose draw lies below the rate."""
        self.factors = ((uniform >= self.drop_prob).to(uniform.dtype) / (1 - self.drop_prob)).view(-1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, D) -> the same."""
        return x * self.factors.to(x.dtype) if self.training else x


class Classifier(VisionTransformer):
    """timm's VisionTransformer, which also hands out the penultimate features for losses that need them, and drops the paths
    that it is told to."""

    def __init__(self, **options):
        super().__init__(**options)
        for block in self.blocks:
            for name in ("drop_path1", "drop_path2"):
                path = getattr(block, name)
                if isinstance(path, DropPath):
                    setattr(block, name, DrawnDropPath(path.drop_prob))

    @property
    def drop_paths(self) -> list[DrawnDropPath]:
        """The branches that training drops at random, in order: none where the rate is 0, and none in the first block."""
        return [path for block in self.blocks for path in (block.drop_path1, block.drop_path2)
                if isinstance(path, DrawnDropPath)]

    def forward_features(self, x: torch.Tensor, *masks, paths: torch.Tensor | None = None, **options) -> torch.Tensor:
        """As timm's. paths: see `forward`."""
        branches = self.drop_paths
        if self.training and branches:
            if paths is None:
                paths = torch.rand(len(x), len(branches), device=x.device)
            for path, uniform in zip(branches, paths.unbind(1), strict=True):
                path.draw(uniform)
        return super().forward_features(x, *masks, **options)

    def forward(self, x: torch.Tensor, return_features: bool = False, paths: torch.Tensor | None = None):
        """(N, C, H, W) -> logits (N, classes), or (logits, features (N, D)) as they enter the head.

        paths (N, number of `drop_paths`) in [0, 1) decides in training which branches are dropped; by default it is drawn
        from the device's generator. Under gradient checkpointing the backward pass has to come before another forward pass.
        """
        features = self.forward_head(self.forward_features(x, paths=paths), pre_logits=True)
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
        init_values=layer_scale, attn_layer=Attention)
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


def stored_grid(pos_embed: torch.Tensor, grid: tuple[int, int] | None, wanted: tuple[int, int]) -> tuple[int, int]:
    """The patch grid of stored positions: the given one, or where the checkpoint does not say a square, or the grid `wanted`
    that has as many patches."""
    patches = pos_embed.shape[1] - 1
    side = math.isqrt(patches)
    if grid is None and side * side != patches and wanted[0] * wanted[1] != patches:
        raise ValueError(f"the checkpoint has {patches} positions, which is no square grid, and does not say its grid")
    if grid is None:
        return (side, side) if side * side == patches else tuple(wanted)
    if grid[0] * grid[1] != patches:
        raise ValueError(f"the checkpoint has {patches} positions, and says that its patch grid is {grid[0]} x {grid[1]}: it "
                         "does not fit together, use another copy")
    return tuple(grid)


def fit_positions(model: VisionTransformer, state: dict, grid: tuple[int, int] | None) -> tuple[dict, tuple | None]:
    """The state dict with its positions resampled to the model's grid, and (grid, new grid), None where they are equal.

    grid: (h, w) of the stored positions, see `stored_grid`. ValueError where there are no positions.
    """
    positions, new_grid = state.get("pos_embed"), tuple(model.patch_embed.grid_size)
    if positions is None or positions.ndim != 3:
        raise ValueError("the checkpoint holds no `pos_embed`, so it is no ViT encoder")
    grid = stored_grid(positions, grid, new_grid)
    if grid == new_grid or positions.shape[-1] != model.pos_embed.shape[-1]:  # another width is for `check_keys` to tell
        return state, None
    return {**state, "pos_embed": resample_positions(positions, grid, new_grid)}, (grid, new_grid)


def fit_patches(model: VisionTransformer, state: dict) -> tuple[dict, tuple[int, int] | None]:
    """The state dict with its patch embedding resampled to the model's patch size, and (p, new p), None where they are equal.

    A patch that is resized bicubically to the new size then gives what it gave before, exactly where it grows (Beyer et al.,
    "FlexiViT", CVPR 2023).
    """
    name, new = "patch_embed.proj.weight", model.patch_embed.proj.weight
    kernel = state.get(name)
    if kernel is None or kernel.ndim != 4 or kernel.shape[2:] == new.shape[2:] or kernel.shape[:2] != new.shape[:2]:
        return state, None  # another width or number of channels is for `check_keys` to tell
    return {**state, name: resample_patch_embed(kernel, list(new.shape[2:]))}, (kernel.shape[3], new.shape[3])


def fit(model: VisionTransformer, state: dict, grid: tuple[int, int] | None, patches: bool) -> tuple[dict, dict]:
    """`fit_positions`, and with `patches` `fit_patches`: the state dict, and what both did as `load_encoder` reports it."""
    state, resized = fit_patches(model, state) if patches else (state, None)
    state, resampled = fit_positions(model, state, grid)
    return state, {"resampled": resampled, "patches": resized}


def load_encoder(model: VisionTransformer, state: dict, grid: tuple[int, int] | None = None, with_head: bool = False,
                 patches: bool = False) -> dict:
    """Load an encoder into a classifier, its positions resampled to the classifier's grid.

    state: of stage 1 or of a classifier, by MAE's names; grid: its patch grid (h, w), see `stored_grid`; with_head: load
    the head too; patches: resample the patch embedding to the classifier's patch size. Returns {"loaded": n, "left_out":
    names, "new": names, "resampled": None or (grid, new grid), "patches": None or (patch size, new one)}. Raises ValueError
    where the key sets differ otherwise than encoders of two tasks may (decoder, head and a norm of the other pooling left
    out; head and fc_norm new) or where a shape differs.
    """
    own = model.state_dict()
    encoder, changed = fit(model, {key: v for key, v in state.items() if not key.startswith(DECODER)}, grid, patches)
    # With average pooling timm's final norm is an identity and fc_norm takes its place, fresh as in MAE; and where fc_norm
    # was trained there is no final norm to load.
    left_out = {key for key in encoder if key.startswith(("norm.", "fc_norm.")) and key not in own}
    left_out |= {key for key in encoder if key.startswith("head.") and not with_head}
    loaded = {key: value for key, value in encoder.items() if key not in left_out}
    start = () if with_head else ("head.",)
    start += ("fc_norm.", "norm.") if "fc_norm.weight" in encoder else ("fc_norm.",)
    new = {key for key in own if key.startswith(start) and key not in loaded}
    check_keys({key: value.shape for key, value in loaded.items()},
               {key: value.shape for key, value in own.items() if key not in new})
    model.load_state_dict({**own, **loaded})
    return {"loaded": len(loaded), "left_out": sorted(key for key in state if key not in loaded), "new": sorted(new),
            **changed}


def load_autoencoder(model: MaskedAutoencoderViT, state: dict, grid: tuple[int, int] | None = None,
                     patches: bool = False) -> dict:
    """Load an encoder, and the decoder where `state` has one, into the autoencoder of stage 1.

    state, grid and patches as of `load_encoder`; what the decoder predicts follows the patch. A classifier's head and last
    norm are left out. Returns as it does, with "learned": whether the encoder's positions are others than sin-cos ones, and
    "computed": (grid, new grid) where sin-cos ones of another grid gave way to the model's own, else None. Raises ValueError
    as it does, and for LayerScale.
    """
    scaled = next((key for key in state if key.startswith("blocks.") and ".ls" in key), None)
    if scaled:
        raise ValueError(f"weights with LayerScale ({scaled}), which the network of stage 1 does not have: use others")
    own, decoder = model.state_dict(), any(key.startswith(("decoder_", "mask_token")) for key in state)
    classifier = any(key.startswith(("head.", "fc_norm.")) for key in state)
    left_out = ("head.", "fc_norm.", "pooler.") + ("norm.",) * classifier
    new = {key for key in own if key.startswith(("norm.",) * classifier + DECODER * (not decoder))}
    loaded = {key: value for key, value in state.items() if not key.startswith(left_out)}
    loaded, changed = fit_autoencoder(model, loaded, grid, patches)
    for inside, flags in ((False, ENCODER_FLAGS), (True, DECODER_FLAGS)):
        found, expected = ({key: value.shape for key, value in tensors.items()
                            if key not in new and key.startswith(DECODER) == inside} for tensors in (loaded, own))
        check_keys(found, expected, flags)
    model.load_state_dict({**own, **loaded})
    return {"loaded": len(loaded), "left_out": sorted(key for key in state if key not in loaded), "new": sorted(new),
            **changed}


def fit_autoencoder(model: MaskedAutoencoderViT, state: dict, grid: tuple[int, int] | None,
                    patches: bool) -> tuple[dict, dict]:
    """As `fit`, of stage 1: where the grid is another one, positions that are sin-cos ones give way to the model's own, in both
    towers; with `patches` the decoder predicts what it did, resized."""
    fitted, changed = fit(model, {**state}, grid, patches)
    there = stored_grid(state["pos_embed"], grid, model.grid)
    learned = {name: not is_sincos(state[name], there) for name in ("pos_embed", "decoder_pos_embed") if name in state}
    for name in learned:
        own = getattr(model, name)
        if there == model.grid or state[name].shape[::2] != own.shape[::2]:  # another width is for `check_keys` to tell
            continue
        stored_grid(state[name], there, model.grid)  # that it is as many
        fitted[name] = resample_positions(state[name], there, model.grid) if learned[name] else own.detach()
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        if changed["patches"] and name in state and len(state[name]) == model.in_chans * changed["patches"][0] ** 2:
            fitted[name] = resize_predicted(state[name], *changed["patches"])
    moved = changed["resampled"]
    return fitted, {**changed, "resampled": moved if learned["pos_embed"] else None, "learned": learned["pos_embed"],
                    "computed": None if learned["pos_embed"] else moved}


def is_sincos(positions: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Whether positions (1, 1 + h * w, D) are the fixed ones of their grid (h, w), as far as float16 tells."""
    if positions.ndim != 3 or positions.shape[1] != 1 + grid[0] * grid[1] or positions.shape[2] % 4:
        return False
    return torch.allclose(positions, sincos_2d(positions.shape[2], grid), rtol=0, atol=5e-4)


def resize_predicted(rows: torch.Tensor, patch: int, new_patch: int) -> torch.Tensor:
    """Rows of the decoder's last layer, (p * p * C, ...) -> (p' * p' * C, ...): it predicts the same, resized bicubically."""
    maps = rows.reshape(patch, patch, -1, rows[0].numel()).permute(3, 2, 0, 1)
    maps = F.interpolate(maps, size=(new_patch, new_patch), mode="bicubic", antialias=True)
    return maps.permute(2, 3, 1, 0).reshape(-1, *rows.shape[1:])


def check_head_count(model: VisionTransformer, models: dict, trained: dict) -> None:
    """Raise ValueError where weights were trained with another number of heads, which no tensor's shape tells.

    models: the table that trained["model"] is a row of; trained: flags of the run that the weights come from.
    """
    names = ("patch_size", "embed_dim", "depth", "num_heads")
    there, here = model_shape(models, trained["model"], *(trained[name] for name in names))[3], model.blocks[0].attn.num_heads
    if there != here:
        raise ValueError(f"weights of another architecture ({there} heads, not {here}): use --num_heads {there}")


def check_keys(found: dict, expected: dict, flags: str = CLASSIFIER_FLAGS) -> None:
    """Raise ValueError unless two {name: shape} are equal, naming the first differences of each kind, and the flags."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [f"{key} {tuple(found[key])} instead of {tuple(expected[key])}"
              for key in expected if key in found and found[key] != expected[key]]
    parts = [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
             for what, names in (("wrong shape:", shapes), ("missing:", missing), ("unexpected:", unexpected)) if names]
    if parts:
        raise ValueError(f"weights of another architecture ({'; '.join(parts)}): use the {flags} that the "
                         "checkpoint was made with")


def load_classifier(model: nn.Module, state: dict) -> None:
    """Load a whole state dict of the same architecture; ValueError with the first differences otherwise."""
    check_keys({key: value.shape for key, value in state.items()},
               {key: value.shape for key, value in model.state_dict().items()})
    model.load_state_dict(state)


def load_resampled(model: VisionTransformer, state: dict, grid: tuple[int, int] | None = None, patches: bool = False) -> dict:
    """As `load_classifier`, with positions resampled from `grid` to the model's; patches and what it returns as of
    `load_encoder`."""
    fitted, changed = fit(model, state, grid, patches)
    load_classifier(model, fitted)
    return {"loaded": len(state), "left_out": [], "new": [], **changed}
