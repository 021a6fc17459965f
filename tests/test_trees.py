"""datasets/preparing/trees.py: every publisher's lists over every form of the trees, and trees of wnids."""
import os
import re
import shutil

import numpy as np
import pytest

from datasets import build_dataset
from datasets.longtail import draw
from datasets.preparing import trees
from tests.made_up_trees import KINDS, SMALL, build, edit, prepare, prepared, refused, wnid

PLACES = ["", "flat", "hyphen", "data_256"]


@pytest.mark.parametrize(("name", "tree", "lists"), [
    *(("imagenet_lt", tree, lists) for tree in ("", "flat") for lists in ("", "flat")),
    *(("places_lt", tree, lists) for tree in PLACES for lists in PLACES),
    *(("inat18", tree, lists) for tree in ("", "folders") for lists in ("", "json"))])
def test_every_list_over_every_tree_gives_the_same_labels(tmp_path, name, tree, lists):
    counts = SMALL * 3  # 12 classes, so that 10 and 11 sort before 2 as strings, and most scenes have no second word
    made = build(KINDS[name], tmp_path, images=counts, tree=tree, lists=lists)
    record = prepare(name, made, tmp_path / "out")
    for split, truth in made.labels.items():
        if split != "spare":
            assert prepared(name, tmp_path / "out", split, made.source) == truth
            assert record["splits"][split]["images"] == len(truth)
    train = build_dataset(name, "train", str(tmp_path / "out"))
    named = made.classes if lists != "json" else [f"Genus species{label}" for label in range(12)]
    assert train.class_names == named and train.class_counts.tolist() == list(counts)
    assert train.image(0).size == (8, 8)


