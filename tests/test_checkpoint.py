"""Checkpoints: whole at any moment, plain data only, and each wrong file named for what it is."""
import argparse
import os
import pickle
import random

import pytest
import torch

from util.checkpoint import COMMENT, KEYS, DamagedCheckpoint, SaveError, load_checkpoint, replace_file, save_checkpoint


def a_state(**changes):
    return {**dict.fromkeys(KEYS[1:]), "stage": "pretrain", "model": {"w": torch.arange(1000.0)}, **changes}


def test_round_trip_opens_with_weights_only(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, a_state())
    assert set(torch.load(path, weights_only=True)) == set(KEYS)
    assert torch.equal(load_checkpoint(path, "pretrain")["model"]["w"], torch.arange(1000.0))
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, a_state())
    before = path.read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SaveError, match="No space left"):
        save_checkpoint(path, a_state(model={}))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pth"]


def test_bytes_and_names_are_on_the_disk_before_the_next_thing_happens(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(handle):
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def noted_replace(one, other):
        done.append((one.name, other.name))
        replace(one, other)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    for _ in range(2):
        done.clear()
        save_checkpoint(tmp_path / "last.pth", a_state())
    assert done == [("fsync", ".last.pth.part"), ("last.pth", "previous.pth"), (".last.pth.part", "last.pth"),
                    ("fsync", tmp_path.name)]
    done.clear()
    replace_file(tmp_path / "log.jsonl", lambda file: file.write(b"{}"))
    assert done == [("fsync", ".log.jsonl.part"), (".log.jsonl.part", "log.jsonl")]


class Runs:
    """A pickle that would run code when opened."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_ran(tmp_path):
    path, marker = tmp_path / "last.pth", tmp_path / "ran"
    torch.save({"format": "livt-1", "model": Runs(marker)}, path)
    with pytest.raises(ValueError, match="last.pth is refused: .*could run code"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Runs(marker), protocol=2))
    with pytest.raises(ValueError, match="last.pth is refused"):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(marker)))  # it does run where it is allowed to
    assert marker.exists()


def test_a_pickled_namespace_is_refused(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        load_checkpoint(tmp_path / "mae.pth")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named_as_damaged(tmp_path, share):
    path = tmp_path / "last.pth"
    save_checkpoint(path, a_state())
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(ValueError, match="last.pth is (damaged or no checkpoint|refused)") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_no_flipped_bit_passes_for_a_checkpoint(tmp_path):
    path, draw = tmp_path / "last.pth", random.Random(0)
    save_checkpoint(path, a_state())
    data, whole = path.read_bytes(), load_checkpoint(path)
    outside = range(data.index(b"PK\x01\x02"), len(data))  # the zip's directory, which its own sums do not cover
    for place in [*outside, *(draw.randrange(len(data)) for _ in range(100))]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            state = load_checkpoint(path)
        except DamagedCheckpoint:
            continue
        assert place >= len(data) - COMMENT and same(state, whole), place  # in the name of the sum: the rest is as it was


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(same, one, other)) if isinstance(one, list | tuple) else one == other


def test_other_files_are_named_for_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*none.pth"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
    torch.save({"state_dict": {}, "arch": "vit"}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="no checkpoint of this project: .* found 'the keys state_dict, arch'"):
        load_checkpoint(tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="found 'list'"):
        load_checkpoint(tmp_path / "list.pth")
    torch.save({"format": "livt-1", "model": {}}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match="incomplete checkpoint: stage, optimizer"):
        load_checkpoint(tmp_path / "less.pth")
    (tmp_path / "text.pth").write_text("hello, this is a text")
    with pytest.raises(ValueError, match="text.pth is (refused|damaged)"):
        load_checkpoint(tmp_path / "text.pth")


def test_the_other_stage_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pth", a_state(stage="pretrain"))
    with pytest.raises(ValueError, match="of stage 'pretrain', expected 'finetune'.*--finetune"):
        load_checkpoint(tmp_path / "a.pth", "finetune")
