"""`python -m util.report`: the page holds the runs' own numbers, needs nothing else, and says what it cannot show."""
import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datasets.embedded import load
from tests.report_cases import NAMES, made_encoder, made_run, stand_in
from util import report
from util.args import run_command
from util.metrics import column_text

VOID = {"meta", "img", "br", "wbr"}


class Read(HTMLParser):
    """What a browser would make of a page; fails where tags do not close in order.

    texts: what a person reads; links: all addresses; alts; ids; tables: {section: [[cell texts of a row], ...]}.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.alts, self.ids, self.texts, self.tags = [], [], [], [], [], set()
        self.tables, self.section, self.cell, self.may_break = {}, "", None, False
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.may_break = tag == "wbr"
        self.links += [attrs[name] for name in ("href", "src", "action", "data", "poster", "srcset") if name in attrs]
        self.alts += [attrs.get("alt", "")] * (tag == "img")
        if "id" in attrs:
            self.ids.append(attrs["id"])
            self.section = attrs["id"]
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.cell = []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag
        if tag in ("td", "th"):
            self.tables[self.section][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.texts += [data] * (self.open[-1:] != ["style"])
        if self.cell is not None and data.strip():
            self.cell.append(data.strip())
            if self.may_break:
                self.cell[-2:] = ["".join(self.cell[-2:])]
        self.may_break = False


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    stand_in(monkeypatch)


def write(tmp_path, *runs):
    """The page about runs: (text, Read)."""
    out = report.main(report.get_args_parser().parse_args([*map(str, runs), "--out", str(tmp_path / "report.html")]))
    text = out.read_text(encoding="utf-8")
    return text, Read(text)


def words(page):
    """What a person reads of it, blanks as one."""
    return " ".join(" ".join(page.texts).split())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three runs over tau, of which the second is better by far: (folders, page)."""
    folder = tmp_path_factory.mktemp("sweep")
    runs = [made_run(folder / f"tau_{tau}", skill=skill, tau=tau) for tau, skill in ((0.5, 1.0), (1.0, 3.0), (2.0, 1.0))]
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        text, page = write(folder, *runs)
    return runs, text, page


def test_the_page_needs_nothing_else(sweep, tmp_path):
    runs, text, page = sweep
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    beside = [link for link in page.links if not link.startswith(("data:image/", "#"))]
    assert beside and all(re.fullmatch(r"report_figures/\w+\.(png|pdf)", link) for link in beside)
    folder = runs[0].parent / "report_figures"
    assert all((runs[0].parent / link).stat().st_size > 1000 for link in beside)
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.pdf")}
    assert not re.search(r"url\(|@import|https?:|//\w+\.\w", re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text))
    assert "default-src 'none'" in text and len(text) < 5e6
    assert page.alts and all(page.alts)


def test_every_section_is_in_the_contents(sweep):
    _, _, page = sweep
    assert [link[1:] for link in page.links if link.startswith("#")] == page.ids == [
        "runs", "settings", "metrics", "differences", "sweeps", "curves", "classes", "frequency", "confusions", "reliability",
        "wrong", "reconstructions"][:len(page.ids)]
    assert len(page.ids) == 11  # these runs began with no encoder


def test_numbers_are_those_of_the_runs(sweep):
    runs, _, page = sweep
    rows = {row[0][0]: row for row in page.tables["metrics"][1:4]}
    for run in runs:
        result, row = json.loads((run / "metrics.json").read_text()), rows[run.name]
        for cell, column in zip(row[1:], ("overall", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece", "nll",
                                          "brier"), strict=True):
            assert cell[0] == column_text(column, result[column])
        low, high = (float(part) for part in rows[run.name][1][1].strip("[]").split(","))
        assert low < result["overall"] < high
    turned = page.tables["metrics"][4:14]  # for a narrow screen
    columns = zip(*(rows[run.name][1:] for run in runs), strict=True)
    assert [row[1:] for row in turned[1:]] == [list(column) for column in columns]
    assert turned[0][1:] == [rows[run.name][0] for run in runs] and turned[1][0] == ["overall %"]
    table = page.tables["classes"]
    assert table[0] == [["class"], ["training images"], *([run.name] for run in runs)]
    accuracy = [json.loads((run / "metrics.json").read_text())["per_class_accuracy"] for run in runs]
    for k, name in enumerate(NAMES):
        assert table[k + 1] == [[name], [["500", "130", "20", "19"][k]], *([f"{one[k]:.1f}"] for one in accuracy)]


