"""datasets.verify on a small prepared tree of the real layout: what is spoilt is named, by path and line, and nothing else."""
import re
import shutil
import sys

import numpy as np
import pytest

from datasets import DATASETS, verify
from datasets.decode import decode_jpeg
from datasets.imageset import FileImages
from datasets.paths import PathTable
from datasets.prepared import Split, write_prepared
from datasets.verifying import inventory
from datasets.verifying.scan import read_images
from tests.trees import WNIDS, cause
from util.args import run_command


def test_a_tree_that_is_right(tree):
    code, text, rows = tree.prepare().run()
    assert code == 0 and {row[-1] for name, row in rows.items() if name != "images readable"} == {"ok"}
    assert rows["train: images"] == ("27", "27", "ok") and rows["test: images"] == ("12", "12", "ok")
    assert rows["train: many / medium / few"] == ("0 / 0 / 4", "0 / 0 / 4", "ok")
    assert rows["train: largest / smallest class"] == ("12 / 2", "12 / 2", "ok")
    assert rows["images readable"] == ("-", "not looked at (--decode)", "-")
    assert rows["labels and folders"] == ("one class a folder", "27 lines agree", "ok")
    assert "train  27 images in 4 classes, from 12 of class 0 (n01440764) down to 2 of class 3 (n01491361)" in text
    assert re.search(r"few +1 to 4 +1  #{10}\n +5 to 9 +2  #{20}\n +10 to 12 +1  #{10}\n", text)
    code, text, rows = tree.run("--decode", "--num_workers", 2)
    assert code == 0 and rows["images readable"] == ("all", "39 decoded", "ok") and "problem" not in text


def test_files_that_are_not_there(tree):
    (tree.root / tree.train[13][0]).unlink()
    (tree.root / tree.test[4][0]).rename(tree.root / "val" / "ILSVRC2012_VAL_00000004.jpg")
    (tree.root / tree.test[5][0]).unlink()
    (tree.root / tree.test[5][0]).mkdir()
    problems, wrong = tree.prepare().wrong()
    assert problems == [f"train.txt:14: {tree.train[13][0]} is no such file", f"test.txt:5: {tree.test[4][0]} is no such file",
                        f"test.txt:6: {tree.test[5][0]} is a folder, not a file"]
    assert wrong == ["files"]
    assert cause(tree.run()[1]) == [
        "the files are called otherwise than in the list, such as ILSVRC2012_VAL_00000004.jpg where the list has "
        "val/ILSVRC2012_val_00000004.JPEG: write the names into the list as they are"]


def test_a_folder_that_is_missing_is_one_problem(tree):
    shutil.rmtree(tree.root / "train" / WNIDS[1])
    for path in (tree.root / "train" / WNIDS[2]).iterdir():
        path.rename(tree.root / "train" / path.name)
    problems, wrong = tree.prepare().wrong()
    assert problems == [
        f"train.txt:13: the folder {tree.root}/train/{WNIDS[1]} is not there (8 images, the first on this line)",
        f"train.txt:21: no image that is listed in {tree.root}/train/{WNIDS[2]} is there (5 images, the first on this line)"]
    assert wrong == ["files"] and "one folder higher than the list has them" in cause(tree.run()[1])[0]


def test_links_that_lead_nowhere_or_in_a_circle_or_to_nothing(tree):
    paths = [tree.root / tree.train[i][0] for i in (2, 3, 4, 5)]
    for path in paths:
        path.unlink()
    paths[0].symlink_to("gone.JPEG")
    paths[1].symlink_to(paths[1].name)
    (tree.root / "empty").touch()
    paths[2].symlink_to(tree.root / "empty")
    paths[3].symlink_to(tree.root / tree.train[6][0])  # a good one
    problems, wrong = tree.prepare().wrong()
    assert sorted(problems) == sorted([
        f"train.txt:3: {tree.train[2][0]} is a link that leads nowhere",
        f"train.txt:4: {tree.train[3][0]} is a link that leads in a circle",
        f"train.txt:5: {tree.train[4][0]} is an empty file (0 bytes)"])
    assert wrong == ["files", "links"]


