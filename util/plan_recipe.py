"""What util/plan.py proposes: a network for a number and a size of images, how long it is trained, and with which flags.

Where the paper states a setting it is the paper's (Tables 9 and 10). What it leaves open, because it trains nothing so small
from scratch, is a rule of thumb that is said to be one.
"""
import shlex
from dataclasses import dataclass
from typing import NamedTuple

from models_mae import SIZES

# Median shorter side in pixels up to which pictures are given to the network at a size, and the patches that cut it.
INPUTS = ((40, 32, 4), (80, 64, 8), (160, 128, 16), (float("inf"), 224, 16))
# Images from which on a size is proposed: the paper's smallest set is ImageNet-LT with 115,846; what lies below is a guess.
RUNGS = (("demo", 0), ("tiny_patch16", 5_000), ("small_patch16", 20_000), ("base_patch16", 100_000))
DEMO = ("tiny_patch16", 96, 4, 3, (64, 2, 4))  # the network of recipes/embedded, half a million parameters
DECODERS = {"tiny_patch16": (256, 4, 8)}
PAPER_DECODER = (512, 8, 16)
FROM_SCRATCH = 100_000  # images from which on an encoder of one's own is proposed
# Epochs of stage 1 and 2 where time does not matter: the paper's, and for so few images that an epoch is a few steps.
PAPER_EPOCHS, FEW_EPOCHS, FEW_IMAGES = (800, 100), (400, 200), 50_000
LEAST = (10, 5)
WORTH = 0.25  # a larger network is taken where the time is enough for this share of its epochs
STEPS_AN_EPOCH = 25  # at least, where the paper's batches would leave fewer


@dataclass(frozen=True)
class Network:
    """A ViT for images of size (H, W): a row of models_mae.SIZES by name with patch size, width, depth and heads as they are,
    and the (width, depth, heads) of stage 1's decoder. small: with the settings of the demo's recipes, not the paper's."""

    name: str
    size: tuple[int, int]
    patch: int
    width: int
    depth: int
    heads: int
    decoder: tuple[int, int, int] = PAPER_DECODER
    small: bool = False

    @property
    def words(self) -> str:
        """The network for a person."""
        named = (self.width, self.depth, self.heads) == SIZES[self.name][1:]
        other = "a small ViT as the demo's" if self.small else "a ViT"
        kind = f"ViT-{self.name.split('_')[0].capitalize()}" if named else other
        return f"{kind}, {self.width} wide, {self.depth} blocks, patches of {self.patch} in {self.size[0]} x {self.size[1]}"

    @property
    def enlarged(self) -> bool:
        """Whether so small pictures are shown whole and shifted, instead of cropped out of larger ones."""
        return max(self.size) <= 64

    @property
    def augmentation(self) -> tuple[str, str | None, float]:
        """--train_crop, --aa and the smaller --scale of stage 2."""
        policy = None if self.small else "rand-m9-mstd0.5-inc1"
        return ("pad" if self.enlarged and self.small else "rrc"), policy, (0.2 if self.small else 0.08)

    @property
    def crop_pct(self) -> float:
        """Share of a picture's side that an evaluation sees."""
        return 1.0 if self.enlarged else 0.875

    def flags(self, prefix: str) -> list[list]:
        """--model and what differs from its row, for names that begin with `prefix`."""
        patch, width, depth, heads = SIZES[self.name]
        named = {"patch_size": (self.patch, patch), "embed_dim": (self.width, width), "depth": (self.depth, depth),
                 "num_heads": (self.heads, heads)}
        return [["--input_size", *dict.fromkeys(self.size)], ["--model", f"{prefix}{self.name}"],
                *(["--" + flag, own] for flag, (own, row) in named.items() if own != row)]


class Length(NamedTuple):
    """Epochs and images a step of the two stages, and how often the second is scored."""

    epochs: tuple[int, int]
    batches: tuple[int, int]
    evaluations: int


