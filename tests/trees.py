"""A small ImageNet-LT that is right in everything, for the tests of datasets.verify to spoil."""
import json
import re
import shutil

import numpy as np
from PIL import Image

from datasets import records, verify
from datasets.prepared import Split, write_prepared

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
COUNTS = [12, 8, 5, 2]
TEST_EACH = 3


def write_pictures(root):
    """No two files are alike; the test images lie in one folder, as their publisher has them."""
    draw = np.random.default_rng(0)
    for wnid, count in zip(WNIDS, COUNTS, strict=True):
        (root / "train" / wnid).mkdir(parents=True)
        for i in range(count):
            save(root / "train" / wnid / f"{wnid}_{i}.JPEG", draw)
    (root / "val").mkdir()
    for i in range(TEST_EACH * len(WNIDS)):
        save(root / "val" / f"ILSVRC2012_val_{i:08}.JPEG", draw)
    return root


def make_official(monkeypatch, folder):
    """Official numbers that fit the small ImageNet-LT."""
    monkeypatch.setitem(records.OFFICIAL_SIZES, "imagenet_lt", {"train": sum(COUNTS), "test": TEST_EACH * len(WNIDS)})
    monkeypatch.setitem(records.OFFICIAL_CLASSES, "imagenet_lt", len(WNIDS))
    (folder / "imagenet_lt.json").write_text(json.dumps(COUNTS))
    monkeypatch.setattr(records, "COUNTS", folder)


def cause(text):
    """The likely causes in an output."""
    return [line.removeprefix("likely cause: ") for line in text.splitlines() if line.startswith("likely cause: ")]


def save(path, draw):
    Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path, "JPEG")


class Tree:
    """A copy of the pictures and its prepared lists, to be spoilt; `run` is what a person types."""

    def __init__(self, pictures, folder, capsys):
        self.root, self.out, self.capsys = folder / "images", folder / "prepared", capsys
        shutil.copytree(pictures, self.root)
        self.train = [(f"train/{wnid}/{wnid}_{i}.JPEG", k) for k, wnid in enumerate(WNIDS) for i in range(COUNTS[k])]
        self.test = [(f"val/ILSVRC2012_val_{i:08}.JPEG", i // TEST_EACH) for i in range(TEST_EACH * len(WNIDS))]

    def prepare(self):
        splits = {name: Split([path for path, _ in lines], np.array([label for _, label in lines]), "made up")
                  for name, lines in (("train", self.train), ("test", self.test))}
        write_prepared(self.out, "imagenet_lt", self.root, WNIDS, "wnid, sorted", splits)
        return self

    def run(self, *flags, name="imagenet_lt", data_path=None):
        """(exit code, output, {row of the table: (expected, found, verdict)})"""
        where = [] if name == "embedded" else ["--data_path", str(data_path or self.out)]
        code = verify.main(verify.get_args_parser().parse_args([name, *where, *map(str, flags)]))
        text = self.capsys.readouterr().out
        lines = text[text.rindex("\nwhat "):].strip().splitlines()
        rows = {row[0].strip(): tuple(row[1:]) for row in (re.split(r"\s{2,}", line) for line in lines[2:])}
        assert max(map(len, lines)) <= 100
        return code, text, rows

    def wrong(self, *flags, **where):
        """(problems as lines of text, names of the rows that are wrong) of a tree with which something is wrong."""
        code, text, rows = self.run(*flags, **where)
        wrong = [name for name, row in rows.items() if row[-1] == "WRONG"]
        assert code == 1 and wrong
        return [line.strip() for line in text.splitlines() if line.startswith("  ") and ": " in line], wrong
