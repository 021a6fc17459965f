"""Figure 7 for one's own pictures: the same masks for all, pixels undone as said, and what cannot be drawn is refused."""
import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.shards import ShardImages, read_description
from tests.checkpoints import write_classifier, write_mae
from tests.test_figures import check_all_inside
from util import pictures, reconstruct
from util.trained import load_mae

GRAY = ["--mean", ".4", "--std", ".2"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    """DIR/{a,b}/*.png: five pictures of 24 x 16 (width, height) in colour."""
    draw = np.random.default_rng(0)
    for name in ("b/1", "a/2", "a/1", "b/3", "b/2"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def drawn(monkeypatch):
    """Runs the command and gives (rows, title, captions) of its figure, which is drawn but not written."""
    def run(*flags):
        seen = []
        monkeypatch.setattr(reconstruct, "save_print", lambda figure, path: [path, path])
        monkeypatch.setattr(reconstruct, "draw_rows", lambda *arguments: seen.append(arguments[:3]))
        reconstruct.main(reconstruct.get_args_parser().parse_args([*map(str, flags), "--device", "cpu"]))
        return seen[0]
    return run


def removed(rows):
    """Which pixels (K, H, W) of the masked row are the grey of 127."""
    return (np.abs(rows["masked"] - 127 / 255) < 1e-5).all(axis=3)


@pytest.mark.parametrize("flags", [[], ["--norm_pix_loss"], ["--norm_pix_loss", *GRAY], ["--input_size", 24]])
def test_the_checkpoint_says_how_its_network_is_built(tmp_path, flags):
    model = write_mae(tmp_path / "last.pth", *flags)
    trained = load_mae(tmp_path / "last.pth")
    assert (trained.epochs, trained.stage, trained.size) == (7, "pretrain", model.img_size)
    assert not trained.model.training
    images, noise = torch.randn(2, model.in_chans, *model.img_size), torch.rand(2, model.grid[0] * model.grid[1])
    expected, mask = model.reconstruct(images, 0.5, noise)
    torch.testing.assert_close(trained.model.reconstruct(images, 0.5, noise)[0], expected, atol=1e-5, rtol=1e-5)
    levels = (255 * torch.tensor([0.4, 0.5, 0.3])[: model.in_chans]).view(1, -1, 1, 1)
    assert trained.normalize(levels.clone()).abs().max() < 1e-5


def test_checkpoints_stand_under_the_same_masks(tmp_path, folder, drawn, capsys):
    write_mae(tmp_path / "small" / "last.pth")
    write_mae(tmp_path / "large" / "last.pth", "--embed_dim", 32, "--depth", 3, "--norm_pix_loss")
    small, large = tmp_path / "small" / "last.pth", tmp_path / "large" / "last.pth"
    rows, title, captions = drawn("--checkpoint", small, large, "--images", folder)
    first, second = list(rows)[2:]
    assert list(rows)[:2] == ["image", "masked"] and captions == ["1", "2", "1", "2", "3"]  # by path: a/1, a/2, b/1, ...
    assert first.split("\n") == ["small", "mae_vit_tiny_patch16", "7 epochs", "pixels as predicted"]
    assert second.split("\n")[0] == "large" and second.split("\n")[-1] == "norm_pix_loss"
    gone = removed(rows)
    blocks = gone.reshape(5, 4, 4, 6, 4)
    assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()  # whole patches
    assert (blocks.any(axis=(2, 4)).sum(axis=(1, 2)) == 18).all()  # of 24
    assert len({mask.tobytes() for mask in gone}) == 5
    for name in (first, second):
        same = np.abs(rows[name] - rows["image"]).max(axis=3) < 1e-5
        assert same[~gone].all() and same[gone].mean() < 0.05
    assert np.abs(rows[first] - rows[second])[gone].max() > 0.1
    text = capsys.readouterr().out
    for words in (title, text):
        assert "norm_pix_loss: patches undone with their true mean and deviation" in words
        assert "mask ratio 0.75, seed 0" in words
    assert f"{small}, 7 epochs: pixels as predicted" in text and "5 of 5 images of" in text


def test_masks_follow_seed_and_place_alone(tmp_path, folder, drawn):
    write_mae(tmp_path / "last.pth")
    flags = ["--checkpoint", tmp_path / "last.pth", "--images", folder]
    rows, fewer, other, half = (drawn(*flags, *more)[0] for more in (
        [], ["--num", 3], ["--seed", 1], ["--mask_ratio", .5]))
    assert len(fewer["image"]) == 3 and (removed(rows)[:3] == removed(fewer)).all()
    assert (removed(rows) != removed(other)).any(axis=(1, 2)).all()
    assert removed(half).sum() == 5 * 12 * 16


@pytest.mark.parametrize("normed", [False, True])
def test_a_removed_patch_is_the_prediction_undone_by_hand(tmp_path, folder, drawn, normed):
    write_mae(tmp_path / "last.pth", *["--norm_pix_loss"] * normed)
    rows, _, _ = drawn("--checkpoint", tmp_path / "last.pth", "--images", folder)
    model = load_mae(tmp_path / "last.pth").model
    raw = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]) / 255.0
    mean, std = np.array([0.4, 0.5, 0.3]), np.array([0.2, 0.3, 0.25])
    normal = (raw - mean) / std
    with torch.no_grad():
        _, predicted, mask = model(torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2), 0.75,
                                   reconstruct.mask_noise(0, 5, 24))
    for image, patch in np.argwhere(mask.numpy() == 1):
        top, left = 4 * (patch // 6), 4 * (patch % 6)
        window = (image, slice(top, top + 4), slice(left, left + 4))
        pixels = predicted[image, patch].double().numpy().reshape(4, 4, 3)
        if normed:
            truth = normal[window]
            pixels = pixels * np.sqrt(truth.var(ddof=1) + 1e-6) + truth.mean()
        assert rows[list(rows)[2]][window] == pytest.approx((pixels * std + mean).clip(0, 1), abs=1e-5)
    assert rows["image"] == pytest.approx(raw, abs=1e-6)


def test_the_figure_is_whole_and_written_twice(tmp_path, folder, monkeypatch):
    for name in ("x", "y"):
        write_mae(tmp_path / name / "mgp" / "last.pth", "--norm_pix_loss")
    saved, save = [], reconstruct.save_print
    monkeypatch.setattr(reconstruct, "save_print", lambda figure, path: saved.append(figure) or save(figure, path))
    out = tmp_path / "new" / "figure.png"
    argv = ["--checkpoint", *(str(tmp_path / name / "mgp" / "last.pth") for name in "xy"), "--images", str(folder),
            "--num", "3", "--out", str(out), "--device", "cpu"]
    assert reconstruct.main(reconstruct.get_args_parser().parse_args(argv)) == [out, out.with_suffix(".pdf")]
    assert out.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"
    assert mpl.image.imread(out).shape[1] > 3 * 1.25 * 290  # 300 dots an inch, three pictures of 1.25 inches: there is room
    figure = saved[0]
    check_all_inside(figure)
    labels = [axis.get_ylabel().split("\n")[0] for axis in figure.axes if axis.get_ylabel()]
    assert labels == ["image", "masked", "x/mgp", "y/mgp"]  # told apart by the folder above
    assert [axis.get_title() for axis in figure.axes[:3]] == ["1", "2", "1"]


def test_without_pictures_the_checkpoints_data_are_shown(tmp_path, picture_folder, drawn):
    flags = ["--input_size", 16, "--data_path", picture_folder]
    write_mae(tmp_path / "last.pth", *flags)
    rows, _, captions = drawn("--checkpoint", tmp_path / "last.pth", "--num", 4)
    assert captions == ["cat", "dog", "elk", "cat"]
    assert np.allclose(rows["image"][1] * 255, np.asarray(Image.open(picture_folder / "test" / "dog" / "00.png")), atol=0.01)
    rows, _, _ = drawn("--checkpoint", tmp_path / "last.pth", "--split", "train", "--num", 1)
    assert np.allclose(rows["image"][0] * 255, np.asarray(Image.open(picture_folder / "train" / "cat" / "00.png")), atol=0.01)


def test_images_without_labels_are_named_by_their_files(tmp_path, folder, drawn):
    write_mae(tmp_path / "last.pth", "--dataset", "unlabeled", "--data_path", folder)
    rows, _, captions = drawn("--checkpoint", tmp_path / "last.pth", "--num", 4)
    assert captions == ["1", "2", "1", "2"]
    assert np.allclose(rows["image"][3] * 255, np.asarray(Image.open(folder / "b" / "2.png")), atol=0.01)


def test_tar_shards_are_shown_in_their_order(tmp_path, shards, drawn):
    write_mae(tmp_path / "last.pth", "--dataset", "shards", "--data_path", shards, "--input_size", 8)
    rows, _, captions = drawn("--checkpoint", tmp_path / "last.pth", "--num", 3)
    images = ShardImages(str(shards), read_description(str(shards)))
    assert captions == ["0", "1", "2"]
    assert np.allclose(rows["image"][2] * 255, np.asarray(images.image(2)), atol=0.01)


def test_the_embedded_set_needs_no_file(tmp_path, drawn):
    write_mae(tmp_path / "last.pth", "--dataset", "embedded", "--mean", ".35", "--std", ".36", "--input_size", 28)
    rows, _, captions = drawn("--checkpoint", tmp_path / "last.pth", "--num", 10)
    assert captions[:2] == ["T-shirt/top", "Trouser"] and len(set(captions)) == 10
    assert rows["image"].shape == (10, 28, 28, 1)


def test_spread_takes_classes_in_turn():
    labels = np.array([2, 2, 0, 1, 0, 2, 0])
    order = pictures.spread(labels)
    assert order.tolist() == [2, 3, 0, 4, 1, 6, 5] and labels[order].tolist() == [0, 1, 2, 0, 2, 0, 2]


def test_a_classifier_has_no_decoder(tmp_path):
    write_classifier(tmp_path / "last.pth", "--finetune", "runs/mgp/last.pth")
    with pytest.raises(ValueError, match="stage 2 and has no decoder .* that it began with, runs/mgp/last.pth$"):
        load_mae(tmp_path / "last.pth")


@pytest.mark.parametrize(("flags", "words"), [
    (["--patch_size", 8], "second.pth cuts images into 2 x 3 patches, .*first.pth into 4 x 6, so they cannot share masks"),
    (["--input_size", 24, 16], "into 6 x 4 patches, .* into 4 x 6"),
    (GRAY, "sees images of 1 channel.s., .*first.pth of 3")])
def test_what_cannot_stand_together_is_refused(tmp_path, folder, drawn, flags, words):
    write_mae(tmp_path / "first.pth")
    write_mae(tmp_path / "second.pth", *flags)
    with pytest.raises(ValueError, match=words):
        drawn("--checkpoint", tmp_path / "first.pth", tmp_path / "second.pth", "--images", folder)


@pytest.mark.parametrize(("flags", "words"), [
    (["--images", "absent.png"], "--images absent.png: no such file or folder"),
    (["--images", "empty"], "--images empty: no image below it"),
    (["--images", "text.png"], "cannot read the image .*text.png"),
    (["--images", "text.png", "--dataset", "embedded"], "so --dataset embedded would do nothing"),
    (["--images", "text.png", "--split", "test"], "so --split test would do nothing"),
    (["--num", 0], "--num must be at least 1, not 0"),
    (["--mask_ratio", 1], "--mask_ratio must lie between 0 and 1"),
    (["--dataset", "embedded"], "images of 3 channels, --dataset embedded has 1"),
    (["--dataset", "list"], "--dataset list needs --data_path DIR"),
    (["--dataset", "nonsense"], "unknown data set 'nonsense'")])
def test_wrong_pictures_are_refused_in_one_line(tmp_path, drawn, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    write_mae(tmp_path / "last.pth")
    with pytest.raises(ValueError, match=words) as error:
        drawn("--checkpoint", tmp_path / "last.pth", *flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("out", ["figure.jpg", "figure", "text.png/figure.png"])
def test_where_nothing_can_be_written(tmp_path, folder, out):
    write_mae(tmp_path / "last.pth")
    (tmp_path / "text.png").write_text("a file, no folder")
    argv = ["--checkpoint", str(tmp_path / "last.pth"), "--images", str(folder), "--out", str(tmp_path / out), "--num", "1"]
    with pytest.raises(ValueError, match="--out"):
        reconstruct.main(reconstruct.get_args_parser().parse_args(argv))
