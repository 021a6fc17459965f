"""Which runs of a report are seeds of one setting, what a sweep is, and the figures that come of it."""
import json
import math
import shutil

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import main_finetune
from tests.report_cases import made_encoder, made_run
from tests.test_figures import COUNTS as SIZES
from tests.test_figures import LONG, a_calibration, check_all_inside, log, random_pictures
from tests.test_figures import NAMES as GARMENTS
from util import figures, figures_report
from util.compare import compare_runs
from util.figures_compare import draw_class_accuracies
from util.figures_pictures import draw_overlays, draw_rows, save_print
from util.report_classes import largest_confusions
from util.report_groups import group_runs, same_images
from util.report_pictures import most_wrong
from util.report_runs import read_run, read_runs
from util.report_sweeps import comparisons, parameters, size_sweep, sweeps

COLUMNS = ("overall", "many", "medium", "few")


def grouped(*folders):
    return group_runs(read_runs(list(folders)))


def names(groups):
    return [[run.name for run in group.runs] for group in groups]


def test_seeds_are_one_setting_whatever_differs_in_where_and_how(tmp_path):
    runs = [made_run(tmp_path / "b", seed=2, num_workers=4, log_every=5), made_run(tmp_path / "a", seed=1, device="cuda"),
            made_run(tmp_path / "c", seed=1, tau=2.0)]
    groups = grouped(*runs)
    assert names(groups) == [["a", "b"], ["c"]] and [group.varied for group in groups] == [{"tau": 1.0}, {"tau": 2.0}]
    assert groups[0].name == "a and other seeds" and groups[1].label == "c (tau 2)"


def test_encoders_of_other_seeds_are_one_setting_and_others_are_not(tmp_path):
    for name, flags in {"seed0/mgp": {}, "seed1/mgp": {"seed": 1}, "long/mgp": {"epochs": 9}}.items():
        made_encoder(tmp_path / name, **flags)
        made_run(tmp_path / name.replace("mgp", "bft"), seed=flags.get("seed", 0), finetune=str(tmp_path / name / "last.pth"))
    folders = [tmp_path / name / "bft" for name in ("seed0", "seed1", "long")]
    groups = grouped(*folders)
    assert names(groups) == [["seed0/bft", "seed1/bft"], ["long/bft"]] and groups[0].name == "bft"
    assert [group.varied for group in groups] == [{"encoder epochs": 3}, {"encoder epochs": 9}]
    assert [sweep.key for sweep in sweeps(groups)] == ["encoder epochs"]
    # Moved as a whole, the encoders are found beside the runs, not where the flags say.
    shutil.move(tmp_path / "seed0", tmp_path / "moved" / "seed0")
    assert names(grouped(tmp_path / "moved" / "seed0" / "bft", folders[1])) == [["moved/seed0/bft", "seed1/bft"]]
    # Without the encoders, their paths are all that is known.
    shutil.rmtree(tmp_path / "seed1" / "mgp")
    assert len(grouped(tmp_path / "moved" / "seed0" / "bft", folders[1])) == 2


def test_evaluations_are_told_by_what_their_checkpoints_were_trained_with(tmp_path):
    trained = [made_run(tmp_path / name, **flags) for name, flags in {"a": {"lr": 0.1}, "b": {"lr": 0.2}}.items()]
    again = [made_run(tmp_path / "again" / run.name, eval=True, resume=str(run / "last.pth")) for run in trained]
    assert [group.varied for group in grouped(*again)] == [{"checkpoint lr": 0.1}, {"checkpoint lr": 0.2}]
    assert [sweep.title for sweep in sweeps(grouped(*again))] == ["checkpoint lr"]


def test_other_images_under_the_same_flags_are_another_setting(tmp_path):
    a, b = made_run(tmp_path / "a"), made_run(tmp_path / "b", seed=1, record={"data_hash": "other"})
    assert [group.varied for group in grouped(a, b)] == [{"data_hash": "d"}, {"data_hash": "other"}]
    c = made_run(tmp_path / "c", record={"data_hash": "third"}, imb_factor=50.0, dataset="cifar10_lt")
    d = made_run(tmp_path / "d", record={"data_hash": "fourth"}, dataset="cifar10_lt", imb_factor=None)
    assert [group.varied for group in grouped(c, d)] == [{"imb_factor": 50.0}, {"imb_factor": 100.0}]