def test_a_folder_behind_a_broken_link(tree):
    shutil.rmtree(tree.root / "val")
    (tree.root / "val").symlink_to(tree.root / "gone")
    problems, _ = tree.prepare().wrong()
    assert problems == [f"test.txt:1: the folder {tree.root}/val is a link that leads nowhere (12 images, the first on this "
                        "line)"]


def test_two_labels_swapped(tree):
    (a, _), (b, _) = tree.train[3], tree.train[21]
    tree.train[3], tree.train[21] = (a, 2), (b, 0)
    problems, wrong = tree.prepare().wrong()
    assert problems == [
        f"train.txt:4: label 2 (n01484850), but {a} lies in the folder of class 0 (n01440764)",
        f"train.txt:22: label 0 (n01440764), but {b} lies in the folder of class 2 (n01484850)"]
    assert wrong == ["labels and folders"]  # the counts of all classes are right


def test_all_labels_in_another_order(tree):
    tree.train = [(path, 3 - label) for path, label in tree.train]
    problems, wrong = tree.prepare().wrong()
    assert problems[:2] == ["class 0 (n01440764): has 2 images, expected 12",
                            "class 1 (n01443537): has 5 images, expected 8"]
    assert problems[4:] == [
        "train.txt:1: label 3 (n01491361), but train/n01440764/n01440764_0.JPEG lies in the folder of class 0 (n01440764), and "
        "so it is with 27 of 27 lines: the labels are in another order"]
    assert wrong == ["train: images a class", "labels and folders"]
    assert cause(tree.run()[1]) == ["the labels are in another class order (the official counts are all there, but at other "
                                    "classes): prepare the data set again from the official lists"]


def test_the_folders_of_inat18_are_its_labels(tree):
    lines = [(f"train_val2018/Plantae/{k}/{i}.jpg", k) for k in (0, 1, 2) for i in range(9)]
    for path, _ in lines:
        (tree.root / path).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / path).touch()
    labels = np.array([{1: 2, 2: 1}.get(label, label) for _, label in lines])  # two whole classes swapped
    write_prepared(tree.out, "inat18", tree.root, ["Abies alba", "Acer rubrum", "Betula nigra"], "category_id",
                   {"train": Split([path for path, _ in lines], labels, "made up")})
    _, text, rows = tree.run(name="inat18")
    assert rows["labels and folders"][1:] == ("1 problem", "WRONG")
    assert ("train.txt:10: label 2 (Betula nigra), but train_val2018/Plantae/1/0.jpg lies in the folder of class 1 (Acer "
            "rubrum), and so it is with 18 of 27 lines") in text


def test_a_class_that_is_dropped(tree):
    tree.train = [line for line in tree.train if line[1] != 2]
    problems, wrong = tree.prepare().wrong()
    assert problems == ["train.txt: 22 images, expected 27",
                        "class 2 (n01484850): has 0 images, expected 5",
                        "class 2 (n01484850): has no training image"]
    assert wrong == ["train: images", "train: largest / smallest class", "train: images a class",
                     "classes without a training image"]


def test_what_is_listed_more_than_once(tree):
    tree.train[20] = ("train//" + tree.train[1][0][6:], 2)
    tree.test[7] = (tree.train[26][0], tree.test[7][1])
    problems, wrong = tree.prepare().wrong()
    assert problems[:2] == [
        f"train.txt:21: train//{tree.train[1][0][6:]} is listed already (train.txt:2), with label 0 there and 2 here",
        f"test.txt:8: {tree.train[26][0]} is a training image too (train.txt:27)"]
    assert problems[2:] == [
        f"train.txt:21: label 2 (n01484850), but train//{tree.train[1][0][6:]} lies in the folder of class 0 (n01440764)",
        f"test.txt:8: label 2 (n01484850), but {tree.train[26][0]} lies in the folder of class 3 (n01491361)"]
    assert wrong == ["listed twice", "in train and evaluation", "labels and folders"]


