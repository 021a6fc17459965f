"""Both stages through main([...]) as a launcher calls them: what they write, and that the numbers come again."""
import json

import numpy as np
import pytest
import torch

import main_finetune
from util import metrics
from util.checkpoint import load_checkpoint
from util.setup import load_images

EVERYTHING = ["--mixup", .8, "--cutmix", 1, "--clip_grad", 1, "--effective_batch_size", 16, "--head_bias", "prior"]


@pytest.fixture(scope="module")
def classifier(finetune, encoder, tmp_path_factory):
    """Run folder of a stage 2 with everything on: mixing, erasing, smoothing, drop path, accumulation, clipping."""
    folder = tmp_path_factory.mktemp("bft") / "run"
    result = finetune(folder, "--finetune", encoder, *EVERYTHING)
    return folder, result


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_stage_1_writes_a_run_folder(encoder):
    folder = encoder.parent
    names = {p.name for p in folder.iterdir()}
    assert {"args.json", "log.jsonl", "last.pth", "metrics.json", "figures"} <= names
    assert {p.name for p in (folder / "figures").iterdir()} == {"reconstructions.png", "training.png"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    record = json.loads((folder / "args.json").read_text())
    assert record["class_counts"] == [24, 12, 5] and record["args"]["mask_ratio"] == 0.75
    assert len(record["data_hash"]) == 64 and record["versions"]["torch"] == torch.__version__ and "git" in record
    assert [line["epoch"] for line in lines(folder)] == [0, 1]
    assert lines(folder)[-1]["train_loss"] < lines(folder)[0]["train_loss"]


def test_stage_2_writes_a_run_folder_whose_parts_agree(classifier, picture_folder):
    folder, result = classifier
    assert {p.name for p in (folder / "figures").iterdir()} == {"training.png", "per_class_accuracy.png", "reliability.png",
                                                                "confusion.png"}
    stored = json.loads((folder / "metrics.json").read_text())
    assert {key: stored[key] for key in result} == json.loads(json.dumps(result))
    assert stored["epoch"] == 1 and stored["split"] == "test" and stored["data_source"] == str(picture_folder / "test")
    predictions = np.load(folder / "predictions.npz")
    again = metrics.evaluate_logits(predictions["logits"], predictions["labels"], stored["class_counts"], "sigmoid")
    assert again == result and len(set(predictions["ids"])) == 21
    assert lines(folder)[-1]["eval"]["overall"] == result["overall"]
    assert stored["many"] is None and stored["medium"] is not None  # 24 and 12, 5 images a class


def test_evaluation_of_the_checkpoint_gives_the_printed_number(classifier, finetune, tmp_path):
    folder, result = classifier
    assert finetune(tmp_path / "eval", "--eval", "--resume", folder / "last.pth") == result
    assert np.array_equal(np.load(tmp_path / "eval" / "predictions.npz")["logits"],
                          np.load(folder / "predictions.npz")["logits"])
    # fp32, whatever the batch size: the same decisions.
    for batch_size in (1, 5, 64):
        other = finetune(tmp_path / f"eval{batch_size}", "--eval", "--resume", folder / "last.pth", "--batch_size", batch_size)
        assert other["confusion_matrix"] == result["confusion_matrix"]
        assert other["ece"] == pytest.approx(result["ece"], rel=1e-5)


def test_the_other_split_can_be_reached(classifier, finetune, tmp_path):
    folder, _ = classifier
    result = finetune(tmp_path / "val", "--eval", "--resume", folder / "last.pth", "--split", "val")
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["data_source"].endswith("val")
    assert result["num_samples"] == 21


def test_one_seed_is_equal_to_the_bit_and_two_differ(finetune, encoder, classifier, tmp_path):
    flags = ["--finetune", encoder, *EVERYTHING]
    torch.rand(7)  # what was drawn before does not matter
    finetune(tmp_path / "same", *flags)
    finetune(tmp_path / "other", *flags, "--seed", 1)
    folders = classifier[0], tmp_path / "same", tmp_path / "other"
    first, same, other = (load_checkpoint(folder / "last.pth")["model"] for folder in folders)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("weight"))
    assert [r["train_loss"] for r in lines(classifier[0])] == [r["train_loss"] for r in lines(tmp_path / "same")]


