"""Tables and figures filled with finished runs, which are made up here, and computed ones."""
# ruff: noqa: E402
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

from datasets.longtail import longtail_counts
from submit import reproduce, studies, studies_small
from submit.experiment import COLUMNS, Cell, Job, Table, finetune, metrics_row
from submit.filled import Results, averaged, cell_text, difference_text, main_block, pair_name, table8
from tests.report_cases import made_encoder, made_run, stand_in
from util.compare import compare_runs
from util.predictions import read_predictions

A, B = finetune("embedded/finetune", "--loss", "bal_bce"), finetune("embedded/finetune", "--loss", "bce")


def made(out, run, seed, **how):
    """A made-up finished run in the folder of its job; returns metrics.json."""
    path = made_run(out / Job(run, seed).folder, seed=seed, **how) / "metrics.json"
    result = json.loads(path.read_text())
    result["intervals"] = {"overall": [result["overall"] - 1, result["overall"] + 2]}
    path.write_text(json.dumps(result))
    return result


def test_a_cell_holds_the_papers_number_and_ours(tmp_path):
    one, two = (made(tmp_path, A, seed)["overall"] for seed in (0, 1))
    cell, bounds = Cell(60.9, A), f"[{one - 1:.1f}, {one + 2:.1f}]"
    assert cell_text(Cell(60.9), Results(tmp_path, [0], True)) == "60.9"
    assert cell_text(cell, Results(tmp_path, [7], True)) == "60.9 / not run"
    assert cell_text(cell, Results(tmp_path, [0], False)) == f"60.9 / {one:.1f} {bounds}"
    assert cell_text(cell, Results(tmp_path, [0], True)) == f"60.9 / {one:.1f} ({one - 60.9:+.1f}) {bounds}"
    mean, deviation = np.mean([one, two]), np.std([one, two], ddof=1)
    both = f"{mean:.1f} ± {deviation:.1f}"
    assert cell_text(cell, Results(tmp_path, [0, 1], True)) == f"60.9 / {both} ({mean - 60.9:+.1f}) {bounds}"
    assert cell_text(cell, Results(tmp_path, [0, 1, 2], False)) == f"60.9 / {both} (2 of 3 seeds) {bounds}"
    few = json.loads((tmp_path / Job(A, 0).folder / "metrics.json").read_text())["few"]
    assert cell_text(Cell(None, A, "few"), Results(tmp_path, [0], True)) == f"- / {few:.1f}"


def test_another_micro_batch_has_results_of_its_own(tmp_path):
    run = finetune("imagenet_lt/finetune")
    made_run(tmp_path / Job(run, 0, 16).folder)
    assert [len(Results(tmp_path, [0], True, batch_size).metrics(run)) for batch_size in (None, 16)] == [0, 1]


def test_a_group_that_a_set_has_not(tmp_path):
    made(tmp_path, A, 0, counts=[500, 400, 300, 200])
    assert cell_text(Cell(41.0, A, "few"), Results(tmp_path, [0], True)) == "41.0 / -"


def test_a_difference_is_that_of_compare_over_the_seeds_that_both_have(tmp_path):
    for seed in (0, 1):
        made(tmp_path, A, seed, skill=2.0)
    made(tmp_path, B, 0, skill=0.5)
    results = Results(tmp_path, [0, 1], False)
    rows = {row.column: row for row in compare_runs([read_predictions(tmp_path / Job(B, 0).folder)],
                                                    [read_predictions(tmp_path / Job(A, 0).folder)])}
    for metric in ("overall", "few", "ece"):
        row = rows[metric]
        words = f"{row.difference:+.1f} [{row.interval[0]:+.1f}, {row.interval[1]:+.1f}]"
        assert difference_text(Cell(60.9, A, metric), Cell(52.4, B, metric), results, {}) == f"+8.5 / {words}"
    assert rows["overall"].difference > 0
    assert difference_text(Cell(None, A), Cell(52.4, B), Results(tmp_path, [1], False), {}) == "- / not run"