@pytest.mark.parametrize("level", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
@pytest.mark.parametrize("tree", ["", "flat"])
def test_source_may_be_any_folder_above_train(tmp_path, level, tree):
    made = build("imagenet", tmp_path, tree=tree, lists="flat", below="ILSVRC/Data/CLS-LOC")
    prepare("imagenet_lt", made, tmp_path / "out", source=made.source / level)
    for split in ("train", "val", "test"):
        assert prepared("imagenet_lt", tmp_path / "out", split, made.source) == made.labels[split]


def test_lists_are_found_in_the_source_and_may_have_names_of_their_own(tmp_path):
    made = build("imagenet", tmp_path)
    for split in ("train", "test"):
        shutil.copy(made.lists / f"ImageNet_LT_{split}.txt", made.source)
    record = prepare("imagenet_lt", made, tmp_path / "a", lists=False)
    assert list(record["splits"]) == ["train", "test"]
    (made.lists / "ImageNet_LT_val.txt").rename(made.lists / "my-val.txt")
    record = prepare("imagenet_lt", made, tmp_path / "b", "--lists", made.lists / "my-val.txt", lists=False)
    assert list(record["splits"]) == ["train", "val", "test"] and "my-val.txt" in record["splits"]["val"]["source"]
    refused("ImageNet_LT_val.txt: the name does not say|--lists .*notes.txt", "imagenet_lt", made, tmp_path / "c", "--lists",
            tmp_path / "notes.txt", lists=False)
    (tmp_path / "notes.txt").write_text("")
    refused("notes.txt: the name does not say which split", "imagenet_lt", made, tmp_path / "c", "--lists",
            tmp_path / "notes.txt", lists=False)
    shutil.copy(made.lists / "my-val.txt", made.lists / "other_val.txt")
    refused("my-val.txt and .*other_val.txt for the split val", "imagenet_lt", made, tmp_path / "c", "--lists",
            made.lists / "my-val.txt", made.lists / "other_val.txt", lists=False)
    (made.source / "ImageNet_LT_train.txt").unlink()
    refused("needs its official files ImageNet_LT_train.txt and ImageNet_LT_test.txt, .* --lists", "imagenet_lt", made,
            tmp_path / "c", lists=False)


@pytest.mark.parametrize("lists", ["", "json"])
def test_inat_calls_its_test_images_val(tmp_path, lists):
    made = build("inat", tmp_path, lists=lists)
    train, val = sorted(made.lists.iterdir())
    prepare("inat18", made, tmp_path / "a", "--lists", val, train, lists=False)
    assert prepared("inat18", tmp_path / "a", "test", made.source) == made.labels["test"]
    val.rename(made.lists / "iNaturalist18_test.txt")
    refused("iNaturalist18_test.txt: the name does not say .* iNaturalist18_train.txt, iNaturalist18_val.txt", "inat18", made,
            tmp_path / "b", "--lists", train, made.lists / "iNaturalist18_test.txt", lists=False)


def test_what_decided_is_written_down(tmp_path):
    made = build("places", tmp_path, tree="flat", lists="data_256")
    record = prepare("places_lt", made, tmp_path / "out")
    assert record["class_order"] == "label of the training list, the name is its class folder (Places_LT_train.txt)"
    assert re.search(r"Places_LT_test.txt, val_256/(Places365_val_\d+.jpg) is val/\1$", record["splits"]["test"]["source"])
    assert re.search(r"data_256/(\w)/(\1.*) is train/\2$", record["splits"]["train"]["source"])


def test_a_line_without_a_file_is_named_and_counted(tmp_path):
    made = build("imagenet", tmp_path, images=[80, 80, 80], tree="flat")
    lines = (made.lists / "ImageNet_LT_train.txt").read_text().splitlines()
    for number in (18, 201, 230):
        os.remove(made.source / lines[number - 1].split()[0])
    name = lines[17].split()[0]
    refused(f"ImageNet_LT_train.txt:18: no file {name}; .*train.txt:201: no file .*train.txt:230: no file .*: 3 of 240 lines "
            "lead to no file below ", "imagenet_lt", made, tmp_path / "out")
    path = made.lists / "ImageNet_LT_train.txt"
    path.write_text("\n\n" + path.read_text())
    refused(f"ImageNet_LT_train.txt:20: no file {name}", "imagenet_lt", made, tmp_path / "out")
    path.write_text(path.read_text().strip())
    for target in ("nowhere", os.path.basename(name)):  # a link to itself leads in a circle
        os.symlink(target, made.source / name)
        refused("ImageNet_LT_train.txt:18: .* 3 of 240", "imagenet_lt", made, tmp_path / "out")
        os.remove(made.source / name)
    (made.source / name).mkdir()
    refused("ImageNet_LT_train.txt:18: .* 3 of 240", "imagenet_lt", made, tmp_path / "out")
    shutil.rmtree(made.source / "train" / wnid(1))
    refused("ImageNet_LT_train.txt:1?\\d: .* 8\\d of 240", "imagenet_lt", made, tmp_path / "out")
    shutil.rmtree(made.source / "train")
    refused("ImageNet_LT_train.txt:1: .* nor one for any other line", "imagenet_lt", made, tmp_path / "out")


def test_a_file_name_alone_is_no_match_where_classes_share_it(tmp_path):
    made = build("places", tmp_path)
    for folder in made.classes:
        for file in (made.source / "train" / folder).iterdir():
            file.rename(made.source / "train" / file.name)
    refused("Places_LT_train.txt:1: .* nor one for any other line", "places_lt", made, tmp_path / "out")


def test_repeated_lines_are_named_and_counted(tmp_path):
    made = build("imagenet", tmp_path)
    path = made.lists / "ImageNet_LT_train.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines[:7]]))
    first = len(lines) + 1
    refused(f"train.txt:{first}: {lines[0][:-2]} is listed already \\(.*train.txt:1\\); .*train.txt:{first + 4}: .*; ...: 7 of "
            f"{len(lines) + 7} lines name an image again: take the list as it was", "imagenet_lt", made, tmp_path / "out")


def test_what_a_tree_of_wnids_leaves_out_is_told(tmp_path, capsys):
    made = build("imagenet", tmp_path)
    for name in ("a.heic", ".a.JPEG", "more/b.JPEG"):
        (made.source / "train" / wnid(0) / name).parent.mkdir(exist_ok=True)
        (made.source / "train" / wnid(0) / name).touch()
    (made.source / "loop").symlink_to("loop")  # no folder to look into
    prepare("imagenet_1k", made, tmp_path / "out", lists=False)
    told = capsys.readouterr().err
    assert [line.split(": ")[0] for line in told.splitlines()] == ["note"] * 3
    assert all(words in told for words in (f"train/{wnid(0)}/a.heic", f"train/{wnid(0)}/.a.JPEG", f"train/{wnid(0)}/more/"))
    os.mkfifo(made.source / "train" / wnid(0) / "pipe.JPEG")
    refused(f"train/{wnid(0)}/pipe.JPEG is a pipe and no image: repair or remove it", "imagenet_1k", made, tmp_path / "new",
            lists=False)


def test_two_lines_for_one_file_are_refused(tmp_path):
    made = build("inat", tmp_path, tree="folders")
    line = (made.lists / "iNaturalist18_train.txt").read_text().splitlines()[0]
    with open(made.lists / "iNaturalist18_train.txt", "a") as file:
        file.write(line.replace("train_val2018/Plantae", "train_val2018/Aves") + "\n")
    refused("iNaturalist18_train.txt:15: .*Aves.* and .*Plantae.* .*train.txt:1. would both be train/", "inat18", made,
            tmp_path / "out")


def test_a_tree_that_may_be_meant_in_two_ways_is_refused(tmp_path):
    made = build("places", tmp_path, tree="data_256")
    shutil.copytree(made.source / "data_256", made.source / "data_large", symlinks=True)
    # The copied links lead to the same JPEGs; files of their own do not.
    for file in (made.source / "data_large").rglob("*.jpg"):
        file.unlink()
        file.write_bytes(b"large")
    refused(r"may be data_256/\S+ or data_large/\S+ below .*: name as --source", "places_lt", made, tmp_path / "out")
    shutil.rmtree(made.source / "data_large")
    (made.source / "data_large").symlink_to("data_256")
    prepare("places_lt", made, tmp_path / "out")
    assert prepared("places_lt", tmp_path / "out", "train", made.source) == made.labels["train"]


def test_the_tree_that_the_list_names_goes_before_others(tmp_path):
    made = build("places", tmp_path, tree="data_256", lists="data_256")
    for file in list((made.source / "data_256").rglob("*.jpg")):
        other = made.source / "data_large" / file.relative_to(made.source / "data_256")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"large")
    prepare("places_lt", made, tmp_path / "a")
    assert prepared("places_lt", tmp_path / "a", "train", made.source) == made.labels["train"]
    # Even where an image is missing: another size is no replacement.
    (made.source / list(made.labels["train"])[3]).unlink()
    refused(r"train.txt:4: no file data_256/\S+: 1 of 14 lines lead to no file", "places_lt", made, tmp_path / "b")


