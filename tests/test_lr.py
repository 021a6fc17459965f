"""Schedules against the logs of the released runs, and parameter groups that hold every parameter once."""
import math

import pytest
import torch

import main_finetune
import main_pretrain
from models_mae import build_mae
from models_vit import build_vit
from util.args import PROJECT
from util.lr import Schedule, lr_at, param_groups, scale_lr, set_lr

# Recipe, images, images a micro-step over all processes, {epoch: mean rate over its micro-steps} of the released runs' logs.
RELEASED = [
    ("imagenet_lt/pretrain_released", 115_846, 256, {
        0: 7.433628318584069e-06, 1: 2.2433628318584072e-05, 400: 3.2416126993179166e-04, 799: 8.657370755203271e-10}),
    ("inat18/pretrain_released", 437_513, 768, {
        0: 2.2342036255138818e-05, 1: 6.73420362551387e-05, 400: 9.724804187229065e-04, 799: 2.5901780318649126e-09}),
    ("imagenet_lt/finetune_released", 115_846, 128, {
        0: 9.955837733890909e-05, 1: 2.99558377338909e-04, 50: 5.335471351373956e-04, 99: 1.091640390288575e-06}),
    ("imagenet_lt/finetune_384_released", 115_846, 64, {
        0: 1.9823375354842879e-04, 1: 5.982337535484254e-04, 50: 1.0667001514977797e-03, 99: 1.1845855095285017e-06}),
    ("inat18/finetune_released", 437_513, 256, {
        0: 7.962592285840191e-04, 1: 2.396259228584022e-03, 50: 4.265125780705206e-03, 99: 1.7340516888196695e-06}),
    ("inat18/finetune_384_released", 437_513, 64, {
        0: 3.990641908513802e-04, 1: 1.199064190851374e-03, 50: 2.1327192765157e-03, 99: 1.3656976221431907e-06}),
]


@pytest.mark.parametrize("recipe, images, micro, logged", RELEASED, ids=[row[0] for row in RELEASED])
def test_released_recipes_give_the_rates_of_the_released_runs_logs(recipe, images, micro, logged):
    stage = main_pretrain if "pretrain" in recipe else main_finetune
    args = stage.get_args_parser().parse_args([f"@{PROJECT / 'recipes' / recipe}.args"])
    peak = scale_lr(args.blr, args.effective_batch_size)
    schedule = Schedule(peak, args.min_lr, args.warmup_epochs, args.epochs, args.warmup_lr)
    steps, accum = images // micro, args.effective_batch_size // micro
    for epoch, expected in logged.items():
        rates = [schedule.at(epoch + i // accum * accum / steps) for i in range(steps)]
        assert math.fsum(rates) / steps == pytest.approx(expected, rel=1e-9)


def test_warm_up_meets_the_cosine_and_the_end_is_min_lr():
    assert lr_at(0, 1.0, 0.1, 5, 20) == 0
    assert lr_at(5, 1.0, 0.1, 5, 20) == 1.0
    assert lr_at(5 - 1e-9, 1.0, 0.1, 5, 20) == pytest.approx(1.0)
    assert lr_at(20, 1.0, 0.1, 5, 20) == pytest.approx(0.1)
    assert lr_at(12.5, 1.0, 0.1, 5, 20) == pytest.approx(0.55)
    assert lr_at(0, 1.0, 0.1, 0, 20) == 1.0


def every_parameter_once(model, groups):
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_layer_decay_scales_every_layer_and_exempts_what_must_not_decay():
    model = build_vit("vit_tiny_patch16", 7, 32, depth=3)
    groups = param_groups(model, 0.05, layer_decay=0.5)
    every_parameter_once(model, groups)
    by_id = {id(p): group for group in groups for p in group["params"]}
    layer = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "fc_norm": 4,
             "head": 4}
    for name, parameter in model.named_parameters():
        number = next(value for prefix, value in layer.items() if name.startswith(prefix))
        group = by_id[id(parameter)]
        assert group["lr_scale"] == pytest.approx(0.5 ** (4 - number)), name
        exempt = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0 if exempt else 0.05), name


def test_stage_1_groups():
    model = build_mae("mae_vit_tiny_patch16", 32, depth=1, decoder_depth=1)
    groups = param_groups(model, 0.05)
    every_parameter_once(model, groups)
    by_id = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert by_id[id(parameter)]["weight_decay"] == (0 if parameter.ndim == 1 else 0.05), name


def test_set_lr_multiplies_by_the_groups_scale():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [a], "lr_scale": 0.25}, {"params": [b]}], lr=1)
    set_lr(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.2), 0.8]
