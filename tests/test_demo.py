"""The demo cut short, and the floor it prints."""
import json

import numpy as np
import pytest
import torch

from submit import demo, pretraining_helps

pytestmark = pytest.mark.usefixtures("few_embedded_images")


def test_demo_trains_both_losses_from_one_encoder_and_prints_one_table(tmp_path, capsys):
    args = demo.get_args_parser().parse_args(["--pretrain_epochs", "1", "--epochs", "1", "--seeds", "0",
                                              "--output_dir", str(tmp_path)])
    rows = demo.main(args)
    out = capsys.readouterr().out
    assert list(rows) == [demo.FLOOR, demo.BCE, demo.BAL_BCE]
    table = out[out.index("Fashion-MNIST-LT, 4,479"):]
    for name, row in rows.items():
        assert f"{row['overall']:.1f}" in next(line for line in table.splitlines() if line.startswith(name))
    pictures = [line.strip() for line in table.splitlines() if line.endswith(".png")]
    assert len(pictures) == 11 and str(tmp_path / "figures" / "classes.png") in pictures
    for loss in ("bce", "bal_bce"):
        settings = json.loads((tmp_path / "seed0" / loss / "args.json").read_text())["args"]
        assert settings["loss"] == loss and settings["finetune"] == str(tmp_path / "seed0" / "mgp" / "last.pth")
    # The floor is a known number: of a convex problem on fixed images.
    assert rows[demo.FLOOR]["overall"] == pytest.approx(75.8, abs=0.5)


def test_table_over_seeds_shows_means_and_deviations():
    cells = dict.fromkeys(demo.COLUMNS, 10.0)
    seeds = [{"a": cells}, {"a": {**cells, "few": 20.0}}]
    text = demo.table({"floor": [cells]}, seeds)
    mean, deviation = text.split("standard deviation over 2 seeds")
    assert "15.0" in mean and f"{np.std([10, 20], ddof=1):.1f}" in deviation and "floor" not in deviation


def test_the_study_of_stage_1_compares_both_starts(tmp_path, capsys):
    args = pretraining_helps.get_args_parser().parse_args(["--seeds", "0", "--epochs", "1", "--pretrain_epochs", "1",
                                                           "--output_dir", str(tmp_path)])
    result = pretraining_helps.main(args)
    assert {name: list(v) for name, v in result.items()} == {name: [1] for name in pretraining_helps.START}
    assert (tmp_path / "pretraining_helps.png").read_bytes()[:4] == b"\x89PNG"
    assert "from random weights" in capsys.readouterr().out


def test_with_threads_for_both_the_losses_train_side_by_side(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    beside = demo.run_seed(0, tmp_path / "beside", 1, 1)
    out = capfd.readouterr().out
    assert "\nbce     | epoch   0" in out and "\nbal_bce | epoch   0" in out
    assert out.count("| device cpu, 1 threads") == 2
    for row, loss in demo.LOSSES.items():
        record = json.loads((tmp_path / "beside" / loss / "metrics.json").read_text())
        assert beside[row] == {name: record[name] for name in beside[row]} and record["num_samples"] == 5000
