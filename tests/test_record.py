"""What a run's record says of the images that it scored: the list file by name, and a hash of what it lists."""
import hashlib
import json

import pytest

import main_finetune
from tests.conftest import TINY
from tests.made_up_trees import build, prepare


@pytest.mark.parametrize(("name", "kind", "list_name"), [("imagenet_lt", "imagenet", "ImageNet_LT"), ("places_lt", "places",
                                                                                                "Places_LT")])
def test_the_record_names_the_list_that_was_scored(tmp_path, name, kind, list_name):
    made = build(kind, tmp_path)
    out = tmp_path / "prepared"
    prepare(name, made, out)
    flags = ["--dataset", name, "--data_path", out, *TINY, "--model", "vit_tiny_patch16", "--epochs", 1, "--warmup_epochs", 0]
    parse = main_finetune.get_args_parser().parse_args
    for split in ("val", "test"):
        folder = tmp_path / split
        main_finetune.main(parse([*map(str, flags), "--split", split, "--output_dir", str(folder)]))
        record = json.loads((folder / "metrics.json").read_text())
        assert record["split"] == split and record["num_samples"] == len(made.labels[split])
        assert record["data_source"].startswith(f"{out / split}.txt ({made.lists / list_name}_{split}.txt, ")
        # Evaluated on the other list, the record names that one.
        other = {"val": "test", "test": "val"}[split]
        again = tmp_path / f"{split}_on_{other}"
        main_finetune.main(parse(["--eval", "--resume", str(folder / "last.pth"), "--output_dir", str(again), "--split", other]))
        for file in ("metrics.json", "args.json"):
            assert json.loads((again / file).read_text())["data_source"].startswith(f"{out / other}.txt (")
        args = json.loads((again / "args.json").read_text())
        assert args["list_sha256"] == hashlib.sha256((out / f"{other}.txt").read_bytes()).hexdigest()
