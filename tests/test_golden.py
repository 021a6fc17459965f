"""The first losses of both stages, which a refactoring must reproduce.

    UPDATE_GOLDEN=1 make test TESTS=tests/test_golden.py      writes them anew; say in the commit why they changed
"""
import json
import os
from pathlib import Path

import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

import engine_finetune
import engine_pretrain
from datasets import embedded
from datasets.imageset import ArrayImages, Record
from datasets.loading import train_loader
from datasets.transforms import Normalize
from models_mae import build_mae
from models_vit import build_vit, load_encoder
from util.losses import build_loss
from util.lr import Schedule, param_groups
from util.seed import seed_everything
from util.steps import Stepper, StepPlan, build_optimizer

FILE = Path(__file__).parent / "golden" / "first_losses.json"
SHAPE = dict(img_size=28, in_chans=1, patch_size=7, embed_dim=48, depth=2, num_heads=3)
CPU = torch.device("cpu")


class Recorder(Stepper):
    """A stepper that keeps the loss and the gradient norm of every step."""

    def step(self, samples):
        self.seen = [*getattr(self, "seen", []), self.step_loss.item()]
        super().step(samples)


@pytest.fixture(scope="module")
def images():
    pixels, labels, ids = embedded.load("train")
    keep = slice(0, 150)
    record = Record((embedded.MEAN,), (embedded.STD,))
    return ArrayImages(pixels[keep], labels[keep], embedded.CLASS_NAMES, record, ids[keep], "golden")


def prepare(model, groups, fused):
    kernels = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert len(kernels) == len(model.blocks) + len(getattr(model, "decoder_blocks", ()))
    for module in kernels:
        module.fused_attn = fused
    optimizer = build_optimizer(groups, 1e-3, (0.9, 0.95))
    return Recorder(model, optimizer, CPU), StepPlan(150, 16, 2), Schedule(1e-3, 0, 1, 3)


def pretrain(images, fused, epochs=2):
    seed_everything(0)
    model = build_mae("mae_vit_tiny_patch16", **SHAPE, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2,
                      norm_pix_loss=True)
    stepper, plan, schedule = prepare(model, param_groups(model, 0.05), fused)
    normalize = Normalize(images.record, CPU)
    loader = train_loader(images, (28, 28), 16, seed=0)
    for epoch in range(epochs):
        engine_pretrain.train_one_epoch(loader, normalize, stepper, plan, schedule, epoch, 0.75, seed=0)
    return model, stepper.seen


def finetune(images, encoder, loss, fused):
    seed_everything(0)
    model = build_vit("vit_tiny_patch16", 10, drop_path=0.1, **SHAPE)
    load_encoder(model, encoder.state_dict())
    # Which draws the head starts from depends on how many timm has made before, and so on its version.
    model.head.weight.data = 2e-5 * torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0))
    stepper, plan, schedule = prepare(model, param_groups(model, 0.05, 0.75), fused)
    loader = train_loader(images, (28, 28), 16, seed=0, auto_augment="rand-m9-mstd0.5-inc1")
    targets = engine_finetune.Targets(10, 0.1, Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=10))
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    criterion = build_loss(loss, images.class_counts + 1)  # 150 images may miss a class
    for epoch in range(2):
        engine_finetune.train_one_epoch(criterion, loader, Normalize(images.record, CPU), erase, targets, stepper,
                                        plan, schedule, epoch, seed=0)
    return stepper.seen


@pytest.mark.parametrize("fused", [True, False])
def test_first_losses_are_those_of_the_golden_file(images, fused):
    """With torch's fused attention kernel, and with the plain products that choose_attention takes for so few patches."""
    model, losses = pretrain(images, fused)
    found = {"pretrain": losses, **{name: finetune(images, model, name, fused) for name in ("ce", "bal_ce", "bce", "bal_bce")}}
    if os.environ.get("UPDATE_GOLDEN") and fused:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(FILE.read_text())
    assert set(found) == set(golden)
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
        assert len(values) == 10
