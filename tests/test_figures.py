"""The pictures of a run: what is written on them, in which order, and that nothing lies outside of them."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from util import figures, metrics

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
COUNTS = np.array([10, 2000, 32, 58, 1110, 616, 341, 189, 105, 18])
ORDER = [1, 4, 5, 6, 7, 8, 3, 2, 9, 0]
RECORD = {"epoch": 0, "train_loss": 2.3, "lr": 1e-3, "grad_norm": 1.0}
LONG = "Plantae Magnoliopsida Asterales with $dollars$ and more"


def random_pictures(*shape):
    return np.random.default_rng(0).random(shape)


def a_calibration(seed=0):
    confidence = np.random.default_rng(seed).uniform(0.3, 1, 500)
    return metrics.calibration(confidence, np.random.default_rng(seed + 1).random(500) < confidence)


def log(epochs, **groups):
    values = {"overall": 50.0, "many": 70.0, "medium": 40.0, "few": 20.0} | groups
    return [RECORD | {"epoch": epoch, "eval": values} for epoch in range(epochs)]


def check_all_inside(figure):
    """Draws, and fails where something reaches over the border of the figure: it would be cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01, box


ALL = {
    "reconstructions": lambda path: figures.reconstructions(path, *[random_pictures(4, 28, 28)] * 3, "epoch 3"),
    "training_curves": lambda path: figures.training_curves(path, log(3)),
    "per_class_accuracy": lambda path: figures.per_class_accuracy(path, np.linspace(0, 100, 10), COUNTS, NAMES),
    "reliability_diagram": lambda path: figures.reliability_diagram(path, {"softmax": a_calibration()}),
    "confusion": lambda path: figures.confusion(path, np.eye(10) * 5, NAMES, COUNTS),
}


@pytest.mark.parametrize("name", ALL)
def test_writes_a_png(name, tmp_path):
    path = tmp_path / "figures" / f"{name}.png"
    assert ALL[name](path) == path
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(mpl.image.imread(path).shape[:2]) > 300


def test_no_pyplot_and_no_display():
    code = "import sys, util.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.draw_reconstructions(*[random_pictures(1, 28, 28)] * 3, "reconstructions, epoch 60, mask .75"),
        lambda: figures.draw_reconstructions(*[random_pictures(9, 24, 48, 3)] * 3, "wide"),
        lambda: figures.draw_training_curves(log(60)),
        lambda: figures.draw_per_class_accuracy(np.full(10, 50), COUNTS, NAMES),
        lambda: figures.draw_per_class_accuracy(np.full(30, 50), np.arange(30) * 5, [LONG] * 30),
        lambda: figures.draw_per_class_accuracy(np.full(100, 50), np.arange(1, 101) * 2, ["x"] * 100),
        lambda: figures.draw_reliability_diagram({"Bal-BCE, sigmoid score": a_calibration()}),
        lambda: figures.draw_reliability_diagram({f"a long name of a run {i}": a_calibration(i) for i in range(5)}),
        lambda: figures.draw_confusion(np.eye(10), NAMES, COUNTS),
        lambda: figures.draw_confusion(np.eye(30), [LONG] * 30, np.arange(1, 31)),
    ],
)
def test_nothing_is_cut_off(figure):
    check_all_inside(figure())


def test_reconstructions_layout():
    images = random_pictures(10, 8, 8, 1)
    figure = figures.draw_reconstructions(images, images * 0, images + 0.5, "mask ratio 0.75")
    axes = np.array(figure.axes).reshape(6, 8)  # two blocks of three rows, eight examples a row
    assert figure.get_suptitle() == "mask ratio 0.75"
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["image", "masked", "reconstruction"] * 2
    assert [axis.get_title() for axis in axes[0]] == list("12345678") and axes[3, 1].get_title() == "10"
    shown = axes[3, 1].images[0]
    assert np.array_equal(shown.get_array(), images[9, :, :, 0]) and shown.get_cmap().name == "gray"
    assert axes[2, 0].images[0].get_array().max() == 1  # an overshooting reconstruction is clipped
    assert not axes[3, 2].images
    colour = figures.draw_reconstructions(*[random_pictures(2, 8, 8, 3)] * 3, "t")
    assert colour.axes[0].images[0].get_array().shape == (8, 8, 3)
    five = figures.draw_reconstructions(*[random_pictures(2, 8, 8, 5)] * 3, "t")
    assert five.axes[0].images[0].get_array().shape == (8, 8)


@pytest.mark.parametrize(
    "pictures",
    [
        [random_pictures(2, 8, 8), random_pictures(2, 8, 8), random_pictures(3, 8, 8)],
        [random_pictures(8, 8)] * 3,
        [np.zeros((2, 8, 8), dtype=np.uint8)] * 3,
        [np.full((2, 8, 8), np.nan)] * 3,
    ],
)
def test_reconstructions_refuse(pictures):
    with pytest.raises(ValueError, match="expected"):
        figures.draw_reconstructions(*pictures, "t")


def test_curves_of_pretraining():
    records = [RECORD | {"epoch": epoch, "train_loss": 1 / (epoch + 1)} for epoch in range(4)]
    figure = figures.draw_training_curves(records)
    loss, lr = figure.axes
    assert (loss.get_title(), lr.get_title()) == ("training loss", "learning rate")
    assert all(axis.get_xlabel().startswith("epoch") and axis.get_ylabel() for axis in figure.axes)
    assert loss.lines[0].get_xydata().tolist() == [[0, 1], [1, 1 / 2], [2, 1 / 3], [3, 1 / 4]]
    with pytest.raises(ValueError, match="no records"):
        figures.draw_training_curves([])


