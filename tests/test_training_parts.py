"""What the baselines are trained with: LAMB, 3-Augment, colour jitter, repeated augmentation, LayerScale, a warm-up's start."""
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import main_finetune
from datasets.imageset import ArrayImages, Record
from datasets.loading import train_loader
from datasets.sampling import repeat_draws
from datasets.transforms import to_pil, train_transform
from models_vit import build_vit, load_encoder, load_resampled
from util.checkpoint import load_checkpoint
from util.lr import Schedule, lr_at
from util.report_groups import group_runs
from util.report_pictures import encoders
from util.report_runs import read_runs
from util.seed import seeded
from util.start import start_weights
from util.steps import Stepper, build_optimizer
from util.trained import load_classifier_model

RECORD = Record((0.3,) * 3, (0.2,) * 3)
SMALL = dict(patch_size=4, embed_dim=32, depth=2, num_heads=2)


def lamb_by_hand(weights, gradients, lr, betas, decay, eps=1e-6):
    """LAMB as You et al. print it (Algorithm 2), with the norm itself as phi; decay 0 takes plain Adam steps."""
    w, m, v = weights.clone().double(), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        g = g.double()
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        update = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps) + decay * w
        w = w - lr * (w.norm() / update.norm() if decay else 1) * update
    return w


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lamb_takes_the_papers_steps_and_clips_nothing_itself(decay):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(5, 7))
    start, gradients = w.detach().clone(), 100 * torch.randn(4, 5, 7)
    optimizer = build_optimizer([{"params": [w], "weight_decay": decay}], 3e-2, (0.9, 0.98), "lamb")
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
    expected = lamb_by_hand(start, gradients, 3e-2, (0.9, 0.98), decay)
    torch.testing.assert_close(w.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_lamb_goes_on_from_a_checkpoint(tmp_path):
    gradients = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))

    def steps(w, optimizer, some):
        for gradient in some:
            w.grad = gradient.clone()
            optimizer.step()

    def fresh(value):
        w = torch.nn.Parameter(value.clone())
        return w, build_optimizer([{"params": [w], "weight_decay": 0.1}], 3e-2, (0.9, 0.98), "lamb")

    whole, first = fresh(torch.ones(5, 7)), fresh(torch.ones(5, 7))
    steps(*whole, gradients)
    steps(*first, gradients[:2])
    torch.save(first[1].state_dict(), tmp_path / "state.pth")
    second = fresh(first[0].detach())
    second[1].load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    steps(*second, gradients[2:])
    assert torch.equal(whole[0], second[0])


