"""CIFAR-LT out of files in the official format (made here: the official ones are the user's to fetch), and the draw."""
import hashlib
import json
import pickle

import numpy as np
import pytest

import main_finetune
import main_pretrain
from datasets import build_dataset
from datasets.cifar import CLASSES
from datasets.longtail import indices_hash, longtail_counts_of
from tests.conftest import DECODER, TINY

CIFAR10 = "cifar-10-batches-py"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with CIFAR-10 and CIFAR-100 of the official names and fields, black but for the first pixel, which tells
    label and place; 5,000 and 500 training images a class, in an order without system."""
    root, draw = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for name, labels, field, classes in (("cifar10_lt", 10, "labels", "label_names"),
                                             ("cifar100_lt", 100, "fine_labels", "fine_label_names")):
            kind = CLASSES[name]
            (root / kind.base_folder).mkdir()

            def write(file, content, folder=root / kind.base_folder):
                data = pickle.dumps(content)
                (folder / file).write_bytes(data)
                return hashlib.md5(data).hexdigest()

            order, place = draw.permutation(np.arange(60_000) % labels), np.arange(60_000)
            pixels = np.zeros((60_000, 3072), np.uint8)
            pixels[:, 0], pixels[:, 1024], pixels[:, 2048] = order, place // 256 % 256, place % 256
            # All classes get as many images in the training files as in the official ones.
            test = np.concatenate([np.flatnonzero(order == k)[:10_000 // labels] for k in range(labels)])
            train = np.setdiff1d(place, test)
            for list_, indices in (("train_list", train), ("test_list", test)):
                files = getattr(kind, list_)
                chunks = np.array_split(indices, len(files))
                patch.setattr(kind, list_, [[file, write(file, {"data": pixels[chunk], field: order[chunk].tolist()})]
                                            for (file, _), chunk in zip(files, chunks, strict=True)])
            md5 = write(kind.meta["filename"], {classes: [f"class {k}" for k in range(labels)]})
            patch.setattr(kind, "meta", {**kind.meta, "md5": md5})
        yield root


@pytest.mark.parametrize(("name", "factor", "images", "largest", "smallest"), [
    ("cifar10_lt", None, 12_406, 5000, 50), ("cifar10_lt", 10, 20_431, 5000, 500), ("cifar10_lt", 50, 13_996, 5000, 100),
    ("cifar100_lt", 100, 10_847, 500, 5), ("cifar100_lt", 10, 19_573, 500, 50), ("cifar100_lt", 50, 12_608, 500, 10),
    ("cifar100_lt", 1, 50_000, 500, 500)])
def test_the_official_counts(official, name, factor, images, largest, smallest):
    train, test = (build_dataset(name, split, official, imb_factor=factor) for split in ("train", "test"))
    counts = train.class_counts
    assert (len(train), counts[0], counts[-1]) == (images, largest, smallest) and (np.diff(counts) <= 0).all()
    assert len(test) == 10_000 and len(set(test.class_counts)) == 1 and train.class_names[1] == "class 1"
    # The first pixel's red is the label: pixels and labels were thinned together.
    for data in (train, test):
        assert (data.images[:, 0, 0, 0] == data.labels).all() and data.images.shape[1:] == (32, 32, 3)
    assert np.array(train.image(7))[0, 0, 0] == train.labels[7]


def test_a_draw_is_a_function_of_labels_rule_and_seed(official):
    def ids(**options):
        data = build_dataset("cifar100_lt", "train", official, **options)
        return data, set(data.ids.tolist())
    one, drawn = ids(data_seed=3)
    np.random.seed(5)
    assert ids(data_seed=3)[1] == drawn != ids(data_seed=4)[1] and ids()[1] == ids(data_seed=0)[1]
    assert ids(data_seed=3, imb_factor=10)[1] >= drawn  # a stronger tail is part of a weaker one
    details = one.details
    assert (details["imb_factor"], details["data_seed"]) == (100, 3)
    assert details["indices_hash"] == indices_hash(one.ids)  # the ids are positions in the official files


def test_both_stages_run_on_it_and_write_down_the_draw(official, tmp_path, capsys):
    flags = ["--dataset", "cifar10_lt", "--data_path", str(official), "--imb_factor", "1000", "--data_seed", "2", *TINY,
             "--input_size", "32", "--patch_size", "8", "--epochs", "1", "--warmup_epochs", "0", "--batch_size", "512",
             "--train_crop", "pad"]
    main_pretrain.main(main_pretrain.get_args_parser().parse_args(
        [*flags, *DECODER, "--model", "mae_vit_tiny_patch16", "--output_dir", str(tmp_path / "mgp")]))
    result = main_finetune.main(main_finetune.get_args_parser().parse_args(
        [*flags, "--model", "vit_tiny_patch16", "--aa", "none", "--finetune", str(tmp_path / "mgp" / "last.pth"),
         "--output_dir", str(tmp_path / "bft")]))
    assert result["num_samples"] == 10_000 and result["few"] is not None
    assert "imbalance factor 1000, draw 2" in capsys.readouterr().out
    train = build_dataset("cifar10_lt", "train", official, imb_factor=1000, data_seed=2)
    for stage in ("mgp", "bft"):
        settings = json.loads((tmp_path / stage / "args.json").read_text())
        assert settings["indices_hash"] == train.details["indices_hash"] and settings["class_counts"][-1] == 5
        assert (settings["args"]["mean"], settings["args"]["std"]) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


def test_files_that_are_not_the_official_ones(official, tmp_path, monkeypatch):
    def fails(words, path, split="train"):
        with pytest.raises(ValueError, match=words):
            build_dataset("cifar10_lt", split, path)
    fails("needs --data_path DIR with the official files: python -m datasets.prepare cifar10_lt", None)
    fails("no whole copy of CIFAR10 in .*, expected cifar-10-batches-py/ there", tmp_path)
    fails("has no split val", official, "val")
    monkeypatch.setattr(CLASSES["cifar10_lt"], "test_list", [["test_batch", "0" * 32]])  # a damaged file
    fails("no whole copy of CIFAR10", official)


def test_a_long_tail_out_of_ones_own_classes(picture_folder):
    statistics = dict(mean=(0.3,) * 3, std=(0.2,) * 3)
    train = build_dataset("folder", "train", picture_folder, **statistics, imb_factor=8)  # 24, 12 and 5 images
    assert train.class_counts.tolist() == [24, 8, 3] and len(set(train.ids)) == 35 == len(train)
    for i in (0, 25, 34):
        assert np.array(train.image(i)).reshape(-1, 3).mean(0).argmax() == train.labels[i]
    assert len(build_dataset("folder", "test", picture_folder, **statistics, imb_factor=8)) == 21
    assert build_dataset("folder", "train", picture_folder, **statistics, imb_factor=1).class_counts.tolist() == [5, 5, 5]


@pytest.mark.parametrize(("counts", "factor", "expected"), [
    ([500] * 4, 8, [500, 250, 125, 62]), ([10, 1000, 1000], 4, [10, 5, 2]), ([9, 9, 2], 4, [9, 4, 2]), ([7], 3, [7])])
def test_the_largest_tail_that_the_classes_hold(counts, factor, expected):
    assert longtail_counts_of(counts, factor).tolist() == expected


@pytest.mark.parametrize(("name", "options", "words"), [
    ("folder", {"imb_factor": 50}, r"--imb_factor 50 leaves class 2 \('elk'\) without an image: .* 5 to 24 images;"),
    ("folder", {"imb_factor": 0.5}, "--imb_factor is 0.5; expected a finite number >= 1"),
    ("folder", {"data_seed": 1}, "--data_seed 1 chooses the draw of a long tail, and --dataset folder makes none here"),
    ("folder", {"imb_factor": 2, "data_seed": -1}, "seed of the draw is -1"),
    ("embedded", {"imb_factor": 10}, "--imb_factor is for cifar10_lt, cifar100_lt, folder, list"),
    ("embedded", {"data_seed": 1}, "makes none here: leave it out")])
def test_draws_that_cannot_be(picture_folder, name, options, words):
    where = (picture_folder, (0.3,) * 3, (0.2,) * 3) if name == "folder" else ()
    with pytest.raises(ValueError, match=words):
        build_dataset(name, "train", *where, **options)
