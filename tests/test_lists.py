"""Lists of images, compact paths, and the sets that are read through them."""
import json
import os
import pickle

import numpy as np
import pytest

import main_finetune
from datasets import build_dataset
from datasets.folder import unlabeled_images
from datasets.imageset import FileImages, Record
from datasets.lists import ListError, read_list, write_list
from datasets.paths import PathTable, printable
from datasets.prepared import Split, prepared_images, write_prepared
from datasets.presence import check_listed
from datasets.verifying.inventory import take_inventory

STATISTICS = dict(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
NAMES = ["a.png", "sub/with blank.png", "ünï.png", os.fsdecode(b"\xff\xfe.png"), "x" * 300, "line\nbreak.png"]


def test_a_path_table_is_a_list_of_paths():
    table = PathTable(NAMES)
    assert list(table) == NAMES and [table[i] for i in range(-6, 0)] == NAMES and len(table) == 6
    assert list(table.take(np.array([4, 0, 4]))) == [NAMES[4], NAMES[0], NAMES[4]]
    assert list(pickle.loads(pickle.dumps(table))) == NAMES
    assert table.blob.nbytes + table.ends.nbytes < sum(len(os.fsencode(name)) for name in NAMES) + 9 * 6
    for index in (6, -7):
        with pytest.raises(IndexError):
            table[index]
    assert len(PathTable([])) == 0 and list(PathTable([])) == []


def test_a_path_in_a_message_stays_on_its_line():
    assert printable(NAMES[5]) == "line\\nbreak.png" and printable(NAMES[3]) == "\\xff\\xfe.png" and printable("ünï") == "ünï"


def test_the_hash_of_a_set_does_not_depend_on_how_paths_are_held():
    record = Record((0.5,), (0.5,))
    one, other = (FileImages(None, [0, 1], ["a", "b"], record, ids, "") for ids in (PathTable(NAMES[:2]), np.array(NAMES[:2])))
    assert one.data_hash == other.data_hash


@pytest.mark.parametrize("text", [
    b"a.png 0\nsub/with blank.png 1\n\n\xc3\xbcn\xc3\xaf.png 2\n\xff\xfe.png 3", b"a.png 0\r\nsub/with blank.png\t1\r\n\r\n"
    b"\xc3\xbcn\xc3\xaf.png 2 \r\n\xff\xfe.png 3\r\n",
    b"\xef\xbb\xbfa.png 0\n  \nsub/with blank.png   1\n\xc3\xbcn\xc3\xaf.png 2\n\xff\xfe.png 3\n"])
def test_lists_as_people_write_them(tmp_path, text):
    (tmp_path / "train.txt").write_bytes(text)
    paths, labels = read_list(tmp_path / "train.txt")
    assert list(paths) == NAMES[:4] and labels.tolist() == [0, 1, 2, 3] and labels.dtype == np.int64


def test_a_csv_is_read_by_its_header(tmp_path):
    (tmp_path / "train.csv").write_bytes(b'size,label, path\r\n3,0,a.png\r\n4,1,"sub/with, comma.png"\r\n\r\n,,\r\n'
                                         b'5,2,"a ""b"".png"\r\n')
    paths, labels = read_list(tmp_path / "train.csv")
    assert list(paths) == ["a.png", "sub/with, comma.png", 'a "b".png'] and labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("line", "words"), [
    ("b.png -1", "label -1 is negative: labels count from 0"),
    ("b.png 1.0", "label '1.0' is no whole number"), ("b.png cat", "label 'cat' is no whole number"),
    ("b.png +1", "label '+1' is no whole number"), ("b.png 1_0", "label '1_0' is no whole number"),
    ("b.png \u0661", "label '\u0661' is no whole number"), ("b.png 12345678901", "no whole number"),
    ("b.png 3", "label 3 of b.png, but the labels of 3 classes end at 2"),
    ("../b.png 1", "../b.png leads out of the data's folder"),
    ("c/../../b.png 1", "leads out"), ("/etc/b.png 1", "is absolute")])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_a_wrong_line_is_named_with_file_and_line(tmp_path, line, words, suffix):
    path = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        path.write_text("path,label\na.png,0\n" + ",".join(line.rsplit(" ", 1)) + "\nc.png,2\n")
    else:
        path.write_text(f"a.png 0\n\n{line}\nc.png 2\n")
    with pytest.raises(ListError) as error:
        read_list(path, 3)
    assert str(error.value).startswith(f"{path}:3: ") and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "data", "words"), [
    ("train.txt", b"", "lists no image"), ("train.txt", b"\n \n", "lists no image"),
    ("train.txt", "a.png 0\n".encode("utf-16"), "is no list file in UTF-8"), ("train.txt", None, "cannot read the list file"),
    ("train.csv", b"file,label\na.png,0\n", "must name the columns path and label, found file, label"),
    ("train.txt", b"a.png 0\rb.png 1\r", "train.txt:1: a.png 0\\rb.png has a carriage return in it: end lines with LF or CRLF"),
    ("train.csv", b"path,label,label\na.png,0,1\n", "train.csv:1: the header of a CSV names label twice"),
    ("train.csv", b"", "found nothing"), ("train.csv", b"path,label\na.png\n", "train.csv:2: a path and no label: labels"),
    ("train.csv", b"path,label\na.png,0\n\"" + b"x" * 200_000 + b"\",1\n", "train.csv:3: no line of a CSV (field larger than"),
    ("train.csv", b'path,label\na.png,0\n\n"b.png,1\nc.png,0\n', "train.csv:4: no line of a CSV (unexpected end of data): see"),
    ("train.csv", b'path,label\n"a\nb.png",0\nc.png,x\n', "train.csv:4: label 'x' is no whole number"),
    ("train.csv", b"label,path\n0,a.png,\n1,b, c.png\n", "train.csv:3: 3 cells under a header of 2: a path with a comma"),
    ("train.csv", b'"path,label\na.png,0\n', "train.csv:1: no header of a CSV (unexpected end of data): expected the columns"),
    ("train.csv", b"path,label\n", "train.csv lists no image: expected rows below the header"),
    ("train.txt", b"x" * 4096 + b" 0\n", "train.txt:1: " + "x" * 60 + "... has 4,096 bytes, and a path at most 4,095"),
    ("train.csv", b"path,label\n,3\n", "train.csv:2: no path before the label"),
    ("train.txt", b"a.png 0\nb.png\n", "train.txt:2: 'b.png' has no label: expected `relative/path label`"),
    ("train.txt", b"a.png x\nb.png y\n", "train.txt:1: label 'x' is no whole number: labels count from 0 (2 lines are wrong")])