@pytest.mark.parametrize("amp", [None, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_lamb_skips_a_step_that_is_not_finite(bad_step, amp):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    stepper = Stepper(model, build_optimizer(groups, 1e-2, (0.9, 0.95), "lamb"), torch.device("cpu"), amp)

    def state():
        moments = [t.clone() for s in stepper.optimizer.state.values() for t in (s["exp_avg"], s["exp_avg_sq"])]
        return [p.detach().clone() for p in model.parameters()], moments

    for step in range(4):
        before, moments = state()
        x = torch.full((2, 4), float("nan") if step == bad_step else 1.0 + step)
        stepper.backward(model(x).square().mean(), 1.0)
        stepper.step(2)
        after, moments_after = state()
        if step != bad_step:
            assert not torch.equal(before[0], after[0]) and all(t.isfinite().all() for t in after)
        else:
            assert all(map(torch.equal, before, after))
            zeros = [torch.zeros_like(t) for t in moments_after]
            assert len(moments_after) == 4 and all(map(torch.equal, moments or zeros, moments_after))
    assert stepper.read("")["skipped_steps"] == 1


def test_3_augment_takes_one_of_grey_solarised_and_blurred():
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    transform = train_transform((24, 24), RECORD, "none", hflip=0, auto_augment="3aug")
    grey, solarised = (np.asarray(image) for image in (picture.convert("L").convert("RGB"), ImageOps.solarize(picture, 128)))
    seen = {"grey": 0, "solarised": 0, "blurred": 0}
    for i in range(300):
        with seeded(i):
            found = np.asarray(to_pil(transform(picture)))
        if np.abs(found.astype(int) - grey).max() <= 1:
            seen["grey"] += 1
        elif (found == solarised).all():
            seen["solarised"] += 1
        else:  # a mean over neighbours: the same brightness, less contrast
            assert found.std() <= np.asarray(picture).std() and abs(found.mean() - np.asarray(picture).mean()) < 3
            seen["blurred"] += 1
    assert sum(seen.values()) == 300 and min(seen.values()) > 70, seen  # 100 each, deviation 8


def test_colour_jitter_stays_in_its_range_and_follows_the_seed():
    picture = Image.new("RGB", (8, 8), (100, 100, 100))  # only the brightness can change
    transform = train_transform((8, 8), RECORD, "none", hflip=0, color_jitter=0.3)
    levels = []
    for i in range(100):
        with seeded(i):
            levels.append(int(transform(picture)[0, 0, 0]))
    assert 69 <= min(levels) < 75 and 125 < max(levels) <= 130
    with seeded(7):
        assert int(transform(picture)[0, 0, 0]) == levels[7]


@pytest.mark.parametrize("channels", [1, 3])
def test_both_work_on_grey_and_colour(channels):
    shape = (6, 12, 12) if channels == 1 else (6, 12, 12, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = ArrayImages(pixels, np.arange(6), list("abcdef"), Record((0.3,) * channels, (0.2,) * channels), np.arange(6), "x")
    loader = train_loader(images, (12, 12), 6, 0, crop="pad", auto_augment="3aug", color_jitter=0.3, num_workers=0)
    (batch, _), = loader
    assert batch.shape == (6, channels, 12, 12) and batch.dtype == torch.uint8


@pytest.mark.parametrize("n, times", [(12, 3), (13, 3), (5, 1), (2, 4)])
def test_repeats_keep_the_length_and_stand_side_by_side(n, times):
    order = np.random.default_rng(0).permutation(n)
    found = repeat_draws(order, times)
    assert found.tolist() == [order[i // times] for i in range(n)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_copies_of_an_image_are_augmented_apart_and_follow_the_order_of_the_epoch(numbered, in_memory):
    crop = "pad" if in_memory else "rrc"

    def epoch(repeats, number):
        loader = train_loader(numbered, (8, 8), 6, 3, crop, num_workers=0, repeats=repeats)
        loader.batch_sampler.set_epoch(number)
        batches = list(loader)
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    _, plain = epoch(1, 1)
    images, labels = epoch(3, 1)
    assert labels.tolist() == [plain[i // 3] for i in range(23)]
    same = [torch.equal(images[i], images[i + 1]) for i in range(22) if labels[i] == labels[i + 1]]
    assert len(same) == 15 and sum(same) <= 1
    assert not torch.equal(labels, epoch(3, 2)[1])


def test_layer_scale_multiplies_both_branches():
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", 3, 16, layer_scale=1e-4, **SMALL).eval()
    assert {float(p.detach()) for name, parameter in model.named_parameters() if ".ls" in name for p in parameter} == {
        float(torch.tensor(1e-4))}
    plain = build_vit("vit_tiny_patch16", 3, 16, **SMALL).eval()
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    # The factors are linear in the last layer of a branch.
    with torch.no_grad():
        for block in plain.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight *= 1e-4
                layer.bias *= 1e-4
        x = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(model.forward_features(x), plain.forward_features(x))
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.ls1\.gamma.*--layer_scale"):
        load_encoder(model, plain.state_dict())


def test_the_head_starts_as_wide_as_it_is_told():
    heads = [build_vit("vit_tiny_patch16", 500, 16, head_std=std, **SMALL).head.weight.detach().std() for std in (None, 0.02)]
    assert heads[0] == pytest.approx(2e-5, rel=0.03) and heads[1] == pytest.approx(0.02, rel=0.03)


def test_a_warm_up_begins_where_it_is_told():
    assert [lr_at(e, 1.0, 0.1, 5, 20, warmup_lr=0.2) for e in (0, 2.5, 5)] == pytest.approx([0.2, 0.6, 1.0])
    assert lr_at(20, 1.0, 0.1, 5, 20, warmup_lr=0.2) == pytest.approx(0.1)
    assert Schedule(1.0, 0.1, 5, 20, 0.2).at(0) == 0.2


@pytest.fixture(scope="module")
def classifier(finetune, tmp_path_factory):
    """last.pth of a classifier with every part of DeiT III."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    finetune(folder, "--opt", "lamb", "--layer_scale", 1e-4, "--cls_token", "--aa", "3aug", "--color_jitter", .3, "--loss",
             "bce", "--repeated_aug", 3, "--warmup_lr", 1e-6, "--clip_grad", 3, "--smoothing", 0, "--head_std", .02)
    return folder / "last.pth"


def test_a_classifier_with_layer_scale_is_evaluated_and_loaded_without_saying_so(classifier, finetune):
    result = finetune(classifier.parent / "scored", "--eval", "--resume", classifier)
    assert result["num_samples"] == 21
    weights = load_checkpoint(classifier)["model"]
    model = load_classifier_model(classifier).model
    assert model.blocks[1].ls2.gamma.tolist() == weights["blocks.1.ls2.gamma"].tolist()


def test_fine_tuning_goes_on_from_a_classifier_at_another_size(classifier, finetune, tmp_path):
    flags = ["--layer_scale", 1e-4, "--cls_token", "--finetune", classifier, "--epochs", 1, "--warmup_epochs", 0]
    finetune(tmp_path / "run", *flags, "--input_size", 24, "--lr", 0, "--min_lr", 0)
    before, after = load_checkpoint(classifier)["model"], load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    assert after["pos_embed"].shape[1] == 37 and before["pos_embed"].shape[1] == 17
    assert all(torch.equal(before[name], after[name]) for name in before if name != "pos_embed")
    assert before["head.weight"].std() > 0.01  # which a fresh head here would not have
    with pytest.raises(ValueError, match="--head_bias prior does nothing"):
        finetune(tmp_path / "other", *flags, "--head_bias", "prior")
    assert encoders(group_runs(read_runs([tmp_path / "run"]))) == []  # a report has no reconstructions to draw


def test_positions_of_a_classifier_are_resampled_as_an_encoders():
    small, large = (build_vit("vit_tiny_patch16", 3, size, global_pool="token", **SMALL) for size in (16, 24))
    report = load_resampled(large, small.state_dict(), (4, 4))
    assert report["resampled"] == ((4, 4), (6, 6))
    fresh = build_vit("vit_tiny_patch16", 3, 24, global_pool="token", **SMALL)
    load_encoder(fresh, {k: v for k, v in small.state_dict().items() if not k.startswith("head.")}, (4, 4))
    assert torch.equal(large.pos_embed, fresh.pos_embed) and torch.equal(large.head.weight, small.head.weight)


def test_a_classifier_of_other_classes_or_another_order_gives_its_encoder_only(classifier, data_flags, capsys):
    args = main_finetune.get_args_parser().parse_args([*data_flags, "--finetune", str(classifier), "--layer_scale", "1e-4",
                                                       "--cls_token"])
    model = build_vit("vit_tiny_patch16", 3, 16, global_pool="token", layer_scale=1e-4, **SMALL)
    head = model.head.weight.clone()
    assert start_weights(args, vars(args), model, None, ["dog", "cat", "elk"])[0] == f"encoder of {classifier}"
    assert torch.equal(model.head.weight, head)
    assert "left out: head (2 tensors); new, with their start values: head (2 tensors)" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (["--warmup_lr", "1e-6", "--warmup_epochs", "0"], "--warmup_lr 1e-06 does nothing with --warmup_epochs 0"),
    (["--warmup_lr", "1"], "--warmup_lr 1 is above the learning rate 0.001"),
    (["--layer_scale", "0"], "--layer_scale must be a finite number above 0, not 0"),
    (["--repeated_aug", "0"], "--repeated_aug must be at least 1, not 0"),
    (["--color_jitter", "2"], r"--color_jitter must lie in \[0, 1\], not 2"),
    (["--aa", "2aug"], "'2aug' is no RandAugment string.*3aug or none"),
    (["--loss", "ldam", "--head_std", ".02"], "--head_std 0.02 is for a linear head")],
    ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_value_that_cannot_be_is_refused(finetune, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        finetune(tmp_path / "run", *flags)