def test_the_answer_calls_a_difference_real_where_it_is(sweep, tmp_path):
    _, _, page = sweep
    assert "tau_1.0 is best by overall accuracy: " in words(page) and "tau_2.0 (+" in words(page)
    assert "by more than noise." in words(page) and "no difference is shown" not in words(page)
    assert "one run, this says nothing about another seed" in words(page)
    runs = [made_run(tmp_path / name, seed=seed, lr=lr, skill=2) for name, seed, lr in (("a", 2, .1), ("b", 3, .2))]
    same = words(write(tmp_path, *runs)[1])
    assert "no difference is shown: what is seen lies within noise." in same and "more than noise" not in same


def test_names_are_escaped(tmp_path):
    names = ["<script>alert(1)</script>", "R&D \"quoted\"", "🐘 elephant", "a\u202eb\udcff"]
    run = made_run(tmp_path / "<b>run & co", names=names, tau=1.5)
    text, page = write(tmp_path, run, made_run(tmp_path / "plain", names=names))
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script>" in words(page) and "🐘 elephant" in words(page) and "<b>run & co" in words(page)
    assert "&amp;amp;" not in text and "\u202e" not in text


def test_seeds_are_means_with_deviations(tmp_path):
    runs = [made_run(tmp_path / f"seed{seed}" / "bft", seed=seed) for seed in range(3)]
    _, page = write(tmp_path, *runs)
    overall = [json.loads((run / "metrics.json").read_text())["overall"] for run in runs]
    row = page.tables["metrics"][1]
    assert "ECE of several seeds is the mean of theirs" in words(page)
    assert "Seeds lie in one diagram, so its ECE is not the mean of theirs." in words(page)
    assert row[0] == ["bft"] and row[1] == [f"{np.mean(overall):.1f}", f"± {np.std(overall, ddof=1):.1f}"]
    assert f"bft has {' '.join(row[1])} % of 120 test images right over 3 seeds" in words(page)
    assert "sweeps" not in page.ids and "differences" not in page.ids


def test_other_test_sets_stand_side_by_side_uncompared(tmp_path):
    a, b = made_run(tmp_path / "a"), made_run(tmp_path / "b", split="val", images=90, tau=2.0)
    _, page = write(tmp_path, a, b)
    assert "scored on 2 different sets of images, so they stand side by side and are not compared" in words(page)
    assert "differ in split (val, test): compare runs on the same images" in words(page)
    assert [row[0][0] for row in page.tables["metrics"][1:3]] == ["a", "b"]
    assert "differences" not in page.tables and "is best" not in words(page)


def test_an_unfinished_run_shows_its_curves(tmp_path):
    run = made_run(tmp_path / "begun", finished=False, epochs=2)
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text() + '{"epoch": 2, "train_l')  # killed while it wrote
    _, page = write(tmp_path, run, made_run(tmp_path / "done", tau=2.0))
    assert "begun: not finished: 2 of 2 epochs, no result yet." in words(page)
    assert [row[-1] for row in page.tables["runs"][1:]] == [["not finished"], ["finished"]]
    assert [row[0][0] for row in page.tables["metrics"][1:2]] == ["done"]
    assert any("training loss over the epochs of begun" in alt for alt in page.alts)
    alone = words(write(tmp_path, run)[1])
    assert "none of them scored. Training loss of the last epoch: begun 1.0000." in alone


def test_a_loss_that_is_not_finite(tmp_path):
    run = made_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines[1]["train_loss"], lines[2]["train_loss"] = float("nan"), None
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "not finite in 2 epochs, the first of them 1: gaps in its curve" in words(write(tmp_path, run)[1])


def test_one_class(tmp_path):
    _, page = write(tmp_path, made_run(tmp_path / "run", names=["only"], counts=[7]))
    assert "run has 100.0 % [100.0, 100.0] of 120 test images right" in words(page) and "No image is wrong." in words(page)


