"""A folder of one's own pictures; real colour images where the CIFAR-100-LT archives lie beside the checkout."""
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_classes_that_lie_outside_of_train_are_told_where_to_go(picture_folder, tmp_path):
    made = tmp_path / "my pictures"
    shutil.copytree(picture_folder / "train", made)
    (made / "test").mkdir()
    with pytest.raises(ValueError, match="has no folder train/, and images in folders that may be the classes: ") as found:
        build_dataset("folder", "train", made, **STATISTICS)
    subprocess.run(["sh", "-ec", str(found.value).split("put these into it, ")[1]], check=True)
    assert build_dataset("folder", "train", made, **STATISTICS).class_counts.tolist() == [24, 12, 5]
    for name in "abcdefg":
        shutil.copytree(picture_folder / "train" / "elk", tmp_path / "many" / name)
    with pytest.raises(ValueError, match="mkdir train; mv a b c d e train/ and the 2 others$"):
        build_dataset("folder", "train", tmp_path / "many", **STATISTICS)
    shutil.rmtree(tmp_path / "many" / "b")
    (tmp_path / "many" / "b").mkdir()
    with pytest.raises(ValueError, match="has no folder train/ .there are: a, b, c"):
        build_dataset("folder", "train", tmp_path / "many", **STATISTICS)


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
    with pytest.raises(ValueError, match="dog is a class that the training images do not have: known are cat, 1 in all$"):
        build_dataset("folder", "test", tmp_path, **STATISTICS)


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def copy(picture_folder, tmp_path):
    """A copy of the picture folder, to be spoilt."""
    return shutil.copytree(picture_folder, tmp_path / "data")


def refused(words, root, name="folder", split="train"):
    with pytest.raises(ValueError, match=words) as error:
        build_dataset(name, split, root, **STATISTICS)
    assert "\n" not in str(error.value)


LEFT_OUT = {"train/cat/a.heic": b"", "train/cat/b.AVIF": b"", "train/cat/photo": jpeg(), "train/cat/photo.jpg_large": jpeg(),
            "train/dog/more/a.jpg": jpeg(), "train/dog/more/deep/b.avif": b"", "train/c.jpg": jpeg()}
NO_PICTURES = {"train/cat/readme": b"text", "train/cat/a.txt": jpeg(), "train/cat/b.xml": b"<a/>", "train/dog/none/c.txt": b""}


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_jpegs_of_every_ending_are_read_and_what_is_left_out_is_told(copy, capsys):
    write(copy, {"train/cat/a.jfif": jpeg(), "train/cat/b.JPE": jpeg(), **NO_PICTURES})
    images = build_dataset("folder", "train", copy, **STATISTICS)
    assert images.class_counts.tolist() == [26, 12, 5] and capsys.readouterr().err == ""
    assert images.image(list(images.ids).index("train/cat/a.jfif")).size == (8, 8)
    write(copy, {**LEFT_OUT, "train/.ipynb_checkpoints/a.jpg": jpeg(), "train/cat/._01.png": b"fork"})
    images = build_dataset("folder", "train", copy, **STATISTICS)
    assert (images.class_names, images.class_counts.tolist()) == (["cat", "dog", "elk"], [26, 12, 5])
    assert capsys.readouterr().err.splitlines() == [
        "note: 1 picture left out, lying beside the class folders and not in one: train/c.jpg",
        "note: 1 picture left out, images ending with .heic are not read: train/cat/a.heic",
        "note: 1 picture left out, images ending with .avif are not read: train/cat/b.AVIF",
        "note: 1 picture left out, its name has no image's ending, such as .jpg or .png: train/cat/photo",
        "note: 1 picture left out, images ending with .jpg_large are not read: train/cat/photo.jpg_large",
        "note: 2 pictures left out, lying in folders within a class folder: its images lie in itself: train/dog/more/",
        "note: 2 hidden files or folders left out: train/.ipynb_checkpoints, train/cat/._01.png"]
    (copy / "linked").symlink_to(copy / "train" / "cat")
    (copy / ".hidden").mkdir()
    images = build_dataset("unlabeled", "train", copy, **STATISTICS)
    assert len(images) == 26 + 12 + 5 + 21 + 21 + 2
    told = capsys.readouterr().err
    assert "30 pictures left out, links to folders are not followed: linked/" in told and "3 hidden files or folders" in told


