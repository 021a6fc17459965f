"""Odd JSON beside weights ends in one line that names the file; null is as no key."""
import json
import re

import pytest

from tests.checkpoints import write_classifier
from tests.foreign import as_safetensors, small
from util import export
from util.weights import open_weights


@pytest.fixture
def folder(tmp_path):
    """A folder with weights of timm's form, without a config.json."""
    (tmp_path / "w").mkdir()
    as_safetensors(small().state_dict(), tmp_path / "w" / "model.safetensors")
    return tmp_path / "w"


@pytest.mark.parametrize(("config", "heads", "size"), [
    ({}, None, None),
    ({"model_args": None, "pretrained_cfg": None, "image_size": None, "num_attention_heads": None}, None, None),
    ({"model_args": {"num_heads": None}, "pretrained_cfg": {"input_size": None}}, None, None),
    ({"model_args": {"num_heads": 2}, "pretrained_cfg": {"input_size": [3, 16, 24]}}, 2, (16, 24)),
    ({"num_attention_heads": 4, "image_size": [16]}, 4, (16, 16)),
    ({"image_size": 16}, None, (16, 16))])
def test_heads_and_size_where_they_are_said(folder, config, heads, size):
    (folder / "config.json").write_text(json.dumps(config))
    weights = open_weights(folder)
    assert weights.heads == heads and weights.input_size == size


@pytest.mark.parametrize(("config", "words"), [
    ({"model_args": [2]}, "model_args [2], expected an object"),
    ({"pretrained_cfg": "x"}, 'pretrained_cfg "x", expected an object'),
    ({"model_args": {"num_heads": True}}, "num_heads true, expected a whole number above 0"),
    ({"num_attention_heads": "3"}, 'num_attention_heads "3", expected a whole number above 0'),
    ({"image_size": "abc"}, 'image_size "abc", expected pixels, one number or height and width'),
    ({"image_size": [16, 0]}, "image_size [16, 0], expected pixels"),
    ({"pretrained_cfg": {"input_size": [16, 16]}}, "input_size [16, 16], expected channels, height and width"),
    ({"livt": {"stage": 2}}, "has no args, class_counts, class_names, progress under 'livt'"),
    ({"livt": "x"}, "has no stage, args, progress, class_names, class_counts under 'livt'")])
def test_what_is_not_of_its_kind_is_named_with_the_file(folder, config, words):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'config.json'}") + ".*" + re.escape(words)) as found:
        open_weights(folder)
    assert "\n" not in str(found.value) and type(found.value) is ValueError


@pytest.mark.parametrize(("name", "value", "words"), [
    ("args", None, "livt.args null, expected an object"), ("progress", None, "livt.progress null, expected an object"),
    ("class_names", "cat", 'livt.class_names "cat", expected a list'),
    ("args", {}, "livt.args.input_size null, expected pixels")])
def test_an_export_that_was_changed(tmp_path, name, value, words):
    write_classifier(tmp_path / "last.pth")
    export.main(export.get_args_parser().parse_args([str(tmp_path / "last.pth"), "--format", "safetensors", "--out",
                                                     str(tmp_path / "out")]))
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["livt"][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(f"{path} says {words}")):
        open_weights(tmp_path / "out")


@pytest.mark.parametrize(("name", "said", "expected"), [
    ("config.json", {"pretrained_cfg": {"mean": [.5, .5, .5], "std": [.5, .25, .5]}}, ((.5,) * 3, (.5, .25, .5))),
    ("preprocessor_config.json", {"image_mean": [.1, .2, .3], "image_std": [1, 1, 1]}, ((.1, .2, .3), (1, 1, 1))),
    ("config.json", {"pretrained_cfg": {"mean": None, "std": [.5]}}, None), ("config.json", {}, None)])
def test_statistics_of_the_channels_where_they_are_said(folder, name, said, expected):
    (folder / name).write_text(json.dumps(said))
    assert open_weights(folder).statistics == expected


@pytest.mark.parametrize(("name", "said", "words"), [
    ("config.json", {"pretrained_cfg": {"mean": ".5", "std": [.5]}}, 'mean ".5", expected a list of numbers, one a channel'),
    ("preprocessor_config.json", {"image_mean": [.1, "x"], "image_std": [1, 1]}, 'image_mean [0.1, "x"], expected a list')])
def test_statistics_that_are_none_are_named(folder, name, said, words):
    (folder / name).write_text(json.dumps(said))
    with pytest.raises(ValueError, match=re.escape(f"{folder / name} says {words}")):
        open_weights(folder)
