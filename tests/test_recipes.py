"""Recipes: which there are, what their cards say, that each builds all that it names, and where pairs of them differ."""
import json
import re

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
from datasets import RECORDS, embedded
from datasets.imageset import ArrayImages, Record
from datasets.longtail import longtail_counts
from datasets.transforms import Normalize, eval_transform, train_transform
from engine_finetune import erase_each
from models_mae import MODELS as MAE_MODELS
from models_mae import as_pair, model_shape
from models_vit import MODELS
from util.args import PROJECT, check_common
from util.args_finetune import build_criterion, check_finetune, check_loss_flags, with_loss_defaults
from util.distributed import World
from util.lr import param_groups, set_lr
from util.setup import Machine, build_training, plan_steps

STAGES = {"pretrain": main_pretrain, "finetune": main_finetune}
RECIPES = sorted((PROJECT / "recipes").glob("*/*.args"))
BIG = ("imagenet_lt", "inat18", "places_lt", "imagenet_bal")
COUNTS = {name: np.array(json.loads((PROJECT / "datasets" / "class_counts" / f"{name}.json").read_text()))
          for name in ("imagenet_lt", "inat18", "places_lt")}
COUNTS |= {"imagenet_bal": np.full(1000, 160), "imagenet_1k": np.full(1000, 1281)}
COUNTS |= {"cifar10_lt": longtail_counts(5000, 100, 10), "cifar100_lt": longtail_counts(500, 100, 100)}
# The class counts of a user's folder, as which CIFAR-100-LT comes, and of the embedded set.
COUNTS |= {"folder": COUNTS["cifar100_lt"], "embedded": np.bincount(embedded.load("train")[1])}
IMAGES = {name: int(counts.sum()) for name, counts in COUNTS.items()} | {"imagenet_1k": 1_281_167}
NAMES = {
    "cifar100_lt": "finetune finetune_plain", "cifar100_lt_small": "pretrain finetune", "cifar10_lt": "finetune",
    "cifar10_lt_small": "pretrain finetune", "embedded": "pretrain finetune",
    "imagenet_bal": "pretrain mae_ce vit_scratch deit3",
    "imagenet_lt": "pretrain finetune finetune_384 pretrain_released finetune_released finetune_384_released mae_ce "
                   "vit_scratch deit3 deit3_finetune",
    "inat18": "pretrain finetune finetune_384 pretrain_released finetune_released finetune_384_released mae_ce "
              "vit_scratch deit3 deit3_finetune transfer",
    "places_lt": "pretrain finetune finetune_384 mae_ce deit3 deit3_finetune",
}
# Narrow and shallow, with every other setting as it is.
SMALL = ["--embed_dim", "24", "--depth", "1", "--num_heads", "2"]
DECODER = ["--decoder_embed_dim", "16", "--decoder_depth", "1", "--decoder_num_heads", "2"]


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


def stage_of(path):
    return "pretrain" if path.stem.startswith("pretrain") else "finetune"


def read(path, *more):
    """The flags of a recipe as its stage reads them."""
    path = path if hasattr(path, "stem") else PROJECT / "recipes" / f"{path}.args"
    return STAGES[stage_of(path)].get_args_parser().parse_args([f"@{path}", *more])


def test_there_are_the_recipes_that_tables_and_figures_name():
    expected = {f"{folder}/{stem}" for folder, stems in NAMES.items() for stem in stems.split()}
    assert {f"{path.parent.name}/{path.stem}" for path in RECIPES} == expected


