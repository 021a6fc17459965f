"""Build the embedded data set, byte for byte, out of the four official Fashion-MNIST files.

    python -m datasets.embedded.build --source /usr/share/datasets/fashion-mnist --out rebuilt.npz
"""

import argparse
import gzip
import hashlib
import io
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from datasets import embedded
from datasets.longtail import draw, longtail_counts

SOURCE = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts the files
SOURCE_SHA256 = {  # of the decompressed files: Debian's and the publisher's .gz differ, their content does not
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
NUM_CLASSES = 10
N_MAX, FACTOR = 2000, 200
VAL_PER_CLASS, TEST_PER_CLASS = 200, 500
PERMUTATION_SEED, TRAIN_SEED, VAL_SEED, TEST_SEED = 0, 0, 1, 2


def read_idx(source, name):
    """The uint8 array in the gzipped idx file source/name: (N, 28, 28) images or (N,) labels.

    Raises ValueError if the file cannot be read or is not the official one (SHA-256 of its decompressed bytes).
    """
    path = Path(source) / name
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path} ({getattr(error, 'strerror', None) or error}); expected the four files "
                         "of Fashion-MNIST there, for instance from Debian's package dataset-fashion-mnist") from error
    found = hashlib.sha256(data).hexdigest()
    if found != SOURCE_SHA256[name]:
        raise ValueError(f"{path}: found SHA-256 {found} after decompression, expected {SOURCE_SHA256[name]}; "
                         "take the file of Debian's package dataset-fashion-mnist")
    ndim = data[3]
    shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape.tolist())


def class_counts():
    """Training images of each class in label order, int64 (10,): the class of position i is permutation[i]."""
    counts = np.empty(NUM_CLASSES, dtype=np.int64)
    permutation = np.random.RandomState(PERMUTATION_SEED).permutation(NUM_CLASSES)
    counts[permutation] = longtail_counts(N_MAX, FACTOR, NUM_CLASSES)
    return counts


def make_arrays(source):
    """All members of the file in order: dict of train, val and test images uint8, labels uint8, ids int32.

    val is drawn from the training images that the long-tailed draw left out. Every split is sorted by id.
    """
    train_images, train_labels, test_images, test_labels = (read_idx(source, name) for name in SOURCE_SHA256)
    train = draw(train_labels, class_counts(), TRAIN_SEED)
    rest = np.setdiff1d(np.arange(len(train_labels)), train)
    val = rest[draw(train_labels[rest], [VAL_PER_CLASS] * NUM_CLASSES, VAL_SEED)]
    test = draw(test_labels, [TEST_PER_CLASS] * NUM_CLASSES, TEST_SEED)
    arrays = {}
    for split, images, labels, ids in (("train", train_images, train_labels, train),
                                       ("val", train_images, train_labels, val),
                                       ("test", test_images, test_labels, test)):
        arrays[f"{split}_images"] = images[ids]
        arrays[f"{split}_labels"] = labels[ids]
        arrays[f"{split}_ids"] = ids.astype("<i4")
    return arrays


def pack(arrays):
    """The arrays as the bytes of an .npz file that depend on nothing else: no clock, no system, no file mode.

    LZMA, because deflate leaves 5.4 MB and LZMA 4.6 MB; np.load reads both.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, member.getvalue(), compress_type=zipfile.ZIP_LZMA)
    return file.getvalue()


def difference(raw, arrays):
    """Compare with the constants of datasets.embedded: None if all agree, or one line that says what differs."""
    file, content = hashlib.sha256(raw).hexdigest(), embedded.content_sha256(arrays)
    if content != embedded.CONTENT_SHA256:
        return f"the content differs: its SHA-256 is {content}, expected {embedded.CONTENT_SHA256}"
    if file != embedded.FILE_SHA256:
        return (f"the content is right but the file differs (another version of the compressor or of numpy?): "
                f"its SHA-256 is {file}, expected {embedded.FILE_SHA256}")
    return None


def write(path, raw):
    """Write beside path and rename, so that path is never half a file."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(raw)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def main(argv=None):
    """Build, compare, write. Returns the exit code: 0, or 1 after one line that says what is wrong.

    A file named by --out is always written, so that a difference can be looked at. Without --out the shipped file is
    written only where it is missing and the result is the expected one; a different file there is left alone.
    """
    parser = argparse.ArgumentParser(prog="python -m datasets.embedded.build", description=__doc__.splitlines()[0])
    parser.add_argument("--source", default=SOURCE, help="folder of the four idx .gz files (default: %(default)s)")
    parser.add_argument("--out", help="file to write, replaced if it exists (default: the shipped file, if missing)")
    args = parser.parse_args(argv)
    try:
        arrays = make_arrays(args.source)
        raw = pack(arrays)
        print(f"file    {hashlib.sha256(raw).hexdigest()} ({len(raw):,} bytes)")
        print(f"content {embedded.content_sha256(arrays)}")
        wrong = difference(raw, arrays)
        if args.out:
            write(args.out, raw)
            print(f"wrote {args.out}")
        elif not wrong and not embedded.FILE.exists():
            write(embedded.FILE, raw)
            print(f"wrote {embedded.FILE}")
        elif not wrong and embedded.FILE.read_bytes() != raw:
            wrong = f"{embedded.FILE} is another file and was left alone; to replace it, name it with --out"
    except (ValueError, OSError) as error:
        wrong = str(error)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 1
    print("equal to the constants in datasets/embedded/__init__.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
