"""Learning rates: scaling, schedule, and the parameter groups of layer-wise decay."""
import math
from dataclasses import dataclass

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def scale_lr(blr: float, effective_batch_size: int) -> float:
    """The linear rule of Goyal et al. (2017), as MAE states it: lr = base lr * effective batch / 256."""
    return blr * effective_batch_size / 256


def lr_at(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float, warmup_lr: float = 0.0) -> float:
    """Learning rate at a fractional epoch: linear from warmup_lr over the warm-up, then half a cosine from lr to min_lr."""
    if epoch < warmup_epochs:
        return warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """The schedule of one run: its peak and last rate, its warm-up, its length in epochs and its first rate."""

    lr: float
    min_lr: float
    warmup_epochs: float
    epochs: float
    warmup_lr: float = 0.0

    def at(self, epoch: float) -> float:
        """Rate at a fractional epoch."""
        return lr_at(epoch, self.lr, self.min_lr, self.warmup_epochs, self.epochs, self.warmup_lr)


def set_lr(optimizer, lr: float) -> None:
    """Set every group to lr times the group's `lr_scale` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Every trainable parameter once, biases and other 1-D parameters without weight decay.

    With layer_decay the group of layer i of n carries lr_scale = layer_decay^(n - i): embeddings are layer 0, block j
    is layer j + 1, the head is layer n (Clark et al., 2020; Bao et al., 2022), and the names that the model lists in
    `no_weight_decay()` are exempt too.
    """
    if layer_decay is None:
        return param_groups_weight_decay(model, weight_decay)
    return param_groups_layer_decay(model, weight_decay, model.no_weight_decay(), layer_decay=layer_decay)