def test_a_flag_that_an_older_version_did_not_know_does_not_differ(tmp_path):
    old, new = made_run(tmp_path / "old"), made_run(tmp_path / "new", seed=1, val_fraction=None, loader="fast")
    assert names(grouped(old, new)) == [["old", "new"]]


def test_sweeps_over_lambda_with_and_without_the_bias(tmp_path):
    runs = [made_run(tmp_path / f"{loss}_{lam}", loss=loss, loss_args=lam, images=60)
            for loss in ("nt_bce", "nt_bal_bce") for lam in ([], ["lam=8"], ["lam=40"])]
    runs.append(made_run(tmp_path / "bce", loss="bce", images=60))
    (sweep,) = sweeps(grouped(*runs))
    assert (sweep.title, sweep.log, sweep.left_out) == ("lambda", True, ["bce"])
    assert {label: list(points) for label, points in sweep.series.items()} == {
        "loss nt_bce": [2.0, 8.0, 40.0], "loss nt_bal_bce": [2.0, 8.0, 40.0]}  # 2 is the default of the loss


def test_a_grid_is_two_sweeps_and_single_changes_are_none(tmp_path):
    grid = [made_run(tmp_path / f"{tau}_{lr}", tau=tau, lr=lr, images=60) for tau in (0.5, 1.0) for lr in (0.1, 0.2)]
    assert [(sweep.key, len(sweep.series)) for sweep in sweeps(grouped(*grid))] == [("tau", 2), ("lr", 2)]
    assert sweeps(grouped(grid[0], grid[3])) == []  # both differ, so neither is what did it
    assert sweeps(grouped(grid[0])) == []


def test_sizes_are_parameters(tmp_path):
    flags = vars(main_finetune.get_args_parser().parse_args(["--patch_size", "4", "--num_heads", "2", "--depth", "2"]))
    flags |= {"mean": [0.5], "std": [0.5], "input_size": [8], "model": "vit_tiny_patch16"}
    own = {name: flags[name] for name in ("model", "patch_size", "depth", "num_heads", "input_size", "mean", "cls_token")}
    runs = [made_run(tmp_path / str(width), embed_dim=width, drop_path=width / 100, **own) for width in (16, 8)]
    groups = grouped(*runs)
    sweep, why = size_sweep(groups)
    assert why is None and sweeps(groups) == []
    # Patches, class token, positions of 2 x 2 patches and the token; two blocks; norm; a head of four classes.
    expected = [(16 * w + w) + w + 5 * w + 2 * (12 * w * w + 13 * w) + 2 * w + (4 * w + 4) for w in (8, 16)]
    assert [round(1e6 * x) for x in sweep.series[""]] == expected == [parameters(groups[k].runs[0]) for k in (1, 0)]
    broken = [made_run(tmp_path / f"x{width}", embed_dim=width) for width in (16, 8)]
    assert size_sweep(grouped(*broken))[1].startswith("the sizes of the networks are not known")


def test_the_best_is_compared_over_common_seeds(tmp_path):
    a = [made_run(tmp_path / f"a{seed}", seed=seed, skill=2, images=300) for seed in (0, 1, 2)]
    b = [made_run(tmp_path / f"b{seed}", seed=seed, tau=2.0, images=300) for seed in (2, 1, 5)]
    groups = grouped(*a, *b)
    (one,) = comparisons(groups)
    pick = {run.folder.name: run.predictions for group in groups for run in group.runs}
    rows = compare_runs([pick["b1"], pick["b2"]], [pick["a1"], pick["a2"]])
    assert (one.best.name, one.seeds) == ("a0 and other seeds", 2)
    assert [row.difference for row in one.rows] == [row.difference for row in rows] and one.rows[0].verdict == "better"


def test_same_images_are_told_by_ids(tmp_path):
    other = made_run(tmp_path / "c", tau=3.0, ids=np.arange(120) + 1)
    parts, reasons = same_images(grouped(made_run(tmp_path / "a"), made_run(tmp_path / "b", tau=2.0), other))
    assert [[group.name for group in part] for part in parts] == [["a", "b"], ["c"]] and "differ in 120 ids" in reasons[0]


