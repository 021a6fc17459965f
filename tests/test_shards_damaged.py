"""Tar shards that are not what shards.json says: the run stops and names them, and datasets.verify finds all of them."""
import hashlib
import io
import json
import os
import re
import sys
import tarfile

import pytest

import main_pretrain
from datasets import build_dataset, pack, verify
from datasets.decode import UnreadableImage
from datasets.loading import train_loader
from datasets.shards import Part
from tests.conftest import DECODER, TINY
from util.args import run_command

N = 23
MAE = ["--model", "mae_vit_tiny_patch16", "--input_size", "8", "--dataset", "shards"]


def read_all(images):
    return [sample.index for shard, count in enumerate(images.counts) for sample in images.read(Part(shard, 0, int(count)))]


def test_a_shard_cut_anywhere_is_noticed(copied):
    """Python's tarfile ends without a word where a tar breaks off between or within headers."""
    images, path = build_dataset("shards", "train", copied), copied / "shard-000001.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    for end in (*range(0, last.offset_data, 256), last.offset_data + last.size - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UnreadableImage, match="the shard .*shard-000001.tar"):
            read_all(images)
    path.write_bytes(data)
    assert read_all(images) == list(range(N))


def rewrite(path, change):
    """Write a tar again with its files, a list of (name, bytes), changed."""
    with tarfile.open(path) as archive:
        files = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for name, data in change(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("change", "words"), [
    (lambda files: files[:-3], "ends after 5 of the 6 images"),
    (lambda files: [*files, ("000000012.png", b"x")], "has more than the 6 images"),
    (lambda files: [("000000099." + name.split(".")[1], data) for name, data in files[:3]] + files[3:],
     r"holds 000000099 .cls, json, png. where 000000006 with an image"),
    (lambda files: files[1:], r"holds 000000006 .json, png. where"),
    (lambda files: [*files[:2], *files[3:]], r"holds 000000006 .cls, json. where"),
    (lambda files: [("000000006.cls", b"23"), *files[1:]], "a label below 23"),
    (lambda files: [*files[:2], ("000000006.png", files[2][1][:60]), *files[3:]],
     r"cannot read the image 000000006.png of the shard .*shard-000001.tar, which was \d+ \("),
    (lambda files: [*files[:3], files[0], *files[3:]], "duplicate file name"),
])
def test_a_shard_of_other_content_is_noticed_and_named(copied, change, words):
    images = build_dataset("shards", "train", copied)
    rewrite(copied / "shard-000001.tar", change)
    with pytest.raises(UnreadableImage, match=words) as error:
        list(train_loader(images, (8, 8), 4, seed=0, num_workers=0))
    assert "shard-000001.tar" in str(error.value) and "\n" not in str(error.value)


def test_local_shards_are_measured_before_training(copied):
    path = copied / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-000002.tar has \d+ bytes, not the \d+ of shards.json: copy it again"):
        build_dataset("shards", "train", copied)
    path.unlink()
    with pytest.raises(ValueError, match="shard-000002.tar is missing"):
        build_dataset("shards", "train", copied)


@pytest.mark.parametrize(("text", "words"), [
    (b"{", "is damaged"), (b"[1]", "is no description of tar shards"),
    (b'{"format": "livt-dataset-1"}', "is no description of tar shards .format livt-shards-1."),
    (b'{"a": ' * 100_000, "is damaged")])
def test_a_description_that_is_none(webdataset, tmp_path, text, words):
    (tmp_path / "shards.json").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        build_dataset("shards", "train", tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    *((lambda r, key=key: r.pop(key), f"has no key {key}: copy it again") for key in ("name", "split", "shards", "mean")),
    (lambda r: r["shards"][1].pop("sha256"), r"has no key shards.1..sha256: copy it again"),
    (lambda r: r["shards"][2].update(images="6"), r"shards.2..images is '6', expected a whole number, not negative: copy it"),
    (lambda r: r["shards"][2].update(images=-6), r"shards.2..images is -6, expected a whole number, not negative"),
    (lambda r: r["shards"][2].update(images=True), r"shards.2..images is True, expected a whole number"),
    (lambda r: r.update(shards={}), "shards is {}, expected a list"),
    (lambda r: r.update(class_names=None), "class_names is None, expected a list"),
    (lambda r: r.update(class_names=[1] * 23), "class_names.0. is 1, expected a text"),
    (lambda r: r.update(mean=["a"]), "mean.0. is 'a', expected a number"),
    (lambda r: r.update(std=[0.0] * 3), "shards.json: --mean .* the deviations above 0: copy it again"),
    (lambda r: r.update(shards=[]), "class_counts of 23 classes and 23 images, and shards of 0 images, which do not fit"),
    (lambda r: r["class_counts"].pop(), "23 class_names, class_counts of 22 classes and 22 images"),
    (lambda r: r["shards"][0].update(file="shard-000001.tar"), "names shard-000001.tar twice: copy it again"),
    (lambda r: r["shards"][0].update(file="a;rm b"), "names the shard a;rm b: expected shard-000000.tar")])