def test_where_nothing_is_read_the_error_says_what_was_left_out(tmp_path, capsys):
    write(tmp_path, {"train/a.jpg": jpeg(), "train/b.jpg": jpeg()})
    refused("no image below .*/train .2 pictures left out, lying beside the class folders", tmp_path)
    write(tmp_path, {"train/cat/a/b.jpg": jpeg(), "train/dog/b.jpg": jpeg()})
    refused("train/cat holds no image, so this class has none to train on: .*1 picture left out, lying in folders within a "
            "class folder.*: train/cat/a/", tmp_path)
    assert capsys.readouterr().err == ""


def test_a_hidden_folder_is_a_class_where_classes_txt_says_so(copy):
    (copy / "train" / "cat").rename(copy / "train" / ".net")
    (copy / "classes.txt").write_text(".net\ndog\nelk\nyak\n")
    images = build_dataset("folder", "train", copy, **STATISTICS)
    assert images.class_counts.tolist() == [24, 12, 5, 0]  # and a class that is named may have no image


def test_class_folders_that_lead_nowhere_or_hold_nothing_are_named(copy):
    (copy / "train" / "ant").mkdir()
    refused("train/ant holds no image, so this class has none to train on: remove the folder, or name all classes", copy)
    (copy / "train" / "ant").rmdir()
    for target, how in (("gone", "nowhere, to gone"), ("ant", "in a circle, to ant")):
        (copy / "train" / "ant").symlink_to(target)
        refused(f"train/ant is a link that leads {how}: repair or remove it", copy)
        (copy / "train" / "ant").unlink()
    shutil.rmtree(copy / "test")
    (copy / "test").symlink_to("gone")
    refused("data/test is a link that leads nowhere, to gone: repair or remove it", copy, split="test")
    (copy / "classes.txt").symlink_to("classes.txt")
    refused("cannot look at .*classes.txt .Too many levels of symbolic links.", copy)


@pytest.mark.parametrize("name", ["folder", "unlabeled"])
def test_what_is_no_file_is_named_and_nothing_waits_for_it(copy, name):
    os.mkfifo(copy / "train" / "cat" / "zz.png")
    refused("train/cat/zz.png is a pipe and no image: repair or remove it", copy, name)
    (copy / "train" / "cat" / "zz.png").unlink()
    (copy / "train" / "cat" / "zz.png").symlink_to("/dev/zero")
    refused("train/cat/zz.png is a device and no image", copy, name)


@pytest.mark.parametrize("name", ["folder", "unlabeled"])
def test_a_folder_without_permission_is_named(copy, name, request):
    copy.chmod(0o755)
    (copy / "train" / "dog").chmod(0)
    request.getfixturevalue("nobody")
    refused(r"cannot read the folder data/train/dog \(Permission denied\)", "data", name)
    if name == "folder":
        refused("cannot look at data/train/dog/train .Permission denied.", "data/train/dog", name)


def test_a_class_whose_name_is_no_utf8_passes_stage_2(copy, finetune, tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "test"):
        (copy / split / "elk").rename(copy / split / odd)
    images = build_dataset("folder", "train", copy, **STATISTICS)
    assert images.class_names == ["caf\\xe9", "cat", "dog"] and images.class_counts.tolist() == [5, 24, 12]
    finetune(tmp_path / "bft", "--data_path", copy, "--epochs", 1, "--warmup_epochs", 0)
    assert json.loads((tmp_path / "bft" / "metrics.json").read_text())["class_names"] == images.class_names
    capsys.readouterr().out.encode()
    (copy / "train" / "caf\\xe9").mkdir()
    refused(r"two classes of .* would both be written as caf\\xe9, since the name of one is no UTF-8: rename", copy)


def test_names_of_the_same_letters_in_two_unicode_forms_are_told_apart(copy):
    composed, decomposed = "caf\xe9", "cafe\u0301"
    (copy / "train" / "elk").rename(copy / "train" / composed)
    (copy / "test" / "elk").rename(copy / "test" / decomposed)
    for words in (r"test/\S+ is 'cafe.u0301', and the class 'caf.xe9' has the same letters: one of the two is",
                  r"two classes of \S+ are the same letters, 'cafe.u0301' and 'caf.xe9': one of the two"):
        refused(words, copy, split="test")
        shutil.copytree(copy / "train" / composed, copy / "train" / decomposed, dirs_exist_ok=True)


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