def test_largest_confusions_and_most_wrong_by_hand(tmp_path):
    runs = [made_run(tmp_path / f"s{seed}", seed=seed) for seed in range(2)]
    (group,) = grouped(*runs)
    table, images = np.zeros((4, 4)), np.zeros(4)
    for run in group.runs:
        for row, label in zip(run.predictions.logits, run.predictions.labels, strict=True):
            table[label, row.argmax()] += row.argmax() != label
            images[label] += 1
    found = largest_confusions(group, 5)
    assert [pair.images for pair in found] == sorted((table.ravel() / 2).tolist(), reverse=True)[:5]
    assert all(pair.images == table[pair.label, pair.answer] / 2 for pair in found)
    assert [pair.share for pair in found] == pytest.approx([100 * table[p.label, p.answer] / images[p.label] for p in found])
    predictions = group.runs[0].predictions
    sure = {place: 1 / (1 + math.exp(-row.max())) for place, row in enumerate(predictions.logits.astype(float))
            if row.argmax() != predictions.labels[place]}
    assert most_wrong(group.runs[0]).tolist() == sorted(sure, key=lambda place: -sure[place])[:12]


def test_of_saturated_scores_the_further_ahead_is_first(tmp_path):
    run = read_run(made_run(tmp_path / "run"), "run")
    logits = np.array([[60, 59, 0, 0], [70, 0, 0, 0], [50, 0, 0, 0], [99, 0, 0, 0]], dtype=np.float32)
    run.predictions = run.predictions._replace(logits=logits, labels=np.array([1, 1, 1, 0]))
    assert most_wrong(run).tolist() == [1, 2, 0]


def test_smoothing_equals_a_plain_loop():
    draw = np.random.default_rng(0)
    counts, accuracy = np.append(draw.integers(5, 2000, 40), [0, 7]), np.append(draw.random(41) * 100, np.nan)
    sizes = [math.log10(count) for count in counts[:40]]
    mean = sum(sizes) / 40
    width = max(0.1, 1.06 * math.sqrt(sum((size - mean) ** 2 for size in sizes) / 40) * 40 ** -0.2)
    places = np.array([5.0, 90.0, 2000.0])
    for at, found in zip(places, figures_report.smooth(counts, accuracy, places), strict=True):
        weights = [math.exp(-((math.log10(at) - size) / width) ** 2 / 2) for size in sizes]
        assert found == pytest.approx(sum(w * a for w, a in zip(weights, accuracy, strict=False)) / sum(weights), rel=1e-12)
    far = figures_report.smooth([1, 10**9], [10.0, 90.0], np.array([1.0, 10.0**9]))  # no 0 / 0 between
    assert np.isfinite(far).all() and far[0] < 50 < far[1]
    with pytest.raises(ValueError, match="no class has both"):
        figures_report.smooth([0, 5], [1.0, np.nan], np.array([1.0]))


