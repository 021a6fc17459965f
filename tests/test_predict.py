"""predict.py and util.features: the numbers of the model, one row a picture, bad ones skipped, nothing held but a batch."""
import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
import predict
from datasets.decode import read_image
from datasets.paths import PathTable
from models_vit import load_classifier
from tests.checkpoints import write_classifier, write_mae
from util import export, features, stream
from util.args import run_command
from util.trained import encode, load_classifier_model, load_encoder_model


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures in nested folders; their paths in the order of the rows."""
    draw, paths = np.random.default_rng(0), []
    for i, name in enumerate(["a/1.png", "a/2.jpg", "a/z/0.png", "b/0.jpg", "b/1.png", "b/10.png", "b/2.png"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def run(*argv):
    argv = [*map(str, argv), "--device", "cpu", "--amp", "off", "--num_workers", "0"]
    predict.main(predict.get_args_parser().parse_args(argv))


def rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def expected(checkpoint, paths):
    """Logits (N, 3) of the pictures one by one, as `util.trained` prepares them."""
    trained = load_classifier_model(checkpoint)
    with torch.no_grad():
        logits = [trained.model(trained.batch([read_image(path, 3)])) for path in paths]
    return trained, torch.cat(logits) * trained.criterion.logit_scale


@pytest.mark.parametrize("loss", ["ce", "bal_bce", "ldam"])
def test_rows_are_the_models_probabilities(tmp_path, pictures, loss):
    write_classifier(tmp_path / "last.pth", "--loss", loss, "--loader", "pil")
    run(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "out.csv", "--topk", 2, "--batch_size", 3)
    trained, logits = expected(tmp_path / "last.pth", pictures)
    kind = "sigmoid" if loss == "bal_bce" else "softmax"
    wanted = torch.sigmoid(logits) if kind == "sigmoid" else logits.softmax(1)
    header, *found = rows(tmp_path / "out.csv")
    assert header == ["path", "class_1", f"{kind}_1", "class_2", f"{kind}_2"] and [row[0] for row in found] == pictures
    for row, probabilities in zip(found, wanted, strict=True):
        best = probabilities.argsort(descending=True)[:2].tolist()
        assert [row[1], row[3]] == [trained.class_names[k] for k in best]
        assert [float(row[2]), float(row[4])] == pytest.approx(probabilities[best].tolist(), abs=2e-6)


def test_json_is_one_object_a_line_and_an_export_does_as_its_checkpoint(tmp_path, pictures):
    write_classifier(tmp_path / "last.pth")
    export.main(export.get_args_parser().parse_args([str(tmp_path / "last.pth"), "--format", "timm", "--out",
                                                     str(tmp_path / "timm")]))
    for source, out in ((tmp_path / "last.pth", "a"), (tmp_path / "timm", "b")):
        run(source, *pictures[:2], "--format", "json", "--out", tmp_path / out)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    first, second = map(json.loads, (tmp_path / "a").read_text().splitlines())
    assert first["path"] == pictures[0] and first["activation"] == "sigmoid" and second["path"] == pictures[1]
    assert sorted(first["classes"]) == ["cat", "dog", "elk"] and first["probabilities"] == sorted(first["probabilities"])[::-1]


@pytest.mark.parametrize("flags", [["--loss", "ce"], ["--loss", "bal_bce"], ["--loss", "bal_ce", "--tau", ".5"]], ids=" ".join)
@pytest.mark.parametrize("asked", ["uniform", "none", "file"])
def test_the_test_prior_moves_predictions_as_the_evaluation_does(tmp_path, picture_folder, flags, asked):
    write_classifier(tmp_path / "last.pth", "--input_size", 16, *flags)
    (tmp_path / "prior.txt").write_text(".2 .3 .5")
    prior = str(tmp_path / "prior.txt") if asked == "file" else asked
    argv = ["--eval", "--resume", tmp_path / "last.pth", "--test_prior", prior, "--data_path", picture_folder, "--output_dir",
            tmp_path / "eval", "--device", "cpu", "--amp", "off", "--num_workers", "0"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("per_class_accuracy", "reliability_diagram", "confusion"):
            patch.setattr(f"util.figures.{name}", lambda *_: None)
        main_finetune.main(main_finetune.get_args_parser().parse_args(list(map(str, argv))))
    logits = torch.from_numpy(np.load(tmp_path / "eval" / "predictions.npz")["logits"])
    run(tmp_path / "last.pth", picture_folder / "test", "--test_prior", prior, "--out", tmp_path / "out.csv")
    wanted = (torch.sigmoid(logits) if "bal_bce" in flags else logits.softmax(1)).max(1).values
    assert [float(row[2]) for row in rows(tmp_path / "out.csv")[1:]] == pytest.approx(wanted.tolist(), abs=2e-6)


def test_bad_pictures_are_told_counted_and_skipped(tmp_path, pictures, capsys):
    write_classifier(tmp_path / "last.pth")
    Path(pictures[1]).write_bytes(b"no picture")
    (tmp_path / "pictures" / "b" / "00.png").symlink_to("nowhere")
    Path(pictures[4]).write_bytes(Path(pictures[4]).read_bytes()[:200])
    run(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "out.csv", "--batch_size", 2)
    assert [row[0] for row in rows(tmp_path / "out.csv")[1:]] == [pictures[i] for i in (0, 2, 3, 5, 6)]
    told = capsys.readouterr().err
    assert told.count("unreadable, skipped:") == 3 and "3 of 8 images could not be read and were skipped" in told
    assert "b/00.png (a link to 'nowhere'" in told and "a/2.jpg (no image that Pillow knows)" in told
    with pytest.raises(ValueError, match="none of 1 images could be read"):
        run(tmp_path / "last.pth", pictures[1], "--out", tmp_path / "none.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth", "out.csv", "pictures"]


def test_rows_alone_are_on_stdout_and_names_keep_their_bytes(tmp_path, pictures, capfdbinary):
    write_classifier(tmp_path / "last.pth")
    strange = os.fsencode(tmp_path) + b"/pictures/caf\xe9.png"
    os.rename(pictures[0], strange)
    Path(pictures[1]).write_bytes(b"")
    run(tmp_path / "last.pth", tmp_path / "pictures")
    out, told = capfdbinary.readouterr()
    assert out.count(b"\n") == 7 and b"\n" + strange + b"," in out and out.startswith(b"path,class_1,sigmoid_1,")
    assert b"the file is empty" in told and b"probabilities by sigmoid (--loss bal_bce), each class for itself" in told


def test_workers_give_the_same_rows(tmp_path, pictures):
    write_classifier(tmp_path / "last.pth")
    Path(pictures[1]).write_bytes(b"no picture")
    run(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "a", "--batch_size", 2)
    argv = [tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "b", "--batch_size", 2, "--num_workers", 2,
            "--device", "cpu", "--amp", "off"]
    predict.main(predict.get_args_parser().parse_args(list(map(str, argv))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_are_written_while_pictures_are_read(tmp_path, pictures, monkeypatch):
    """At most two batches lie between the picture that is read and the row that is written."""
    write_classifier(tmp_path / "last.pth")
    read, lag, count = [], [], 0
    getitem = stream.Pictures.__getitem__
    monkeypatch.setattr(stream.Pictures, "__getitem__", lambda self, index: read.append(index) or getitem(self, index))
    args = predict.get_args_parser().parse_args([str(tmp_path / "last.pth"), "x", "--batch_size", "1", "--num_workers", "0"])
    trained = load_classifier_model(tmp_path / "last.pth")
    for text in predict.predictions(trained, PathTable(pictures), args, None, torch.zeros(3)):
        count += text.count("\n")
        lag.append(len(read) - (count - 1))
    assert count == 8 and max(lag[1:]) <= 1


def test_paths_are_streamed_into_the_table():
    consumed = []

    def names():
        for i in range(1000):
            consumed.append(i)
            yield f"{i}.jpg"

    table = PathTable(names())
    assert len(table) == 1000 and table[999] == "999.jpg" and table[-1000] == "0.jpg" and consumed == list(range(1000))
    assert len(table.to_bytes()) == sum(len(f"{i}.jpg") + 1 for i in range(1000)) - 1
    assert len(PathTable([])) == 0 and PathTable([]).to_bytes() == b""


@pytest.mark.parametrize(("flags", "words"), [
    (["nowhere"], "no such file or folder: nowhere"), (["."], "no image below .* .extensions"),
    ([".", "--topk", "0"], "--topk must be at least 1, not 0"), ([".", "--test_prior", "gone.txt"], "no .*gone.txt")])
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, capsys, flags, words):
    (tmp_path / "here").mkdir()
    write_classifier(tmp_path / "last.pth")
    monkeypatch.chdir(tmp_path / "here")
    if "gone.txt" in flags:
        Image.new("RGB", (8, 8)).save("one.png")
    monkeypatch.setattr(sys, "argv", ["predict.py", "../last.pth", *flags])
    with pytest.raises(SystemExit) as stop:
        run_command(predict.get_args_parser(), predict.main)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and re.search(words, error)


def extract(*argv):
    argv = [*map(str, argv), "--device", "cpu", "--amp", "off", "--num_workers", "0"]
    features.main(features.get_args_parser().parse_args(argv))


@pytest.mark.parametrize("pool", [None, "avg", "token"])
@pytest.mark.parametrize("stage", [1, 2])
def test_features_are_the_encoders(tmp_path, pictures, stage, pool):
    write_mae(tmp_path / "last.pth", "--loader", "pil") if stage == 1 else write_classifier(
        tmp_path / "last.pth", "--cls_token", "--loader", "pil")
    Path(pictures[2]).write_bytes(b"no picture")
    flags = ["--pool", pool] if pool else []
    extract(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "f.npz", *flags)
    found, kept = np.load(tmp_path / "f.npz"), [path for path in pictures if path != pictures[2]]
    assert found["paths"].tolist() == kept and found["features"].dtype == np.float32
    trained = load_encoder_model(tmp_path / "last.pth")
    how = {"avg": "mean", "token": "cls", None: "mean" if stage == 1 else "cls"}[pool]
    with torch.no_grad():
        wanted = torch.cat([encode(trained.model, trained.batch([read_image(path, 3)]), how) for path in kept])
    np.testing.assert_allclose(found["features"], wanted.numpy(), atol=1e-5)


def test_features_of_others_weights_equal_those_of_the_checkpoint_that_they_are_of(tmp_path, pictures):
    write_mae(tmp_path / "last.pth", "--input_size", 16)
    statistics = ["--mean", .4, .5, .3, "--std", .2, .3, .25]
    export.main(export.get_args_parser().parse_args([str(tmp_path / "last.pth"), "--format", "hf", "--out",
                                                     str(tmp_path / "hf")]))
    extract(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "a.npz")
    extract(tmp_path / "hf", tmp_path / "pictures", "--out", tmp_path / "b.npz")  # preprocessor_config.json tells
    a, b = (np.load(tmp_path / f"{name}.npz")["features"] for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-6)
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    extract(tmp_path / "hf", tmp_path / "pictures", "--out", tmp_path / "b.npz", *statistics)
    np.testing.assert_allclose(a, np.load(tmp_path / "b.npz")["features"], atol=1e-6)
    with pytest.raises(ValueError, match="does not say how its images are normalised: give --mean and --std"):
        extract(tmp_path / "hf", tmp_path / "pictures", "--out", tmp_path / "c.npz")
    with pytest.raises(ValueError, match="is a checkpoint of this project and says --mean, --std itself"):
        extract(tmp_path / "last.pth", tmp_path / "pictures", "--out", tmp_path / "c.npz", *statistics)
    torch.save(torch.load(tmp_path / "last.pth")["model"], tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="16 wide, which is none of the named sizes.*give --num_heads"):
        extract(tmp_path / "bare.pth", tmp_path / "pictures", "--out", tmp_path / "c.npz", *statistics)
    extract(tmp_path / "bare.pth", tmp_path / "pictures", "--out", tmp_path / "c.npz", *statistics, "--num_heads", 2)
    np.testing.assert_allclose(np.load(tmp_path / "c.npz")["features"], a, atol=1e-6)


def test_features_of_a_headed_classifier_are_what_its_head_reads(tmp_path, pictures):
    model = write_classifier(tmp_path / "last.pth", "--input_size", 16, "--loader", "pil")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    extract(tmp_path / "bare.pth", *pictures, "--mean", .4, .5, .3, "--std", .2, .3, .25, "--num_heads", 2, "--crop_pct", .875,
            "--out", tmp_path / "f.npz")
    trained = load_classifier_model(tmp_path / "last.pth")
    load_classifier(trained.model, model.state_dict())
    with torch.no_grad():
        wanted = torch.cat([trained.model(trained.batch([read_image(path, 3)]), return_features=True)[1] for path in pictures])
    # Foreign weights are read with the fast decoder, which differs from Pillow's by rounding.
    np.testing.assert_allclose(np.load(tmp_path / "f.npz")["features"], wanted.numpy(), atol=0.02)