def test_the_papers_total_is_averaged_again():
    """Section 6 of what is known of the paper: its Table 6 contradicts itself in five rows."""
    table, again = studies.table6(), {}
    for row in table.rows:
        value = averaged(row, table.group_sizes)
        if value is not None:
            again[row.name] = f"{value:.1f}"
    assert {name: again[f"ViT-{name}"] for name in ("Base, Bal-CE", "Base, BCE", "Base, Bal-BCE", "Large, Bal-CE",
                                                    "Large, Bal-BCE")} == {
        "Base, Bal-CE": "60.3", "Base, BCE": "52.8", "Base, Bal-BCE": "60.6", "Large, Bal-CE": "62.5", "Large, Bal-BCE": "62.3"}
    block = main_block(table, Results(Path("nowhere"), [0], True))
    line = next(row for row in block.rows if row[0] == "ViT-Base, Bal-BCE")
    assert line[4] == "60.9 / not run" and line[-1] == "60.6"


def test_pairs_are_named_shortly():
    assert pair_name("ViT-Base, Bal-BCE", "ViT-Base, BCE") == "ViT-Base: Bal-BCE - BCE"
    assert pair_name("LT, CE", "BAL, CE") == "LT, CE - BAL, CE" and pair_name("LiVT", "MAE") == "LiVT - MAE"


def test_rows_of_others_are_marked():
    table = Table("", "", (metrics_row("BBN, CVPR 20", None, "61.8 - 73.6 69.6", "reported"),))
    block = main_block(table, Results(Path("nowhere"), [0], True))
    assert block.rows == [["BBN, CVPR 20 (reported)", "61.8", "-", "73.6", "69.6"]]


def test_table_8_from_the_class_counts():
    rows = {row[0]: row[1:] for row in table8().blocks[0].rows}
    assert rows["iNat18"] == ["437,513 / 437,513", "8,142 / 8,142", "1,000 / 1,000", "2 / 2", "500 / 500"]
    assert rows["Places-LT"][-1] == "996 / 996" and rows["ImageNet-LT"][0] == "115,846 / 115,846"
    assert rows["CIFAR-100-LT 10"][0] == f"19,573 / {longtail_counts(500, 10, 100).sum():,}"
    for cells in rows.values():
        assert all(len(set(cell.split(" / "))) == 1 for cell in cells), "the paper's number and ours are one"


def test_the_report_is_written_with_what_is_there(tmp_path, monkeypatch, capsys):
    figures = stand_in(monkeypatch)
    for run in studies_small.figure3().runs[:3]:
        made(tmp_path, run, 0, tau=float(run.flags[-1]))
    names = ("figure3", "figure6", "figure1", "figure7", "figure5", "table6", "table8")
    words = [*names, "--scale", "small", "--report", "--output_dir", str(tmp_path)]
    reproduce.main(reproduce.get_args_parser().parse_args(words))
    text = (tmp_path / "reproduce.md").read_text()
    assert text.strip() in capsys.readouterr().out and "These are small versions" in text
    assert "ECE and MCE are of the confidence that the loss trains, softmax for CE" in text
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    assert [title.split(":")[0] for title in sections] == ["Table 6", "Table 8", "Figure 1", "Figure 3", "Figure 5", "Figure 6",
                                                           "Figure 7"]
    figure3 = next(part for title, part in sections.items() if title.startswith("Figure 3"))
    assert figure3.count("not run") == 2 * len(COLUMNS) and "| Bal-BCE, tau 0.5 |" in figure3
    assert {"figure3_accuracy", "figure3_ece", "figure5"} <= set(figures) and "figure6_overall" not in figures
    assert [len(line.get_xdata()) for line in figures["figure3_accuracy"].axes[0].lines[:1]] == [3]
    page = (tmp_path / "reproduce.html").read_text()
    assert "No run is finished." in page and "No encoder is finished." in page and "Figure 3: Accuracy over tau, small" in page


def test_curves_of_figure_2(tmp_path, monkeypatch):
    figures = stand_in(monkeypatch)
    for run in studies_small.figure2().runs[:2]:
        made(tmp_path, run, 0)
    made_encoder(tmp_path / Job(studies_small.figure2().runs[0].after, 0).folder)
    reproduce.main(reproduce.get_args_parser().parse_args(["figure2", "--scale", "small", "--report", "--output_dir",
                                                           str(tmp_path)]))
    assert [text.get_text() for text in figures["training_finetune_loss"].legends[0].get_texts()] == ["CE", "Bal-CE"]


@pytest.mark.parametrize("name", ["table9", "table10"])
def test_settings_are_read_back(name, tmp_path):
    reproduce.main(reproduce.get_args_parser().parse_args([name, "--report", "--output_dir", str(tmp_path)]))
    assert "| ImageNet-LT |" in (tmp_path / "reproduce.md").read_text()
