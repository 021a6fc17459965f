"""Stage 1, masked generative pretraining (MGP): the masked autoencoder of He et al., CVPR 2022.

Shapes: N images, C channels, (H, W) pixels, p patch size, (h, w) patch grid, L = h * w patches, K kept (visible)
patches, D width. In a mask 1 is removed, 0 is kept.
"""
from functools import partial

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import nn

from util.piecewise import LONG, PiecewiseAttention
from util.pos_embed import sincos_2d

# name: (patch size, width, depth, heads); MAE's names, and the ViT sizes of Dosovitskiy et al. and Touvron et al.
SIZES = {
    "tiny_patch16": (16, 192, 12, 3),
    "small_patch16": (16, 384, 12, 6),
    "base_patch16": (16, 768, 12, 12),
    "large_patch16": (16, 1024, 24, 16),
    "huge_patch14": (14, 1280, 32, 16),
}
MODELS = {f"mae_vit_{size}": shape for size, shape in SIZES.items()}
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def as_pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """One number for a square, or (height, width)."""
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def patch_grid(img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) -> (h, w). Raises ValueError where the patch does not divide the image."""
    height, width = as_pair(img_size)
    if height % patch_size or width % patch_size or height < patch_size or width < patch_size:
        raise ValueError(f"input size {height} x {width} is no multiple of the patch size {patch_size}: change "
                         "--input_size or --patch_size")
    return height // patch_size, width // patch_size


def model_shape(models: dict, name: str, patch_size=None, embed_dim=None, depth=None, num_heads=None) -> tuple:
    """The row of `name` in a table of models with the given overrides: (patch size, width, depth, heads)."""
    if name not in models:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(models)}")
    overrides = {"--patch_size": patch_size, "--embed_dim": embed_dim, "--depth": depth, "--num_heads": num_heads}
    for flag, value in overrides.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, not {value}")
    shape = tuple(given or default for given, default in zip(overrides.values(), models[name], strict=True))
    check_heads(shape[1], shape[3])
    return shape


def check_heads(dim: int, num_heads: int, prefix: str = "") -> None:
    """Raise ValueError where the heads do not divide the width."""
    if dim % num_heads:
        raise ValueError(f"width {dim} is no multiple of {num_heads} heads: change --{prefix}embed_dim or "
                         f"--{prefix}num_heads")


def random_masking(noise: torch.Tensor, mask_ratio: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-sample random masking: keep the K = round(L * (1 - mask_ratio)) patches of least noise.

    noise (N, L) -> ids_keep (N, K), ids_removed (N, L - K), mask (N, L) in image order with 1 removed. At least one patch
    is kept and one removed.
    """
    N, L = noise.shape
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask ratio must lie between 0 and 1, both excluded, not {mask_ratio}: change --mask_ratio")
    if L < 2:
        raise ValueError("an image of one patch cannot be masked: use a smaller --patch_size or a larger --input_size")
    keep = min(max(round(L * (1 - mask_ratio)), 1), L - 1)
    ids_keep, ids_removed = noise.argsort(dim=1).split([keep, L - keep], dim=1)
    return ids_keep, ids_removed, torch.ones_like(noise, dtype=torch.float32).scatter(1, ids_keep, 0.0)