def test_workers_do_not_change_a_run(pretrain, encoder, tmp_path):
    pretrain(tmp_path / "run", "--model", "mae_vit_tiny_patch16", "--num_workers", 2)
    first, same = load_checkpoint(encoder)["model"], load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    assert all(torch.equal(first[key], same[key]) for key in first)


def test_the_encoder_is_what_stage_2_starts_from(finetune, encoder, tmp_path, capsys):
    finetune(tmp_path / "run", "--finetune", encoder, "--lr", 1e-12, "--min_lr", 0, "--weight_decay", 0, "--input_size", 24)
    assert "positions resampled (4, 4) -> (6, 6)" in capsys.readouterr().out
    before, after = load_checkpoint(encoder)["model"], load_checkpoint(tmp_path / "run" / "last.pth")["model"]
    assert torch.allclose(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"], atol=1e-7)
    assert torch.allclose(before["patch_embed.proj.weight"], after["patch_embed.proj.weight"], atol=1e-7)


@pytest.mark.parametrize("flags", [["--cls_token"], ["--loss", "ce", "--mixup", ".8"], ["--loss", "bal_ce", "--smoothing", "0"],
                                   ["--loss", "ib"], ["--loss", "ldam", "--mixup", ".8"],
                                   ["--loss", "bce", "--cutmix", "1", "--mixup_mode", "elem"], ["--cutmix_minmax", ".2", ".8"],
                                   ["--test_prior", "none", "--tau", ".5"],
                                   ["--train_crop", "pad", "--aa", "none", "--reprob", "0"],
                                   ["--input_size", "16", "24"], ["--mean", ".3", "--std", ".2"], ["--amp", "bf16"]])
def test_every_way_to_fine_tune_runs(finetune, tmp_path, flags):
    result = finetune(tmp_path / "run", *flags, "--epochs", 1, "--warmup_epochs", 0)
    assert result["num_samples"] == 21 and lines(tmp_path / "run")[0]["skipped_steps"] == 0


@pytest.mark.parametrize("flags", [["--norm_pix_loss", "--mask_ratio", ".5"], ["--input_size", "24", "16"],
                                   ["--mean", ".3", "--std", ".2"], ["--amp", "bf16", "--clip_grad", "1"]])
def test_every_way_to_pretrain_runs(pretrain, tmp_path, flags):
    record = pretrain(tmp_path / "run", "--model", "mae_vit_tiny_patch16", *flags, "--epochs", 1, "--warmup_epochs", 0)
    assert record["train_loss"] > 0 and record["skipped_steps"] == 0


def test_head_bias_starts_at_the_best_constant(data_flags):
    parser = main_finetune.get_args_parser()
    args = parser.parse_args([*data_flags, "--input_size", "16", "--patch_size", "4", "--head_bias", "prior", "--depth", "1"])
    images = load_images(args, "train")
    args = main_finetune.with_loss_defaults(args, 3)
    model = main_finetune.build_model(args, images)
    criterion = main_finetune.build_criterion(args, images.class_counts, images.class_names)
    assert model.head.bias.count_nonzero() == 0
    main_finetune.start_weights(args, vars(args), model, criterion, images.class_names)
    torch.testing.assert_close(model.head.bias.detach(), torch.full((3,), -float(np.log(2))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_commands_run_on_a_gpu(pretrain, finetune, tmp_path):
    flags = ["--device", "auto", "--amp", "auto"]
    pretrain(tmp_path / "mgp", "--model", "mae_vit_tiny_patch16", *flags)
    result = finetune(tmp_path / "bft", "--finetune", tmp_path / "mgp" / "last.pth", "--mixup", .8, "--cutmix", 1, *flags)
    assert result["num_samples"] == 21
