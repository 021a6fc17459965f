"""From a picture to the uint8 tensor that workers hand over; conversion to float and erasing happen on the device.

A picture is a PIL image or a (C, H, W) uint8 tensor, channels last in memory. Both go through the same steps with the same
draws; PIL resizes the one, torch the other, and the results differ by rounding.
"""
from collections.abc import Callable

import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from datasets.decode import to_tensor
from datasets.imageset import Record

BICUBIC = InterpolationMode.BICUBIC
Picture = Image.Image | torch.Tensor


def channels_last(pixels: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> the same, lying in memory as (H, W, C), which torch resizes fastest and PIL takes as it is."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def to_uint8(image: Picture) -> torch.Tensor:
    """Picture -> (C, H, W) uint8."""
    return (image if isinstance(image, torch.Tensor) else to_tensor(image)).contiguous()


def to_pil(image: Picture) -> Image.Image:
    """Picture -> PIL image, mode "L" or "RGB"."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray((channels_last(image).permute(1, 2, 0) if len(image) == 3 else image[0]).numpy())


class CoverResize:
    """Resize so that the image just covers (H, W) / crop_pct, keeping its shape; the crop then takes the middle."""

    def __init__(self, size: tuple[int, int], crop_pct: float = 1.0):
        self.size, self.crop_pct = size, crop_pct

    def __call__(self, image: Picture) -> Picture:
        height, width = image.shape[1:] if isinstance(image, torch.Tensor) else image.size[::-1]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop_pct
        target = [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])]
        return F.resize(image, target, BICUBIC)


class Steps:
    """One callable after the other."""

    def __init__(self, *steps: Callable):
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


class RandomResizedCrop:
    """torchvision's, with its draws, but without the cost of a v2 transform around them (a tenth of a sample's time).

    A crop that reaches beyond twice the output is not decoded at reduced scale (Pillow's draft): it would take a fifth to
    a third off the time of such files, and the pictures would differ by 1.6 to 1.8 of 255 in the mean instead of 0.02.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]):
        self.size, self.draw = list(size), v2.RandomResizedCrop(size, scale=scale).make_params

    def __call__(self, image: Picture) -> Picture:
        top, left, height, width = map(self.draw([image]).get, ("top", "left", "height", "width"))
        if isinstance(image, Image.Image):
            return F.resized_crop(image, top, left, height, width, self.size, BICUBIC)
        return F.resize(channels_last(image[:, top:top + height, left:left + width]), self.size, BICUBIC)


class RandomFlip:
    """torchvision's RandomHorizontalFlip; see `RandomResizedCrop`."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, image: Picture) -> Picture:
        if torch.rand(1).item() >= self.p:
            return image
        # Torch flips rows that lie in one piece many times faster.
        return F.horizontal_flip(image) if isinstance(image, Image.Image) else image.contiguous().flip(-1)


def train_crop(kind: str, size: tuple[int, int], scale: tuple[float, float]) -> list[Callable]:
    """rrc: RandomResizedCrop, bicubic; pad: shifts by up to an eighth, black outside; none: resize to cover, middle."""
    if kind == "rrc":
        return [RandomResizedCrop(size, scale)]
    cover = [CoverResize(size), v2.CenterCrop(size)]
    if kind == "none":
        return cover
    if kind == "pad":
        return [*cover, v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8])]
    raise ValueError(f"unknown --train_crop {kind!r}; known: rrc, pad, none")


def train_transform(size: tuple[int, int], record: Record, crop: str = "rrc", scale: tuple[float, float] = (0.2, 1.0),
                    hflip: float = 0.5, auto_augment: str | None = None, color_jitter: float = 0.0) -> Callable:
    """Picture -> (C, H, W) uint8, augmented: crop, flip, then on PIL timm's policy where `auto_augment` names one, and colour
    jitter of that strength.

    Draws from the global generators; the caller seeds them.
    """
    steps = train_crop(crop, size, scale)
    if hflip:
        steps.append(RandomFlip(hflip))
    colours = [named_policy(auto_augment, size, record)] if auto_augment else []
    if color_jitter:
        colours.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    if colours:  # one conversion, of the small image
        steps = [steps[0], to_pil, *steps[1:], *colours]
    return Steps(*steps, to_uint8)


def named_policy(name: str, size: tuple[int, int], record: Record) -> Callable:
    """PIL image -> PIL image by `3aug`, one of grey, solarised at half and blurred by up to two pixels (Touvron et al., "DeiT
    III", ECCV 2022), or by a RandAugment string.
    """
    return auto_augment_transform("3a", {}) if name == "3aug" else rand_augment(name, size, record)


def rand_augment(config: str, size: tuple[int, int], record: Record) -> Callable:
    """timm's RandAugment by its string, such as rand-m9-mstd0.5-inc1, filling with the data's mean colour."""
    mean = tuple(min(255, round(255 * m)) for m in record.mean)
    try:
        augment = rand_augment_transform(config, {"translate_const": int(min(size) * 0.45),
                                                  "img_mean": mean if len(mean) == 3 else mean[0]})
    except (AssertionError, ValueError, KeyError):
        raise ValueError(f"--aa {config!r} is no RandAugment string: expected rand-m9-mstd0.5-inc1 or alike, 3aug or "
                         "none") \
            from None
    for op in augment.ops:
        if op.name.startswith("Posterize") and op.level_fn is not None:
            op.level_fn = at_least_one_bit(op.level_fn)
    return augment


def at_least_one_bit(level_fn: Callable) -> Callable:
    """At magnitude 10, which the noise of mstd0.5 reaches, timm posterizes to 0 bits: a black image with old versions of
    Pillow, an exception in the middle of an epoch with new ones."""
    def level(magnitude: float, hparams: dict) -> tuple[int]:
        return (max(1, *level_fn(magnitude, hparams)),)
    return level


def eval_transform(size: tuple[int, int], crop_pct: float) -> Callable:
    """Picture -> (C, H, W) uint8: resize to cover size / crop_pct, then the middle."""
    return Steps(CoverResize(size, crop_pct), v2.CenterCrop(size), to_uint8)


class Normalize:
    """(N, C, H, W) uint8 -> float32, (x / 255 - mean) / std by channel, on the images' device."""

    def __init__(self, record: Record, device: torch.device):
        mean, std = torch.tensor(record.mean, device=device), torch.tensor(record.std, device=device)
        # x / 255 / std - mean / std in one multiplication and one addition.
        self.factor = (1 / (255 * std)).view(1, -1, 1, 1)
        self.offset = (-mean / std).view(1, -1, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.factor.dtype).mul_(self.factor).add_(self.offset)

    def undo(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) normalised -> pixels in [0, 1], clipped."""
        return ((images - self.offset) / (self.factor * 255)).clamp(0, 1)
