"""Every training flag changes what is trained, the loss gets its counts in label order, and mixing keeps its shares."""
import json

import pytest
import torch
from timm.data.mixup import Mixup

from engine_finetune import Targets
from util import args_finetune
from util.checkpoint import load_checkpoint
from util.losses import LOSSES

pytestmark = pytest.mark.usefixtures("no_pictures")
BASE = ["--epochs", 1, "--warmup_epochs", 0, "--mixup", .8, "--cutmix", 1, "--clip_grad", 5, "--head_bias", "prior",
        "--loss", "bal_bce", "--recount", 2]


@pytest.fixture(scope="module")
def weights(finetune, encoder, tmp_path_factory):
    """weights(*flags) -> state dict after one epoch of stage 2 from the shared encoder."""
    def run(*flags):
        folder = tmp_path_factory.mktemp("flags") / "run"
        finetune(folder, "--finetune", encoder, *BASE, *flags)
        return load_checkpoint(folder / "last.pth")["model"]
    return run


@pytest.fixture(scope="module")
def plain(weights):
    return weights()


@pytest.mark.parametrize("flags", [
    ["--layer_decay", 1], ["--drop_path", .5], ["--smoothing", .3], ["--clip_grad", .01], ["--weight_decay", .5],
    ["--lr", 2e-3], ["--min_lr", 5e-4], ["--opt_betas", .5, .9], ["--warmup_epochs", .5], ["--hflip", 0],
    ["--scale", .9, 1], ["--train_crop", "pad"], ["--aa", "none"], ["--reprob", 1], ["--remode", "const"],
    ["--recount", 1], ["--mixup", 0], ["--cutmix", 0], ["--cutmix_minmax", .2, .3], ["--mixup_prob", .2],
    ["--mixup_switch_prob", 1], ["--mixup_mode", "elem"], ["--tau", .5], ["--test_prior", "none"], ["--head_bias", "zero"],
    ["--loss", "bal_ce"], ["--batch_size", 16], ["--accum_iter", 2], ["--effective_batch_size", 16], ["--seed", 1],
    ["--cls_token"], ["--sampler", "sqrt", "--prior", "data"], ["--loss_args", "class_weights=[1,2,3]"],
    ["--amp", "bf16"], ["--loader", "pil"], ["--opt", "lamb"], ["--warmup_epochs", .5, "--warmup_lr", 1e-3], ["--aa", "3aug"],
    ["--color_jitter", .4], ["--repeated_aug", 3], ["--head_std", .02]], ids=lambda flags: " ".join(map(str, flags)))
def test_a_flag_of_stage_2_changes_the_weights(weights, plain, flags):
    changed = weights(*flags)
    assert any(key not in changed or not torch.equal(plain[key], changed[key]) for key in plain)


@pytest.mark.parametrize("flags", [
    ["--mask_ratio", .5], ["--norm_pix_loss"], ["--decoder_num_heads", 1], ["--opt_betas", .5, .9], ["--clip_grad", .01],
    ["--weight_decay", .5], ["--min_lr", 5e-4], ["--hflip", 0], ["--scale", .9, 1], ["--accum_iter", 2], ["--opt", "lamb"]],
    ids=lambda flags: " ".join(map(str, flags)))
def test_a_flag_of_stage_1_changes_the_weights(pretrain, tmp_path, flags):
    base = ["--model", "mae_vit_tiny_patch16", "--epochs", 1, "--warmup_epochs", 0]
    pretrain(tmp_path / "a", *base)
    pretrain(tmp_path / "b", *base, *flags)
    a, b = (load_checkpoint(tmp_path / name / "last.pth")["model"] for name in "ab")
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_no_clipping_is_no_clipping(weights, plain):
    large, none = weights("--clip_grad", 1e9), weights("--clip_grad", 0)
    assert all(torch.equal(large[key], none[key]) for key in large)
    start = weights("--lr", 0, "--min_lr", 0)
    assert not torch.equal(none["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])  # gradients were not zeroed


EVERY_LOSS = [[name] for name in LOSSES] + [["ib", "--loss_args", "warmup_epochs=0"], ["ldam", "--loss_args", "drw_epoch=0"]]


@pytest.mark.parametrize("mixing", [[], ["--mixup", .8, "--cutmix", 1]], ids=["plain", "mixed"])
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=" ".join)
def test_every_loss_trains_an_epoch(finetune, tmp_path, loss, mixing):
    finetune(tmp_path / "run", "--epochs", 1, "--warmup_epochs", 0, "--loss", *loss, *mixing)
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert record["skipped_steps"] == 0 and record["train_loss"] > 0 and record["grad_norm"] > 0


def test_the_loss_gets_the_counts_of_the_training_images_in_label_order(finetune, tmp_path, monkeypatch):
    seen = []
    build = args_finetune.build_loss
    monkeypatch.setattr(args_finetune, "build_loss", lambda name, counts, **options: (
        seen.append([*map(float, counts)]), build(name, counts, **options))[1])
    finetune(tmp_path / "run", "--epochs", 1, "--warmup_epochs", 0)
    assert seen == [[24.0, 12.0, 5.0]]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 6, 7])
def test_targets_are_the_shares_of_the_pixels(mode, smoothing, n):
    """Images that are one-hot in their channels: the mixed target must be the mean pixel."""
    labels = torch.arange(n) % 5
    images = torch.nn.functional.one_hot(labels, 5).float()[:, :, None, None].expand(n, 5, 8, 8).contiguous()
    mixup = Mixup(0.8, 1.0, prob=1.0, mode=mode, label_smoothing=smoothing, num_classes=5)
    for _ in range(10):
        mixed, targets = Targets(5, smoothing, mixup)(images.clone(), labels)
        expected = mixed.mean((2, 3)) * (1 - smoothing) + smoothing / 5
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=1e-5)
        if n % 2:
            assert torch.equal(mixed[-1], images[-1])


def test_targets_without_mixing():
    images, labels = torch.zeros(3, 1, 2, 2), torch.tensor([0, 2, 1])
    assert Targets(3)(images, labels)[1] is labels
    smooth = Targets(3, 0.3)(images, labels)[1]
    torch.testing.assert_close(smooth, torch.eye(3)[labels] * 0.7 + 0.1)