def test_what_only_decoding_finds(tree):
    cut, again, text, copy = (tree.root / path for path, _ in (tree.train[4], tree.train[8], tree.train[11], tree.test[9]))
    cut.write_bytes(cut.read_bytes()[:-40])
    shutil.copy(tree.root / tree.train[7][0], again)
    text.write_text("<html>404</html>")
    shutil.copy(tree.root / tree.train[15][0], copy)
    assert tree.prepare().run()[0] == 0
    problems, wrong = tree.wrong("--decode", "--num_workers", 1)
    assert re.match(rf"train.txt:5: cannot read the image {cut} .*truncated.*: replace it", problems[0])
    assert re.match(rf"train.txt:12: cannot read the image {text} .*no image that Pillow knows.*: replace it", problems[1])
    assert problems[2:] == [f"test.txt:10: {tree.test[9][0]} has the same bytes as the training image {tree.train[15][0]} "
                            "(train.txt:16)"]
    assert wrong == ["images readable", "same file in train and evaluation"]
    assert tree.wrong("--decode", "--num_workers", 0) == (problems, wrong)
    text = tree.run("--decode", "--num_workers", 0)[1]
    assert f"\nnote: 1 training image has the same bytes as another: {tree.train[8][0]} (train.txt:9) those of " in text
    assert "under another label" not in text
    shutil.copy(tree.root / tree.train[20][0], tree.root / tree.train[0][0])
    assert (f"\nnote: 1 of them under another label, so that one of the two is wrong: {tree.train[20][0]} (train.txt:21) under "
            f"2, {tree.train[0][0]} (train.txt:1) under 0\n") in tree.run("--decode", "--num_workers", 0)[1]


@pytest.mark.skipif(decode_jpeg is None, reason="this torchvision decodes no JPEGs, and Pillow does not warn")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_libjpeg_warns_of_is_told_with_its_path(tree, workers):
    path = tree.root / tree.train[4][0]
    path.write_bytes(path.read_bytes()[:-2] + bytes(40) + b"\xff\xd9")
    code, text, _ = tree.prepare().run("--decode", "--num_workers", workers)
    assert code == 0 and f"\nnote: {tree.train[4][0]} (train.txt:5) can be read, and is damaged (Corrupt JPEG data: " in text


def test_lists_that_were_changed(tree):
    tree.prepare()
    for split in ("train", "test"):
        path = tree.out / f"{split}.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (tree.out / "test.txt").write_bytes((tree.out / "test.txt").read_bytes().partition(b"\r\n")[2])
    problems, wrong = tree.wrong()
    start = "is not the list that was prepared, its SHA-256 differs from that in dataset.json"
    assert problems[:2] == [
        f"train.txt: {start} (only its line ends were changed, to CRLF): prepare the data set again",
        f"test.txt: {start} (11 lines can be read, 12 were written): prepare the data set again"]
    assert wrong == ["lists unchanged", "test: images", "test: images a class"]


def test_every_line_that_cannot_be_read(tree):
    tree.prepare()
    bad = ["no_label.jpg", "train/a.jpg -1", "train/a.jpg 4", "train/a.jpg one", "../a.jpg 0", "/a.jpg 0"]
    with open(tree.out / "train.txt", "a") as file:
        file.write("\n".join(bad) + "\n")
    problems, wrong = tree.wrong()
    assert problems[:6] == [
        "train.txt:28: 'no_label.jpg' has no label: expected `relative/path label`",
        "train.txt:29: label -1 is negative: labels count from 0",
        "train.txt:30: label 4 of train/a.jpg, but the labels of 4 classes end at 3",
        "train.txt:31: label 'one' is no whole number: labels count from 0",
        "train.txt:32: ../a.jpg leads out of the data's folder: `..` is not allowed in a list",
        "train.txt:33: /a.jpg is absolute: paths in a list are relative to the data's folder"]
    assert wrong == ["lines of the lists", "lists unchanged"]


def test_show_and_report(tree, tmp_path):
    for path, _ in tree.test[:11]:
        (tree.root / path).unlink()
    _, text, _ = tree.prepare().run("--show", 3, "--report", tmp_path / "report.txt")
    assert text.count(" is no such file") == 3 and "\n  and 8 more\n" in text
    report = (tmp_path / "report.txt").read_text()
    assert report.count(" is no such file") == 11 and "more" not in report and report.endswith(text[text.index("\nwhat"):])


