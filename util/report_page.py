"""The page of util/report.py: one HTML file that needs nothing else, and a folder of its figures for print beside it.

Pictures lie in it as data, styles as one block, and there is no script: sections that are long open by <details>. Its
Content-Security-Policy forbids a browser to fetch anything.
"""
import base64
import html
import io
import os
import re
from pathlib import Path
from string import Template

from matplotlib.figure import Figure
from PIL import Image

from util.checkpoint import replace_file
from util.figures_report import COLUMN, save_figure
from util.report_text import clean

SCREEN_DPI = 200  # of figures in the page; the files beside it have 300
PIXELS_PER_INCH = 155  # how large a figure is shown at most: 8 points are the size of the text around it
JPEG_FROM = 300_000  # bytes of a PNG above which a picture of pictures stands in the page as JPEG
MAX_PIXELS = 1600
MAX_WORD = 18  # letters in one piece of a row's name

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5d6570;--line:#d9dde2;--back:#fbfbfa;--card:#fff;--mark:#0b62a4;
--shade:#eef2f6;--good:#1a6b3c;--bad:#a33a1f}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--soft:#a2abb6;--line:#3a4048;--back:#16181b;--card:#1e2125;
--mark:#7fc0f5;--shade:#262b31;--good:#7fd6a2;--bad:#f3a68f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",Helvetica,Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1.1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0 .6rem}
h2{font-size:1.25rem;margin:2.8rem 0 .5rem;padding-top:.7rem;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.4rem 0 .4rem}
p{max-width:46rem;margin:.5rem 0}
.lead{font-size:1.12rem;line-height:1.5;max-width:50rem}
.soft,figcaption,.note{color:var(--soft);font-size:.88rem;line-height:1.45}
.warn{border-left:4px solid var(--bad);padding:.15rem .8rem;margin:.6rem 0}
nav{margin:1rem 0;padding:.7rem 1rem;background:var(--shade);border-radius:8px;font-size:.93rem}
nav ul{margin:0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem}
a{color:var(--mark)}
.scroll{overflow-x:auto;margin:.7rem 0;border:1px solid var(--line);border-radius:8px;background:var(--card);width:fit-content;
max-width:100%}
table{border-collapse:collapse;font-size:.88rem;line-height:1.35;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.4rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child>*{border-bottom:0}
thead th{background:var(--shade);font-weight:600;vertical-align:bottom;white-space:normal;max-width:9rem}
th:first-child,td:first-child,.text{text-align:left}
tbody th{font-weight:600;position:sticky;left:0;background:var(--card);max-width:15rem;white-space:normal;min-width:6.5rem}
tbody .long{overflow-wrap:anywhere}
small{display:block;font-weight:400;margin-left:auto;color:var(--soft);font-size:.78rem}
.wide td.text{white-space:normal;min-width:7rem;max-width:26rem}
.breaks td{white-space:normal}.breaks span{white-space:nowrap}
td .verdict{white-space:normal;max-width:6rem}
.good{color:var(--good)}.bad{color:var(--bad)}
figure{margin:1rem 0}
.card{background:#fff;border:1px solid var(--line);border-radius:8px;padding:.5rem;overflow-x:auto}
.card img{display:block;width:100%;height:auto;margin:0 auto}
.page .card img{min-width:640px}
figcaption{margin:.35rem .1rem 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:0 1.1rem;align-items:start}
.columns figure{max-width:530px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:.7rem;margin:.8rem 0}
.gallery figure{margin:0;font-size:.8rem}
.gallery img{width:100%;height:auto;display:block;border-radius:5px;background:#fff}
.gallery .pixels{image-rendering:pixelated}
.gallery figcaption{font-size:.78rem;line-height:1.3}
details{margin:.7rem 0}
summary{cursor:pointer;color:var(--mark);font-weight:600;padding:.2rem 0}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line)}
code{font-size:.88em;background:var(--shade);padding:.05em .3em;border-radius:4px}
.narrow{display:none}
@media(max-width:560px){.narrow{display:block}.roomy{display:none}
body{font-size:15px}main{padding:1rem .85rem 3rem}h1{font-size:1.35rem}.lead{font-size:1.03rem}
th,td{padding:.35rem .5rem}tbody th{max-width:8.5rem}
.narrow tbody th{min-width:5.2rem}.narrow th,.narrow td{padding:.3rem .35rem;font-size:.8rem}.narrow small{font-size:.72rem}}
@media print{.scroll,.card{overflow:visible}.page .card img{min-width:0}}
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$lead
</header>
<nav aria-label="contents"><ul>
$contents
</ul></nav>
$sections
<footer class="soft"><p>$footer</p></footer>
</main>
</body>
</html>
""")


def escape(text) -> str:
    """Text for HTML; bytes of a file name that are no UTF-8 become replacement characters."""
    return html.escape(clean(text))


class Markup(str):
    """HTML that is not to be escaped again."""


def markup(value) -> str:
    """A table cell's or paragraph's content as HTML."""
    return value if isinstance(value, Markup) else escape(value)


def paragraph(text, kind: str = "") -> str:
    """<p>, of a class of STYLE."""
    return f'<p class="{kind}">{markup(text)}</p>' if kind else f"<p>{markup(text)}</p>"


def table(head: list, rows: list[list], kind: str = "", text_columns: tuple = ()) -> str:
    """A table in a box that scrolls by itself; cells are texts or Markup, the first of a row names it.

    kind: a class of STYLE; text_columns: places of columns with words, which are set to the left.
    """
    def cell(place: int, value, tag: str) -> str:
        style = getattr(value, "style", "")
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{' class=text' if place in text_columns else ''}{style}>{markup(value)}</{tag}>"

    lines = [f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>',
             *(cell(place, value, "th") for place, value in enumerate(head)), "</tr></thead><tbody>"]
    for row in rows:
        first, *rest = row
        lines.append("<tr>" + row_name(first)
                     + "".join(cell(place, value, "td") for place, value in enumerate(rest, 1)) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def row_name(value) -> str:
    """The first cell of a row, which may break behind _ and /, and anywhere where that is not enough."""
    pieces = re.split("(?<=[_/])", value) if not isinstance(value, Markup) else [value]
    kind = ' class="long"' if max(map(len, pieces)) > MAX_WORD and not isinstance(value, Markup) else ""
    return f'<th scope="row"{kind}>{"<wbr>".join(map(markup, pieces))}</th>'


class Shaded(Markup):
    """A cell whose background is as strong as a share in [0, 1]."""

    def __new__(cls, text: str, share: float):
        cell = super().__new__(cls, escape(text))
        cell.style = f' style="background:rgba(0,114,178,{0.55 * share:.2f})"'
        return cell


def details(summary: str, body: str, is_open: bool = False) -> str:
    """A part that opens on demand."""
    return f"<details{' open' if is_open else ''}><summary>{markup(summary)}</summary>\n{body}\n</details>"


def columns(parts: list[str]) -> str:
    """Figures side by side, below one another where there is no room."""
    return f'<div class="columns">{"".join(parts)}</div>' if parts else ""


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an image as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Page:
    """What is written: sections, each with its heading in the contents, and figures as they are made.

    figures are files in a folder `<stem of out>_figures` beside the page. ValueError where nothing can be written there.
    """

    def __init__(self, out: Path):
        if out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out takes FILE.html, not {out}")
        self.out, self.folder = out, out.with_name(f"{out.stem}_figures")
        self.sections: list[tuple[str, str, str]] = []
        self.files: list[Path] = []
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write beside {out} ({error.strerror}): give another --out") from None

    def add(self, anchor: str, title: str, body: str) -> None:
        """A section; nothing where it has no body."""
        if body:
            self.sections.append((anchor, title, body))

    def figure(self, name: str, figure: Figure, alt: str, caption: str) -> str:
        """Save a figure as NAME.png and NAME.pdf for print and return it as HTML, with a link to the PDF."""
        png, pdf = self.save(name, figure)
        with Image.open(png) as image:
            small = image.convert("RGB")
            small.thumbnail([round(side * SCREEN_DPI / 300) for side in image.size], Image.Resampling.LANCZOS)
        width = figure.get_size_inches()[0]
        # Lines and areas of few colours: a palette makes a third of the size. Median cut, the usual choice, would change
        # those that are rare, such as a thin line's; with this one no value is off by more than about 10 of 255.
        few = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        return self.place(encode(few), alt, caption, pdf, width > COLUMN + 0.1, round(width * PIXELS_PER_INCH))

    def save(self, name: str, figure: Figure) -> list[Path]:
        """Write NAME.png and NAME.pdf into the folder of figures."""
        written = save_figure(figure, self.folder / f"{name}.png")
        self.files += written
        return written

    def link(self, name: str, words: str) -> str:
        """A paragraph with links to the two files of a figure."""
        kinds = (f'<a href="{escape(self.folder.name)}/{name}.{kind}">{kind.upper()}</a>' for kind in ("png", "pdf"))
        return f'<p class="note">{escape(words)}{", ".join(kinds)}</p>'

    def picture(self, path: Path, alt: str, caption: str) -> str:
        """A picture that is a file already. ValueError where it cannot be read."""
        try:
            with Image.open(path) as image:
                small = image.convert("RGB")
        except OSError as error:
            raise ValueError(f"cannot read the picture {path} ({error})") from None
        small.thumbnail((MAX_PIXELS, 2 * MAX_PIXELS))
        pdf = path.with_suffix(".pdf")
        return self.place(encode(small), alt, caption, pdf if pdf in self.files else None, True, MAX_PIXELS)

    def place(self, address: str, alt: str, caption: str, file: Path | None, wide: bool, most: int) -> str:
        """<figure> of an image address, at most so many pixels wide; a wide one scrolls on a narrow screen."""
        link = f' <a href="{escape(self.folder.name)}/{escape(file.name)}">PDF</a>' if file else ""
        image = f'<img src="{address}" alt="{escape(alt)}" style="max-width:{most}px">'
        return (f'<figure class="{"page" if wide else "column"}"><div class="card" tabindex="0">{image}</div>'
                f"<figcaption>{escape(caption)}{link}</figcaption></figure>")

    def write(self, title: str, lead: str, footer: str) -> None:
        """The file."""
        contents = "\n".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in self.sections)
        body = "\n".join(f'<section><h2 id="{anchor}">{escape(name)}</h2>\n{part}\n</section>'
                         for anchor, name, part in self.sections)
        text = PAGE.substitute(title=escape(title), style=STYLE, lead=lead, contents=contents, sections=body,
                               footer=escape(footer))
        try:
            replace_file(self.out, lambda file: file.write(text.encode()))
        except OSError as error:
            raise ValueError(f"cannot write {self.out} ({os.strerror(error.errno)}): give another --out") from None


def encode(image: Image.Image) -> str:
    """An image as data: PNG, or JPEG where that is large."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    if data.tell() > JPEG_FROM:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=88)
        return data_uri(data.getvalue(), "jpeg")
    return data_uri(data.getvalue(), "png")
