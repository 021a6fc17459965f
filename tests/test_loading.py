"""Batches are functions of (seed, epoch, position), whatever the workers do and whoever else draws."""
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from datasets import build_dataset
from datasets.imageset import ArrayImages, Record
from datasets.loading import EpochBatches, eval_loader, train_loader
from datasets.memory import MemoryBatches, ShiftFlip
from datasets.transforms import BICUBIC, CoverResize, Normalize, eval_transform, rand_augment, train_transform
from util.seed import derive_seed, seeded

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
RECORD = Record((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    labels = np.arange(30) % 3
    return ArrayImages(draw.integers(0, 256, (30, 20, 20, 3), dtype=np.uint8), labels, ["a", "b", "c"], RECORD,
                       np.arange(30), "made up")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eight JPEG files: scikit-learn's two photographs, upright and across, larger and smaller than 128 pixels."""
    root = tmp_path_factory.mktemp("photographs")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / "train" / name).mkdir(parents=True)
        for size in ((500, 375), (375, 500), (640, 427), (120, 90)):
            image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            image.save(root / "train" / name / f"{size[0]}.jpg", quality=90)
    return build_dataset("folder", "train", root, RECORD.mean, RECORD.std)


def batches(pictures, seed=0, epoch=0, workers=0, size=4):
    loader = train_loader(pictures, (16, 16), size, seed, auto_augment=RAND_AUGMENT, num_workers=workers)
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) and torch.equal(la, lb)
                                          for (a, la), (b, lb) in zip(one, other, strict=True))


