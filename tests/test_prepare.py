"""datasets/prepare.py: flags, folders, what the command prints, and CIFAR's download."""
import functools
import hashlib
import http.server
import pickle
import re
import shutil
import sys
import tarfile
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from datasets import build_dataset
from datasets.cifar import CLASSES
from datasets.prepare import differences, get_args_parser, main
from datasets.records import OFFICIAL_SIZES, official_counts
from tests.made_up_trees import KINDS, build, prepare, prepared, refused
from util.args import run_command


def test_flags_act_or_are_refused(tmp_path):
    made = build("imagenet", tmp_path)
    out = tmp_path / "out"
    refused("--per_class 5 chooses the draw of imagenet_bal, which imagenet_lt has not", "imagenet_lt", made, out,
            "--per_class", 5)
    refused("--data_seed 0 chooses the draw", "imagenet_1k", made, out, "--data_seed", 0)
    refused("--per_class must be at least 1, not 0", "imagenet_bal", made, out, "--per_class", 0)
    refused("seed of the draw is -1", "imagenet_bal", made, out, "--per_class", 1, "--data_seed", -1, lists=False)
    refused("cifar10_lt is downloaded into --out: leave out --source and --lists", "cifar10_lt", made, out)
    refused("nothing to prepare for 'folder'; known: imagenet_lt, ", "folder", made, out)
    refused("--source .*nowhere is no folder", "imagenet_lt", made, out, source=tmp_path / "nowhere")
    refused("--lists .*nowhere does not exist", "imagenet_lt", made, out, "--lists", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="imagenet_lt needs --source DIR"):
        main(get_args_parser().parse_args(["imagenet_lt", "--out", str(out)]))


def test_out_may_lie_in_the_source_where_it_is_free(tmp_path):
    made = build("places", tmp_path)
    before = sorted(made.source.rglob("*"))
    with pytest.raises(ValueError, match="holds other files: name an empty or a new folder"):
        prepare("places_lt", made, made.source)
    with pytest.raises(ValueError, match="holds other files"):
        prepare("places_lt", made, made.source / "train")
    assert sorted(made.source.rglob("*")) == before
    for _ in range(2):  # the same set again is written anew
        prepare("places_lt", made, made.source / "livt")
    assert prepared("places_lt", made.source / "livt", "test", made.source) == made.labels["test"]
    with pytest.raises(ValueError, match="holds the data set places_lt"):
        prepare("imagenet_lt", made, made.source / "livt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot read or write .*file/out .Not a directory."):
        prepare("places_lt", made, tmp_path / "file" / "out")


def test_table_and_notes_say_what_is_not_official(tmp_path, capsys):
    made = build("places", tmp_path, images=[120, 101, 100, 20, 19, 1])
    (made.lists / "Places_LT_val.txt").unlink()
    prepare("places_lt", made, tmp_path / "out")
    text = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in text if line.strip()}
    assert rows["split"] == ["images", "classes", "largest", "smallest", "many", "medium", "few"]
    assert rows["train"] == ["361", "6", "120", "1", "2", "2", "2"] and rows["test"] == ["12", "6", "2", "2", "-", "-", "-"]
    assert [line for line in text if line.startswith("note")] == [
        "note: train has 361 images, the official one 62,500",
        "note: no split val: Places_LT_val.txt was not found",
        "note: test has 12 images, the official one 36,500",
        "note: 6 classes, officially 365",
        "note: this is another publisher's list or a part of the set; python -m datasets.verify places_lt --data_path "
        f"{tmp_path / 'out'} looks closer"]


@pytest.mark.parametrize("name", list(KINDS))
def test_only_the_official_counts_pass_without_a_note(name):
    counts = official_counts(name)
    splits = {split: {"images": size, "class_counts": counts.tolist()} for split, size in OFFICIAL_SIZES[name].items()}
    record = {"class_names": [f"c{label}" for label in range(len(counts))], "splits": splits}
    assert differences(name, record) == []
    i = int((counts != counts[0]).argmax())
    counts[[0, i]] = counts[[i, 0]]
    record["splits"]["train"]["class_counts"] = counts.tolist()
    assert differences(name, record) == [f"2 classes have other numbers of training images than officially, the first is 0 "
                                         f"(c0): {counts[0]:,}, officially {counts[i]:,}"]


def test_a_mistake_ends_in_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "places_lt", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        run_command(get_args_parser(), main)
    assert caught.value.code == 2
    assert re.fullmatch(r"error: places_lt needs its official files .* with --lists\n", capsys.readouterr().err)


def cifar_archive(folder, kind, patch):
    """A CIFAR-10 of 100 training images a class as one archive, and torchvision made to expect it."""
    inside = folder / kind.base_folder
    inside.mkdir(parents=True)

    def write(file, content):
        (inside / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((inside / file).read_bytes()).hexdigest()

    labels = (np.arange(200) % 10).tolist()
    data = {"data": np.zeros((200, 3072), np.uint8), "labels": labels}
    for files in ("train_list", "test_list"):
        patch.setattr(kind, files, [[file, write(file, data)] for file, _ in getattr(kind, files)])
    patch.setattr(kind, "meta", kind.meta | {"md5": write(kind.meta["filename"], {"label_names": [*"abcdefghij"]})})
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(inside, kind.base_folder)
    shutil.rmtree(inside)
    patch.setattr(kind, "tgz_md5", hashlib.md5((folder / kind.filename).read_bytes()).hexdigest())
    return folder / kind.filename


def test_cifar_is_downloaded_or_the_url_is_named(tmp_path, monkeypatch, capsys):
    kind, out = CLASSES["cifar10_lt"], tmp_path / "out"
    archive, url = cifar_archive(tmp_path / "server", kind, monkeypatch), kind.url

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    args = get_args_parser().parse_args(["cifar10_lt", "--out", str(out)])
    with monkeypatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", no_network)
        with pytest.raises(ValueError, match=f"cannot fetch {url} .*not known.*: put that file into {out}, .* again") as caught:
            main(args)
    assert "\n" not in str(caught.value)
    # Both ways end in the same: the file put there by hand, and a download.
    shutil.copy(archive, out)
    main(args)
    shutil.rmtree(out)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{kind.filename}")
        record = main(args)
        server.shutdown()
    assert record["splits"]["train"]["class_counts"] == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    assert record["splits"]["test"]["images"] == 200 and len(build_dataset("cifar10_lt", "train", str(out))) == 242
    assert re.search(r"train +242 +10 +100 +1 +0 +4 +6\n", capsys.readouterr().out)
