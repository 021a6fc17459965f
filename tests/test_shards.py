"""Tar shards: every image once an epoch, in any number of readers, and a shard that is not whole stops the run."""
import itertools
import json

import numpy as np
import pytest
import torch

import main_finetune
import main_pretrain
from datasets import build_dataset, pack
from datasets.imageset import Record
from datasets.loading import train_loader
from datasets.shards import Part, ShardImages
from datasets.streaming import ShardBatches, cut, reader_parts, shard_order
from datasets.transforms import train_transform
from tests.conftest import DECODER, TINY
from util.checkpoint import load_checkpoint

N, SIZE = 23, (8, 8)
RECORD = Record((0.3, 0.3, 0.3), (0.2, 0.2, 0.2))


def epoch_of(loader, epoch=0):
    loader.batch_sampler.set_epoch(epoch)
    return [(images, labels) for images, labels in loader]


def labels_of(batches):
    return [label for _, labels in batches for label in labels.tolist()]


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) and torch.equal(la, lb)
                                          for (a, la), (b, lb) in zip(one, other, strict=True))


# --- who reads what ---

def test_every_image_has_one_reader_however_shards_are_cut():
    for counts in itertools.chain.from_iterable(itertools.product(range(1, 5), repeat=s) for s in (1, 2, 3)):
        for order, readers in itertools.product(itertools.permutations(range(len(counts))), range(1, sum(counts) + 3)):
            laid = [(shard, place) for shard in order for place in range(counts[shard])]
            plans = [reader_parts(np.array(counts), np.array(order), reader, readers) for reader in range(readers)]
            read = [[(part.shard, place) for part in plan for place in range(part.start, part.stop)] for plan in plans]
            assert [image for images in read for image in images] == laid
            assert max(map(len, read)) - min(map(len, read)) <= 1


def test_the_order_of_shards_is_a_permutation_by_seed_and_epoch():
    orders = [shard_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == shard_order(50, 0, 0).tolist() and orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_chunks_are_cut_into_full_batches(batch_size):
    sizes = [1, 7, 3, 3, 9]
    values = torch.arange(23)
    chunks = [(part[:, None].to(torch.uint8), part) for part in values.split(sizes)]
    batches = list(cut(chunks, batch_size, 23))
    assert [len(labels) for _, labels in batches] == [len(part) for part in values.split(batch_size)]
    assert torch.equal(torch.cat([labels for _, labels in batches]), values)
    assert torch.equal(torch.cat([images for images, _ in batches]).flatten().long(), values)
    for other in (22, 24):
        with pytest.raises(AssertionError, match="readers gave"):
            list(cut(chunks, batch_size, other))


# --- an epoch ---

@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_image_once_an_epoch_over_any_number_of_readers(shards, numbered, processes, workers):
    images = build_dataset("shards", "train", shards)
    transform = train_transform(SIZE, RECORD, "none", hflip=0)
    loaders = [ShardBatches(images, transform, 4, 0, workers, None, process, processes) for process in range(processes)]
    orders = []
    for epoch in range(2):  # persistent workers must hear of the second
        parts = [epoch_of(loader, epoch) for loader in loaders]
        for loader, batches in zip(loaders, parts, strict=True):
            sizes = [len(labels) for _, labels in batches]
            assert sum(sizes) in (N // processes, N // processes + 1)
            assert len(sizes) == len(loader) and set(sizes[:-1]) <= {4} and 1 <= sizes[-1] <= 4
        orders.append([label for batches in parts for label in labels_of(batches)])
        assert sorted(orders[-1]) == list(range(N))
        for pixels, label in ((x, int(k)) for batches in parts for xs, ks in batches for x, k in zip(xs, ks, strict=True)):
            assert np.array_equal(pixels.permute(1, 2, 0), numbered.images[label])
    assert orders[0] != orders[1]


def augmented(shards, seed=0, epoch=0, workers=0, before=None):
    loader = train_loader(build_dataset("shards", "train", shards), SIZE, 5, seed, num_workers=workers)
    if before is not None:
        epoch_of(loader, before)
    return epoch_of(loader, epoch)


def test_same_seed_same_batches_and_workers_change_the_order_only(shards):
    one, two = augmented(shards, epoch=1), augmented(shards, epoch=1, workers=2)
    torch.rand(3), np.random.rand(3)  # someone else draws
    assert equal(one, augmented(shards, epoch=1, before=0)) and equal(one, augmented(shards, epoch=1, workers=1))
    assert equal(two, augmented(shards, epoch=1, workers=2, before=0))
    assert not equal(one, augmented(shards, epoch=1, seed=1)) and not equal(one, augmented(shards))
    assert labels_of(one) != labels_of(two)
    by_label = [dict(zip(labels_of(run), torch.cat([images for images, _ in run]), strict=True)) for run in (one, two)]
    assert all(torch.equal(by_label[0][label], by_label[1][label]) for label in range(N))
    other = dict(zip(labels_of(run := augmented(shards)), torch.cat([images for images, _ in run]), strict=True))
    assert not any(torch.equal(by_label[0][label], other[label]) for label in range(N))


def test_within_a_shard_the_order_and_every_samples_draws_differ(webdataset, numbered, tmp_path):
    alike = numbered.subset(np.zeros(12, dtype=int))
    pack.pack(alike, "made up", "train", tmp_path / "out")
    reader = train_loader(build_dataset("shards", "train", tmp_path / "out"), SIZE, 5, 0, num_workers=0).chunks.dataset
    orders = [[sample.index for sample in reader.samples(epoch, 0, 1)] for epoch in (0, 1)]
    assert orders[0] != orders[1] and all(sorted(order) == list(range(12)) != order for order in orders)
    (images, labels), = reader
    assert labels.tolist() == [0] * 12 and len(images.unique(dim=0)) == 12


def test_loading_leaves_the_global_generators_alone(shards):
    reader = train_loader(build_dataset("shards", "train", shards), SIZE, 5, 0, num_workers=0).chunks.dataset
    torch.rand(1), np.random.rand(1)  # away from where another test may have left them
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert sum(len(labels) for _, labels in reader) == N
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])