def test_one_seed_is_equal_to_the_byte_and_another_seed_or_epoch_differs(pictures):
    first = batches(pictures)
    torch.rand(3), np.random.rand(3)  # someone else draws
    assert equal(first, batches(pictures))
    assert not equal(first, batches(pictures, seed=1))
    assert not equal(first, batches(pictures, epoch=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(pictures, workers):
    assert equal(batches(pictures, epoch=3), batches(pictures, epoch=3, workers=workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("loader", ["fast", "pil"])
def test_workers_change_nothing_for_files(photographs, loader):
    def run(workers):
        found = train_loader(photographs, (128, 128), 3, 0, auto_augment=RAND_AUGMENT, num_workers=workers, loader=loader)
        found.batch_sampler.set_epoch(5)
        return list(found)
    alone = run(0)
    assert equal(alone, run(2)) and equal(alone, run(4))


@pytest.mark.parametrize("auto_augment", [None, RAND_AUGMENT])
def test_the_pil_loader_is_torchvision_on_pil_images(photographs, auto_augment):
    """The pipeline of torchvision's own transforms on what PIL opens, draw for draw and byte for byte."""
    steps = [v2.RandomResizedCrop((96, 128), scale=(0.2, 1.0), interpolation=BICUBIC), v2.RandomHorizontalFlip(0.4)]
    usual = v2.Compose(steps + ([rand_augment(auto_augment, (96, 128), RECORD)] if auto_augment else []))
    dataset = train_loader(photographs, (96, 128), 4, 7, hflip=0.4, auto_augment=auto_augment, loader="pil").dataset
    keys = [(index, 2, position) for position, index in enumerate([*range(8), 0, 0, 1, 1])]
    for (index, epoch, position), (image, _) in zip(keys, dataset.__getitems__(keys), strict=True):
        with seeded(derive_seed(7, "sample", epoch, position)):
            expected = usual(Image.open(Path(photographs.root, photographs.ids[index])).convert("RGB"))
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize(("settings", "tolerance"), [
    ({"crop": "rrc"}, 0.3), ({"crop": "none"}, 0.3), ({"crop": "pad"}, 0.3), ({"crop": "rrc", "hflip": 1}, 0.3),
    ({"crop": "rrc", "auto_augment": RAND_AUGMENT}, 1.5), ({"crop": "pad", "auto_augment": RAND_AUGMENT}, 1.5)], ids=str)
def test_the_fast_loader_shows_the_same_pictures(photographs, settings, tolerance):
    """Same boxes, flips and operations: the mean difference stays below `tolerance` of 255 in every picture.

    Both round between the two axes, and some versions begin with another one: 0.25, else 0.003. RandAugment amplifies it.
    """
    keys = [(position % 8, 1, position) for position in range(40)]
    pil, fast = (train_loader(photographs, (128, 128), 4, 0, loader=name, **settings).dataset.__getitems__(keys)
                 for name in ("pil", "fast"))
    differences = [(a.float() - b.float()).abs().mean().item() for (a, _), (b, _) in zip(pil, fast, strict=True)]
    assert max(differences) < tolerance and [label for _, label in pil] == [label for _, label in fast]
    assert max(differences) > 0  # torch has resized, not PIL


def test_the_fast_evaluation_shows_the_same_pictures(photographs):
    pil, fast = (torch.cat([images for images, _ in eval_loader(photographs, (128, 128), 3, num_workers=0, loader=name)])
                 for name in ("pil", "fast"))
    assert fast.shape == (8, 3, 128, 128) and fast.is_contiguous()
    assert 0 < (pil.float() - fast.float()).abs().mean((1, 2, 3)).max() < 0.3


def test_a_worker_that_its_parent_ends_has_not_failed(pictures):
    loader = train_loader(pictures, (16, 16), 8, 0, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    worker, = multiprocessing.active_children()
    worker.terminate()  # what Python does at exit to those that are left; torch raises for any code but 0
    worker.join(20)
    assert worker.exitcode == 0


def test_an_unknown_loader_is_refused(photographs):
    with pytest.raises(ValueError, match="unknown --loader 'opencv'; known: fast, pil"):
        train_loader(photographs, (128, 128), 4, 0, loader="opencv")


def test_loading_leaves_the_global_generators_alone(pictures):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset = train_loader(pictures, (16, 16), 4, seed=0).dataset
    dataset.__getitems__([(0, 0, 0), (1, 0, 1)])
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])


def test_every_image_once_an_epoch_in_an_order_that_changes():
    sampler = EpochBatches(10, 4, seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = [key for batch in sampler for key in batch]
        assert sorted(index for index, _, _ in keys) == list(range(10))
        assert [(e, position) for _, e, position in keys] == [(epoch, i) for i in range(10)]
        orders.append([index for index, _, _ in keys])
    assert orders[0] != orders[1] != orders[2] and len(sampler) == 3
    other = EpochBatches(10, 4, seed=1)
    assert [key[0] for batch in other for key in batch] != orders[0]


def test_a_sample_drawn_twice_is_augmented_twice(pictures):
    dataset = train_loader(pictures, (16, 16), 4, seed=0).dataset
    (one, _), (two, _), (again, _) = dataset.__getitems__([(5, 0, 0), (5, 0, 1), (5, 0, 0)])
    assert torch.equal(one, again) and not torch.equal(one, two)


@pytest.mark.parametrize("channels", [1, 3])
def test_shifts_and_flips_on_the_device_equal_torchvisions(pictures, channels):
    pixels = pictures.images[:, :, :16, :] if channels == 3 else pictures.images[:, :, :16, 0]
    augment = ShiftFlip(pixels, True, 0.5, torch.device("cpu"))
    draws = torch.from_numpy(np.random.default_rng(0).random((40, 3)))
    indices = torch.arange(40) % 30
    seen = set()
    for out, index, (row, column, flip) in zip(augment(indices, draws), indices, draws.tolist(), strict=True):
        image = torch.from_numpy(pixels[index]).reshape(20, 16, channels).permute(2, 0, 1)
        shifted = F.crop(F.pad(image, [2, 2]), int(row * 5), int(column * 5), 20, 16)
        assert torch.equal(out, F.hflip(shifted) if flip < 0.5 else shifted)
        seen |= {(int(row * 5), 0), (int(column * 5), 1), (flip < 0.5, 2)}
    assert len(seen) == 12  # five shifts each way, flipped and not


def test_images_in_memory_are_augmented_by_position_too(pictures):
    def run(seed=0, epoch=0, size=4):
        loader = train_loader(pictures, (20, 20), size, seed, crop="pad")
        assert isinstance(loader, MemoryBatches)
        loader.batch_sampler.set_epoch(epoch)
        return list(loader)
    first = run()
    assert equal(first, run()) and not equal(first, run(seed=1)) and not equal(first, run(epoch=1))
    together = [torch.cat(x) for x in zip(*first, strict=True)]
    other = [torch.cat(x) for x in zip(*run(size=7), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, other, strict=True))
    assert sorted(together[1].tolist()) == sorted(pictures.labels.tolist())
    whole = train_loader(pictures, (20, 20), 30, 0, crop="none", hflip=0)
    images, _ = next(iter(whole))
    order = [key[0] for key in next(iter(whole.batch_sampler))]
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(pictures.images[order]))


@pytest.mark.parametrize(("device", "crop", "given", "workers"), [
    ("cpu", "rrc", None, 0), ("cuda", "rrc", None, 3), ("cuda", "rrc", 1, 1), ("cuda", "rrc", 0, 0)])
def test_a_gpu_does_not_wait_for_one_core(pictures, monkeypatch, device, crop, given, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    loader = train_loader(pictures, (20, 20), 8, 0, crop=crop, num_workers=given, device=torch.device(device))
    assert loader.num_workers == workers


def test_evaluation_gives_every_image_once_in_order(pictures):
    loader = eval_loader(pictures, (20, 20), 7, crop_pct=1.0)
    images, labels = (torch.cat(x) for x in zip(*loader, strict=True))
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(pictures.images))
    assert labels.tolist() == pictures.labels.tolist()


def test_normalize_equals_torchvision_and_is_undone():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    record = Record((0.1, 0.5, 0.4), (0.2, 0.3, 0.25))
    normalize = Normalize(record, torch.device("cpu"))
    expected = F.normalize(images.float() / 255, record.mean, record.std)
    torch.testing.assert_close(normalize(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalize.undo(normalize(images)), images.float() / 255, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "size", "crop_pct"), [((30, 40), (16, 16), 0.875), ((40, 30), (16, 16), 1.0),
                                                         ((16, 16), (16, 16), 1.0), ((10, 12), (16, 24), 0.875)])
def test_evaluation_covers_and_takes_the_middle(shape, size, crop_pct):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    out = eval_transform(size, crop_pct)(image)
    assert out.shape == (3, *size) and out.dtype == torch.uint8
    resized = CoverResize(size, crop_pct)(image)
    assert np.array_equal(resized, image.resize(resized.size, Image.Resampling.BICUBIC))
    assert resized.width >= size[1] and resized.height >= size[0]
    assert abs(resized.width / resized.height - shape[1] / shape[0]) < 0.12
    if shape == size:
        assert torch.equal(out.permute(1, 2, 0), torch.from_numpy(pixels))
    if size[0] == size[1] and crop_pct == 0.875 and shape == (30, 40):  # MAE's: the shorter side to size / crop_pct
        reference = F.center_crop(F.resize(image, int(16 / 0.875), InterpolationMode.BICUBIC), [16, 16])
        assert np.abs(np.array(reference).astype(int) - out.permute(1, 2, 0).numpy()).mean() < 1


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_transforms_give_uint8_of_the_size_asked_for(crop, channels):
    record = Record((0.3,) * channels, (0.2,) * channels)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)[:2 if channels == 1 else 3], dtype=np.uint8)
    transform = train_transform((8, 12), record, crop, auto_augment=RAND_AUGMENT)
    for _ in range(20):
        out = transform(Image.fromarray(pixels))
        assert out.shape == (channels, 8, 12) and out.dtype == torch.uint8


def test_randaugment_at_the_largest_magnitude_keeps_an_image():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    augment = rand_augment("rand-m10-mstd0-inc1-p1", (16, 16), RECORD)
    posterize = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
    assert len(posterize) == 1
    posterize[0].prob, posterize[0].magnitude = 1.0, 10
    assert len(np.unique(np.array(posterize[0](Image.fromarray(pixels))))) == 2


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="--aa 'auto' is no RandAugment string"):
        train_transform((8, 8), RECORD, auto_augment="auto")