def test_curves_of_finetuning():
    records = [RECORD, *log(3, few=None)[1:]]  # epoch 0 did not evaluate, there is no few-shot class
    accuracy = figures.draw_training_curves(records).axes[2]
    assert accuracy.get_ylabel() == "top-1 accuracy (%)"
    assert [line.get_label() for line in accuracy.lines] == ["overall", "many", "medium"]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 50], [2, 50]]
    single = figures.draw_training_curves(log(1))
    assert all(line.get_marker() not in (None, "None") for axis in single.axes for line in axis.lines)


def test_classes_are_sorted_by_size():
    accuracy = np.arange(10) * 10.0
    accuracy[3] = np.nan
    axis, counts = figures.draw_per_class_accuracy(accuracy, COUNTS, NAMES).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == [NAMES[i] for i in ORDER]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axis.patches}
    assert [heights[rank] for rank in range(1, 11)] == pytest.approx(accuracy[ORDER].tolist(), nan_ok=True)
    assert counts.get_yscale() == "log" and counts.lines[0].get_ydata().tolist() == COUNTS[ORDER].tolist()
    assert "images" in counts.get_ylabel() and "%" in axis.get_ylabel() and axis.get_title()
    labels = [bars.get_label() for bars in axis.containers]
    assert [label.split(" (")[0] for label in labels] == ["many", "medium", "few"]
    assert [len(bars) for bars in axis.containers] == [6, 2, 2]
    assert len({bars[0].get_facecolor() for bars in axis.containers}) == 3
    assert labels[1].endswith("mean 20.0 %")  # classes 3 (no test image) and 2
    assert axis.lines[0].get_ydata()[0] == np.nanmean(accuracy)
    assert [text.get_text() for text in axis.texts][6] == "n/a"


def test_many_classes_are_merged_within_groups():
    counts = np.r_[np.full(501, 200), np.full(300, 50), np.full(199, 5)]
    accuracy = np.r_[np.full(501, 80.0), np.full(300, 40.0), [None] * 199]
    axis = figures.draw_per_class_accuracy(accuracy, counts, ["x"] * 1000).axes[0]
    assert axis.get_xlabel().endswith("(1 = largest; a bar is the mean of up to 3 classes)")
    many, medium, few = axis.containers
    assert {bar.get_height() for bar in many} == {80} and {bar.get_height() for bar in medium} == {40}
    assert few.get_label().endswith("no test image")
    assert sum(bar.get_width() for bars in axis.containers for bar in bars) == 1000


def test_reliability_diagram():
    results = {"softmax": a_calibration(), "sigmoid $": a_calibration(7)}
    figure = figures.draw_reliability_diagram(results)
    upper, other, lower, _ = figure.axes
    result = results["softmax"]
    assert upper.get_title() == f"softmax\nECE {result.ece:.1f} %, MCE {result.mce:.1f} %"
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == (
        "accuracy (%)", "images (%)", "confidence (%)"
    )  # fmt: skip
    assert other.get_title().startswith("sigmoid")
    bars, gaps = upper.containers
    assert [bar.get_height() for bar in bars] == pytest.approx(result.accuracy.tolist(), nan_ok=True)
    assert [bar.get_x() for bar in bars] == pytest.approx([100 * b / 15 for b in range(15)])
    shares = [bar.get_height() for bar in lower.containers[0]]
    assert sum(shares) == pytest.approx(100)
    # What the picture shows is what the number says.
    error = sum(share / 100 * abs(gap.get_height()) for share, gap in zip(shares, gaps, strict=True) if share)
    assert error == pytest.approx(result.ece)
    with pytest.raises(ValueError, match="no calibration"):
        figures.draw_reliability_diagram({})


def test_confusion_rows_are_true_classes():
    matrix = np.zeros((10, 10))
    matrix[1, :2] = 3, 1  # the largest class, Trouser: three of four are taken for the smallest, T-shirt
    axis, bar = figures.draw_confusion(matrix, NAMES, COUNTS).axes
    share = axis.images[0].get_array()
    assert share[0].tolist() == [25, 0, 0, 0, 0, 0, 0, 0, 0, 75]
    assert np.ma.getmaskarray(share)[1:].all()  # classes without test images stay empty
    assert [label.get_text() for label in axis.get_xticklabels()] == [NAMES[i] for i in ORDER]
    assert axis.get_yticklabels()[0].get_text() == "Trouser (2000)"
    assert axis.get_xlabel() == "predicted class" and axis.get_ylabel().startswith("true class")
    assert "%" in bar.get_ylabel() and axis.get_title()
    assert [text.get_text() for text in axis.texts] == ["25", *["0"] * 8, "75"]
    ranked = figures.draw_confusion(np.eye(31), ["x"] * 31, np.ones(31)).axes[0]
    assert "rank" in ranked.get_xlabel() and not ranked.texts


def test_names_are_cut_in_the_middle_and_never_mathematics():
    axis = figures.draw_confusion(np.eye(2), [LONG, "b"], [2, 1]).axes[0]
    label = axis.get_xticklabels()[0]
    assert len(label.get_text()) <= 26 and label.get_text().startswith("Plantae") and label.get_text().endswith("more")
    plain = figures._plain("a $x$ b", 20)
    assert plain == r"a \$x\$ b"


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.draw_per_class_accuracy(np.zeros(9), COUNTS, NAMES),
        lambda: figures.draw_per_class_accuracy(np.zeros(10), COUNTS, NAMES[:9]),
        lambda: figures.draw_confusion(np.eye(9), NAMES, COUNTS),
        lambda: figures.draw_confusion(np.eye(10), NAMES, COUNTS[:9]),
    ],
)
def test_lengths_must_agree(figure):
    with pytest.raises(ValueError, match="expected"):
        figure()
