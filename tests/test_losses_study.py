"""The study's rows, from the embedded set with and without mixing, and a table that holds what the runs hold."""
import json

import pytest

import main_finetune
from submit import losses_study


@pytest.mark.usefixtures("few_embedded_images")
@pytest.mark.parametrize("mixed", [[], ["--mixed"]])
def test_rows_and_corrections(tmp_path, capsys, mixed):
    argv = ["--seeds", "0", "--epochs", "1", "--pretrain_epochs", "1", "--rows", "bal_bce", *mixed,
            "--output_dir", str(tmp_path)]
    table = losses_study.main(losses_study.get_args_parser().parse_args(argv))
    assert list(table) == ["bal_bce", "bal_bce + bayes"]
    run = json.loads((tmp_path / "seed0" / f"bal_bce{'_mixed' * bool(mixed)}" / "metrics.json").read_text())
    assert table["bal_bce"]["overall"] == run["overall"]
    assert f"{run['overall']:.1f}" in capsys.readouterr().out
    settings = json.loads((tmp_path / "seed0" / f"bal_bce{'_mixed' * bool(mixed)}" / "args.json").read_text())["args"]
    assert (settings["mixup"], settings["cutmix"]) == ((0.8, 1.0) if mixed else (0.0, 0.0))


def test_the_label_smoothing_that_a_loss_gets():
    parser = main_finetune.get_args_parser()
    for flags, expected in (([], 0.1), (["--loss", "mislas"], 0.0), (["--loss", "mislas", "--smoothing", "0"], 0.0),
                            (["--smoothing", "0.3"], 0.3)):
        assert main_finetune.with_loss_defaults(parser.parse_args(flags), 3).smoothing == expected


def test_rows_cover_every_loss_and_both_starts():
    from util.losses import LOSSES
    assert set(LOSSES) <= set(losses_study.ROWS) and "bal_bce, head bias 0" in losses_study.ROWS
    with pytest.raises(ValueError, match="unknown row 'balbce'"):
        losses_study.main(losses_study.get_args_parser().parse_args(["--rows", "balbce"]))