def test_erasing_acts_on_a_batch():
    batch = torch.zeros(8, 3, 16, 16)
    RandomErasing(1.0, mode="pixel", device="cpu")(batch)
    assert all(0 < image.ne(0).float().mean() < 0.5 for image in batch)


def test_embedded_set_through_the_registry():
    train, test = build_dataset("embedded", "train"), build_dataset("embedded", "test")
    assert len(train) == 4479 and len(test) == 5000 and train.record.channels == 1
    assert train.image(0).mode == "L" and train.image(0).size == (28, 28)
    assert train.data_hash == build_dataset("embedded", "train").data_hash != test.data_hash


@pytest.mark.parametrize(("arguments", "words"), [
    (("imagenet", "train"), "unknown data set 'imagenet'; known: embedded, cifar10_lt, cifar100_lt, imagenet_lt"),
    (("embedded", "training"), "train, val, test"),
    (("embedded", "train", None, (.5,) * 3, (.2,) * 3), "has 1 channels, --mean and --std are of 3"),
    (("embedded", "train", "x"), "leave out --data_path"),
    (("folder", "train"), "needs --data_path"), (("folder", "train", "x"), "--mean and --std, numbers"),
    (("folder", "train", "x", (0.5,)), "--mean and --std go together"),
    (("folder", "train", "x", (0.5, 0.5), (0.2, 0.2)), "one number .gray. or three"),
    (("folder", "train", "x", (128.0,), (60.0,)), r"must be of pixels in \[0, 1\]")])
def test_data_that_cannot_be_had_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_dataset(*arguments)
