"""Checkpoints: whole at any moment, plain data only, and each wrong file named for what it is."""
import argparse
import os
import pickle
import random
import socket
from pathlib import Path

import pytest
import torch

from util.checkpoint import COMMENT, KEYS, DamagedCheckpoint, SaveError, load_checkpoint, newest, replace_file, save_checkpoint


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
    data = path.read_bytes()
    outside = range(data.index(b"PK\x01\x02"), len(data))  # the zip's directory, which its own sums do not cover
    for place in [*outside, *(draw.randrange(len(data)) for _ in range(100))]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)


def test_a_checkpoint_ends_in_its_digest(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, a_state())
    data = path.read_bytes()
    mark = len(data) - COMMENT
    # Each of them is a file that zip readers and torch take for whole.
    for end in (data[mark:] + b"x", data[mark:-1], b"LIVT-sha" + data[mark + 8:], b""):
        path.write_bytes(data[:mark] + end)
        assert set(torch.load(path, weights_only=True)) == set(KEYS)
        with pytest.raises(DamagedCheckpoint, match="is damaged .its format, 'livt-2', has a SHA-256 at its end, and"):
            load_checkpoint(path)
    torch.save({**torch.load(path, weights_only=True), "format": "livt-1"}, path)  # which began without one
    assert load_checkpoint(path)["format"] == "livt-1"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_file_is_a_damaged_checkpoint_and_not_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    if kind == "pipe":
        os.mkfifo("last.pth")
    else:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("last.pth")
    save_checkpoint(Path("previous.pth"), a_state())
    path, state, warning = newest(Path("last.pth"), "pretrain")
    assert path.name == "previous.pth" and state["stage"] == "pretrain"
    assert warning.startswith("warning: no checkpoint at last.pth, which is a pipe, a socket or a device: give the path of")
    assert not Path("last.pth").exists()


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