def test_a_description_with_a_wrong_key_names_file_and_key(copied, change, words):
    record = json.loads((copied / "shards.json").read_text())
    change(record)
    (copied / "shards.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=words) as error:
        build_dataset("shards", "train", copied)
    assert str(error.value).startswith(str(copied / "shards.json")) and "\n" not in str(error.value)


@pytest.mark.parametrize(("place", "words"), [
    ("nowhere", "nowhere/shards.json .No such file or directory.: --data_path of --dataset shards is a folder that"),
    ("pipe:false {file}", "pipe:false shards.json .its command ended with exit code 1."),
    ("pipe:cat shards", "has no {file} in its command: expected a folder that"),
    ("s3://bucket/set", "no gopen handler defined.*such as \"pipe:aws s3 cp s3://BUCKET/DIR/{file} -\""),
    (None, "--dataset shards needs --data_path DIR: a folder that python -m datasets.pack has filled")])
def test_a_place_without_shards(webdataset, place, words):
    with pytest.raises(ValueError, match=words):
        build_dataset("shards", "train", place)


def test_without_webdataset_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    packing = pack.get_args_parser().parse_args(["embedded", "--out", str(tmp_path / "out")])
    for command in (lambda: build_dataset("shards", "train", tmp_path), lambda: pack.main(packing)):
        with pytest.raises(ValueError, match="need webdataset, which is not installed: pip install 'webdataset>=0.2.86'"):
            command()
    assert not (tmp_path / "out").exists()


# --- datasets.verify ---

def run_verify(folder, capsys, *flags):
    code = verify.main(verify.get_args_parser().parse_args(["shards", "--data_path", str(folder), *flags]))
    return code, capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_verify_reads_every_byte_of_the_tars(copied, capsys, workers):
    flags = ["--num_workers", workers]
    code, text = run_verify(copied, capsys, *flags)
    assert code == 0 and "4 unchanged" in text and "train: images" in text and "not looked at (--decode)" in text
    code, text = run_verify(f"pipe:cat '{copied}'/{{file}}", capsys, "--decode", *flags)
    assert code == 0 and "4 unchanged" in text and "23 decoded" in text and text.count("images readable") == 1
    paths = [copied / f"shard-{i:06}.tar" for i in range(4)]
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    paths[1].write_bytes(paths[1].read_bytes()[:-512])
    paths[2].unlink()
    os.mkfifo(paths[2])
    paths[3].unlink()
    code, text = run_verify(copied, capsys, "--decode", *flags)
    assert code == 1 and "shards: 4 problems" in text and "images readable" in text
    assert "  shard-000000.tar: has other bytes than it was written with (its SHA-256 differs from that in shards.json)" in text
    assert f"  shard-000001.tar: has {len(data) - 512:,} bytes, not the {len(data):,} of shards.json" in text
    assert "  shard-000002.tar: is a pipe, not a file" in text
    assert "  shard-000003.tar: cannot be read (No such file or directory)" in text


def test_verify_of_a_place_without_shards(webdataset, tmp_path, capsys):
    with pytest.raises(ValueError, match="shards.json .No such file or directory.: --data_path of --dataset shards is "):
        run_verify(tmp_path, capsys)


def spoil(folder, key):
    """Make an image unreadable, in a tar and a description that fit each other."""
    path = folder / f"shard-{key // 6:06}.tar"
    rewrite(path, lambda files: [(name, b"<html>" if name == f"{key:09}.png" else data) for name, data in files])
    record = json.loads((folder / "shards.json").read_text())
    record["shards"][key // 6] |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "shards.json").write_text(json.dumps(record))


def test_a_bad_image_in_a_shard_is_named_with_its_shard_and_what_helps(copied, capsys):
    spoil(copied, 8)
    words = ("cannot read the image 000000008.png of the shard {}/shard-000001.tar, which was {} (no image that Pillow knows): "
             "pack the set again, where it is whole; python -m datasets.pack leaves out a few unreadable images with "
             "--skip_bad_images N")
    images = build_dataset("shards", "train", copied)
    with pytest.raises(UnreadableImage) as error:
        images.image(8)
    number = re.search(r"which was (\d+) ", str(error.value))[1]
    assert str(error.value) == words.format(copied, number)
    assert run_verify(copied, capsys)[0] == 0
    code, text = run_verify(copied, capsys, "--decode", "--num_workers", "0")
    assert code == 1 and f"  shard-000001.tar: 000000008: {words.format(copied, number)}\n" in text
    (copied / "shards.json").unlink()
    os.mkfifo(copied / "shards.json")
    with pytest.raises(ValueError, match="cannot read .*shards.json .a pipe, not a file."):
        build_dataset("shards", "train", copied)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_breaks_off_stops_the_run_in_one_line(copied, tmp_path, monkeypatch, capsys, workers):
    path = copied / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:5000])
    argv = [*TINY, *DECODER, *MAE, "--data_path", f"pipe:cat '{copied}'/{{file}}", "--output_dir", tmp_path / "out",
            "--num_workers", workers]
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_command(main_pretrain.get_args_parser(), main_pretrain.main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert err.startswith(("error: cannot read the shard pipe:cat", "error: the shard pipe:cat")) and "shard-000003.tar" in err
