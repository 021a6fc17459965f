"""The page to try a model says what predict.py says, and works in a real browser."""
import csv
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from tests.browser import BROWSER, Browser
from util import try_page
from util.attention import attention_rollout
from util.trained import load_classifier_model, own_pool


@pytest.fixture(scope="module")
def model(finetune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tried") / "run"
    finetune(folder, "--lr", 1e-2)
    return folder / "last.pth"


def served(*flags):
    return try_page.main(try_page.get_args_parser().parse_args([*map(str, flags), "--device", "cpu"]), wait=False)


def test_the_answer_is_that_of_predict(model, picture_folder, tmp_path):
    path = picture_folder / "test" / "elk" / "03.png"
    trained = load_classifier_model(model)
    top, picture = try_page.answer(trained, str(path))
    predict.main(predict.get_args_parser().parse_args([str(model), str(path), "--device", "cpu", "--amp", "off", "--out",
                                                       str(tmp_path / "rows.csv"), "--num_workers", "0"]))
    row = list(csv.reader((tmp_path / "rows.csv").open()))[1]
    assert list(top) == row[1::2] and [*top.values()] == pytest.approx([*map(float, row[2::2])], abs=1e-6)
    assert picture.size == (384, 384)


def test_whole_patches_are_coloured_by_their_share_of_the_attention(model, picture_folder):
    attention = np.array([[0.0, 2.0], [4.0, 1.0]])
    shown = np.asarray(try_page.overlay(torch.full((3, 8, 8), 100, dtype=torch.uint8), attention)).astype(int)
    assert shown.shape == (384, 384, 3)
    dark, bright, middle = shown[50, 50], shown[50, 300], shown[300, 300]
    assert (shown[:192, :192] == dark).all() and (shown[192:, 192:] == middle).all()
    assert (shown[:192, 192:] == bright).all() and (shown[192:, :192] == bright).all()  # beyond 2 nothing is brighter
    assert dark.sum() < middle.sum() < bright.sum()
    trained = load_classifier_model(model)
    batch = trained.batch([Image.open(picture_folder / "test" / "cat" / "00.png").convert("RGB")])
    _, maps = attention_rollout(trained.model, batch, own_pool(trained))
    assert maps.mean().item() == pytest.approx(1, abs=1e-5)


def test_without_gradio_or_a_model_one_line_says_what_to_type(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="made by gradio, which is not there .*: .*python.* -m pip install 'gradio>=6'"):
        served(model)
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="5.49.1"))
    with pytest.raises(ValueError, match="gradio 6 or newer, and 5.49.1 is installed: .*python.* -m pip install 'gradio>=6'"):
        served(model)
    with pytest.raises(ValueError, match="no model to try: make try CKPT=runs/bft/last.pth"):
        served()


@pytest.mark.parametrize(("flags", "words"), [
    (["--port", 99999], "--port must lie between 1 and 65535, not 99999"), (["--port", -1], "65535, not -1"),
    (["--host", "a..b"], "cannot serve the page on --host a..b .*: give another --port, or as --host an address of"),
    (["--host", "192.0.2.1", "--port", 7860], "cannot serve the page on --host 192.0.2.1 --port 7860 ")])
def test_where_no_page_can_be_served_one_line_says_so(flags, words):
    with pytest.raises(ValueError, match=words) as found:
        served("last.pth", *flags)
    assert type(found.value) is ValueError


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_picture_in_a_browser(model, picture_folder, tmp_path):
    pytest.importorskip("gradio", reason="the page is made by gradio, which is not installed")
    page, address = served(model)
    path = picture_folder / "test" / "elk" / "03.png"
    expected, _ = try_page.answer(load_classifier_model(model), str(path))
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.size(1280, 900)
            browser.send("Page.navigate", url=address)
            browser.until("document.querySelector('#picture input[type=file]') && 1")
            browser.choose_file("#picture input[type=file]", path)
            first = next(iter(expected))
            browser.until(f"document.querySelector('#classes').innerText.includes('{first}')")
            browser.until("(document.querySelector('#attention img') || {}).naturalWidth == 384")
            said = browser.evaluate("document.querySelector('#classes').innerText")
            for name, value in expected.items():
                assert name in said and f"{100 * value:.0f}%" in said, (expected, said)
            for width in (1280, 390):
                browser.size(width, 900)
                browser.until(f"innerWidth == {width}")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                outside = browser.evaluate("[...document.querySelectorAll('#picture, #classes, #attention')].filter(e => "
                                           "e.getBoundingClientRect().right > innerWidth + 1).length")
                assert outside == 0
                if os.environ.get("SCREENSHOTS"):
                    browser.screenshot(tmp_path / f"{width}.png")
            asked = {event["params"]["request"]["url"] for event in browser.events
                     if event.get("method") == "Network.requestWillBeSent"}
            assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
            broken = [event["params"] for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
            assert broken == []
    finally:
        page.close()
