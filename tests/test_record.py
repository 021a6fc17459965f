"""What a run's record says of the images that it scored: the list file by name, and a hash of what it lists."""
import hashlib
import json

import pytest

import main_finetune
from tests.conftest import TINY
from tests.made_up_trees import build, prepare
from util import figures


@pytest.mark.parametrize(("name", "kind", "list_name"), [("imagenet_lt", "imagenet", "ImageNet_LT"), ("places_lt", "places",
                                                                                                "Places_LT")])
def test_the_record_names_the_list_that_was_scored(tmp_path, monkeypatch, name, kind, list_name):
    monkeypatch.setattr(figures, "_save", lambda figure, path: path)  # takes seconds, and is tested elsewhere
    made = build(kind, tmp_path, evaluation={"val": 2, "test": 3})
    out = tmp_path / "prepared"
    prepare(name, made, out)
    flags = ["--dataset", name, "--data_path", out, *TINY, "--model", "vit_tiny_patch16", "--epochs", 1, "--warmup_epochs", 0,
             "--num_workers", 0]
    parse = main_finetune.get_args_parser().parse_args
    main_finetune.main(parse([*map(str, flags), "--split", "val", "--output_dir", str(tmp_path / "val")]))
    main_finetune.main(parse(["--eval", "--resume", str(tmp_path / "val" / "last.pth"), "--split", "test", "--num_workers", "0",
                              "--output_dir", str(tmp_path / "test")]))
    for split in ("val", "test"):
        record = json.loads((tmp_path / split / "metrics.json").read_text())
        assert record["split"] == split and record["num_samples"] == len(made.labels[split])
        assert record["data_source"].startswith(f"{out / split}.txt ({made.lists / list_name}_{split}.txt, ")
    args = json.loads((tmp_path / "test" / "args.json").read_text())
    assert args["data_source"] == record["data_source"]
    assert args["list_sha256"] == hashlib.sha256((out / "test.txt").read_bytes()).hexdigest()
