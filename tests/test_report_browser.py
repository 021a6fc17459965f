"""A report in a real browser: no error, nothing wider than the screen of a phone, every picture decoded."""
import html
import json
import re
import subprocess

import pytest

from tests.browser import BROWSER
from tests.report_cases import made_run, stand_in
from util import report

# What a script would say of the page; it stands in an inner frame, because a headless window is never narrower than 500.
PROBE = """<script>onload = () => parent.postMessage(JSON.stringify({
  width: document.documentElement.scrollWidth, inner: innerWidth,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length, images: document.images.length,
  outside: [...document.querySelectorAll("main *")].filter(e => !e.parentElement.closest(".scroll, .card")
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName),
  metrics: [...document.querySelectorAll("#metrics ~ div .scroll")].filter(e => e.clientWidth > 0).map(e => e.scrollWidth
    - e.clientWidth),
  boxes: [...document.querySelectorAll(".scroll, .card")].filter(e => e.scrollWidth > e.clientWidth).length}), "*")</script>"""


def look(page, width):
    """(what the probe says of a page with all its parts open, messages of the console) at a width in pixels."""
    text = page.read_text(encoding="utf-8").replace("<details>", "<details open>")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it forbids the probe, as it should
    page.with_name("inner.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    outer = page.with_name("outer.html")
    outer.write_text('<meta charset="utf-8"><script>onmessage = event => document.title = event.data</script>'
                     f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>')
    run = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                          f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000", "--window-size=1400,1000",
                          "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title, run.stderr
    return json.loads(html.unescape(title.group(1))), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_wide_and_on_a_phone(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    names = ["a_very_long_class_name_without_any_break_in_it_at_all", "<b>&", "🐘", "elk"]
    runs = [made_run(tmp_path / f"a_long_folder_name_for_a_run_of_tau_{tau}", names=names, tau=tau) for tau in (0.5, 2.0)]
    page = report.main(report.get_args_parser().parse_args([*map(str, runs), "--out", str(tmp_path / "report.html")]))
    for width in (1280, 390):
        seen, console = look(page, width)
        assert console == [] and seen["broken"] == 0 and seen["images"] > 8
        assert seen["metrics"] == [0]  # of the two tables the one that fits
        assert seen["inner"] == width and seen["width"] <= width and seen["outside"] == [], seen
    assert seen["boxes"] > 3  # what is wide scrolls in a box of its own
