"""datasets.statistics against a second computation, for any number of processes, in the form that flags take."""
import os
import sys

import numpy as np
import pytest
from PIL import Image

import main_pretrain
from datasets import embedded, statistics
from datasets.parallel import over_chunks
from util.args import run_command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """150 images of different sizes, colours and modes in DIR/train/<class>/."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(150):
        folder = root / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, [250, 150, 90], (*draw.integers(3, 30, 2), 3)).astype(np.uint8)
        Image.fromarray(pixels if i % 5 else pixels[:, :, 0]).save(folder / f"{i}.png")
    return root


def expected(root, mode="RGB", keep=None):
    """Mean and deviation (C,) of all files below root, or of those at the positions `keep`, in the order of their paths."""
    means, squares = [], []
    paths = sorted(root.rglob("*.png"))
    for path in paths if keep is None else [paths[i] for i in keep]:
        pixels = np.asarray(Image.open(path).convert(mode), dtype=np.float64) / 255
        pixels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
        means.append(pixels.mean(0))
        squares.append((pixels**2).mean(0))
    mean = np.mean(means, 0)
    return mean, np.sqrt(np.mean(squares, 0) - mean**2)


def run(*flags):
    return statistics.main(statistics.get_args_parser().parse_args([*map(str, flags)]))


def test_against_numpy_for_any_number_of_processes(pictures, capsys):
    mean, std = run("folder", "--data_path", pictures, "--num_workers", 0)
    out, err = capsys.readouterr()
    np.testing.assert_allclose((mean, std), expected(pictures), rtol=1e-12)
    again = run("folder", "--data_path", pictures, "--num_workers", 2)
    assert np.array_equal(again, (mean, std))
    numbers = [f"{value:.4f}" for value in (*mean, *std)]
    assert out == f"--mean {' '.join(numbers[:3])} --std {' '.join(numbers[3:])}\n"
    assert err == f"(150 of the 150 images of {pictures}/train)\n"


def test_an_image_weighs_the_same_whatever_its_size(tmp_path):
    (tmp_path / "large.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 40), (255, 0, 51)).save(tmp_path / "large.png")
    Image.new("RGB", (2, 2), (0, 255, 51)).save(tmp_path / "small.png")
    Image.fromarray(np.full((3, 3, 3), (0, 0, 255), dtype=np.uint8)).save(tmp_path / "third.png")
    mean, std = run("unlabeled", "--data_path", tmp_path, "--num_workers", 0)
    np.testing.assert_allclose(mean, [1 / 3, 1 / 3, 7 / 15], rtol=1e-12)
    np.testing.assert_allclose(std, [np.sqrt(2) / 3, np.sqrt(2) / 3, np.sqrt(8) / 7.5], rtol=1e-12)


def test_gray_and_the_flags_are_what_training_takes(pictures, capsys):
    mean, std = run("folder", "--data_path", pictures, "--gray", "--num_workers", 0)
    np.testing.assert_allclose((mean, std), expected(pictures, "L"), rtol=1e-12)
    args = main_pretrain.get_args_parser().parse_args(capsys.readouterr().out.split())
    assert args.mean == [round(float(mean[0]), 4)] and args.std == [round(float(std[0]), 4)]


def test_the_embedded_sets_record_is_its_statistics(capsys):
    mean, std = run("embedded", "--num_workers", 0)
    assert (round(float(mean[0]), 6), round(float(std[0]), 6)) == (embedded.MEAN, embedded.STD)
    assert capsys.readouterr().out == "--mean 0.3552 --std 0.3643\n"


def test_a_sample_is_a_seeded_draw(pictures, capsys, monkeypatch):
    kept = []
    monkeypatch.setattr(statistics, "over_chunks", lambda function, images, indices, *_: (
        kept.append(indices.tolist()) or [function(images, indices)]))
    first, again = (run("folder", "--data_path", pictures, "--limit", 20) for _ in range(2))
    assert np.array_equal(first, again) and kept[0] == kept[1] == sorted(set(kept[0])) and len(kept[0]) == 20
    assert kept[0] != list(range(20))
    np.testing.assert_allclose(first, expected(pictures, keep=kept[0]), rtol=1e-12)
    assert capsys.readouterr().err.startswith("(20 of the 150 images of ")
    run("folder", "--data_path", pictures, "--limit", 1000)
    assert kept[-1] == list(range(150))


def die(images, chunk):
    os._exit(3)


def test_a_process_that_dies_is_said(pictures):
    images = statistics.open_images("folder", pictures, "train", False)
    with pytest.raises(ValueError, match="one of 2 processes died while it read images .out of memory, or killed.: use a "):
        list(over_chunks(die, images, np.arange(150), 2))


def test_another_split(tmp_path):
    for split, value in (("train", 255), ("test", 51)):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(np.array([[0, value]], dtype=np.uint8)).save(tmp_path / split / "a" / "1.png")
    assert run("folder", "--data_path", tmp_path, "--split", "test", "--num_workers", 0)[0].tolist() == [0.1] * 3


@pytest.mark.parametrize(("flags", "words"), [
    (["nothing"], "unknown data set 'nothing'; known: embedded"),
    (["folder"], "--dataset folder needs --data_path DIR"),
    (["folder", "--data_path", "DIR", "--limit", "0"], "--limit must be at least 1, not 0"),
    (["folder", "--data_path", "DIR", "--num_workers", "-2"], "--num_workers must not be negative: -2"),
    (["folder", "--data_path", "DIR", "--split", "val"], "has no folder val/"),
    (["embedded", "--gray"], "--gray converts image files as they are read, and embedded is in memory"),
    (["unlabeled", "--data_path", "BAD", "--num_workers", "2"], "bad.png (no image that Pillow knows)"),
    (["unlabeled", "--data_path", "BLACK", "--num_workers", "0"], "its pixels are all alike")])
def test_a_mistake_is_one_line_and_exit_code_2(pictures, tmp_path, monkeypatch, capsys, flags, words):
    for folder in ("BAD", "BLACK"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "a.png")
    (tmp_path / "BAD" / "bad.png").write_bytes(b"no image")
    places = {"DIR": str(pictures), "BAD": str(tmp_path / "BAD"), "BLACK": str(tmp_path / "BLACK")}
    monkeypatch.setattr(sys, "argv", ["statistics.py", *(places.get(flag, flag) for flag in flags)])
    with pytest.raises(SystemExit) as stop:
        run_command(statistics.get_args_parser(), statistics.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error
