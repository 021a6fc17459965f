"""Packing: the files' own bytes, labels and names go into the tars, and come out."""
import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset, pack
from datasets.imageset import Record
from datasets.loading import train_loader
from datasets.shards import Part

N, SIZE = 23, (8, 8)
RECORD = Record((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))


def members(folder):
    """{file name in a tar: bytes} of all shards of a folder, by Python's own reader."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    return found


@pytest.fixture
def odd_names(tmp_path):
    """A tree whose file names would trip a reader that takes keys from them."""
    draw = np.random.default_rng(1)
    names = b"cat/a.b.c.PNG", b"cat/two words.png", b"dog/caf\xe9.png", b"dog/__meta__.png", b"dog/line\nbreak.png"
    for i, name in enumerate(names):
        path = os.path.join(os.fsencode(tmp_path / "odd" / "train"), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (9 + i, 8, 3), dtype=np.uint8)).save(buffer, "png")
        with open(path, "wb") as file:
            file.write(buffer.getvalue())
    return tmp_path / "odd"


def run_pack(*argv):
    return pack.main(pack.get_args_parser().parse_args([str(word) for word in argv]))


def test_packed_files_keep_their_bytes_label_and_name(webdataset, odd_names, tmp_path):
    flags = ["--mean", .3, .3, .3, "--std", .2, .2, .2]
    record = run_pack("folder", "--data_path", odd_names, "--out", tmp_path / "out", "--images_per_shard", 2, *flags)
    found, source = members(tmp_path / "out"), build_dataset("folder", "train", odd_names, RECORD.mean, RECORD.std)
    ids = {json.loads(found[f"{i:09}.json"])["id"]: i for i in range(5)}
    assert sorted(ids) == sorted(source.ids) and len(found) == 15
    assert list(ids) != list(source.ids)  # a reader shuffles among neighbours only, so these are no neighbours
    for place, name in enumerate(source.ids):
        assert found[f"{ids[name]:09}.png"] == (odd_names / name).read_bytes()
        assert int(found[f"{ids[name]:09}.cls"]) == source.labels[place]
    assert record == json.loads((tmp_path / "out" / "shards.json").read_text())
    assert [(s["file"], s["images"]) for s in record["shards"]] == [
        ("shard-000000.tar", 2), ("shard-000001.tar", 2), ("shard-000002.tar", 1)]
    for shard in record["shards"]:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    images = build_dataset("shards", "train", tmp_path / "out")
    assert (images.record, images.class_names, images.class_counts.tolist(), len(images)) == (RECORD, ["cat", "dog"], [2, 3], 5)
    for name, index in ids.items():
        assert np.array_equal(images.image(index), Image.open(odd_names / name))
    assert build_dataset("shards", "train", tmp_path / "out", (.5,), (.2,)).image(0).mode == "L"
    run_pack("folder", "--data_path", odd_names, "--out", tmp_path / "again", "--images_per_shard", 2, *flags)
    assert members(tmp_path / "again") == found
    assert build_dataset("shards", "train", tmp_path / "again").data_hash == images.data_hash
    run_pack("folder", "--data_path", odd_names, "--out", tmp_path / "other", "--images_per_shard", 2, *flags, "--seed", 1)
    assert build_dataset("shards", "train", tmp_path / "other").data_hash != images.data_hash


def test_images_in_memory_become_png_and_a_draw_is_kept(shards, numbered, webdataset, tmp_path):
    images = build_dataset("shards", "train", shards)
    for i in range(N):
        label = next(images.read(Part(i // 6, i % 6, i % 6 + 1))).label
        assert np.array_equal(images.image(i), numbered.images[label])
    part = numbered.subset(np.arange(4))
    pack.pack(part, "made up", "train", tmp_path / "part")
    packed = build_dataset("shards", "train", tmp_path / "part")
    assert packed.details["packed"]["details"] == part.details and packed.class_counts.tolist() == [1] * 4 + [0] * 19


def test_images_without_labels_have_none_in_their_shards(webdataset, odd_names, tmp_path):
    run_pack("unlabeled", "--data_path", odd_names, "--out", tmp_path / "out", "--mean", .5, "--std", .2)
    assert {name.split(".")[1] for name in members(tmp_path / "out")} == {"png", "json"}
    loader = train_loader(build_dataset("shards", "train", tmp_path / "out"), SIZE, 4, seed=0, num_workers=0)
    assert [(images.shape, labels.tolist()) for images, labels in loader] == [
        ((4, 1, *SIZE), [0] * 4), ((1, 1, *SIZE), [0])]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named_or_left_out_and_listed(webdataset, odd_names, tmp_path, capsys, workers):
    cut, broken = odd_names / "train" / "cat" / "two words.png", odd_names / "train" / "dog" / "line\nbreak.png"
    cut.write_bytes(cut.read_bytes()[:-40])  # it begins as an image does
    broken.write_bytes(b"<html>")
    flags = ["folder", "--data_path", odd_names, "--out", tmp_path / "out", "--mean", .5, "--std", .2, "--num_workers", workers]
    with pytest.raises(ValueError, match=r"2 of 5 images cannot be read, more than --skip_bad_images 1 allows: train/cat/two "
                       r"words.png \(.*truncated.*\), train/dog/line\\nbreak.png \(no image that Pillow knows\): repair"):
        run_pack(*flags, "--skip_bad_images", 1)
    assert not (tmp_path / "out").exists()
    record = run_pack(*flags, "--skip_bad_images", 2)
    told = capsys.readouterr().out
    assert "left out, because unreadable (listed in shards.json): 2\n  train/cat/two words.png\t" in told
    assert record["class_counts"] == [1, 2] and record["images"] == 3
    assert [path for path, _ in record["details"]["left_out"]] == ["train/cat/two words.png", "train/dog/line\\nbreak.png"]
    packed = {json.loads(data)["id"] for name, data in members(tmp_path / "out").items() if name.endswith(".json")}
    assert packed == {"train/cat/a.b.c.PNG", "train/dog/__meta__.png", os.fsdecode(b"train/dog/caf\xe9.png")}
    for path in (odd_names / "train").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 5 images of .* can be read: nothing to pack"):
        run_pack(*flags[:4], tmp_path / "none", *flags[5:], "--skip_bad_images", 9)


def test_a_folder_that_holds_anything_is_left_alone(webdataset, copied, numbered, tmp_path):
    before = sorted(os.listdir(copied))
    with pytest.raises(ValueError, match="holds shards already: name a new or empty folder"):
        pack.pack(numbered, "made up", "train", copied)
    (copied / "shards.json").unlink()
    with pytest.raises(ValueError, match="holds other files, such as shard-000000.tar"):
        pack.pack(numbered, "made up", "train", copied)
    assert sorted(os.listdir(copied)) == before[:-1]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        pack.pack(numbered, "made up", "train", tmp_path / "file")
    with pytest.raises(ValueError, match="--images_per_shard must be at least 1, not 0"):
        pack.pack(numbered, "made up", "train", tmp_path / "new", images_per_shard=0)
