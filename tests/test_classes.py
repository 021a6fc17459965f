"""datasets/preparing/, classes.py and sources.py: labels that are not the classes, and annotations that are none."""
import json
import re

import pytest

from tests.made_up_trees import KINDS, build, edit, prepare, refused, wnid


def first_line_of(path, label):
    """(line number, text) of the first line with a label."""
    return next((number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith(f" {label}"))


def test_labels_that_are_not_the_classes_are_named_with_file_and_line(tmp_path):
    made = build("imagenet", tmp_path)
    path, whole = made.lists / "ImageNet_LT_train.txt", (made.lists / "ImageNet_LT_train.txt").read_text()
    number, line = first_line_of(path, 2)
    edit(path, line, line[:-1] + "1")
    refused(r"ImageNet_LT_train.txt:\d+: (label 1|the class folder \w+) .* at .*ImageNet_LT_train.txt:\d+: a", "imagenet_lt",
            made, tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " 7\n"))
    refused(r"ImageNet_LT_train.txt: no training image has label 2, the labels go to 7 .*train.txt:\d+", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " x\n").replace(" 1\n", " 2\n").replace(" x\n", " 1\n"))
    refused(rf"train.txt:\d+: label 2 is {wnid(1)}, which comes after {wnid(2)}: .* sorted wnids", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole + f"train/{wnid(0)}_9.JPEG 0\n")
    refused(rf"train.txt:15: train/{wnid(0)}_9.JPEG is in no class folder", "imagenet_lt", made, tmp_path / "out")
    path.write_text(re.sub(r"n\d{8}/", "", whole))
    refused(r"train.txt:1: .* is in no class folder, .* does not say what its labels are", "imagenet_lt", made,
            tmp_path / "out")


@pytest.mark.parametrize("name", ["imagenet_lt", "places_lt"])
def test_a_label_of_two_folders_and_a_folder_of_two_labels(tmp_path, name):
    made = build(KINDS[name], tmp_path, images=[1, 2, 2])
    path = next(made.lists.glob("*_train.txt"))
    one, two = made.classes[1], made.classes[2]
    lines = [f"train/{folder}/{file} {label}\n" for folder, file, label in (
        (made.classes[0], "a.jpg", 0), (one, "a.jpg", 1), (two, "b.jpg", 2), (one, "c.jpg", 2))]
    path.write_text("".join(lines))
    refused(f"train.txt:4: label 2 is the class folder {one} here, and {two} at .*train.txt:3: a label must be one", name, made,
            tmp_path / "out")
    path.write_text("".join(lines[:3]) + f"train/{one}/c.jpg 3\n")
    refused(f"train.txt:4: the class folder {one} has label 3 here, and 1 at .*train.txt:2: a class must have one", name, made,
            tmp_path / "out")


def test_evaluation_lists_have_the_classes_of_training(tmp_path):
    made = build("imagenet", tmp_path)
    path, whole = made.lists / "ImageNet_LT_test.txt", (made.lists / "ImageNet_LT_test.txt").read_text()
    number, line = first_line_of(path, 2)
    edit(path, line, line[:-1] + "4")
    refused(rf"test.txt:{number}: label 4, but the labels of the 4 classes of .*train.txt end at 3", "imagenet_lt", made,
            tmp_path / "out")
    path.write_text(whole.replace(" 2\n", " x\n").replace(" 1\n", " 2\n").replace(" x\n", " 1\n"))
    refused(rf"test.txt:\d: label [12] is {wnid(1)}|{wnid(2)} here and .*: take all lists from one", "imagenet_lt", made,
            tmp_path / "out")


def test_inat_labels_are_category_ids_not_places_in_a_sorted_tree(tmp_path):
    made = build("inat", tmp_path, images=[2] * 12)
    path, order = made.lists / "iNaturalist18_train.txt", sorted(made.classes)
    path.write_text(re.sub(r"(\d+)(/\w+.jpg) \d+", lambda m: f"{m[1]}{m[2]} {order.index(m[1])}", path.read_text()))
    refused(r"train.txt:\d+: label 2 is 10, which is another category_id", "inat18", made, tmp_path / "out")


def test_inat_names_are_ids_where_the_categories_have_none_or_share_them(tmp_path):
    made = build("inat", tmp_path, lists="json")
    for change in (lambda entry: entry | {"name": ""}, lambda entry: entry | {"name": "Genus"},
                   lambda entry: entry | {"name": f"{entry['id']}\ud800"}):
        for file in made.lists.iterdir():
            content = json.loads(file.read_text())
            content["categories"] = [change(entry) for entry in content["categories"]]
            file.write_text(json.dumps(content))
        assert prepare("inat18", made, tmp_path / "out")["class_names"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c.pop("annotations"), "needs the lists images, annotations and categories"),
    (lambda c: c["images"][3].pop("id"), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(id="3"), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(file_name=None), r"images\[3\] needs file_name and id"),
    (lambda c: c["images"][3].update(file_name="train_val2018/../x.jpg"), r"images\[3\]: train_val2018/../x.jpg leads out"),
    (lambda c: c["images"][3].update(file_name="/x.jpg"), r"images\[3\]: /x.jpg is absolute"),
    (lambda c: c["images"][3].update(file_name="a/\ud800.jpg"), r"images\[3\]: 'a/.ud800.jpg' is no Unicode"),
    (lambda c: c["images"][3].update(file_name="a\0/x.jpg"), r"images\[3\]: a.x00/x.jpg has a zero byte in it"),
    (lambda c: c["images"][3].update(id=c["images"][1]["id"]), r"images\[[13]\] has the id \d+ of another image"),
    (lambda c: c["images"][3].update(id=2**70), "images have ids beyond 64 bits"),
    (lambda c: c["annotations"][2].update(image_id=1), r"annotations\[2\] has an image_id that no image has"),
    (lambda c: c["annotations"][2].update(category_id=4), r"annotations\[2\] has a category_id outside 0 to 3"),
    (lambda c: c["annotations"][2].update(category_id=1.0), r"annotations\[2\] needs image_id and category_id"),
    (lambda c: c["annotations"].append(dict(c["annotations"][2], category_id=(c["annotations"][2]["category_id"] + 1) % 4)),
     r"annotations\[2\] gives an image a second category"),
    (lambda c: c["annotations"].pop(), r"images\[0\] has no annotation"),
    (lambda c: c["categories"].pop(), "none of the 3 categories has the id 0"),
    (lambda c: c["categories"].append({"id": 4, "name": "none"}), "no training image has label 4"),
])
def test_what_is_wrong_with_annotations_is_named(tmp_path, change, words):
    made = build("inat", tmp_path, lists="json")
    path = made.lists / "train2018.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(f"train2018.json.*{words}", "inat18", made, tmp_path / "out")


def test_json_that_is_none_and_other_categories_are_named(tmp_path):
    made = build("inat", tmp_path, lists="json")
    path, whole = made.lists / "val2018.json", (made.lists / "val2018.json").read_text()
    for text in (whole[:-9], "", "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        refused("val2018.json is no whole JSON", "inat18", made, tmp_path / "out")
    path.write_text(json.dumps(json.loads(whole)["images"]))
    refused("val2018.json needs the lists images", "inat18", made, tmp_path / "out")
    path.write_text(whole.replace("species2", "species9"))
    refused("val2018.json has other categories than .*train2018.json", "inat18", made, tmp_path / "out")
    path.unlink()
    refused("train2018.json and val2018.json, or iNaturalist18_train.txt and iNaturalist18_val.txt, which are not together in "
            ".*lists, .*source:", "inat18", made, tmp_path / "out")
