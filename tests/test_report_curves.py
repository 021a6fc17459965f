"""The curves of a report: every line can be seen, and an axis be read."""
import numpy as np
import pytest

from tests.report_cases import made_run, stand_in
from util.figures_report import draw_curves
from util.report_curves import curves_section
from util.report_groups import group_runs
from util.report_page import Page
from util.report_runs import read_runs

EPOCHS = list(range(20))


def tick_values(which):
    low, high = sorted(which.get_view_interval())
    return [tick for tick in which.get_majorticklocs() if low <= tick <= high]


@pytest.mark.parametrize("high", [1.1, 2.2, 30.0])
def test_a_logarithmic_axis_has_several_ticks(high):
    figure = draw_curves({"a": [(EPOCHS, np.geomspace(high, 0.11, 20))]}, "loss", True)
    ticks = tick_values(figure.axes[0].yaxis)
    assert 3 <= len(ticks) <= 9 and figure.axes[0].yaxis.get_major_formatter()(ticks[0]) == f"{ticks[0]:g}"


@pytest.mark.parametrize("log", [False, True])
def test_lines_that_lie_on_one_another_can_all_be_seen(log):
    curve, other = np.geomspace(2, 0.1, 20), np.geomspace(2, 0.5, 20)
    curves = {"a": curve, "equal": curve, "b": other, "near": curve * 1.003, "gap": [*other[:10], *[None] * 10]}
    figure = draw_curves({label: [(EPOCHS, values)] for label, values in curves.items()}, "loss", log)
    assert [line._unscaled_dash_pattern[1] for line in figure.axes[0].lines] == [None, (3, 3), None, (3, 6), (3, 3)]


def test_learning_rates_that_are_equal_are_drawn_once(tmp_path, monkeypatch):
    drawn = stand_in(monkeypatch)
    page = Page(tmp_path / "report.html")
    groups = group_runs(read_runs([made_run(tmp_path / "a"), made_run(tmp_path / "b", tau=2.0)]))
    text = curves_section(page, groups)
    assert "over the epochs. The same in all of them." in text and len(drawn["training_finetune_lr"].axes[0].lines) == 1
    assert len(drawn["training_finetune_loss"].axes[0].lines) == 2
    log = groups[1].runs[0].log
    log[0]["lr"] = 5e-4
    text = curves_section(page, groups)
    assert "The same in all" not in text and len(drawn["training_finetune_lr"].axes[0].lines) == 2
