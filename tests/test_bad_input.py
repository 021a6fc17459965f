"""What a user can get wrong ends before training: one line, exit code 2, no traceback, nothing overwritten."""
import os
import shutil
import sys

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
from tests.conftest import DECODER, TINY
from util.args import PROJECT, run_command

STAGES = {"pretrain": main_pretrain, "finetune": main_finetune}
MAE = ["--model", "mae_vit_tiny_patch16"]
VIT = ["--model", "vit_tiny_patch16"]


@pytest.fixture
def fails(data_flags, tmp_path, monkeypatch, capsys):
    """fails(stage, *flags) -> the one line on stderr; checks that nothing was written."""
    def run(stage, *flags, written=()):
        base = [*data_flags, *TINY, *(DECODER + MAE if stage == "pretrain" else VIT), "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [f"main_{stage}.py", *base, *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            run_command(STAGES[stage].get_args_parser(), STAGES[stage].main)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert not (tmp_path / "out").exists() or sorted(os.listdir(tmp_path / "out")) == sorted(written)
        return err
    return run


@pytest.mark.parametrize(("stage", "flags", "words"), [
    ("pretrain", ["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
    ("pretrain", ["--epoch", "5"], "unrecognized arguments: --epoch 5"),
    ("pretrain", ["--model", "mae_vit_giant"], "unknown model 'mae_vit_giant'; known: mae_vit_tiny_patch16"),
    ("finetune", ["--model", "resnet50"], "unknown model 'resnet50'; known: vit_tiny_patch16"),
    ("finetune", ["--loss", "balbce"], "unknown loss 'balbce'; known: "),
    ("pretrain", ["--dataset", "imagenet"], "unknown data set 'imagenet'; known: embedded, cifar10_lt, cifar100_lt"),
    ("pretrain", ["--input_size", "18"], "18 x 18 is no multiple of the patch size 4: change --input_size"),
    ("finetune", ["--input_size", "16", "18"], "16 x 18 is no multiple of the patch size 4"),
    ("pretrain", ["--warmup_epochs", "2"], "--warmup_epochs 2 must be below --epochs 2"),
    ("finetune", ["--effective_batch_size", "20"], "--effective_batch_size 20 is no multiple of --batch_size 8 (remainder 4)"),
    ("pretrain", ["--mask_ratio", "1"], "--mask_ratio must lie between 0 and 1, both excluded, not 1"),
    ("pretrain", ["--mask_ratio", "0"], "--mask_ratio must lie between 0 and 1"),
    ("pretrain", ["--mask_ratio", "-0.5"], "--mask_ratio must lie between 0 and 1"),
    ("finetune", ["--nb_classes", "10"], "--nb_classes 10, but "),
    ("finetune", ["--eval"], "--eval needs trained weights: give --resume CKPT"),
    ("finetune", ["--finetune", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ("finetune", ["--resume", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ("finetune", ["--eval", "--resume", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ("pretrain", ["--output_dir", "/proc/nothing/here"], "cannot write into --output_dir /proc/nothing/here"),
    ("pretrain", ["--device", "warp"], "--device warp is not usable here"),
    ("pretrain", ["--amp", "fp16"], "--amp fp16 on a CPU is neither fast nor scaled"),
    ("pretrain", ["--batch_size", "0"], "--batch_size must be at least 1, not 0"),
    ("pretrain", ["--epochs", "0"], "--epochs must be at least 1, not 0"),
    ("pretrain", ["--save_steps", "0"], "--save_steps must be at least 1, not 0"),
    ("pretrain", ["--ema", "1.5"], "--ema must lie in [0, 1], not 1.5"),
    ("pretrain", ["--dist_timeout", "0"], "--dist_timeout is in seconds, above 0 and below 1e7 (116 days), not 0"),
    ("pretrain", ["--dist_timeout", "1e300"], "above 0 and below 1e7 (116 days), not 1e+300"),
    ("finetune", ["--drop_path", "1"], "--drop_path takes 0 <= P < 1, not 1: "),
    ("pretrain", ["--lr", "nan"], "--lr must be a finite number, at least 0, not nan"),
    ("pretrain", ["--min_lr", "1"], "--min_lr 1 is above the learning rate 0.001"),
    ("pretrain", ["--opt_betas", ".9", "1"], "--opt_betas must lie in [0, 1)"),
    ("pretrain", ["--scale", "1", ".5"], "--scale takes MIN and MAX"),
    ("pretrain", ["--num_heads", "3"], "width 32 is no multiple of 3 heads: change --embed_dim or --num_heads"),
    ("pretrain", ["--decoder_num_heads", "3"], "change --decoder_embed_dim or --decoder_num_heads"),
    ("pretrain", ["--depth", "0"], "--depth must be at least 1, not 0"),
    ("pretrain", ["--lr", "inf"], "--lr must be a finite number, at least 0, not inf"),
    ("pretrain", ["--scale", ".2", "inf"], "--scale takes MIN and MAX with 0 < MIN <= MAX <= 1"),
    ("pretrain", ["--blr", "1"], "--lr 0.001 and --blr 1 both set the learning rate"),
    ("pretrain", ["--output_dir", ""], "--output_dir is empty (an unset variable?)"),
    ("pretrain", ["--device", "meta"], "--device meta is not usable here (training runs on cpu, cuda, mps or xpu"),
    ("finetune", ["--cutmix_minmax", ".8", ".2"], "--cutmix_minmax takes MIN and MAX"),
    ("finetune", ["--cutmix_minmax", "nan", "nan"], "--cutmix_minmax takes MIN and MAX"),
    ("finetune", ["--eval", "--resume", "x", "--finetune", "y"], "--eval scores --resume CKPT, so --finetune would do nothing"),
    ("finetune", ["--mixup", "-1"], "--mixup must be a finite number, at least 0, not -1"),
    ("finetune", ["--smoothing", "1.5"], "--smoothing must lie in [0, 1], not 1.5"),
    ("finetune", ["--tau", "nan"], "tau must be a finite number >= 0 (0 is the plain loss, 1 the paper's), got nan"),
    ("finetune", ["--loss", "bce", "--tau", "0.5"], "--loss bce has no logit bias, so --tau and --test_prior would do nothing"),
    ("finetune", ["--loss", "ce", "--test_prior", "none"], "--loss ce has no logit bias"),
    ("finetune", ["--loss", "ldam", "--head_bias", "prior"], "'ldam' asks for a cosine classifier, which has no bias"),
    ("finetune", ["--test_prior", "nowhere.txt"], "no prior file at nowhere.txt"),
    ("finetune", ["--loss_args", "lam"], "--loss_args takes NAME=VALUE, such as lam=2, not 'lam'"),
    ("finetune", ["--loss", "cb_ce", "--loss_args", "beta=abc"], "an option of loss 'cb_ce' has a wrong type: beta='abc'"),
    ("finetune", ["--loss_args", "lam=2"], "unknown option 'lam' of loss 'bal_bce'; known: class_weights"),
    ("finetune", ["--sampler", "class_aware"], "--loss bal_bce and --sampler class_aware both re-balance"),
    ("finetune", ["--prior", "data"], "--prior data does nothing with --sampler random"),
    ("finetune", ["--posthoc", "bayes"], "--posthoc bayes corrects a trained model: use it with --eval"),
    ("finetune", ["--loss", "mislas", "--smoothing", ".1"], "by itself, so --smoothing 0.1 would smooth them twice"),
    ("finetune", ["--loss", "ib", "--loss_args", "warmup_epochs=9"], "begins at epoch 9, and --epochs 2 ends before it"),
    ("finetune", ["--crop_pct", "0"], "--crop_pct must lie in (0, 1]"),
    ("finetune", ["--aa", "autoaugment"], "--aa 'autoaugment' is no RandAugment string"),
    ("finetune", ["--split", "train"], "invalid choice: 'train'"),
    ("pretrain", ["--data_path", "nowhere"], "--data_path nowhere has no folder train/ (no such folder)"),
    ("pretrain", ["--data_path", ""], "--data_path is empty (an unset variable?): name a folder"),
    ("pretrain", ["--mean", ".5"], "one number (gray) or three (RGB) each, not 1 and 3"),
    ("pretrain", ["@nowhere.args"], "nowhere.args"),
])
def test_one_line_that_says_what_to_type(fails, stage, flags, words):
    assert words in fails(stage, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_cuda(fails):
    assert "--device cuda, but torch" in fails("pretrain", "--device", "cuda")
    assert "finds no CUDA device here: use --device cpu" in fails("finetune", "--device", "cuda:0")


@pytest.mark.parametrize(("text", "words"), [
    (b"--data_path it's\n", "No closing quotation"), (b"\x80\xff\xfe", "is no text"), (b"@SELF\n", "names itself with @"),
    (b"--epochs 2 3\n", "unrecognized arguments: 3")])
def test_recipes_that_cannot_be_read(fails, tmp_path, text, words):
    path = tmp_path / "a.args"
    path.write_bytes(text.replace(b"SELF", str(path).encode()))
    assert words in fails("pretrain", f"@{path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, picture_folder, data_flags, monkeypatch, capsys, workers):
    shutil.copytree(picture_folder, tmp_path / "data")
    broken = tmp_path / "data" / "train" / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:200])
    argv = [*data_flags, *TINY, *DECODER, *MAE, "--output_dir", tmp_path / "out", "--data_path", tmp_path / "data",
            "--num_workers", workers]
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_command(main_pretrain.get_args_parser(), main_pretrain.main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(f"error: cannot read the image {broken} (") and err.count("\n") == 1


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def main(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["main_pretrain.py"])
    with pytest.raises(SystemExit) as stop:
        run_command(main_pretrain.get_args_parser(), main)
    assert stop.value.code == 130 and "the same command goes on from there" in capsys.readouterr().err


def test_a_launcher_whose_variables_have_gaps_is_refused(fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "the environment of torchrun is set in part: WORLD_SIZE=4; RANK, LOCAL_RANK" in fails("pretrain")


def test_checkpoints_that_do_not_fit(fails, encoder, finetune, tmp_path):
    assert "expected 'finetune'" in fails("finetune", "--eval", "--resume", encoder)
    assert "weights of another architecture (wrong shape: cls_token (1, 1, 32) instead of (1, 1, 48)" in fails(
        "finetune", "--finetune", encoder, "--embed_dim", 48)
    assert "weights of another architecture (2 heads, not 4): use --num_heads 2" in fails(
        "finetune", "--finetune", encoder, "--num_heads", 4)
    assert "missing: blocks.2.norm1.weight" in fails("finetune", "--finetune", encoder, "--depth", 3)
    short = tmp_path / "short.pth"
    short.write_bytes(encoder.read_bytes()[:3000])
    assert "short.pth is damaged or no checkpoint" in fails("finetune", "--finetune", short)
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    assert "foreign.pth holds no weights of a ViT" in fails("finetune", "--finetune", tmp_path / "foreign.pth")
    assert "foreign.pth holds no weights of a ViT" in fails("pretrain", "--resume", tmp_path / "foreign.pth")
    finetune(tmp_path / "bft", "--epochs", 1, "--warmup_epochs", 0)
    last = tmp_path / "bft" / "last.pth"
    assert "patch 4, width 32, depth 2, 2 heads, not of patch 4, width 32, depth 3, 2 heads: leave --model, --p" in fails(
        "finetune", "--eval", "--resume", last, "--depth", 3)
    assert "2 heads, not of patch 4, width 32, depth 2, 4 heads" in fails(
        "finetune", "--eval", "--resume", last, "--num_heads", 4)
    assert "embedded" in fails("finetune", "--eval", "--resume", last, "--dataset", "embedded")


def test_class_count_mismatch_between_head_and_data(fails, finetune, tmp_path, picture_folder):
    finetune(tmp_path / "bft", "--epochs", 1, "--warmup_epochs", 0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "two" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "two" / split / name).symlink_to(picture_folder / split / name)
    error = fails("finetune", "--eval", "--resume", tmp_path / "bft" / "last.pth", "--data_path", tmp_path / "two")
    assert "has a head of 3 classes (cat, dog, elk, ...), but " in error and "has 2 (cat, dog, ...)" in error


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_folder_that_holds_another_run_is_refused_and_left_alone(fails, pretrain, encoder, tmp_path):
    out = tmp_path / "out"
    pretrain(out, *MAE, "--epochs", 1, "--warmup_epochs", 0)
    before = contents(out)
    names = os.listdir(out)
    error = fails("pretrain", written=names)  # the same folder, two epochs
    assert "out holds another run: --epochs 2 (1 there)" in error and "another --output_dir" in error
    assert "--seed 3 (0 there)" in fails("pretrain", "--seed", 3, written=names)
    assert "would overwrite another run" in fails("pretrain", "--resume", encoder, written=names)
    assert "of stage 'pretrain'" in fails("finetune", written=names)
    assert "already holds args.json" in fails("finetune", "--eval", "--resume", finetuned(tmp_path), written=names)
    (out / "last.pth").unlink()
    assert "holds another run (args.json, log.jsonl, metrics.json) and no last.pth" in fails(
        "pretrain", written=set(names) - {"last.pth"})
    assert contents(out) == {name: data for name, data in before.items() if name != "last.pth"}


def finetuned(tmp_path):
    from util.checkpoint import KEYS, save_checkpoint
    path = tmp_path / "bft.pth"
    args = main_finetune.with_loss_defaults(main_finetune.get_args_parser().parse_args([*TINY, *VIT]), 3)
    model = main_finetune.build_vit("vit_tiny_patch16", 3, 16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    save_checkpoint(path, {**dict.fromkeys(KEYS[1:]), "stage": "finetune", "model": model.state_dict(), "args": vars(args),
                           "class_names": ["cat", "dog", "elk"], "class_counts": [24, 12, 5],
                           "progress": {"group_counts": [24, 12, 5]}})
    return path


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(fails, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "cannot write into --output_dir" in fails("pretrain")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(args):
        torch.zeros(2).reshape(3).chunk(0)

    import json
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py"])
    with pytest.raises(RuntimeError):
        run_command(main_pretrain.get_args_parser(), main)
    with pytest.raises(ValueError, match="Expecting value"):
        run_command(main_pretrain.get_args_parser(), lambda args: json.loads("x"))
    monkeypatch.chdir(PROJECT)  # a compiled extension's frames have relative paths
    with pytest.raises(ValueError, match="low >= high"):
        run_command(main_pretrain.get_args_parser(), lambda args: np.random.RandomState(0).randint(3, 2))
