"""submit/bias_figures.py: the numbers behind Figures 4 and 5 in closed form, and what stands on the pictures."""
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from submit import bias_figures
from util.args import run_command


def closed_form(pi, classes):
    pi = np.asarray(pi, dtype=np.float64)
    return {"bal_ce": np.log(pi) + np.log(classes), "bal_bce": np.log(pi) - np.log(1 - pi) + np.log(classes - 1)}


def test_figure_4_is_the_closed_form():
    priors = [1e-5, 1e-3, 0.02, 0.5, 0.9]
    for name, values in bias_figures.biases_over_prior(priors).items():
        assert np.abs(values - closed_form(priors, 1000)[name]).max() < 2e-6
    assert bias_figures.biases_over_prior([0.5])["bal_bce"][0] == pytest.approx(np.log(999), abs=1e-6)


def test_figure_5_is_the_closed_form_and_the_gap_grows_with_the_factor():
    gaps = []
    for factor, values in bias_figures.biases_over_factor((10, 100, 200)).items():
        counts = np.array([int(5000 * (1 / factor) ** (i / 9)) for i in range(10)])
        wanted = closed_form(counts / counts.sum(), 10)
        for name in values:
            assert np.abs(values[name] - wanted[name]).max() < 1e-6
        gap = values["bal_bce"] - values["bal_ce"]
        assert np.allclose(gap, np.log(0.9) - np.log1p(-counts / counts.sum()), atol=1e-6)
        gaps.append(gap[0])
    assert gaps == sorted(gaps) and gaps[1] == pytest.approx(np.log(0.9) - np.log(1 - 5000 / 12406), abs=1e-6)


def draw(figure):
    """Draws, and fails where something reaches over the border of the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01, box


def test_figure_4_draws_these_values():
    figure = bias_figures.draw_over_prior()
    draw(figure)
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "linear"]
    for axis in figure.axes:
        lines = {line.get_label(): line for line in axis.lines if line.get_label() in bias_figures.LOSSES.values()}
        assert len(lines) == 2
        for name, label in bias_figures.LOSSES.items():
            x, y = lines[label].get_data()
            assert x.min() < 1.1e-5 and x.max() > 0.999 and np.abs(y - closed_form(x, 1000)[name]).max() < 5e-6


def test_figure_5_draws_both_biases_and_their_gap_on_axes_with_one_zero():
    figure = bias_figures.draw_over_factor((10, 200))
    draw(figure)
    left, right = figure.axes[:2], figure.axes[2:]
    values = bias_figures.biases_over_factor((10, 200))
    for axis, twin, factor in zip(left, right, (10, 200), strict=True):
        assert f"{factor}" in axis.get_title()
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        for name, label in bias_figures.LOSSES.items():
            assert np.array_equal(lines[label], values[factor][name])
        heights = [patch.get_height() for patch in twin.patches]
        assert np.allclose(heights, values[factor]["bal_bce"] - values[factor]["bal_ce"], atol=1e-7)
        zero = [a.transData.transform((0, 0))[1] for a in (axis, twin)]
        assert zero[0] == pytest.approx(zero[1], abs=0.5)
        tops = [twin.transData.transform((0, h))[1] for h in heights if h > 0.05]
        below = [axis.transData.transform((0, values[factor]["bal_ce"][k]))[1] for k in range(len(tops))]
        assert all(top < line for top, line in zip(tops, below, strict=True))  # no bar reaches the lines
    assert len(figure.legends[0].get_texts()) == 3


def command(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["bias_figures.py", *map(str, argv)])
    run_command(bias_figures.get_args_parser(), bias_figures.main)


def test_command_writes_both(monkeypatch, capsys, tmp_path):
    command(monkeypatch, "--output_dir", tmp_path / "a" / "b")
    written = sorted((tmp_path / "a" / "b").iterdir())
    assert [path.name for path in written] == ["figure4_bias_over_prior.png", "figure5_bias_over_factor.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" and str(path) in capsys.readouterr().out + str(path) for path in written)


def test_a_folder_that_cannot_be_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    for argv, message in [(("--output_dir", tmp_path / "file"), "cannot write into"), ((), "required: --output_dir")]:
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *argv)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and message in printed and printed.count("\n") == 1
