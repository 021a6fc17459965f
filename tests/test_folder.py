"""A folder of one's own pictures; real colour images where the CIFAR-100-LT archives lie beside the checkout."""
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import main_finetune
import main_pretrain
from datasets import build_dataset
from datasets.folder import class_order

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar100_lt"
STATISTICS = dict(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))


def test_numbered_classes_are_ordered_by_value_and_others_by_name():
    assert class_order(["10", "2", "1"]) == ["1", "2", "10"]
    assert class_order(["b", "a", "10"]) == ["10", "a", "b"]


def test_classes_and_labels_are_those_of_train_for_every_split(picture_folder):
    train = build_dataset("folder", "train", picture_folder, **STATISTICS)
    test = build_dataset("folder", "test", picture_folder, **STATISTICS)
    assert train.class_names == test.class_names == ["cat", "dog", "elk"]
    assert train.class_counts.tolist() == [24, 12, 5] and test.class_counts.tolist() == [7, 7, 7]
    for i in (0, 30, 40):
        assert Path(train.ids[i]).parts[:2] == ("train", train.class_names[train.labels[i]])
        assert np.array(train.image(i)).reshape(-1, 3).mean(0).argmax() == train.labels[i]


def test_classes_txt_decides_the_order(picture_folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(picture_folder / split)
    (tmp_path / "classes.txt").write_text("elk\ncat\ndog\n")
    train = build_dataset("folder", "train", tmp_path, **STATISTICS)
    assert train.class_names == ["elk", "cat", "dog"] and train.class_counts.tolist() == [5, 24, 12]


def test_gray_images_for_one_channel(picture_folder):
    assert build_dataset("folder", "train", picture_folder, (0.5,), (0.2,)).image(0).mode == "L"


def test_what_is_wrong_with_a_tree_is_named(picture_folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere has no folder train/ .no such folder"):
        build_dataset("folder", "train", "nowhere", **STATISTICS)
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match="there are: training.: expected .*/train/<class>/<image>"):
        build_dataset("folder", "train", tmp_path, **STATISTICS)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="no image below"):
        build_dataset("folder", "train", tmp_path, **STATISTICS)
    (tmp_path / "test").symlink_to(picture_folder / "test")
    with pytest.raises(ValueError, match="dog is a class that the training images do not have"):
        build_dataset("folder", "test", tmp_path, **STATISTICS)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no CIFAR-100-LT archives at {SHARED}")
def test_both_stages_on_real_colour_images(tmp_path):
    for split in ("train", "test"):
        with tarfile.open(SHARED / f"{split}.tar.gz") as archive:
            archive.extractall(tmp_path, members=(m for m in archive if keep(m.name)), filter="data")
    flags = ["--dataset", "folder", "--data_path", str(tmp_path), "--mean", ".4914", ".4822", ".4465",
             "--std", ".2023", ".1994", ".2010", "--input_size", "32", "--patch_size", "8", "--embed_dim", "64",
             "--depth", "2", "--num_heads", "2", "--batch_size", "32", "--warmup_epochs", "1", "--device", "cpu",
             "--num_workers", "0", "--lr", "2e-3"]
    parser = main_pretrain.get_args_parser()
    main_pretrain.main(parser.parse_args([
        *flags, "--model", "mae_vit_tiny_patch16", "--decoder_embed_dim", "32", "--decoder_depth", "1", "--decoder_num_heads",
        "2", "--epochs", "2", "--output_dir", str(tmp_path / "mgp")]))
    parser = main_finetune.get_args_parser()
    result = main_finetune.main(parser.parse_args([
        *flags, "--model", "vit_tiny_patch16", "--finetune", str(tmp_path / "mgp" / "last.pth"), "--epochs", "5",
        "--aa", "none", "--reprob", "0", "--eval_every", "5", "--head_bias", "prior",
        "--output_dir", str(tmp_path / "bft")]))
    for stage in ("mgp", "bft"):
        losses = [json.loads(line)["train_loss"] for line in (tmp_path / stage / "log.jsonl").read_text().splitlines()]
        assert losses[-1] < 0.9 * losses[0]
    assert result["overall"] > 100 / 5 + 20 and result["num_samples"] == 500


def keep(name: str) -> bool:
    """Five of the hundred classes, easy to tell apart, are enough for a test."""
    return name.split("/")[1] in {"apple", "bottle", "cloud", "aquarium_fish", "castle"} if name.count("/") == 2 else False