POINTS = [(0.5, 40.0, 38.0, 42.0), (1.0, 60.0, 59.0, 61.0), (2.0, 50.0, 49.0, 52.0)]
EPOCHS = list(range(20))
ROW = "study/seed0/mgp\nmae_vit_base_patch16\n800 epochs\nnorm_pix_loss"
PRINTED = {
    "sweep": lambda: figures_report.draw_points(dict.fromkeys(COLUMNS, POINTS), "tau", "accuracy (%)", False,
                                                figures_report.group_style),
    "long names": lambda: figures_report.draw_points({f"{LONG} {k}": POINTS for k in range(5)}, "tau", "ECE (%)", True),
    "one point": lambda: figures_report.draw_points({"": POINTS[:1]}, "tau", "ECE (%)", False),
    "curves": lambda: figures_report.draw_curves({f"run_{k}": [(EPOCHS, np.exp(-0.1 * k * np.arange(20)))] * 2
                                                  for k in range(24)}, "training loss (log scale)", True),
    "gaps": lambda: figures_report.draw_curves({"a": [([0, 1, 2], [1.0, None, 2.0]), ([1], [None])]}, "training loss"),
    "frequency": lambda: figures_report.draw_frequency({"a (tau 1)": (SIZES, np.linspace(0, 100, 10)),
                                                        "b": (np.arange(300) + 1, np.linspace(0, 90, 300))}),
    "training": lambda: figures_report.fit(figures.draw_training_curves(log(100))),
    "classes": lambda: figures_report.fit(figures.draw_per_class_accuracy(np.linspace(0, 100, 10), SIZES, GARMENTS)),
    "30 classes": lambda: figures_report.fit(figures.draw_per_class_accuracy(np.linspace(0, 100, 30), np.arange(30) + 1,
                                                                             [LONG] * 30)),
    "400 classes": lambda: figures_report.fit(figures.draw_per_class_accuracy(np.linspace(0, 100, 400), np.arange(400) + 1,
                                                                              ["x"] * 400)),
    "bars": lambda: figures_report.fit(draw_class_accuracies({f"{LONG[:40]} {k}": np.linspace(0, 100, 12) for k in range(6)},
                                                             np.arange(12) * 90 + 1, [f"T-shirt/top {k}" for k in range(12)],
                                                             "bars")),
    "confusion": lambda: figures_report.fit(figures.draw_confusion(np.eye(10) * 5, GARMENTS, SIZES), square=True),
    "30 x 30": lambda: figures_report.fit(figures.draw_confusion(np.eye(30), [LONG] * 30, np.arange(30) + 1),
                                          square=True),
    "reliability": lambda: figures_report.fit(figures.draw_reliability_diagram({f"{LONG[:24]}": a_calibration(), "b" * 24:
                                              a_calibration(1), "c": a_calibration(2), "d" * 24: a_calibration(3)})),
    "reconstructions": lambda: draw_rows({name: random_pictures(16, 28, 28) for name in ("image", "masked", ROW, ROW + "s")},
                                         LONG * 3, [f"{k:08}.JPEG" for k in range(16)]),
    "attention": lambda: draw_overlays(random_pictures(8, 28, 28), np.ones((8, 4, 4)), ["T-shirt/top\n\N{RIGHTWARDS ARROW} "
                                       "Ankle boot\n99.9 %"] * 8, LONG, "attention (1 = every patch alike)"),
    "pictures": lambda: figures_report.fit(draw_rows({"image": random_pictures(12, 28, 28)}, "wrong",
                                                     ["Ankle boot\nas x\n9 %"] * 12, 6)),
}


@pytest.mark.parametrize("name", ["reconstructions", "attention"])
def test_a_file_of_pictures_fits_on_a_page(tmp_path, name):
    png, pdf = save_print(PRINTED[name](), tmp_path / "a.png")
    box = pdf.read_bytes().split(b"/MediaBox [")[1].split(b"]")[0].split()
    assert 6 <= float(box[2]) / 72 <= 7 and mpl.image.imread(png).shape[1] <= 2100


def test_captions_of_pictures_do_not_lie_on_one_another():
    figure = draw_rows({"image": random_pictures(8, 28, 28)}, "t", ["ILSVRC2012_val_00000001.JPEG"] * 8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axis.title.get_window_extent(canvas.get_renderer()) for axis in figure.axes]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("name", PRINTED)
def test_texts_are_legible_in_print_and_nothing_is_cut_off(name):
    figure = PRINTED[name]()
    check_all_inside(figure)
    width = figure.get_size_inches()[0]
    assert width <= figures_report.TEXT + 1e-9
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert shown and min(text.get_fontsize() for text in shown) >= 7
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axis in figure.axes:  # tick labels do not lie on one another; a twin has hidden ones
        for which in filter(lambda one: one.get_visible(), (axis.xaxis, axis.yaxis)):
            boxes = [label.get_window_extent(renderer) for label in which.get_ticklabels() if label.get_text()
                     and label.get_rotation() == 0]
            assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False)), which


def test_a_pdf_of_the_size_with_real_fonts(tmp_path):
    png, pdf = figures_report.save_figure(PRINTED["sweep"](), tmp_path / "a.png")
    box = pdf.read_bytes().split(b"/MediaBox [")[1].split(b"]")[0].split()
    assert float(box[2]) / 72 == pytest.approx(3.3, abs=0.01) and b"/FontFile2" in pdf.read_bytes()
    assert mpl.image.imread(png).shape[1] == pytest.approx(990, abs=1)


def test_letters_without_a_glyph_warn_nobody(tmp_path, recwarn):
    figure = figures_report.draw_points({"🐘 $x_": POINTS, "b": POINTS}, "tau", "y", False)
    figures_report.save_figure(figure, tmp_path / "a.png")
    assert not [str(one.message) for one in recwarn if "Glyph" in str(one.message)]


def test_stored_intervals_are_used(tmp_path):
    folder = made_run(tmp_path / "run")
    stored = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**stored, "intervals": {"overall": [1.0, 2.0]}}))
    assert read_run(folder, "run").bounds == {"overall": [1.0, 2.0]}
