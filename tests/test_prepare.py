"""datasets/prepare.py: every publisher's lists over every form of the trees, and what it refuses."""
import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from datasets import build_dataset, trees
from datasets.cifar import CLASSES
from datasets.longtail import draw
from datasets.prepare import differences, get_args_parser, main
from datasets.records import OFFICIAL_SIZES, official_counts
from tests.made_up_trees import SMALL, build, wnid
from util.args import run_command

KINDS = {"imagenet_lt": "imagenet", "places_lt": "places", "inat18": "inat"}
PLACES = ["", "flat", "hyphen", "data_256"]


def prepare(name, made, out, *flags, source=None, lists=True):
    """The command with --source and --lists of a made-up set."""
    given = ["--lists", str(made.lists)] if lists else []
    return main(get_args_parser().parse_args([name, "--source", str(source or made.source), *given, "--out", str(out),
                                              *map(str, flags)]))


def refused(words, name, made, out, *flags, **options):
    """Checks that the command ends with these words (a regular expression), in one line, and writes nothing."""
    with pytest.raises(ValueError, match=words) as caught:
        prepare(name, made, out, *flags, **options)
    assert "\n" not in str(caught.value) and not out.exists()


def prepared(name, out, split, top):
    """{path below the top of the tree: label} of a prepared split."""
    images = build_dataset(name, split, str(out))
    paths = [os.path.relpath(images.root / path, top) for path in images.ids]
    return dict(zip(paths, images.labels.tolist(), strict=True))