def test_a_part_is_what_lies_between_its_ends(shards):
    images = build_dataset("shards", "train", shards)
    for start, stop in itertools.combinations(range(7), 2):
        assert [sample.index for sample in images.read(Part(1, start, stop))] == list(range(6 + start, 6 + stop))
    assert images.image(-1).tobytes() == images.image(N - 1).tobytes()
    with pytest.raises(IndexError):
        images.image(N)


def test_a_command_stands_for_a_folder(shards):
    here, there = build_dataset("shards", "train", shards), build_dataset("shards", "train", f"pipe:cat '{shards}'/{{file}}")
    assert here.data_hash == there.data_hash and here.record == there.record and there.source != here.source
    assert here.image(8).tobytes() == there.image(8).tobytes()
    assert equal(*(epoch_of(train_loader(images, SIZE, 5, 0, num_workers=0)) for images in (here, there)))
    by_url = build_dataset("shards", "train", f"file://{shards}/")
    assert by_url.data_hash == here.data_hash and by_url.image(N - 1).tobytes() == here.image(N - 1).tobytes()


# --- both stages ---

MAE = ["--model", "mae_vit_tiny_patch16", "--input_size", "8", "--dataset", "shards"]


@pytest.mark.parametrize("at", [(1, 0), (1, 2)], ids=["between epochs", "within one"])
def test_stage_1_learns_from_shards_and_is_continued_to_the_bit(shards, tmp_path, monkeypatch, capsys, at):
    from util.session import Session

    def run(out, *flags):
        argv = [*TINY, *DECODER, *MAE, "--data_path", shards, "--output_dir", tmp_path / out, *flags]
        return main_pretrain.main(main_pretrain.get_args_parser().parse_args(list(map(str, argv))))

    def save_and_die(self):
        save(self)
        if (self.epoch, self.step) == at:
            raise KeyboardInterrupt

    whole = run("whole", "--num_workers", 1)
    assert isinstance(build_dataset("shards", "train", shards), ShardImages) and whole["epoch"] == 1
    record = json.loads((tmp_path / "whole" / "args.json").read_text())
    assert record["num_images"] == N and record["steps_per_epoch"] == 3 and record["args"]["mean"] == list(RECORD.mean)
    assert (tmp_path / "whole" / "figures" / "reconstructions.png").is_file()
    save = Session.save
    monkeypatch.setattr(Session, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run("cut", "--num_workers", 0, "--save_steps", 1)
    monkeypatch.undo()
    assert run("cut", "--num_workers", 1)["train_loss"] == whole["train_loss"]
    assert "continuing" in capsys.readouterr().out
    a, b = (load_checkpoint(tmp_path / out / "last.pth")["model"] for out in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_stage_2_is_told_to_use_the_set_itself(shards, tmp_path):
    flags = [*TINY, "--model", "vit_tiny_patch16", "--dataset", "shards", "--data_path", str(shards)]
    with pytest.raises(ValueError, match="--dataset shards is for stage 1 only: use the data set that was packed for stage 2"):
        main_finetune.main(main_finetune.get_args_parser().parse_args([*flags, "--output_dir", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "words"), [("imb_factor", "--imb_factor is for"), ("data_seed", "leave it out")])
def test_a_draw_belongs_to_packing(shards, flag, words):
    with pytest.raises(ValueError, match=words):
        build_dataset("shards", "train", shards, **{flag: 2})