def take(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """tokens (N, L, D), ids (N, M) -> the tokens of these ids, (N, M, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class Attention(timm.layers.Attention):
    """timm's attention, whose weights keep the products' type where they are plain products.

    Autocast would keep them in float32 beside their copy in bf16, three times the memory, for a softmax that computes in
    float32 either way.
    """

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, **options) -> torch.Tensor:
        if self.fused_attn or attn_mask is not None or any(options.values()):
            return super().forward(x, attn_mask, **options)
        qkv = self.qkv(x)
        x = PiecewiseAttention.apply(qkv, self.num_heads) if self.in_pieces(qkv) else self.in_one(qkv)
        return self.proj_drop(self.proj(x))

    def in_pieces(self, qkv: torch.Tensor) -> bool:
        """Whether these weights are better not kept for a backward pass; torch.compile has its own ways."""
        plain = isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity) and not self.attn_drop.p
        return plain and qkv.requires_grad and qkv.shape[1] >= LONG and not torch.compiler.is_compiling()

    def in_one(self, qkv: torch.Tensor) -> torch.Tensor:
        """(N, T, 3 D) -> (N, T, D)."""
        N, tokens, _ = qkv.shape
        q, k, v = qkv.reshape(N, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        with torch.autocast(qkv.device.type, enabled=False):
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            return (self.attn_drop(weights) @ v).transpose(1, 2).reshape(N, tokens, -1)


class PatchLoss(nn.Module):
    """Mean squared error of removed patches: true and predicted (N, M, p * p * C) -> scalar, in float32.

    norm_pix: every true patch is normalised by its own mean and deviation first. A module, so that it can be compiled: it is
    many passes over many pixels.
    """

    def __init__(self, norm_pix: bool):
        super().__init__()
        self.norm_pix = norm_pix

    def forward(self, target: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
        target = target.float()
        if self.norm_pix:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return (pred.float() - target).square().mean()


class MaskedAutoencoderViT(nn.Module):
    """Masked autoencoder with a ViT encoder that sees the visible patches only, and a light ViT decoder.

    Parameter names are MAE's, so published weights load by name. Positions are fixed.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768, depth=12, num_heads=12,
                 decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4.0, norm_pix_loss=False):
        super().__init__()
        check_heads(embed_dim, num_heads)
        check_heads(decoder_embed_dim, decoder_num_heads, "decoder_")
        self.img_size, self.patch_size, self.in_chans = as_pair(img_size), patch_size, in_chans
        self.grid = patch_grid(img_size, patch_size)
        self.norm_pix_loss, self.grad_checkpointing = norm_pix_loss, False
        self.patch_loss = PatchLoss(norm_pix_loss)

        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm, attn_layer=Attention)
            for _ in range(depth))
        self.norm = LayerNorm(embed_dim)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, qkv_bias=True, norm_layer=LayerNorm, attn_layer=Attention)
            for _ in range(decoder_depth))
        self.decoder_norm = LayerNorm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The patch embedding is a linear map of the flattened patch and starts as one, not as a convolution.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations within blocks and compute them again in the backward pass; timm's name for it."""
        self.grad_checkpointing = enable

    def _run(self, blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_seq(blocks, x)
        for block in blocks:
            x = block(x)
        return x

    def patchify(self, imgs: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, L, p * p * C), the channel running fastest."""
        N, C, H, W = imgs.shape
        if (C, H, W) != (self.in_chans, *self.img_size):
            raise ValueError(f"images of {C} x {H} x {W} (channels, height, width) given to a model built for "
                             f"{self.in_chans} x {self.img_size[0]} x {self.img_size[1]}")
        (h, w), p = self.grid, self.patch_size
        return imgs.reshape(N, C, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(N, h * w, p * p * C)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, L, p * p * C) -> (N, C, H, W)."""
        N = patches.shape[0]
        (h, w), p, C = self.grid, self.patch_size, self.in_chans
        return patches.reshape(N, h, w, p, p, C).permute(0, 5, 1, 3, 2, 4).reshape(N, C, h * p, w * p)

    def forward_encoder(self, patches: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
        """Encode the visible patches: patches (N, L, p * p * C), ids_keep (N, K) -> latent (N, 1 + K, D)."""
        N, K = ids_keep.shape
        visible = take(patches, ids_keep)
        # Embedding after the gather: removed patches cost nothing. Pixels go into the order of the convolution's weight, whose
        # gradient then lies in memory as the weight does.
        visible = visible.unflatten(2, (-1, self.in_chans)).transpose(2, 3).flatten(2)
        x = F.linear(visible, self.patch_embed.proj.weight.flatten(1), self.patch_embed.proj.bias)
        positions = self.pos_embed[0, 1:][ids_keep]  # (N, K, D)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(N, -1, -1)
        x = torch.cat([cls_token.to(x.dtype), x + positions], dim=1)
        return self.norm(self._run(self.blocks, x))

    def forward_decoder(self, latent: torch.Tensor, ids_keep: torch.Tensor, ids_removed: torch.Tensor,
                        removed_only: bool = False) -> torch.Tensor:
        """latent (N, 1 + K, D), ids (N, K) and (N, L - K) -> predicted patches (N, L, p * p * C) in image order.

        removed_only: predict the removed patches alone, (N, L - K, p * p * C), in the order of their ids.
        """
        x = self.decoder_embed(latent)
        N, removed = ids_removed.shape
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(N, removed, -1)], dim=1)
        # Attention knows no order but that of the positions: these are shuffled, and tokens need not be put in image order.
        ids = torch.cat([ids_keep, ids_removed], dim=1)
        positions = torch.cat([self.decoder_pos_embed[:, :1].expand(N, -1, -1), self.decoder_pos_embed[0, 1:][ids]], dim=1)
        x = self._run(self.decoder_blocks, x + positions)
        pred = self.decoder_pred(self.decoder_norm(x[:, -removed:] if removed_only else x[:, 1:]))
        return pred if removed_only else take(pred, ids.argsort(dim=1))

    def forward(self, imgs: torch.Tensor, mask_ratio: float = 0.75, noise: torch.Tensor | None = None,
                loss_only: bool = False):
        """imgs (N, C, H, W) normalised -> loss (scalar), prediction (N, L, p * p * C), mask (N, L) with 1 removed.

        noise (N, L) decides the mask; by default it is drawn from the device's generator. loss_only: return the loss alone,
        for training; nothing is predicted then that the loss does not count.
        """
        patches = self.patchify(imgs)
        if noise is None:
            noise = torch.rand(patches.shape[:2], device=imgs.device)
        ids_keep, ids_removed, mask = random_masking(noise, mask_ratio)
        pred = self.forward_decoder(self.forward_encoder(patches, ids_keep), ids_keep, ids_removed, removed_only=loss_only)
        target = take(patches, ids_removed)
        if loss_only:
            return self.patch_loss(target, pred)
        return self.patch_loss(target, take(pred, ids_removed)), pred, mask

    @torch.no_grad()
    def reconstruct(self, imgs: torch.Tensor, mask_ratio: float = 0.75, noise: torch.Tensor | None = None):
        """imgs (N, C, H, W) -> (reconstruction, mask), both (N, C, H, W) in the scale of `imgs`.

        Under norm_pix_loss the network predicts normalised patches; each is undone with the mean and deviation of the
        true patch, which a picture for the eye may know. Visible patches too are the network's; paste the true ones
        with torch.where(mask.bool(), reconstruction, imgs).
        """
        _, pred, mask = self(imgs, mask_ratio, noise)
        pred = pred.float()
        if self.norm_pix_loss:
            mean, std = patch_statistics(self.patchify(imgs).float())
            pred = pred * std + mean
        return self.unpatchify(pred), self.unpatchify(mask.unsqueeze(-1).expand_as(pred))


def patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, L, p * p * C) -> mean and deviation of each patch, (N, L, 1) each; 1e-6 keeps flat patches finite."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def build_mae(name: str, img_size=224, in_chans: int = 3, patch_size: int | None = None, embed_dim: int | None = None,
              depth: int | None = None, num_heads: int | None = None, **decoder) -> MaskedAutoencoderViT:
    """A model of `MODELS` by name, with overrides; `decoder` takes the remaining arguments of the class."""
    patch, dim, layers, heads = model_shape(MODELS, name, patch_size, embed_dim, depth, num_heads)
    return MaskedAutoencoderViT(img_size, patch, in_chans, dim, layers, heads, **decoder)
