"""What the tests share: a small folder of pictures, and both stages called as a launcher calls them."""
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import main_finetune
import main_pretrain
from datasets.embedded import load
from datasets.imageset import ArrayImages, Record
from datasets.pack import pack
from tests.trees import Tree, make_official, write_pictures

TINY = ["--input_size", "16", "--patch_size", "4", "--embed_dim", "32", "--depth", "2", "--num_heads", "2",
        "--epochs", "2", "--warmup_epochs", "1", "--device", "cpu", "--amp", "off", "--num_workers", "0",
        "--batch_size", "8", "--lr", "1e-3"]
DECODER = ["--decoder_embed_dim", "16", "--decoder_depth", "1", "--decoder_num_heads", "2"]
COUNTS = {"cat": 24, "dog": 12, "elk": 5}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums over threads may differ between machines; the suite also runs beside others."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def no_pictures():
    """For modules whose tests compare weights: drawing would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_pretrain, "show_reconstructions", lambda *_: None)
        patch.setattr(main_finetune, "write_results", lambda *_: None)
        patch.setattr("util.figures.training_curves", lambda *_: None)
        yield


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Within the test's folder, with the rights of another user: root may read everything."""
    Image.init()  # Pillow imports its readers when they are first needed
    monkeypatch.chdir(tmp_path)
    if os.geteuid():
        yield
        return
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """DIR/{train,val,test}/<class>/*.png, 41 training images of 16 x 16 RGB in three skewed classes."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, (name, count) in enumerate(COUNTS.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count if split == "train" else 7):
                pixels = draw.integers(0, 120, (16, 16, 3))
                pixels[:, :, label] += 110
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def data_flags(picture_folder):
    """Flags that name the small folder."""
    return ["--dataset", "folder", "--data_path", str(picture_folder), "--mean", ".3", ".3", ".3", "--std", ".2", ".2", ".2"]


@pytest.fixture(scope="session")
def pretrain(data_flags):
    """pretrain(output_dir, *flags) runs stage 1 on the small folder; later flags win."""
    def run(output_dir, *flags):
        argv = [*data_flags, *TINY, *DECODER, "--output_dir", str(output_dir), *map(str, flags)]
        return main_pretrain.main(main_pretrain.get_args_parser().parse_args(argv))
    return run


@pytest.fixture(scope="session")
def finetune(data_flags):
    """finetune(output_dir, *flags) runs stage 2 on the small folder; later flags win."""
    def run(output_dir, *flags):
        argv = [*data_flags, *TINY, "--model", "vit_tiny_patch16", "--output_dir", str(output_dir), *map(str, flags)]
        return main_finetune.main(main_finetune.get_args_parser().parse_args(argv))
    return run


@pytest.fixture
def few_embedded_images(monkeypatch):
    """The embedded set cut to its first 300 images a split, for commands that train on it."""
    monkeypatch.setattr(datasets, "load_embedded", lambda split: tuple(part[:300] for part in load(split)))


@pytest.fixture(scope="session")
def encoder(pretrain, tmp_path_factory):
    """last.pth of a short stage 1 on the small folder."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    pretrain(folder, "--model", "mae_vit_tiny_patch16")
    return folder / "last.pth"


@pytest.fixture(scope="session")
def webdataset():
    """Skips where the reader of tar shards is not installed."""
    return pytest.importorskip("webdataset", reason="tar shards are read and written by webdataset, which is not installed")


@pytest.fixture(scope="session")
def numbered():
    """23 images (8, 8, 3) of noise, each a class of its own, so that a label says which image it is."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    names, record = [str(k) for k in range(23)], Record((0.3,) * 3, (0.2,) * 3)
    return ArrayImages(pixels, np.arange(23), names, record, np.arange(23), "made up")


@pytest.fixture(scope="session")
def shards(webdataset, numbered, tmp_path_factory):
    """A folder with the numbered images in shards of 6, 6, 6 and 5."""
    out = tmp_path_factory.mktemp("shards") / "out"
    pack(numbered, "made up", "train", out, images_per_shard=6)
    return out


@pytest.fixture
def copied(shards, tmp_path):
    """A copy of that folder, which a test may break."""
    return shutil.copytree(shards, tmp_path / "copied")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of images that the trees of `tests.trees` are copied from."""
    return write_pictures(tmp_path_factory.mktemp("ilsvrc"))


@pytest.fixture
def tree(pictures, tmp_path, monkeypatch, capsys):
    """A prepared set of ImageNet-LT's layout, small, which may be spoilt."""
    make_official(monkeypatch, tmp_path)
    return Tree(pictures, tmp_path, capsys)