def test_a_thousand_classes(tmp_path):
    names, counts = [f"class {k}" for k in range(1000)], np.geomspace(1280, 5, 1000).astype(int).tolist()
    text, page = write(tmp_path, made_run(tmp_path / "run", names=names, counts=counts, images=2000, skill=4))
    assert len(text.encode()) < 2e6 and len(page.tables["classes"]) == 11
    assert "The 10 of 1,000 classes that" in words(page)


def test_pictures_are_those_that_were_scored(tmp_path):
    images, labels, ids = load("test")
    draw = np.random.default_rng(0).permutation(len(labels))[:200]
    run = made_run(tmp_path / "run", names=["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
                                            "Bag", "Ankle boot"], counts=[18, 189, 2000, 32, 616, 10, 105, 58, 1110, 341],
                   input_size=[28], crop_pct=1.0)
    own = np.random.default_rng(1).normal(size=(200, 10))
    own[:, 0] += 20 * (np.arange(200) == 7)  # sure, and wrong unless it is a T-shirt
    labels_of = labels[draw]
    np.savez(run / "predictions.npz", logits=own.astype(np.float32), labels=labels_of, ids=np.asarray(ids)[draw])
    text, page = write(tmp_path, run)
    assert "metrics.json is not of these predictions" in words(page)  # told, and the numbers are those of the predictions
    assert "cannot be shown" not in words(page)
    first = re.search(r'class="gallery"><figure><img class="pixels" src="data:image/png;base64,([^"]+)"', text).group(1)
    assert labels_of[7] != 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(first)))), images[draw[7]])


def test_pictures_of_another_class_are_not_shown(tmp_path):
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    run = made_run(tmp_path / "run", names=names, counts=[9] * 10, input_size=[28], crop_pct=1.0, ids=load("test")[2][:120])
    assert "fashion_mnist_lt.npz:test has no image " in words(write(tmp_path, run)[1])


def test_where_the_data_set_is_gone_it_says_so(tmp_path):
    run = made_run(tmp_path / "run", dataset="folder", data_path=str(tmp_path / "gone"), mean=[0.5], std=[0.5],
                   input_size=[28])
    said = words(write(tmp_path, run)[1])
    assert "The pictures cannot be shown, because the data set of args.json cannot be read here: --data_path" in said
    assert " taken for " in said


def test_an_encoder_that_is_gone_is_named_and_its_own_figure_stands_in(tmp_path):
    encoder = made_encoder(tmp_path / "mgp")
    Image.new("RGB", (40, 20), "red").save(encoder / "figures" / "reconstructions.png")
    run = made_run(tmp_path / "bft", finetune=str(encoder / "last.pth"))
    other = made_run(tmp_path / "other", finetune="elsewhere/last.pth")
    said = words(write(tmp_path, run, other)[1])
    assert "No reconstruction: elsewhere/last.pth, the encoder of other, is not there." in said
    assert "Not made anew (no checkpoint at" in said and "the run's own figure." in said


@pytest.mark.parametrize(("spoil", "expected"), [
    (lambda run: run / "nowhere", "no run folder at "),
    (lambda run: run / "figures", "is no run folder (it has no args.json)"),
    (lambda run: (run / "args.json").write_text("[]") and run, "holds a list, not an object"),
    (lambda run: (run / "args.json").write_text("{}") and run, "args.json has no 'args'"),
    (lambda run: (run / "log.jsonl").write_text('{"epoch": 0}\n') and run, "log.jsonl:1: no object with epoch, train_loss"),
    (lambda run: (run / "predictions.npz").write_text("x") and run, "cannot read logits and labels from"),
])
def test_what_is_no_run_is_one_line(tmp_path, monkeypatch, capsys, spoil, expected):
    folder = spoil(made_run(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--out", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit) as stop:
        run_command(report.get_args_parser(), report.main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and expected in err and err.count("\n") == 1 and not (tmp_path / "r.html").exists()


def test_where_the_page_cannot_be(tmp_path):
    run = made_run(tmp_path / "run")
    for out, expected in (("r.pdf", "--out takes FILE.html"), ("run/args.json/r.html", "cannot write beside")):
        with pytest.raises(ValueError, match=expected):
            report.main(report.get_args_parser().parse_args([str(run), "--out", str(tmp_path / out)]))
    with pytest.raises(ValueError, match="is named twice"):
        report.main(report.get_args_parser().parse_args([str(run), str(run), "--out", str(tmp_path / "r.html")]))