def test_a_list_that_is_none(tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_list(tmp_path / name)
    assert words in str(error.value)


def test_a_list_comes_back_as_it_was_written(tmp_path):
    write_list(tmp_path / "a.txt", NAMES[:5], [3, 1, 4, 1, 5])
    paths, labels = read_list(tmp_path / "a.txt")
    assert list(paths) == NAMES[:5] and labels.tolist() == [3, 1, 4, 1, 5]
    for name in (NAMES[5], " a.png", "a.png\r"):
        with pytest.raises(ValueError, match="a list cannot hold the file name"):
            write_list(tmp_path / "b.txt", [name], [0])


@pytest.fixture
def listed(picture_folder, tmp_path):
    """The picture folder as lists, relative to a folder that links to the images."""
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(picture_folder / split)
        images = build_dataset("folder", split, picture_folder, **STATISTICS)
        write_list(tmp_path / f"{split}.txt", list(images.ids), images.labels)
    return tmp_path


def test_a_list_is_the_folder_it_was_written_from(listed, picture_folder):
    for split in ("train", "test"):
        one = build_dataset("list", split, listed, **STATISTICS)
        other = build_dataset("folder", split, picture_folder, **STATISTICS)
        assert one.class_names == ["0", "1", "2"] and list(one.ids) == list(other.ids) and (one.labels == other.labels).all()
        assert np.array_equal(one.image(3), other.image(3))
    (listed / "classes.txt").write_text("cat\ndog\nelk\nyak\n")
    assert build_dataset("list", "test", listed, **STATISTICS).class_names == ["cat", "dog", "elk", "yak"]


def test_lists_that_do_not_fit_their_classes(listed):
    def fails(words):
        with pytest.raises(ValueError, match=words):
            build_dataset("list", "train", listed, **STATISTICS)
    (listed / "train.csv").write_text("path,label\n")
    fails("reads train.txt or train.csv in .*, and it has both")
    (listed / "train.csv").unlink()
    (listed / "classes.txt").write_text("cat\ncat\ndog\n")
    fails("classes.txt names cat twice")
    (listed / "classes.txt").write_text("cat\ndog\n")
    fails(r"train.txt:37: label 2 of train/elk/00.png, but the labels of 2 classes end at 1 \(5 lines are wrong")
    (listed / "classes.txt").unlink()
    write_list(listed / "train.txt", ["train/cat/00.png", "train/elk/00.png"], [0, 999999999])
    fails("train.txt:2: label 999999999, but class 1 of 0 to 999999999 has no training image")
    write_list(listed / "train.txt", ["train/cat/00.png", "train/elk/00.png"], [0, 2])
    fails("train.txt:2: label 2, but class 1 of 0 to 2 has no training image: number the classes without gaps")
    (listed / "train.txt").unlink()
    fails("and it has neither")


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_what_a_list_names_is_looked_for_before_training(listed, suffix):
    base = ["train/cat/00.png", "train/dog/00.png", "train/elk/00.png"]
    odd = {"gone.png": "no such file", "nowhere.png": "a link that leads nowhere",
           "circle.png": "a link that leads in a circle", "train/cat": "a folder, not a file", "pipe.png": "a pipe, not a file"}
    (listed / "nowhere.png").symlink_to("gone")
    (listed / "circle.png").symlink_to("circle.png")
    os.mkfifo(listed / "pipe.png")
    (listed / "train.txt").unlink()

    def images(*more):
        lines = [f"{path} {label}" for label, path in enumerate(base)] + ["", *(f"{path} 1" for path in more)]
        text = "\n".join(lines) if suffix == ".txt" else "path,label\n" + "\n".join(",".join(line.split()) for line in lines)
        (listed / f"train{suffix}").write_text(text)
        return build_dataset("list", "train", listed, **STATISTICS)

    check_listed(images())
    for name, words in odd.items():
        for found in (images(base[0], name), images(base[0], name).subset(np.array([4, 0]))):
            with pytest.raises(ValueError, match=f"train{suffix}:{6 + (suffix == '.csv')}: {name} is {words} below .*; 1 of "):
                check_listed(found)
            check_listed(found, limit=1)
    with pytest.raises(ValueError, match="train.*:5: gone.png is no such file|train.*:6: gone.png is no such file") as error:
        check_listed(images(*odd), limit=4)
    assert "5 of 8 files cannot be read" in str(error.value)
    with pytest.raises(ValueError, match=r"cow/a.png is no such file below .* \(its folder is not there\)"):
        check_listed(images("cow/a.png"))
    check_listed(build_dataset("folder", "train", listed, **STATISTICS))  # it has just been listed


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_missing_file_of_a_list_stops_both_stages_before_they_begin(listed, stage, request, tmp_path):
    with open(listed / ("train.txt" if stage == "pretrain" else "test.txt"), "a") as file:
        file.write("gone.png 0\n")
    flags = ["--dataset", "list", "--data_path", listed, *["--model", "mae_vit_tiny_patch16"] * (stage == "pretrain")]
    with pytest.raises(ValueError, match=r"t\w+.txt:\d+: gone.png is no such file"):
        request.getfixturevalue(stage)(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_images_without_labels_are_found_at_any_depth(picture_folder, tmp_path, pretrain):
    images = unlabeled_images(picture_folder, "train", Record(**STATISTICS))
    assert len(images) == 41 + 21 + 21 and list(images.ids) == sorted(images.ids) and images.class_names == ["(no label)"]
    pretrain(tmp_path / "run", "--dataset", "unlabeled", "--epochs", 1, "--warmup_epochs", 0, "--model", "mae_vit_tiny_patch16")
    with pytest.raises(ValueError, match="has no labels, so it is for stage 1 only"):
        main_finetune.main(main_finetune.get_args_parser().parse_args(
            ["--dataset", "unlabeled", "--data_path", str(picture_folder), "--mean", ".5", "--std", ".5"]))


@pytest.mark.parametrize(("target", "how"), [("nowhere.png", "nowhere, to nowhere.png"), ("a.png", "in a circle, to a.png")])
def test_links_that_lead_to_no_image_are_named(tmp_path, target, how):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.png").symlink_to(target)  # a.png -> a.png goes in a circle
    for name in ("folder", "unlabeled"):
        with pytest.raises(ValueError, match=f"train/cat/a.png is a link that leads {how}: repair or remove it"):
            build_dataset(name, "train", tmp_path, **STATISTICS)


def test_a_prepared_folder_says_what_is_wrong_with_it(picture_folder, tmp_path):
    paths = [f"cat/{i:02}.png" for i in range(24)] + [f"dog/{i:02}.png" for i in range(12)]
    record = Record(**STATISTICS)

    def write(**changes):
        split = Split(paths, np.repeat([0, 1], [24, 12]), "made up")
        write_prepared(**{"out": tmp_path / "out", "name": "inat18", "root": picture_folder / "train", "class_names":
                          ["cat", "dog"], "class_order": "by hand", "splits": {"train": split}, **changes})

    def fails(words, name="inat18", folder=tmp_path / "out", split="train"):
        with pytest.raises(ValueError, match=words):
            prepared_images(name, folder, split, record)

    fails("needs --data_path, a prepared folder: python -m datasets.prepare inat18", folder=None)
    fails("is no prepared folder")
    write()
    images = prepared_images("inat18", tmp_path / "out", "train", record)
    assert images.class_counts.tolist() == [24, 12] and images.details["class_order"] == "by hand"
    assert "made up" in images.source
    assert np.array(images.image(30)).reshape(-1, 3).mean(0).argmax() == 1
    write(class_names=["cat", os.fsdecode(b"caf\xe9")])  # the same set may be prepared again
    assert prepared_images("inat18", tmp_path / "out", "train", record).class_names == ["cat", "caf\\xe9"]
    with pytest.raises(ValueError, match="holds the data set inat18: name an empty or a new folder"):
        write(name="places_lt")
    with pytest.raises(ValueError, match="holds other files"):
        write(out=picture_folder)
    fails("holds the data set inat18, not places_lt", name="places_lt")
    fails("has no split val; it has train", split="val")
    (tmp_path / "out" / "images").symlink_to(picture_folder / "train")
    text = (tmp_path / "out" / "dataset.json").read_text()
    (tmp_path / "out" / "dataset.json").write_text(text.replace(str((picture_folder / "train").resolve()), "images"))
    assert prepared_images("inat18", tmp_path / "out", "train", record).image(0).mode == "RGB"  # relative to dataset.json
    write(root=picture_folder)
    fails("no image at .*/cat/00.png, the first of .*train.txt: if the images have moved, set \"root\"")
    write()
    (tmp_path / "out" / "train.txt").write_text("cat/00.png 0\n")
    fails("is not the list that was prepared")
    (tmp_path / "out" / "dataset.json").write_text("{")
    fails("is damaged")
    (tmp_path / "out" / "dataset.json").write_text("{}")
    fails("is no description of a prepared data set")


@pytest.mark.parametrize(("change", "words"), [
    *((lambda r, key=key: r.pop(key), f"has no key {key}: prepare") for key in ("name", "root", "class_names", "options")),
    (lambda r: r["splits"]["train"].pop("sha256"), "has no key splits.train.sha256: prepare the data set again"),
    (lambda r: r["splits"].update(train=3), "splits.train is 3, expected an object: prepare"),
    (lambda r: r["splits"]["train"].update(file=None), "splits.train.file is None, expected a text"),
    (lambda r: r["splits"]["train"].update(file="../train.txt"), "splits.train.file is ../train.txt, expected train.txt: prep"),
    (lambda r: r.update(root=["a"]), r"root is \['a'\], expected a text"),
    (lambda r: r.update(class_names="cat"), "class_names is 'cat', expected a list"),
    (lambda r: r["class_names"].append(2), r"class_names.2. is 2, expected a text"),
    (lambda r: r["splits"]["train"]["class_counts"].append(-1), r"class_counts.2. is -1, expected a whole number, not")])
def test_a_description_with_a_wrong_key_names_file_and_key(picture_folder, tmp_path, change, words):
    write_prepared(tmp_path, "inat18", picture_folder / "train", ["cat", "dog"], "by hand",
                   {"train": Split(["cat/00.png", "dog/00.png"], np.arange(2), "made up")})
    path = tmp_path / "dataset.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    for command in (lambda: build_dataset("inat18", "train", tmp_path), lambda: take_inventory("inat18", tmp_path)):
        with pytest.raises(ValueError, match=words) as error:
            command()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
