"""Likely causes on made-up facts, and which lines contradict their folders."""
from pathlib import Path

import numpy as np
import pytest

from datasets.paths import PathTable
from datasets.records import OFFICIAL_SIZES, official_counts
from datasets.verifying.causes import CAUSES, Facts, likely_causes
from datasets.verifying.checks import label_problems, listed_twice, path_keys, shared_content, shared_paths
from datasets.verifying.listing import Listing
from datasets.verifying.scan import Hint

INAT = official_counts("inat18")
IMAGENET = official_counts("imagenet_lt")
STRING_ORDER = np.array(sorted(range(len(INAT)), key=str))


def sizes(**images):
    return {split: np.array([count]) for split, count in images.items()}


def swapped(counts, one, other):
    counts = counts.copy()
    counts[[one, other]] = counts[[other, one]]
    return counts


@pytest.mark.parametrize(("facts", "words"), [
    (Facts("imagenet_lt", sizes(train=1_281_167)), "these lists are the whole ILSVRC2012, 1,281,167 images"),
    (Facts("imagenet_bal", sizes(train=1_281_167)), "these lists are the whole ILSVRC2012"),
    (Facts("places_lt", sizes(train=115_846)), "this is the training list of imagenet_lt"),
    (Facts("inat18", {"train": INAT[STRING_ORDER]}), "the labels follow folder names sorted as strings (0, 1, 10, 100, ...)"),
    (Facts("inat18", {"train": np.random.default_rng(0).permutation(INAT)}), "the labels are in another class order"),
    (Facts("imagenet_lt", {"train": IMAGENET[::-1]}), "the labels are in another class order"),
    (Facts("imagenet_lt", {"train": swapped(IMAGENET, 3, 5)}), "the counts of classes 3, 5 are the official ones, but of one "
     "another: their labels are swapped"),
    (Facts("inat18", {"train": np.append(0, INAT[:-1]), "test": np.append(0, np.full(8141, 3))}), "the labels count from 1"),
    (Facts("list", {"train": np.array([0, 4, 2])}), "the labels count from 1 (label 0 has no image, every other has some)"),
    (Facts("imagenet_lt", paths={"test": PathTable(["val/ILSVRC2014_val_00000001.JPEG"])}), "these are ILSVRC2014 names"),
    (Facts("imagenet_1k", hints=[Hint("val/ILSVRC2012_val_1.JPEG", ["ILSVRC2010_val_1.JPEG"])]), "these are ILSVRC2010 names"),
    (Facts("places_lt", largest_folder=5001), "this is Places365-Challenge; the lists are over Places365-Standard"),
    (Facts("places_lt", root="/d/Places365_Challenge/train"), "this is Places365-Challenge"),
    (Facts("list", paths={"train": PathTable("ab"), "test": PathTable("ba")}), "the test list is the training list"),
    (Facts("inat18", {"train": np.ones(5089, dtype=int)}), "this is iNaturalist 2017; inat18 is iNaturalist 2018"),
    (Facts("inat18", sizes(train=265_213)), "this is iNaturalist 2019"),
    (Facts("inat18", {"train": np.ones(10_000, dtype=int)}), "this is iNaturalist 2021"),
    (Facts("inat18", paths={"train": PathTable(["train_val2019/Plants/400/a.jpg"])}), "this is iNaturalist 2019"),
    (Facts("imagenet_lt", sizes(train=115_846, val=50_000, test=20_000)), "the lists val and test are swapped: val has 20,000"),
    (Facts("places_lt", sizes(train=62_500, test=7_300)), "the lists val and test are swapped"),
    (Facts("inat18", sizes(train=437_513 + 24_426)), "the training list has the 24,426 images of test in it"),
    (Facts("imagenet_lt", sizes(train=115_846 + 20_000)), "the training list has the 20,000 images of val in it"),
    (Facts("list", hints=[Hint("a/1.jpg", ["1.JPEG"], twin="1.JPEG")]), "such as 1.JPEG where the list has a/1.jpg"),
    (Facts("list", hints=[Hint("a/1.jpg", [], above=True)]), "one folder higher than the list has them, a/1.jpg"),
    (Facts("list", root="/d", hints=[Hint("a/1.jpg", [])], missing=6, listed=10, top=["b", "c.zip"]), "the list begins with "
     "a/1.jpg, and /d has b, c.zip"),
    (Facts("cifar10_lt", top=["cifar-100-python"]), "this is the folder of cifar100_lt"),
    (Facts("cifar10_lt", top=["cifar-10-python.tar.gz"]), "cifar-10-python.tar.gz is not unpacked: tar xf"),
    (Facts("cifar10_lt", top=["data_batch_1"]), "--data_path names the folder cifar-10-batches-py itself: name the one above")],
    ids=lambda value: value if isinstance(value, str) else value.name)
def test_the_cause_is_named_and_no_other(facts, words):
    causes = likely_causes(facts)
    assert len(causes) == 1 and words in causes[0] and "\n" not in causes[0]