def test_images_that_have_moved_and_a_list_that_is_gone(tree):
    tree.prepare()
    tree.root.rename(tree.root.with_name("moved"))
    (tree.out / "test.txt").unlink()
    problems, wrong = tree.wrong()
    assert problems[0] == f"test.txt: cannot read the list file {tree.out / 'test.txt'} (No such file or directory)"
    assert (f'{tree.root}: no such folder of images: set "root" in {tree.out / "dataset.json"} to where they are now'
            in problems)
    assert wrong == ["lines of the lists", "test: images", "test: images a class", "files"]
    tree.root.mkdir()
    (tree.root / "archive.tar").touch()
    assert cause(tree.run()[1])[-1].endswith(f"{WNIDS[0]}_0.JPEG, and {tree.root} has archive.tar")


def test_places_folders_that_are_too_full(tree, monkeypatch):
    write_prepared(tree.out, "places_lt", tree.root, WNIDS, "list", {
        "train": Split([path for path, _ in tree.train], np.array([label for _, label in tree.train]), "made up")})
    monkeypatch.setattr(verify, "PLACES_STANDARD_MOST", 11)
    monkeypatch.setattr("datasets.verifying.causes.PLACES_STANDARD_MOST", 11)
    _, text, rows = tree.run(name="places_lt")
    assert rows["folders of Places365-Standard"] == ("at most 11 files", "1 problem", "WRONG")
    assert f"  train/{WNIDS[0]}: 12 files, and a class of Places365-Standard has at most 11\n" in text
    assert any("this is Places365-Challenge" in words for words in cause(text))


def test_every_data_set_can_be_verified():
    assert list(inventory.READERS) == list(DATASETS)


@pytest.mark.parametrize(("flags", "words"), [
    (["imagenet"], "unknown data set 'imagenet'; known: embedded, cifar10_lt"),
    (["shards"], "shards needs --data_path DIR: a folder that python -m datasets.pack has filled"),
    (["places_lt"], "places_lt needs --data_path DIR: "),
    (["embedded", "--data_path", "x"], "embedded ships with the project: leave out --data_path"),
    (["folder", "--data_path", ""], "--data_path is empty (an unset variable?): name a folder"),
    (["folder", "--data_path", "nowhere"], "--data_path nowhere is no folder"),
    (["folder", "--data_path", "OUT"], "no folder train/, val/ or test/ in "),
    (["list", "--data_path", "IMAGES"], "no list in "),
    (["inat18", "--data_path", "OUT"], "holds the data set imagenet_lt, not inat18"),
    (["inat18", "--data_path", "IMAGES"], "is no prepared folder (it has no dataset.json): python -m datasets.prepare inat18"),
    (["embedded", "--decode"], "--decode reads image files; embedded is in memory"),
    (["imagenet_lt", "--data_path", "OUT", "--num_workers", "2"], "--num_workers 2 is for --decode"),
    (["imagenet_lt", "--data_path", "OUT", "--decode", "--num_workers", "-1"], "--num_workers -1 must not be negative"),
    (["imagenet_lt", "--data_path", "OUT", "--show", "-1"], "--show must not be negative: -1"),
    (["imagenet_lt", "--data_path", "OUT", "--report", "OUT"], "cannot write --report "),
    (["imagenet_lt", "--data_path", "OUT", "--data_seed", "2"], "unrecognized arguments: --data_seed 2")])
def test_wrong_usage_is_one_line_and_exit_code_2(tree, monkeypatch, capsys, flags, words):
    places = {"OUT": str(tree.prepare().out), "IMAGES": str(tree.root)}
    monkeypatch.setattr(sys, "argv", ["verify.py", *(places.get(flag, flag) for flag in flags)])
    with pytest.raises(SystemExit) as stop:
        run_command(verify.get_args_parser(), verify.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_a_file_that_cannot_be_read(tree):
    missing, there = tree.root / "train" / "gone.jpg", tree.train[0][0]
    images = FileImages(tree.root, [0, 0], WNIDS, verify.ANY_RECORD, PathTable(["train/gone.jpg", there]), "made up")
    hashes, faults, _ = read_images(images, np.array([1, 0]))
    assert faults == {0: f"{missing} cannot be read (No such file or directory)"} and hashes[0] != 0 == hashes[1]
