"""What benchmarks.step times: the sizes, what a step of them must compute, this project's step and the others'."""
import functools
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2

from models_mae import MODELS, build_mae
from models_vit import build_vit
from util.losses import build_loss
from util.lr import param_groups
from util.precision import choose_attention, compile_blocks
from util.setup import choose_device
from util.steps import Stepper, build_optimizer

MASK_RATIO = 0.75
TYPES = {"bf16": torch.bfloat16, "fp32": None}
OURS, COMPILED, CHECKPOINTED = "ours", "ours, compiled", "ours, recomputed"
OTHERS = {1: "transformers", 2: "timm"}
PLAIN = "timm, plain attention"


@dataclass(frozen=True)
class Size:
    """One row of the table: a model's shape, and the batches that it is timed with."""

    model: str
    img_size: int
    patch_size: int
    cpu_batch: int
    gpu_batch: int
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    decoder: tuple[int, int, int] = (512, 8, 16)
    in_chans: int = 3
    classes: int = 1000

    @property
    def shape(self) -> dict:
        return dict(img_size=self.img_size, patch_size=self.patch_size, in_chans=self.in_chans, embed_dim=self.embed_dim,
                    depth=self.depth, num_heads=self.num_heads)

    @property
    def decoder_shape(self) -> dict:
        return dict(zip(("decoder_embed_dim", "decoder_depth", "decoder_num_heads"), self.decoder, strict=True))


SIZES = {
    "demo": Size("tiny_patch16", 28, 7, 64, 64, 96, 4, 3, (64, 2, 4), 1, 10),
    "tiny_32": Size("tiny_patch16", 32, 4, 16, 1024),
    "base_224": Size("base_patch16", 224, 16, 8, 256),
    "large_224": Size("large_patch16", 224, 16, 2, 128),
}


def timed_device(name: str) -> torch.device:
    """--device, where it is one whose work the benchmarks wait for and whose memory they read. Raises ValueError otherwise."""
    if name.partition(":")[0] in ("mps", "xpu"):
        raise ValueError(f"--device {name}: steps are timed on cpu and cuda only: use --device auto")
    return choose_device(name)


def block_flops(tokens: int, dim: int) -> int:
    """Multiplications and additions of one transformer block's matrix products, forward, for a sequence."""
    return 2 * tokens * 12 * dim * dim + 4 * tokens * tokens * dim


def step_flops(size: Size, stage: int) -> int:
    """Operations of one training step for one image: three times the forward pass of what the method needs.

    Stage 1 embeds and encodes the visible patches, decodes all, predicts the removed ones.
    """
    _, dim, depth, _ = MODELS[f"mae_vit_{size.model}"]
    dim, depth = size.embed_dim or dim, size.depth or depth
    L, pixels = (size.img_size // size.patch_size) ** 2, size.patch_size ** 2 * size.in_chans
    if stage == 2:
        return 3 * (2 * L * pixels * dim + depth * block_flops(L + 1, dim) + 2 * dim * size.classes)
    kept, (width, layers, _) = round(L * (1 - MASK_RATIO)), size.decoder
    return 3 * (2 * kept * pixels * dim + depth * block_flops(kept + 1, dim) + 2 * (kept + 1) * dim * width
                + layers * block_flops(L + 1, width) + 2 * (L - kept) * width * pixels)


def our_step(size: Size, stage: int, device: torch.device, amp, compiled: bool = False, checkpointed: bool = False) -> Callable:
    """This project's step, with --compile and --grad_checkpointing or without."""
    torch.manual_seed(0)
    if stage == 1:
        model = build_mae(f"mae_vit_{size.model}", **size.shape, **size.decoder_shape, norm_pix_loss=True)
    else:
        model = build_vit(f"vit_{size.model}", size.classes, **size.shape)
        criterion = build_loss("bal_bce", [1280 - k for k in range(size.classes)]).to(device)
    choose_attention(model, device, amp)
    model = model.to(device).train()
    model.set_grad_checkpointing(checkpointed)
    if compiled:
        compile_blocks(model)
    stepper = Stepper(model, build_optimizer(param_groups(model, 0.05), 1e-4, (0.9, 0.95)), device, amp)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with stepper.autocast():
            loss = model(images, MASK_RATIO, loss_only=True) if stage == 1 else criterion(model(images), targets)
        stepper.backward(loss, 1.0)
        stepper.step(len(images))
    return step


def vit_mae(size: Size, device: torch.device, amp, compiled: bool = False) -> Callable:
    """The step of transformers' ViTMAEForPreTraining of the same shape, with torch's fused AdamW."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    _, dim, depth, heads = MODELS[f"mae_vit_{size.model}"]
    dim, (width, layers, decoder_heads) = size.embed_dim or dim, size.decoder
    model = ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=dim, num_hidden_layers=size.depth or depth, num_attention_heads=size.num_heads or heads,
        intermediate_size=4 * dim, image_size=size.img_size, patch_size=size.patch_size, num_channels=size.in_chans,
        decoder_hidden_size=width, decoder_num_hidden_layers=layers, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * width, mask_ratio=MASK_RATIO, norm_pix_loss=True)).to(device).train()
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step(images: torch.Tensor, _targets: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def timm_vit(size: Size, device: torch.device, amp, compiled: bool = False, plain: bool = False) -> Callable:
    """The step of timm's own model of the same shape as its training script does it: its BCE and its AdamW.

    plain: without torch's fused attention kernel, as TIMM_FUSED_ATTN=0 has it.
    """
    overrides = {name: value for name, value in size.shape.items() if value is not None}
    model = timm.create_model(f"vit_{size.model}_224", num_classes=size.classes, global_pool="avg", **overrides)
    model = model.to(device).train()
    for module in model.modules() if plain else ():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    if compiled:
        model.compile()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    criterion = BinaryCrossEntropy(smoothing=0.0)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            loss = criterion(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


@dataclass(frozen=True)
class Case:
    """What stands side by side: one size, stage, number type and device."""

    name: str
    size: Size
    stage: int
    word: str  # of TYPES
    device: torch.device

    @property
    def amp(self) -> torch.dtype | None:
        return TYPES[self.word]

    @property
    def other(self) -> str:
        return OTHERS[self.stage]

    @property
    def other_compiled(self) -> str:
        return f"{self.other}, compiled"

    def contestants(self, compiled: bool, checkpointed: bool) -> list[str]:
        """Who takes part; the first is the other's, which ratios are taken to."""
        plain = [PLAIN] if self.stage == 2 and self.device.type == "cpu" else []
        return [self.other, *plain, OURS, *[self.other_compiled, COMPILED] * compiled,
                *[CHECKPOINTED] * checkpointed]

    def build(self, who: str) -> Callable:
        """A contestant's step, (images, targets) -> None."""
        theirs = functools.partial(vit_mae if self.stage == 1 else timm_vit, self.size, self.device, self.amp)
        ours = functools.partial(our_step, self.size, self.stage, self.device, self.amp)
        return {self.other: theirs, self.other_compiled: functools.partial(theirs, compiled=True),
                PLAIN: functools.partial(theirs, plain=True), OURS: ours, COMPILED: functools.partial(ours, compiled=True),
                CHECKPOINTED: functools.partial(ours, checkpointed=True)}[who]()

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, and targets as mixing makes them."""
        size, device = self.size, self.device
        images = torch.randn(batch, size.in_chans, size.img_size, size.img_size, device=device)
        targets, rows = torch.zeros(batch, size.classes, device=device), torch.arange(batch)
        targets[rows, rows % size.classes] = 0.7
        targets[rows, (rows * 7 + 1) % size.classes] += 0.3
        return images, targets