def test_facts_that_are_right_have_no_cause():
    for name in OFFICIAL_SIZES:
        counts = official_counts(name)
        each = {split: np.full(len(counts), n // len(counts)) for split, n in OFFICIAL_SIZES[name].items()
                if counts is not None and split != "train"}
        assert likely_causes(Facts(name, {"train": counts} | each if each else {}, root="/d/x", missing=3, listed=10,
                                   hints=[Hint("a/1.jpg", ["2.jpg"])])) == []
    assert all(cause.__doc__ for cause in CAUSES) and likely_causes(Facts("folder")) == []


def test_counts_that_are_simply_others_are_no_order():
    assert likely_causes(Facts("inat18", {"train": np.arange(1, len(INAT) + 1)})) == []


def test_one_image_more_or_less_does_not_hide_the_order():
    counts = INAT[STRING_ORDER]
    counts[7] -= 1
    assert "sorted as strings" in likely_causes(Facts("inat18", {"train": counts}))[0]


def listing(split, lines):
    paths, labels = zip(*lines, strict=True)
    return Listing(split, Path("/d"), f"{split}.txt", PathTable(paths), np.array(labels), np.arange(len(lines)) + 1)


def places(problems):
    return [problem.place for problem in problems]


def folder(name, label, images):
    return [(f"{name}/{i}.jpg", label) for i in range(images)]


def test_swapped_labels_are_found_by_the_other_lines_of_their_folders():
    train = listing("train", [*folder("train/x", 0, 20), *folder("train/y", 1, 10), *folder("train/z", 2, 9), ("train/x/a", 1)])
    test = listing("test", [*folder("test/x", 0, 2), ("test/y/a", 2), ("test/z/a", 1)])  # whole folders swapped here
    problems, checked = label_problems({"train": train, "test": test}, ["0", "1", "2"])
    assert places(problems) == ["train.txt:40", "test.txt:3", "test.txt:4"] and checked == 44
    assert problems[0].words == "label 1, but train/x/a lies in the folder of class 0"


def test_small_classes_and_whole_classes_are_found_by_the_names_of_the_folders():
    train = listing("train", [("a/7291/0.jpg", 1), ("a/7291/1.jpg", 0), ("b/12/0.jpg", 0), *folder("b/3", 2, 4)])
    names = ["7291", "12", "3"]
    assert places(label_problems({"train": train}, names, names)[0]) == ["train.txt:1", "train.txt:3"]


@pytest.mark.parametrize(("name", "path"), [
    ("/a/arena/hockey", "data_256/a/arena/hockey"), ("/a/arena/hockey", "train/arena-hockey"), ("arena/hockey", "arena/hockey"),
    ("n01440764 tench, Tinca tinca", "train/n01440764"), ("cat", "train/pets/cat")])
def test_names_of_folders_as_publishers_write_them(name, path):
    lines = [(f"{path}/0.jpg", 0), (f"{path}/1.jpg", 1), *folder("train/n01443537", 1, 1)]
    assert places(label_problems({"train": listing("train", lines)}, [name, "n01443537"], [name, "n01443537"])[0]) == [
        "train.txt:2"]


def test_labels_in_another_order_are_one_problem():
    train = listing("train", [line for k in range(9) for line in folder(f"train/{k}", (k + 1) % 9, 3)])
    names = [str(k) for k in range(9)]
    (problem,), checked = label_problems({"train": train}, names, names)
    assert checked == 27 and problem.words == ("label 1, but train/0/0.jpg lies in the folder of class 0, and so it is with 27 "
                                               "of 27 lines: the labels are in another order")
    test = listing("test", [(f"val/{k}/1.jpg", (k + 1) % 9) for k in range(9)])
    (problem,), _ = label_problems({"train": listing("train", [
        line for k in range(9) for line in folder(f"train/{k}", k, 3)]), "test": test}, names)
    assert problem.place == "test.txt:1" and "with 9 of 9 lines" in problem.words


@pytest.mark.parametrize("lines", [
    [*folder("images", 0, 97), *((f"images/{i}.png", 1) for i in range(3))],                              # one folder for all
    [*folder("cam1", 0, 9), *((f"cam1/{i}.png", 1) for i in range(3)), *folder("cam2", 1, 8), ("cam2/a", 0)],  # by camera
    [*folder("cat_in", 0, 9), *folder("cat_out", 0, 4), *folder("dog", 1, 8)],                            # two folders a class
    [*folder("train", 0, 9), ("train/a", 1), *folder("val", 1, 9)],                                       # splits, not classes
    [*folder("train", 0, 20), ("train/a", 1), *folder("train/cat", 1, 9)],                                # the rest beside
    [("x/1", 0), ("x/2", 1), *folder("y", 0, 19)]])                                                       # half and half
def test_folders_that_are_not_those_of_classes_are_no_problem(lines):
    assert label_problems({"train": listing("train", lines)}, ["cat", "dog"], ["cat", "dog"])[0] == []


def test_files_that_were_not_read_are_not_the_same():
    train, test = listing("train", [("a/1", 0), ("a/2", 0)]), listing("test", [("b/1", 0), ("b/2", 0)])
    problems = shared_content(train, np.array([0, 7], dtype=np.uint64), test, np.array([7, 0], dtype=np.uint64))
    assert [(problem.place, problem.words) for problem in problems] == [
        ("test.txt:1", "b/1 has the same bytes as the training image a/2 (train.txt:2)")]


def test_paths_are_compared_whatever_their_hashes():
    train = listing("train", [("a/1", 0), ("a/2", 0), ("a//1", 0), ("./a/1", 1)])
    test = listing("test", [("a/./2", 0), ("a/3", 0)])
    twice = listed_twice(train, path_keys(train))
    assert places(twice) == ["train.txt:3", "train.txt:4"]
    assert twice[1].words == "./a/1 is listed already (train.txt:1), with label 0 there and 1 here"
    assert places(shared_paths(train, path_keys(train), test, path_keys(test))) == ["test.txt:1"]
    same = np.zeros(4, dtype=np.int64)  # every hash collides
    assert places(listed_twice(train, same)) == ["train.txt:3", "train.txt:4"]
