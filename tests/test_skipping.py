"""--skip_bad_images: which image stands for an unreadable one, how many may, and what a run tells of them."""
import json
import multiprocessing
import shutil
import sys

import numpy as np
import pytest
import torch

import main_pretrain
from datasets import build_dataset
from datasets.decode import UnreadableImage
from datasets.loading import train_loader
from datasets.skipping import SkipUnreadable
from tests.conftest import DECODER, TINY
from tests.test_resume import Cut, cut_after  # noqa: F401 (a fixture)
from util.args import run_command
from util.run import RunFolder

STATISTICS = dict(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
MAE = ["--model", "mae_vit_tiny_patch16"]
BAD = {"cat/03.png": b"", "cat/04.png": b"no image", "elk/04.png": b""}


@pytest.fixture
def damaged(picture_folder, tmp_path):
    """A copy of the small folder in which three training images are unreadable, two of them neighbours."""
    shutil.copytree(picture_folder, tmp_path / "data")
    for name, data in BAD.items():
        (tmp_path / "data" / "train" / name).write_bytes(data)
    return tmp_path / "data"


def load(root, limit):
    return SkipUnreadable(build_dataset("folder", "train", root, **STATISTICS), limit)


def place(images, name):
    return [str(images.ids[i]) for i in range(len(images))].index(f"train/{name}")


def test_the_next_readable_image_of_the_class_stands_in_wrapping(damaged):
    images = load(damaged, 3)
    for name, instead in (("cat/03.png", "cat/05.png"), ("cat/04.png", "cat/05.png"), ("elk/04.png", "elk/00.png"),
                          ("cat/02.png", "cat/02.png")):
        index, other = place(images, name), place(images, instead)
        assert np.array_equal(images.image(index), images.images.image(other))
        assert torch.equal(images.pixels(index), images.images.pixels(other))
        assert images.labels[index] == images.labels[other]
    assert images.unreadable == [("train/cat/03.png", "the file is empty"), ("train/cat/04.png", "no image that Pillow knows"),
                                 ("train/elk/04.png", "the file is empty")]
    assert (len(images), images.class_names, images.data_hash) == (41, ["cat", "dog", "elk"], images.images.data_hash)


def test_one_more_than_allowed_is_refused_and_the_same_one_counts_once(damaged):
    images = load(damaged, 2)
    for _ in range(3):
        images.image(place(images, "cat/03.png"))  # finds 04 too
    with pytest.raises(UnreadableImage, match="3 images cannot be read, more than --skip_bad_images 2 allows: now "
                       r"train/elk/04.png \(the file is empty\), before it train/cat/03.png, train/cat/04.png: repair"):
        images.pixels(place(images, "elk/04.png"))
    assert len(images.unreadable) == 2
    images._count(place(images, "cat/03.png"), UnreadableImage("", "two processes read it at once"))
    assert len(images.unreadable) == 2


def test_what_was_found_elsewhere_is_remembered_and_counts_once(damaged):
    images, other = load(damaged, 3), load(damaged, 3)
    for each, name in ((images, "cat/04.png"), (other, "cat/04.png"), (other, "elk/04.png")):
        each.image(place(each, name))
    (damaged / "train" / "elk" / "04.png").write_bytes((damaged / "train" / "elk" / "00.png").read_bytes())
    images.remember([(index, f"otherwise, {why}") for index, why in other.found])
    assert images.unreadable == [("train/cat/04.png", "no image that Pillow knows"),
                                 ("train/elk/04.png", "otherwise, the file is empty")]
    # What was replaced stays so, though it is readable now: a continued run shows what an uninterrupted one does.
    assert np.array_equal(images.image(place(images, "elk/04.png")), images.images.image(place(images, "elk/00.png")))
    few = load(damaged, 1)
    with pytest.raises(UnreadableImage, match="2 images cannot be read, more than --skip_bad_images 1 allows: train/cat/04.png"
                       ", train/elk/04.png: repair"):
        few.remember(other.found)
    assert few.unreadable == []


def test_a_continued_run_counts_on(pretrain, damaged, tmp_path, cut_after):  # noqa: F811
    def run(limit):
        pretrain(tmp_path / "run", *MAE, "--data_path", damaged, "--skip_bad_images", limit, "--num_workers", 0)
    patch = cut_after(1)
    with pytest.raises(Cut):
        run(3)
    patch.undo()
    for name in BAD:  # what the first epoch has found is mended, and two others break
        (damaged / "train" / name).write_bytes((damaged / "train" / "cat" / "00.png").read_bytes())
    for name in ("dog/00.png", "dog/01.png"):
        (damaged / "train" / name).write_bytes(b"")
    with pytest.raises(UnreadableImage, match="4 images cannot be read, more than --skip_bad_images 3 allows: now train/dog/0"):
        run(3)
    with pytest.raises(UnreadableImage, match="3 images cannot be read, more than --skip_bad_images 2 allows: train/cat"):
        run(2)
    run(5)
    assert [json.loads(line)["bad_images"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [3, 5]
    assert len((tmp_path / "run" / "bad_images.txt").read_text().splitlines()) == 5


def test_a_class_without_a_readable_image_is_named(damaged):
    for path in (damaged / "train" / "elk").iterdir():
        path.write_bytes(b"")
    images = load(damaged, 41)
    with pytest.raises(UnreadableImage, match="no image of the class 'elk' can be read, the last one train/elk/02.png .the "
                       "file is empty.: check"):
        images.image(place(images, "elk/02.png"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_another_process_finds_is_known_here(damaged, method):
    images = load(damaged, 3)
    process = multiprocessing.get_context(method).Process(target=images.pixels, args=(place(images, "cat/03.png"),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [name for name, _ in images.unreadable] == ["train/cat/03.png", "train/cat/04.png"]


def test_batches_do_not_depend_on_the_workers(damaged):
    def run(workers):
        images = load(damaged, 3)
        found = [batch for epoch in range(2) for batch in train_loader(images, (16, 16), 8, 0, num_workers=workers)]
        return found, images.unreadable
    (alone, listed), (together, listed_too) = run(0), run(2)
    assert listed == listed_too and len(listed) == 3
    assert all(torch.equal(a, b) for one, other in zip(alone, together, strict=True)
               for a, b in zip(one, other, strict=True))


def test_a_run_lists_and_counts_what_it_replaced(pretrain, damaged, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(out, *MAE, "--data_path", damaged, "--skip_bad_images", 3)
    told = capsys.readouterr().out
    lines = ["train/cat/03.png\tthe file is empty", "train/cat/04.png\tno image that Pillow knows",
             "train/elk/04.png\tthe file is empty"]
    assert (out / "bad_images.txt").read_text().splitlines() == lines
    assert [json.loads(line)["bad_images"] for line in (out / "log.jsonl").read_text().splitlines()] == [3, 3]
    assert told.count("3 unreadable training images, each") == 1 and all(told.count(line) == 1 for line in lines)


def test_lines_that_were_told_are_not_told_again(damaged, tmp_path, capsys):
    images, run = load(damaged, 3), RunFolder(tmp_path)
    images.image(place(images, "elk/04.png"))
    assert run.log_bad_images(images) == {"bad_images": 1} and "1 unreadable training image, " in capsys.readouterr().out
    assert run.log_bad_images(images) == {"bad_images": 1} and capsys.readouterr().out == ""
    images.image(place(images, "cat/03.png"))
    assert run.log_bad_images(images) == {"bad_images": 3} and "2 unreadable training images, each" in capsys.readouterr().out
    assert len((tmp_path / "bad_images.txt").read_text().splitlines()) == 3
    assert run.log_bad_images(images.images) == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_run_stops_at_one_too_many(damaged, data_flags, tmp_path, monkeypatch, capsys, workers):
    argv = [*data_flags, *TINY, *DECODER, *MAE, "--output_dir", tmp_path / "out", "--data_path", damaged,
            "--skip_bad_images", 2, "--num_workers", workers]
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_command(main_pretrain.get_args_parser(), main_pretrain.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: 3 images cannot be read, more than --skip_bad_images 2 allows")
    assert error.count("\n") == 1


def test_an_evaluation_replaces_nothing(finetune, damaged, tmp_path):
    broken = damaged / "test" / "cat" / "03.png"
    broken.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=f"cannot read the image {broken} .the file is empty."):
        finetune(tmp_path / "run", "--data_path", damaged, "--skip_bad_images", 9, "--epochs", 1, "--warmup_epochs", 0)


def test_a_negative_number_is_refused(pretrain, tmp_path):
    with pytest.raises(ValueError, match="--skip_bad_images must not be negative: -1"):
        pretrain(tmp_path / "run", *MAE, "--skip_bad_images", -1)