def networks(side: float, images: int) -> list[Network]:
    """What may be trained from scratch on so many images of a median shorter side in pixels, the smallest first."""
    size, patch = next((size, patch) for most, size, patch in INPUTS if side <= most)
    found = []
    for name, least in RUNGS:
        if images >= least and name == "demo":
            row, width, depth, heads, decoder = DEMO
            # A quarter of the side, as in the demo, keeps attention cheap; no more than 32, which is coarse already.
            found.append(Network(row, (size, size), min(size // 4, 32), width, depth, heads, decoder, small=True))
        elif images >= least:
            found.append(Network(name, (size, size), patch, *SIZES[name][1:], DECODERS.get(name, PAPER_DECODER)))
    return found


def batches(network: Network, images: int) -> tuple[int, int]:
    """Images of a step in the two stages: the paper's 4096 and 1024, less where an epoch would have too few steps."""
    if network.small:
        return 64, 64
    most = 64
    while 2 * most * STEPS_AN_EPOCH <= images and most < 4096:
        most *= 2
    return most, min(most, 1024)


def longest(images: int) -> tuple[int, int]:
    """Epochs of the two stages where time does not matter."""
    return FEW_EPOCHS if images < FEW_IMAGES else PAPER_EPOCHS


def length(network: Network, images: int, share: float, first_stage: bool) -> Length:
    """How long to train with this share, at most 1, of all epochs; without first_stage none of them is stage 1's."""
    epochs = [max(least, int(share * most)) for least, most in zip(LEAST, longest(images), strict=True)]
    if not first_stage:
        epochs[0] = 0
    return Length(tuple(epochs), batches(network, images), min(10, epochs[1]))


def advice(images: int, start: str | None) -> str:
    """Whether to start from scratch or from an encoder that is there, at this number of images, and why."""
    paper = "the paper trains encoders of its own on 115,846 images and more (ImageNet-LT, iNat18)"
    other = "and on the 62,500 of Places-LT and on CIFAR starts from one of ImageNet-1K (Tables 4 and 7)"
    if start:
        return f"from {start}, without stage 1: {paper} {other}" + (
            f"; with your {images:,} one of your own is worth a comparison, which the plan without --finetune is"
            if images >= FROM_SCRATCH else f", and you have {images:,}")
    if images >= FROM_SCRATCH:
        return f"from scratch, both stages on your {images:,} images: {paper}"
    return (f"better from an existing MAE encoder: you have {images:,} images, {paper} {other}. Give --finetune CKPT, such as "
            "MAE's published mae_pretrain_vit_base.pth, for a plan with one. What follows is from scratch, which needs no "
            "file; do not expect it far above the floor")


def recipe(data: dict, network: Network, plan: Length, batch_size: int) -> dict[str, list[list]]:
    """The flags of {"pretrain": ..., "finetune": ...}, each with its values; data: those of the images, by name."""
    crop, policy, scale = network.augmentation
    common = [[f"--{name}", *value] if isinstance(value, list) else [f"--{name}", value] for name, value in data.items()
              if name not in ("split", "val_fraction")]
    size = [["--train_crop", crop]]

    def steps(stage: int) -> list[list]:
        batch = min(batch_size, plan.batches[stage])
        lines = [["--batch_size", batch], ["--effective_batch_size", plan.batches[stage]], ["--epochs", plan.epochs[stage]],
                 ["--warmup_epochs", round(plan.epochs[stage] * (0.05, 0.1)[stage], 2)]]
        return lines + ([["--lr", 2e-3]] if network.small else [["--blr", (1.5e-4, 1e-3)[stage]]])

    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    first = [*common, *network.flags("mae_vit_"), *([f"--{name}", n] for name, n in zip(names, network.decoder, strict=True)),
             ["--norm_pix_loss"], ["--mask_ratio", 0.75], *size, ["--scale", 0.2, 1], *steps(0)]
    second = [*common, *([f"--{name}", data[name]] for name in ("split", "val_fraction") if name in data),
              *network.flags("vit_"), ["--loss", "bal_bce"], ["--head_bias", "prior"], *size, ["--scale", scale, 1],
              ["--crop_pct", network.crop_pct], ["--aa", policy or "none"], *steps(1), ["--min_lr", 1e-6],
              ["--eval_every", -(-plan.epochs[1] // plan.evaluations)]]
    second += [["--layer_decay", 0.85], ["--drop_path", 0], ["--smoothing", 0], ["--reprob", 0]] if network.small else [
        ["--layer_decay", 0.75], ["--drop_path", 0.1], ["--smoothing", 0.1], ["--reprob", 0.25], ["--mixup", 0.8],
        ["--cutmix", 1], ["--opt_betas", 0.9, 0.99]]
    return {"pretrain": first, "finetune": second}


def text(title: str, flags: list[list]) -> str:
    """The file of a recipe: comment lines, then one flag a line, quoted as the parser reads it."""
    lines = [f"# {line}" for line in title.splitlines()]
    return "\n".join([*lines, *(" ".join(shlex.quote(str(word)) for word in flag) for flag in flags)]) + "\n"
