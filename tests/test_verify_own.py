"""datasets.verify on one's own lists and folders, on images without labels, and on sets that are in memory."""
import hashlib
import os
import pickle
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datasets import records
from datasets.cifar import CLASSES
from datasets.entries import LeftOut
from datasets.folder import walk
from tests.trees import WNIDS, cause


@pytest.fixture
def lists(tree):
    """The same images through list files of one's own."""
    for split, lines in (("train", tree.train), ("test", tree.test)):
        (tree.root / f"{split}.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in lines))
    where = dict(name="list", data_path=tree.root)
    return SimpleNamespace(root=tree.root, run=partial(tree.run, **where), wrong=partial(tree.wrong, **where))


def test_lists_of_ones_own(lists):
    code, _, rows = lists.run("--decode", "--num_workers", 0)
    assert code == 0 and rows["labels and folders"][1] == "27 lines agree" and rows["images readable"][1] == "39 decoded"
    first = f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG"
    (lists.root / first).rename(lists.root / "first.JPEG")  # it lies in no folder at all
    text = (lists.root / "train.csv").read_text().replace(first, "first.JPEG")
    text = text.replace(f"{WNIDS[1]}_5.JPEG,1", f"{WNIDS[1]}_5.JPEG,2")
    (lists.root / "train.csv").write_text(text)
    assert lists.wrong() == ([f"train.csv:19: label 2, but train/{WNIDS[1]}/{WNIDS[1]}_5.JPEG lies in the folder of class 1"],
                             ["labels and folders"])
    (lists.root / "train.csv").write_text(text + "a.jpg,999999999\nb.jpg,5\n")
    problems, _ = lists.wrong()
    assert problems[0] == ("train.csv:29: label 999999999, but 29 images have at most as many classes: number the classes from "
                           "0 without gaps")
    assert "class 4: has no training image" in problems and "train.csv:30: b.jpg is no such file" in problems
    (lists.root / "classes.txt").write_text("cat\ncat\n")
    problems, wrong = lists.wrong()
    assert f"classes.txt: {lists.root}/classes.txt names cat twice: expected one class a line, in label order" in problems
    assert wrong[1] == "classes.txt"
    (lists.root / "train.csv").write_text("file,label\n")
    assert lists.wrong()[0][0] == (f"train.csv: {lists.root}/train.csv:1: the header of a CSV must name the columns path and "
                                   "label, found file, label")


def test_a_folder_of_ones_own(tree):
    where = folder_of_ones_own(tree)
    assert tree.run("--decode", "--num_workers", 0, **where)[0] == 0
    (tree.root / "test" / "dog").mkdir()
    (tree.root / "train" / WNIDS[0] / "x.jpg").symlink_to("gone")
    (tree.root / "train" / "n02").symlink_to("n02")
    (tree.root / "train" / "n03").mkdir()
    shutil.copy(tree.root / "train" / WNIDS[3] / f"{WNIDS[3]}_0.JPEG", tree.root / "test" / WNIDS[0] / "y.jpg")
    problems, wrong = tree.wrong("--decode", "--num_workers", 0, **where)
    assert sorted(problems) == sorted([
        f"test/dog: is a class that the training images do not have: known are {', '.join(WNIDS)}, n03, 5 in all",
        "class 4 (n03): has no training image",
        f"train/{WNIDS[0]}/x.jpg: is a link that leads nowhere, to gone: repair or remove it",
        "train/n02: is a link that leads in a circle, to n02: repair or remove it",
        f"test/{WNIDS[0]}/y.jpg: has the same bytes as the training image "
        f"train/{WNIDS[3]}/{WNIDS[3]}_0.JPEG"])
    assert wrong == ["classes without a training image", "links", "same file in train and evaluation"]


def folder_of_ones_own(tree):
    """The training images as a set of their own, other ones for the test."""
    shutil.rmtree(tree.root / "val")
    shutil.copytree(tree.root / "train", tree.root / "test")
    for path in walk(tree.root / "test", LeftOut()):
        with open(tree.root / "test" / path, "ab") as file:
            file.write(b"other")
    return dict(name="folder", data_path=tree.root)


def test_a_folder_whose_splits_are_called_otherwise(tree):
    where = folder_of_ones_own(tree)
    assert "note:" not in tree.run(**where)[1]
    (tree.root / "test").rename(tree.root / "valid")
    (tree.root / "more").mkdir()
    (tree.root / "notes.txt").touch()
    (tree.root / "broken").symlink_to("gone")
    code, text, _ = tree.run(**where)
    assert code == 0 and text.count("note:") == 2 and "\nnote: only train, val and test are read, and not more, valid\n" in text
    assert "\nnote: there is no split test, which stage 2 scores: it needs --split val or --val_fraction\n" in text


def test_pictures_that_are_left_out_are_a_finding_and_hidden_files_a_note(tree):
    where = folder_of_ones_own(tree)
    image = (tree.root / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").read_bytes()
    (tree.root / "train" / ".ipynb_checkpoints").mkdir()
    (tree.root / "train" / WNIDS[0] / "README").write_text("no picture")
    code, text, rows = tree.run(**where)
    assert code == 0 and rows["pictures left out"] == ("all right", "none wrong", "ok") and rows["classes"][1] == "4"
    assert "\nnote: 1 hidden file or folder left out: train/.ipynb_checkpoints\n" in text
    (tree.root / "train" / WNIDS[1] / "more").mkdir()
    for path in (f"{WNIDS[0]}/photo", f"{WNIDS[1]}/more/a.jpg", f"{WNIDS[1]}/more/b.heic", "c.jpg", f"{WNIDS[2]}/d.heic"):
        (tree.root / "train" / path).write_bytes(image)
    assert tree.wrong(**where) == ([
        "train/c.jpg: is left out, lying beside the class folders and not in one",
        f"train/{WNIDS[0]}/photo: is left out, its name has no image's ending, such as .jpg or .png",
        f"train/{WNIDS[1]}/more/: 2 pictures left out, lying in folders within a class folder: its images lie in itself",
        f"train/{WNIDS[2]}/d.heic: is left out, images ending with .heic are not read"], ["pictures left out"])
    (tree.root / "link").symlink_to("train")
    problems, wrong = tree.wrong(name="unlabeled", data_path=tree.root)
    assert "link/: 32 pictures left out, links to folders are not followed" in problems and wrong == ["pictures left out"]


def test_what_verify_says_of_folders_that_are_odd(tree, request, monkeypatch):
    where = folder_of_ones_own(tree)
    (tree.root / "train" / "a").mkdir()  # an empty class that sorts first
    problems, _ = tree.wrong(**where)
    assert problems == ["class 0 (a): has no training image"] and cause(tree.run(**where)[1]) == []
    (tree.root / "train" / "a").rmdir()
    (tree.root / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").write_bytes(b"")
    os.mkfifo(tree.root / "train" / WNIDS[0] / "pipe.jpg")
    for name in (b"caf\xe9", b"caf\\xe9"):
        os.mkdir(os.path.join(os.fsencode(tree.root), b"train", name))
    problems, wrong = tree.wrong(**where)
    assert f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG: is an empty file (0 bytes)" in problems
    assert f"train/{WNIDS[0]}/pipe.jpg: is a pipe and no image: repair or remove it" in problems
    assert any(" would both be written as caf\\xe9, since the name of one is no UTF-8" in problem for problem in problems)
    assert wrong == ["class names", "classes without a training image", "files"]
    (tree.root / "train" / WNIDS[1]).chmod(0)
    (tree.root / "train" / WNIDS[2]).chmod(0o744)
    (tree.root / "train" / WNIDS[3] / f"{WNIDS[3]}_0.JPEG").chmod(0 if os.geteuid() else 0o600)
    tree.root.chmod(0o755)
    request.getfixturevalue("nobody")
    monkeypatch.setattr(records, "COUNTS", Path("images"))
    problems, _ = tree.wrong("--show", 99, name="folder", data_path="images")
    assert f"train/{WNIDS[1]}: this folder cannot be read (Permission denied)" in problems
    assert f"train/{WNIDS[2]}/{WNIDS[2]}_0.JPEG: is not to be read (no permission)" in problems
    assert f"train/{WNIDS[3]}/{WNIDS[3]}_0.JPEG: is not to be read (no permission)" in problems


def test_images_without_labels(tree):
    where = dict(name="unlabeled", data_path=tree.root)
    code, text, rows = tree.run("--decode", "--num_workers", 0, **where)
    assert code == 0 and rows["train: images"][1] == "39" and "classes" not in rows
    (tree.root / "loop.png").symlink_to("loop.png")
    (tree.root / "val" / "bad.png").write_bytes(b"\x89PNG")
    problems, _ = tree.wrong("--decode", "--num_workers", 0, **where)
    assert problems[0] == "loop.png: is a link that leads in a circle, to loop.png: repair or remove it"
    assert problems[1].startswith(f"val/bad.png: cannot read the image {tree.root}/val/bad.png (")


def test_the_embedded_set(tree):
    code, text, rows = tree.run(name="embedded")
    assert code == 0 and rows["train: many / medium / few"][1] == "6 / 2 / 2" and "4,479 images in 10 classes" in text


def cifar(folder, monkeypatch):
    """CIFAR-100's files in the official format, 100 images of each class for training, 1 for testing."""
    kind, base = CLASSES["cifar100_lt"], folder / "cifar-100-python"
    base.mkdir()
    files = {name: {"data": np.zeros((100 * n, 3072), dtype=np.uint8), "fine_labels": [*range(100)] * n}
             for name, n in (("train", 100), ("test", 1))} | {"meta": {"fine_label_names": [f"class {k}" for k in range(100)]}}
    md5 = {}
    for name, content in files.items():
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        md5[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(kind, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["meta"]})
    return base


def test_cifar(tree, tmp_path, monkeypatch):
    folder = tmp_path / "cifar"
    folder.mkdir()
    base = cifar(folder, monkeypatch)
    where = dict(name="cifar100_lt", data_path=folder)
    code, text, rows = tree.run(**where)
    assert code == 0 and rows["train: images"][1] == "10,000"
    drawn = sum(int(100 * 0.01 ** (k / 99)) for k in range(100))
    assert f"of train, --imb_factor 100 (the default) draws {drawn:,}\n" in text
    with open(base / "test", "ab") as file:
        file.write(b"x")
    problems, wrong = tree.wrong(**where)
    assert problems[0].startswith("cifar-100-python/test: is damaged, its MD5 is not ") and wrong[-1] == "files"
    with open(base / "train", "ab") as file:
        file.write(b"x")
    (base / "meta").unlink()
    problems, _ = tree.wrong(**where)
    assert [problem.partition(":")[0] for problem in problems] == [
        "cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"]
    base.rename(folder / "cifar-10-batches-py")
    _, text, _ = tree.run(**where)
    assert cause(text) == ["this is the folder of cifar10_lt"]
    (folder / "cifar-10-batches-py").rename(folder / "other")
    (folder / "cifar-100-python.tar.gz").touch()
    assert cause(tree.run(**where)[1]) == ["cifar-100-python.tar.gz is not unpacked: tar xf cifar-100-python.tar.gz"]
    assert cause(tree.run(name="cifar100_lt", data_path=folder / "other")[1])[0].startswith("--data_path names the folder")
