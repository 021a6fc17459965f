"""datasets/embedded: what the shipped file holds, that loading checks it, and that it can be rebuilt."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets import embedded
from datasets.embedded import build
from datasets.longtail import longtail_counts

SOURCE = Path(os.environ.get("FASHION_MNIST_DIR", build.SOURCE))
needs_source = pytest.mark.skipif(not (SOURCE / "train-images-idx3-ubyte.gz").exists(),
                                  reason="no Fashion-MNIST idx files: set FASHION_MNIST_DIR to their folder")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the shipped file that datasets.embedded takes for its own."""
    path = tmp_path / "copy.npz"
    path.write_bytes(embedded.FILE.read_bytes())
    monkeypatch.setattr(embedded, "FILE", path)
    return path


@pytest.fixture
def small(monkeypatch):
    """A quick substitute for the arrays that build.py makes out of the source files, and its expected hashes."""
    arrays = {"train_ids": np.arange(5, dtype="<i4")}
    monkeypatch.setattr(build, "make_arrays", lambda source: arrays)
    monkeypatch.setattr(embedded, "CONTENT_SHA256", embedded.content_sha256(arrays))
    monkeypatch.setattr(embedded, "FILE_SHA256", build.hashlib.sha256(build.pack(arrays)).hexdigest())
    return arrays


@pytest.mark.parametrize("split, size", [("train", 4479), ("val", 2000), ("test", 5000)])
def test_shapes_and_types(split, size):
    images, labels, ids = embedded.load(split)
    assert (images.dtype, labels.dtype, ids.dtype) == (np.uint8, np.int64, np.int64)
    assert (images.shape, labels.shape, ids.shape) == ((size, 28, 28), (size,), (size,))
    assert (np.diff(ids) > 0).all() and (np.diff(labels) < 0).any()
    assert images.max() == 255 and images.min() == 0
    assert embedded.load(split)[0] is images
    for array in (images, labels, ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_class_counts():
    permutation = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    counts = np.bincount(embedded.load("train")[1])
    assert counts[permutation].tolist() == [2000, 1110, 616, 341, 189, 105, 58, 32, 18, 10]
    assert counts[permutation].tolist() == longtail_counts(2000, 200, 10).tolist()
    assert build.class_counts().tolist() == counts.tolist()
    assert np.bincount(embedded.load("val")[1]).tolist() == [200] * 10
    assert np.bincount(embedded.load("test")[1]).tolist() == [500] * 10
    assert len(embedded.CLASS_NAMES) == 10


def test_train_and_val_share_no_image():
    train, val, test = (embedded.load(split) for split in embedded.SPLITS)
    assert not np.intersect1d(train[2], val[2]).size
    assert max(train[2].max(), val[2].max()) < 60000 and test[2].max() < 10000
    train_pixels, val_pixels, test_pixels = ({image.tobytes() for image in split[0]} for split in (train, val, test))
    assert not train_pixels & val_pixels and not (train_pixels | val_pixels) & test_pixels


def test_statistics_are_those_of_the_train_images():
    pixels = embedded.load("train")[0] / 255
    assert embedded.MEAN == pytest.approx(pixels.mean(), abs=1e-6)
    assert embedded.STD == pytest.approx(pixels.std(), abs=1e-6)


def test_file_is_small_and_plain():
    assert embedded.FILE.stat().st_size < 5_000_000
    with np.load(embedded.FILE, allow_pickle=False) as file:
        assert file.files == [f"{split}_{part}" for split in embedded.SPLITS for part in ("images", "labels", "ids")]
        assert embedded.content_sha256({name: file[name] for name in file.files}) == embedded.CONTENT_SHA256


def test_import_reads_no_data():
    code = ("import sys; seen = []\n"
            "sys.addaudithook(lambda event, args: event == 'open' and seen.append(str(args[0])))\n"
            "import datasets.embedded; sys.exit(any(name.endswith('.npz') for name in seen))")
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split 'valid' .*known: train, val, test"):
        embedded.load("valid")


def test_load_refuses_a_flipped_bit(copy):
    raw = bytearray(copy.read_bytes())
    raw[len(raw) // 2] ^= 1
    copy.write_bytes(raw)
    with pytest.raises(ValueError, match=f"found SHA-256 .*expected {embedded.FILE_SHA256}; restore it"):
        embedded.load("train")


def test_load_refuses_a_truncated_and_a_missing_file(copy):
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(ValueError, match="found SHA-256"):
        embedded.load("test")
    copy.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*copy.npz \(No such file"):
        embedded.load("test")


@needs_source
def test_rebuilt_byte_for_byte(tmp_path):
    out = tmp_path / "rebuilt.npz"
    np.random.seed(123)
    assert build.main(["--source", str(SOURCE), "--out", str(out)]) == 0
    assert out.read_bytes() == embedded.FILE.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["rebuilt.npz"]


def test_build_refuses_a_wrong_source(tmp_path, capsys):
    image_file = tmp_path / "train-images-idx3-ubyte.gz"
    for content, message in ((None, "No such file"), (b"foreign", "Not a gzipped file"),
                             (build.gzip.compress(b"foreign"), "found SHA-256")):
        if content is not None:
            image_file.write_bytes(content)
        assert build.main(["--source", str(tmp_path), "--out", str(tmp_path / "out.npz")]) == 1
        error = capsys.readouterr().err
        assert message in error and "dataset-fashion-mnist" in error and error.count("\n") == 1
        assert not (tmp_path / "out.npz").exists()


def test_build_says_which_hash_differs(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.npz"
    assert build.main(["--out", str(out)]) == 0
    assert np.load(out, allow_pickle=False)["train_ids"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(embedded, "FILE_SHA256", "0" * 64)
    assert build.main(["--out", str(out)]) == 1
    assert "content is right but the file differs" in capsys.readouterr().err
    small["train_ids"] = small["train_ids"] + 1
    assert build.main(["--out", str(out)]) == 1
    assert "the content differs" in capsys.readouterr().err


def test_build_leaves_another_file_alone(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "FILE", tmp_path / "default.npz")
    assert build.main([]) == 0 and embedded.FILE.read_bytes() == build.pack(small)
    assert build.main([]) == 0
    embedded.FILE.write_bytes(b"other")
    assert build.main([]) == 1 and embedded.FILE.read_bytes() == b"other"
    assert "left alone" in capsys.readouterr().err
    assert build.main(["--out", str(embedded.FILE)]) == 0 and embedded.FILE.read_bytes() == build.pack(small)