@named(RECIPES)
def test_every_recipe_is_its_own_card(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith(f"# Stage {1 if stage_of(path) == 'pretrain' else 2} of ")
    assert sum(line.startswith("# Expected: ") for line in head) == sum(line.startswith("# Cost: ") for line in head) == 1
    assert re.search(r"\(A100\)|two cores of an AMD EPYC", next(line for line in head if line.startswith("# Cost: ")))
    if path.parent.name in BIG:
        assert re.search(r"Tables? \d", head[0]) and sum(line.startswith("# Hardware: ") for line in head) == 1
        args = read(path)
        assert args.effective_batch_size % (8 * args.batch_size) == 0  # as it says: up to 8 GPUs


def multiply_adds(args, stage):
    """Of a training image, forward: a block of width D on L tokens takes 12 L D^2 + 2 L^2 D."""
    def blocks(depth, width, tokens):
        return depth * (12 * tokens * width ** 2 + 2 * tokens ** 2 * width)

    patch, width, depth, _ = model_shape(MAE_MODELS if stage == "pretrain" else MODELS, args.model, *[None] * 4)
    patches = (args.input_size[0] // patch) ** 2
    if stage == "finetune":
        return blocks(depth, width, patches + 1)
    kept = int(patches * (1 - args.mask_ratio))
    return blocks(depth, width, kept + 1) + blocks(args.decoder_depth, args.decoder_embed_dim, patches + 1)


@named([path for path in RECIPES if path.parent.name in BIG])
def test_hours_and_images_of_a_card_follow_from_its_flags(path):
    args = read(path)
    hours, images = re.search(r"# Cost: ([\d.]+) GPU hours.*estimated: ([\d.,]+) million", path.read_text()).groups()
    expected = IMAGES[args.dataset] * args.epochs
    assert float(images.replace(",", "")) * 1e6 == pytest.approx(expected, rel=0.04)
    reference = 12 * (12 * 197 * 768 ** 2 + 2 * 197 ** 2 * 768)
    assert float(hours) == pytest.approx(expected * multiply_adds(args, stage_of(path)) / reference / 1000 / 3600, rel=0.04)


def made_up(args):
    """Two pictures for the data set of the flags, with all of its classes."""
    counts = COUNTS[args.dataset]
    record = RECORDS.get(args.dataset) or Record(tuple(args.mean), tuple(args.std))
    shape = (2, 40, 36) if record.channels == 1 else (2, 40, 36, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return ArrayImages(pixels, np.array([0, len(counts) - 1]), [str(k) for k in range(len(counts))], record, np.arange(2), "x")


@named(RECIPES)
def test_every_recipe_builds_and_takes_a_step(path):
    stage, cpu = stage_of(path), torch.device("cpu")
    args = read(path, *SMALL, *(DECODER if stage == "pretrain" else ()))
    check_common(args)
    images, size = made_up(args), as_pair(args.input_size)
    normalize = Normalize(images.record, cpu)
    machine, plan = Machine(cpu, None, World()), plan_steps(args, range(IMAGES[args.dataset]), World())
    policy = None if getattr(args, "aa", "none") == "none" else args.aa
    transform = train_transform(size, images.record, args.train_crop, tuple(args.scale), args.hflip, policy,
                                getattr(args, "color_jitter", 0.0))
    torch.manual_seed(0)
    batch = normalize(torch.stack([transform(images.image(k)) for k in range(2)]))
    if stage == "pretrain":
        model = main_pretrain.build_model(args, images.record.channels)
        groups = param_groups(model, args.weight_decay)
        stepper, schedule = build_training(args, model, groups, plan, machine, main_pretrain.BLR)
        loss = stepper.network.train()(batch, args.mask_ratio)[0]
    else:
        check_finetune(args)
        args = with_loss_defaults(args, len(images.class_names))
        criterion = build_criterion(args, COUNTS[args.dataset], images.class_names)
        check_loss_flags(args, criterion)
        model = main_finetune.build_model(args, images, criterion.cosine_head)
        groups = param_groups(model, args.weight_decay, args.layer_decay)
        stepper, schedule = build_training(args, model, groups, plan, machine, main_finetune.BLR)
        erase, targets = main_finetune.build_erasing(args, cpu), main_finetune.build_targets(args, len(images.class_names))
        batch, soft = targets(erase_each(erase, batch, plan.draws(args.seed, 0, plan.micro_batches()[0])),
                              torch.tensor(images.labels))
        loss = criterion(stepper.network.train()(batch), soft)
    before = [p.detach().clone() for p in stepper.parameters]
    set_lr(stepper.optimizer, schedule.at(schedule.warmup_epochs))
    stepper.backward(loss, 1.0)
    stepper.step(2)
    assert stepper.read("")["skipped_steps"] == 0
    assert all(not torch.equal(old, new) for old, new in zip(before, stepper.parameters, strict=True) if new.grad is not None)
    moved = sum(not torch.equal(old, new) for old, new in zip(before, stepper.parameters, strict=True))
    assert moved > len(before) / 2
    if stage == "finetune":
        picture = normalize(eval_transform(size, args.crop_pct)(images.image(0))[None])
        with torch.no_grad():
            logits = stepper.trained.eval()(picture)
        assert logits.shape == (1, len(images.class_names)) and logits.isfinite().all()


def difference(one, other):
    """Flags in which two recipes differ, sizes of a micro-batch aside."""
    one, other = vars(read(one)), vars(read(other))
    return {name for name in one if one[name] != other[name]} - {"given", "batch_size"}


@pytest.mark.parametrize("name", ["imagenet_lt", "inat18", "places_lt"])
def test_384_pixels_are_the_only_difference_of_the_second_size(name):
    assert difference(f"{name}/finetune", f"{name}/finetune_384") == {"input_size", "crop_pct"}


def test_pairs_differ_in_what_their_heads_say():
    assert difference("inat18/finetune", "inat18/transfer") == set()
    assert difference("imagenet_lt/pretrain", "imagenet_bal/pretrain") == {"dataset"}
    assert difference("imagenet_lt/mae_ce", "imagenet_bal/mae_ce") == {"dataset"}
    assert difference("imagenet_lt/vit_scratch", "imagenet_bal/vit_scratch") == {"dataset"}
    assert difference("imagenet_lt/deit3", "imagenet_bal/deit3") == {"dataset"}
    assert difference("imagenet_lt/deit3", "inat18/deit3") == {"dataset", "clip_grad"}
    assert difference("cifar100_lt/finetune", "cifar100_lt/finetune_plain") == {"aa", "mixup", "cutmix", "reprob"}
    assert difference("imagenet_lt/pretrain", "imagenet_lt/pretrain_released") == {"effective_batch_size"}
    assert difference("imagenet_lt/finetune", "imagenet_lt/finetune_released") == {
        "effective_batch_size", "blr", "warmup_epochs", "opt_betas", "test_prior"}


@pytest.mark.parametrize("name", BIG)
def test_deit_clips_at_one_on_the_mean_over_classes(name):
    assert read(f"{name}/deit3").clip_grad == len(COUNTS[name])


# What Tables 9 and 10 leave unsaid (tests/test_settings.py has what they say).
@pytest.mark.parametrize("name", ["imagenet_lt", "inat18", "places_lt"])
def test_the_papers_recipes_have_what_its_text_says(name):
    mgp, bft = read(f"{name}/pretrain"), read(f"{name}/finetune")
    assert (mgp.decoder_embed_dim, mgp.decoder_depth, mgp.decoder_num_heads, mgp.norm_pix_loss) == (512, 8, 16, True)
    assert (mgp.scale, mgp.hflip, bft.hflip, bft.mixup_switch_prob, bft.remode) == ([0.2, 1], 0.5, 0.5, 0.5, "pixel")
    assert (bft.loss, bft.test_prior, bft.head_bias) == ("bal_bce", "uniform", "zero")
    assert mgp.dataset == ("imagenet_1k" if name == "places_lt" else name) and bft.dataset == name


@pytest.mark.parametrize("name, effective, blr, decay, smoothing, drop_path", [
    ("imagenet_lt/finetune_released", 512, 5e-4, 0.75, 0.1, 0.1),
    ("imagenet_lt/finetune_384_released", 1024, 5e-4, 0.65, 0.1, 0.1), ("inat18/finetune_released", 2048, 1e-3, 0.65, 0, 0.1),
    ("inat18/finetune_384_released", 1024, 1e-3, 0.65, 0, 0.2)])
def test_released_settings(name, effective, blr, decay, smoothing, drop_path):
    args = read(name)
    assert (args.effective_batch_size, args.blr, args.layer_decay, args.smoothing, args.drop_path) == (
        effective, blr, decay, smoothing, drop_path)
    assert (args.warmup_epochs, args.epochs, args.opt_betas, args.min_lr, args.clip_grad) == (5, 100, [0.9, 0.999], 1e-6, None)
    assert (args.mixup, args.cutmix, args.reprob, args.aa) == (0.8, 1, 0.25, "rand-m9-mstd0.5-inc1")