def tree_labels(made):
    """Truth of imagenet_1k: all files of train, and of val."""
    return made.labels["train"] | made.labels["val"] | made.labels["spare"], made.labels["test"]


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_1k_is_the_tree_in_the_order_of_wnids(tmp_path, below):
    made = build("imagenet", tmp_path, below=below, images=[3] * 12)
    for folder in ("train", "val"):  # as Kaggle has them
        (made.source / "ILSVRC" / "Annotations" / "CLS-LOC" / folder / wnid(0)).mkdir(parents=True)
        (made.source / "ILSVRC" / "Annotations" / "CLS-LOC" / folder / wnid(0) / "a.xml").write_text("<annotation/>")
    record = prepare("imagenet_1k", made, tmp_path / "out", lists=False)
    train, test = tree_labels(made)
    assert prepared("imagenet_1k", tmp_path / "out", "train", made.source) == train
    assert prepared("imagenet_1k", tmp_path / "out", "test", made.source) == test
    assert record["class_names"] == made.classes and "wnid, sorted" in record["class_order"]


@pytest.mark.parametrize("form", ["list", "found", "kaggle"])
def test_a_flat_validation_folder_needs_labels_by_wnid(tmp_path, form):
    made = build("imagenet", tmp_path, tree="flat", lists="flat")
    if form == "kaggle":
        rows = [f"{path[4:-5]},{wnid(label)} 1 2 3 4 {wnid(label)} 5 6 7 8\n" for path, label in made.labels["test"].items()]
        (made.lists / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    if form == "found":
        shutil.copy(made.lists / "ImageNet_LT_test.txt", made.source)
    flags = {"list": ["--lists", made.lists], "found": [], "kaggle": ["--lists", made.lists / "LOC_val_solution.csv"]}[form]
    prepare("imagenet_1k", made, tmp_path / "out", *flags, lists=False)
    assert prepared("imagenet_1k", tmp_path / "out", "test", made.source) == made.labels["test"]


def test_labels_in_an_order_that_nobody_says_are_refused(tmp_path):
    made = build("imagenet", tmp_path, tree="flat", lists="flat")
    refused("no folder val/<wnid>/, and no file that labels the validation images: give ImageNet_LT_test.txt or Kaggle",
            "imagenet_1k", made, tmp_path / "out", lists=False)
    devkit = made.lists / "ILSVRC2012_validation_ground_truth.txt"
    devkit.write_text("490\n361\n")
    refused("ground_truth.txt: the devkit numbers classes in an order of its own", "imagenet_1k", made, tmp_path / "out",
            "--lists", devkit, lists=False)
    refused("ImageNet_LT_train.txt: expected the labels of ILSVRC2012's validation images", "imagenet_1k", made,
            tmp_path / "out", "--lists", made.lists / "ImageNet_LT_train.txt", lists=False)
    refused("takes one file here, .* not 2", "imagenet_1k", made, tmp_path / "out", "--lists", devkit.parent, made.source,
            lists=False)
    (tmp_path / "empty").mkdir()
    refused("empty holds neither ImageNet_LT_test.txt nor LOC_val_solution.csv", "imagenet_1k", made, tmp_path / "out",
            "--lists", tmp_path / "empty", lists=False)
    kaggle = made.lists / "LOC_val_solution.csv"
    kaggle.write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{wnid(1)} 1\nILSVRC2012_val_00000002,n99999999 1\n")
    refused("LOC_val_solution.csv:3: 'n99999999' is none of the 4 classes", "imagenet_1k", made, tmp_path / "out", "--lists",
            kaggle, lists=False)
    edit(made.lists / "ImageNet_LT_test.txt", " 3\n", " 8\n")
    refused(r"test.txt:\d: label 8, but the labels of the 4 classes of .*source end at 3", "imagenet_1k", made,
            tmp_path / "out")


def test_what_is_wrong_with_a_tree_of_wnids_is_named(tmp_path):
    made = build("imagenet", tmp_path)
    (made.source / "train" / "n1").mkdir()
    refused("train holds the folder n1, which is no wnid", "imagenet_1k", made, tmp_path / "out", lists=False)
    (made.source / "train" / "n1").rename(made.source / "train" / "n99999999")
    refused("train/n99999999 holds no image", "imagenet_1k", made, tmp_path / "out", lists=False)
    (made.source / "train" / "n99999999" / "a.JPEG").write_bytes(b"")
    refused("val lacks the class n99999999", "imagenet_1k", made, tmp_path / "out", lists=False)
    (made.source / "train" / "n99999999" / "b.JPEG").symlink_to("nowhere")
    refused("n99999999/b.JPEG is a link that leads nowhere, to nowhere", "imagenet_1k", made, tmp_path / "out", lists=False)
    (made.source / "copy").mkdir()
    shutil.copytree(made.source / "train", made.source / "copy" / "train", symlinks=True)
    refused("several folders train of wnids .train, copy/train.", "imagenet_1k", made, tmp_path / "out", lists=False)
    refused("has no folder train/<wnid>/", "imagenet_1k", made, tmp_path / "out", source=made.source / "val", lists=False)


def test_imagenet_bal_is_a_function_of_sorted_files_size_and_seed(tmp_path, monkeypatch):
    made = build("imagenet", tmp_path, images=[12, 9, 7, 30])
    train, test = tree_labels(made)
    files = sorted(train, key=lambda path: (train[path], path))
    labels = np.array([train[path] for path in files])
    drawn = {}
    for size, seed in ((5, 0), (5, 3), (8, 3)):
        flags = ["--per_class", size, "--data_seed", seed]
        record = prepare("imagenet_bal", made, tmp_path / f"{size}-{seed}", *flags, lists=False)
        drawn[size, seed] = prepared("imagenet_bal", tmp_path / f"{size}-{seed}", "train", made.source)
        expected = [files[i] for i in draw(labels, [size] * 4, seed)]
        assert list(drawn[size, seed]) == expected and record["splits"]["train"]["class_counts"] == [size] * 4
        assert record["options"]["per_class"] == size and record["options"]["data_seed"] == seed
        assert prepared("imagenet_bal", tmp_path / f"{size}-{seed}", "test", made.source) == test
    assert set(drawn[5, 3]) < set(drawn[8, 3]) and set(drawn[5, 0]) != set(drawn[5, 3])
    # Whatever order the file system gives its files in.
    class_images = trees.class_images
    monkeypatch.setattr(trees, "class_images", lambda *where: sorted(class_images(*where), key=lambda name: name[::-1]))
    prepare("imagenet_bal", made, tmp_path / "again", "--per_class", 5, lists=False)
    assert (tmp_path / "again" / "train.txt").read_bytes() == (tmp_path / "5-0" / "train.txt").read_bytes()
    refused(rf"--per_class 11: train/{wnid(2)} has only 10 images", "imagenet_bal", made, tmp_path / "out", "--per_class", 11,
            lists=False)
    refused(rf"--per_class 160: train/{wnid(2)} has only 10 images", "imagenet_bal", made, tmp_path / "out", lists=False)