def edit(path, old, new):
    """Replace text, which has to be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("name", "tree", "lists"), [
    *(("imagenet_lt", tree, lists) for tree in ("", "flat") for lists in ("", "flat")),
    *(("places_lt", tree, lists) for tree in PLACES for lists in PLACES),
    *(("inat18", tree, lists) for tree in ("", "folders") for lists in ("", "json"))])
def test_every_list_over_every_tree_gives_the_same_labels(tmp_path, name, tree, lists):
    made = build(KINDS[name], tmp_path, tree=tree, lists=lists)
    record = prepare(name, made, tmp_path / "out")
    for split, truth in made.labels.items():
        if split != "spare":
            assert prepared(name, tmp_path / "out", split, made.source) == truth
            assert record["splits"][split]["images"] == len(truth)
    train = build_dataset(name, "train", str(tmp_path / "out"))
    named = made.classes if lists != "json" else [f"Genus species{label}" for label in range(4)]
    assert train.class_names == named and train.class_counts.tolist() == list(SMALL)
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
    refused(f"ImageNet_LT_train.txt:18: no file {name} below .* 3 of 240 lines lead to no file", "imagenet_lt", made,
            tmp_path / "out")
    path = made.lists / "ImageNet_LT_train.txt"
    path.write_text("\n\n" + path.read_text())
    refused(f"ImageNet_LT_train.txt:20: no file {name}", "imagenet_lt", made, tmp_path / "out")
    path.write_text(path.read_text().strip())
    os.symlink("nowhere", made.source / name)
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
    refused(r"train.txt:4: no file data_256/\S+ .*; 1 of 14 lines lead to no file", "places_lt", made, tmp_path / "b")


def first_line_of(path, label):
    """(line number, text) of the first line with a label."""
    return next((number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith(f" {label}"))


def test_labels_that_are_not_the_classes_are_named_with_file_and_line(tmp_path):
    made = build("imagenet", tmp_path)
    path, whole = made.lists / "ImageNet_LT_train.txt", (made.lists / "ImageNet_LT_train.txt").read_text()
    number, line = first_line_of(path, 2)
    edit(path, line, line[:-1] + "1")
    refused(r"ImageNet_LT_train.txt:\d+: (label 1|the class folder \w+) .* at .*ImageNet_LT_train.txt:\d+: a", "imagenet_lt",
            made, tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " 7\n"))
    refused(r"ImageNet_LT_train.txt: no training image has label 2, the labels go to 7 .*train.txt:\d+", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " x\n").replace(" 1\n", " 2\n").replace(" x\n", " 1\n"))
    refused(rf"train.txt:\d+: label 2 is {wnid(1)}, which comes after {wnid(2)}: .* sorted wnids", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole + f"train/{wnid(0)}_9.JPEG 0\n")
    refused(rf"train.txt:15: train/{wnid(0)}_9.JPEG is in no class folder", "imagenet_lt", made, tmp_path / "out")
    path.write_text(re.sub(r"n\d{8}/", "", whole))
    refused(r"train.txt:1: .* is in no class folder, .* does not say what its labels are", "imagenet_lt", made,
            tmp_path / "out")


@pytest.mark.parametrize("name", ["imagenet_lt", "places_lt"])
def test_a_label_of_two_folders_and_a_folder_of_two_labels(tmp_path, name):
    made = build(KINDS[name], tmp_path, images=[1, 2, 2])
    path = next(made.lists.glob("*_train.txt"))
    one, two = made.classes[1], made.classes[2]
    lines = [f"train/{folder}/{file} {label}\n" for folder, file, label in (
        (made.classes[0], "a.jpg", 0), (one, "a.jpg", 1), (two, "b.jpg", 2), (one, "c.jpg", 2))]
    path.write_text("".join(lines))
    refused(f"train.txt:4: label 2 is the class folder {one} here, and {two} at .*train.txt:3: a label must be one", name, made,
            tmp_path / "out")
    path.write_text("".join(lines[:3]) + f"train/{one}/c.jpg 3\n")
    refused(f"train.txt:4: the class folder {one} has label 3 here, and 1 at .*train.txt:2: a class must have one", name, made,
            tmp_path / "out")


def test_evaluation_lists_have_the_classes_of_training(tmp_path):
    made = build("imagenet", tmp_path)
    path, whole = made.lists / "ImageNet_LT_test.txt", (made.lists / "ImageNet_LT_test.txt").read_text()
    number, line = first_line_of(path, 2)
    edit(path, line, line[:-1] + "4")
    refused(rf"test.txt:{number}: label 4, but the labels of the 4 classes of .*train.txt end at 3", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " x\n").replace(" 1\n", " 2\n").replace(" x\n", " 1\n"))
    refused(rf"test.txt:\d: label [12] is {wnid(1)}|{wnid(2)} here and .*: take all lists from one", "imagenet_lt", made,
            tmp_path / "out")


def test_inat_labels_are_category_ids_not_places_in_a_sorted_tree(tmp_path):
    made = build("inat", tmp_path, images=[2] * 12)
    path, order = made.lists / "iNaturalist18_train.txt", sorted(made.classes)
    path.write_text(re.sub(r"(\d+)(/\w+.jpg) \d+", lambda m: f"{m[1]}{m[2]} {order.index(m[1])}", path.read_text()))
    refused(r"train.txt:\d+: label 2 is 10, which is another category_id", "inat18", made, tmp_path / "out")


def test_inat_names_are_ids_where_the_categories_have_none_or_share_them(tmp_path):
    made = build("inat", tmp_path, lists="json")
    for change in (lambda entry: entry | {"name": ""}, lambda entry: entry | {"name": "Genus"}):
        for file in made.lists.iterdir():
            content = json.loads(file.read_text())
            content["categories"] = [change(entry) for entry in content["categories"]]
            file.write_text(json.dumps(content))
        assert prepare("inat18", made, tmp_path / "out")["class_names"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c.pop("annotations"), "needs the lists images, annotations and categories"),
    (lambda c: c["images"][3].pop("id"), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(id="3"), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(file_name=None), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(file_name="train_val2018/../x.jpg"), r"images\[3\]: train_val2018/../x.jpg leads out"),
    (lambda c: c["images"][3].update(file_name="/x.jpg"), r"images\[3\]: /x.jpg is absolute"),
    (lambda c: c["images"][3].update(id=c["images"][1]["id"]), r"images\[[13]\] has the id \d+ of another image"),
    (lambda c: c["images"][3].update(id=2**70), "images have ids beyond 64 bits"),
    (lambda c: c["annotations"][2].update(image_id=1), r"annotations\[2\] has an image_id that no image has"),
    (lambda c: c["annotations"][2].update(category_id=4), r"annotations\[2\] has a category_id outside 0 to 3"),
    (lambda c: c["annotations"][2].update(category_id=1.0), r"annotations\[2\] needs image_id and category_id"),
    (lambda c: c["annotations"].append(dict(c["annotations"][2], category_id=(c["annotations"][2]["category_id"] + 1) % 4)),
     r"annotations\[2\] gives an image a second category"),
    (lambda c: c["annotations"].pop(), r"images\[0\] has no annotation"),
    (lambda c: c["categories"].pop(), "none of the 3 categories has the id 0"),
    (lambda c: c["categories"].append({"id": 4, "name": "none"}), "no training image has label 4"),
])
def test_what_is_wrong_with_annotations_is_named(tmp_path, change, words):
    made = build("inat", tmp_path, lists="json")
    path = made.lists / "train2018.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(f"train2018.json.*{words}", "inat18", made, tmp_path / "out")


def test_json_that_is_none_and_other_categories_are_named(tmp_path):
    made = build("inat", tmp_path, lists="json")
    path, whole = made.lists / "val2018.json", (made.lists / "val2018.json").read_text()
    for text in (whole[:-9], "", "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        refused("val2018.json is no whole JSON", "inat18", made, tmp_path / "out")
    path.write_text(json.dumps(json.loads(whole)["images"]))
    refused("val2018.json needs the lists images", "inat18", made, tmp_path / "out")
    path.write_text(whole.replace("species2", "species9"))
    refused("val2018.json has other categories than .*train2018.json", "inat18", made, tmp_path / "out")
    path.unlink()
    refused("train2018.json and val2018.json, or iNaturalist18_train.txt and iNaturalist18_val.txt, which are not together in "
            ".*lists, .*source:", "inat18", made, tmp_path / "out")


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
    refused("n99999999/b.JPEG is a link that leads to no image", "imagenet_1k", made, tmp_path / "out", lists=False)
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
    image_files = trees.image_files
    monkeypatch.setattr(trees, "image_files", lambda folder: sorted(image_files(folder), key=lambda entry: entry.name[::-1]))
    prepare("imagenet_bal", made, tmp_path / "again", "--per_class", 5, lists=False)
    assert (tmp_path / "again" / "train.txt").read_bytes() == (tmp_path / "5-0" / "train.txt").read_bytes()
    refused(rf"--per_class 11: train/{wnid(2)} has only 10 images", "imagenet_bal", made, tmp_path / "out", "--per_class", 11,
            lists=False)
    refused(rf"--per_class 160: train/{wnid(2)} has only 10 images", "imagenet_bal", made, tmp_path / "out", lists=False)


def test_flags_act_or_are_refused(tmp_path):
    made = build("imagenet", tmp_path)
    out = tmp_path / "out"
    refused("--per_class 5 chooses the draw of imagenet_bal, which imagenet_lt has not", "imagenet_lt", made, out,
            "--per_class", 5)
    refused("--data_seed 0 chooses the draw", "imagenet_1k", made, out, "--data_seed", 0)
    refused("--per_class must be at least 1, not 0", "imagenet_bal", made, out, "--per_class", 0)
    refused("seed of the draw is -1", "imagenet_bal", made, out, "--per_class", 1, "--data_seed", -1, lists=False)
    refused("cifar10_lt is downloaded into --out: leave out --source and --lists", "cifar10_lt", made, out)
    refused("nothing to prepare for 'folder'; known: imagenet_lt, ", "folder", made, out)
    refused("--source .*nowhere is no folder", "imagenet_lt", made, out, source=tmp_path / "nowhere")
    refused("--lists .*nowhere does not exist", "imagenet_lt", made, out, "--lists", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="imagenet_lt needs --source DIR"):
        main(get_args_parser().parse_args(["imagenet_lt", "--out", str(out)]))


def test_out_may_lie_in_the_source_where_it_is_free(tmp_path):
    made = build("places", tmp_path)
    before = sorted(made.source.rglob("*"))
    with pytest.raises(ValueError, match="holds other files: name an empty or a new folder"):
        prepare("places_lt", made, made.source)
    with pytest.raises(ValueError, match="holds other files"):
        prepare("places_lt", made, made.source / "train")
    assert sorted(made.source.rglob("*")) == before
    for _ in range(2):  # the same set again is written anew
        prepare("places_lt", made, made.source / "livt")
    assert prepared("places_lt", made.source / "livt", "test", made.source) == made.labels["test"]
    with pytest.raises(ValueError, match="holds the data set places_lt"):
        prepare("imagenet_lt", made, made.source / "livt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot read or write .*file/out .Not a directory."):
        prepare("places_lt", made, tmp_path / "file" / "out")


def test_table_and_notes_say_what_is_not_official(tmp_path, capsys):
    made = build("places", tmp_path, images=[120, 101, 100, 20, 19, 1])
    (made.lists / "Places_LT_val.txt").unlink()
    prepare("places_lt", made, tmp_path / "out")
    text = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in text if line.strip()}
    assert rows["split"] == ["images", "classes", "largest", "smallest", "many", "medium", "few"]
    assert rows["train"] == ["361", "6", "120", "1", "2", "2", "2"] and rows["test"] == ["12", "6", "2", "2", "-", "-", "-"]
    assert [line for line in text if line.startswith("note")] == [
        "note: train has 361 images, the official one 62,500",
        "note: no split val: Places_LT_val.txt was not found",
        "note: test has 12 images, the official one 36,500",
        "note: 6 classes, officially 365",
        "note: this is another publisher's list or a part of the set; python -m datasets.verify places_lt --data_path "
        f"{tmp_path / 'out'} looks closer"]


@pytest.mark.parametrize("name", list(KINDS))
def test_only_the_official_counts_pass_without_a_note(name):
    counts = official_counts(name)
    splits = {split: {"images": size, "class_counts": counts.tolist()} for split, size in OFFICIAL_SIZES[name].items()}
    record = {"class_names": [f"c{label}" for label in range(len(counts))], "splits": splits}
    assert differences(name, record) == []
    i = int((counts != counts[0]).argmax())
    counts[[0, i]] = counts[[i, 0]]
    record["splits"]["train"]["class_counts"] = counts.tolist()
    assert differences(name, record) == [f"2 classes have other numbers of training images than officially, the first is 0 "
                                         f"(c0): {counts[0]:,}, officially {counts[i]:,}"]


def test_a_mistake_ends_in_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "places_lt", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        run_command(get_args_parser(), main)
    assert caught.value.code == 2
    assert re.fullmatch(r"error: places_lt needs its official files .* with --lists\n", capsys.readouterr().err)


def cifar_archive(folder, kind, patch):
    """A CIFAR-10 of 100 training images a class as one archive, and torchvision made to expect it."""
    inside = folder / kind.base_folder
    inside.mkdir(parents=True)

    def write(file, content):
        (inside / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((inside / file).read_bytes()).hexdigest()

    labels = (np.arange(200) % 10).tolist()
    data = {"data": np.zeros((200, 3072), np.uint8), "labels": labels}
    for files in ("train_list", "test_list"):
        patch.setattr(kind, files, [[file, write(file, data)] for file, _ in getattr(kind, files)])
    patch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], {"label_names": [*"abcdefghij"]})})
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(inside, kind.base_folder)
    shutil.rmtree(inside)
    patch.setattr(kind, "tgz_md5", hashlib.md5((folder / kind.filename).read_bytes()).hexdigest())
    return folder / kind.filename


def test_cifar_is_downloaded_or_the_url_is_named(tmp_path, monkeypatch, capsys):
    kind, out = CLASSES["cifar10_lt"], tmp_path / "out"
    archive, url = cifar_archive(tmp_path / "server", kind, monkeypatch), kind.url

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    args = get_args_parser().parse_args(["cifar10_lt", "--out", str(out)])
    with monkeypatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", no_network)
        with pytest.raises(ValueError, match=f"cannot fetch {url} .*not known.*: put that file into {out}, .* again") as caught:
            main(args)
    assert "\n" not in str(caught.value)
    # Both ways end in the same: the file put there by hand, and a download.
    shutil.copy(archive, out)
    main(args)
    shutil.rmtree(out)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        record = main(args)
        server.shutdown()
    assert record["splits"]["train"]["class_counts"] == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    assert record["splits"]["test"]["images"] == 200 and len(build_dataset("cifar10_lt", "train", str(out))) == 242
    assert re.search(r"train +242 +10 +100 +1 +0 +4 +6\n", capsys.readouterr().out)
