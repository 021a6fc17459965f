"""One page about finished runs, for whoever would rather look than read.

    python -m util.report runs/bft                                   # one run
    python -m util.report runs/bft0 runs/bft1 runs/bft2              # seeds of one setting: mean and deviation
    python -m util.report runs/tau_* --out tau.html                  # a sweep: figures over tau

Runs that differ in their seed only are one setting. Settings that vary as numbers (tau, lambda, imbalance factor, ...), or in
the size of the network, get figures over them. Differences are called real only where `util.compare` does. The page is one
file without scripts that fetches nothing; its figures lie beside it as PNG and PDF for print, in `<name of the page>_figures/`.
"""
from datetime import date
from pathlib import Path

from util.args import Parser, run_command
from util.provenance import git_revision
from util.report_classes import (
    accuracy_section,
    confusion_section,
    frequency_section,
    reliability_section,
)
from util.report_curves import curves_section, sweeps_section
from util.report_groups import Group, group_runs, same_images
from util.report_page import Page, escape, paragraph
from util.report_pictures import reconstruction_section, wrong_section
from util.report_runs import read_runs
from util.report_sections import (
    answer,
    comparison_section,
    metrics_section,
    runs_section,
    settings_section,
)
from util.report_sweeps import comparisons
from util.run import say

LIMIT = 5_000_000  # bytes; a page above it is told


def page_title(groups: list[Group]) -> str:
    """What the page is about: settings, runs and data sets."""
    runs = [run for group in groups for run in group.runs]
    data = ", ".join(dict.fromkeys(str(run.flags.get("dataset")) for run in runs))
    words = groups[0].name if len(groups) == 1 else f"{len(groups)} settings"
    return f"{words}, {len(runs)} run{'s' * (len(runs) > 1)} on {data}"


def by_part(draw, page: Page, parts: list[list[Group]]) -> str:
    """draw(page, part, mark) of each part, below what it was scored on where there are several."""
    body = []
    for place, part in enumerate(parts):
        if len(parts) > 1:
            names = ", ".join(group.name for group in part)
            body.append(f"<h3>{escape(names)}, scored on {escape(part[0].scored[0].scored_on)}</h3>")
        body.append(draw(page, part, f"_{place}" * (len(parts) > 1)))
    return "".join(body)


def main(args) -> Path:
    """Write the page; returns its path."""
    page = Page(Path(args.out))
    groups = group_runs(read_runs([Path(run) for run in args.runs]))
    parts, reasons = same_images(groups)
    compared = [comparisons(part) for part in parts]
    page.add("runs", "Runs", runs_section(groups))
    page.add("settings", "What differs", settings_section(groups))
    page.add("metrics", "Metrics", metrics_section(parts))
    page.add("differences", "Differences", comparison_section(compared, reasons))
    page.add("sweeps", "Over a setting", sweeps_section(page, parts))
    page.add("curves", "Training curves", curves_section(page, groups))
    for anchor, title, draw in (("classes", "Accuracy by class", accuracy_section),
                                ("frequency", "Accuracy and class frequency", frequency_section),
                                ("confusions", "Largest confusions", confusion_section),
                                ("reliability", "Reliability", reliability_section),
                                ("wrong", "Most wrong, most confident", wrong_section)):
        page.add(anchor, title, by_part(draw, page, parts))
    page.add("reconstructions", "Reconstructions", reconstruction_section(page, groups))
    title = page_title(groups)
    footer = f"Written by python -m util.report on {date.today()}, revision {git_revision() or 'unknown'}."
    page.write(title, paragraph(answer(groups, parts, compared[0] if len(compared) == 1 else []), "lead"), footer)
    size = page.out.stat().st_size
    say(f"wrote {page.out} ({size / 1e6:.1f} MB) and {len(page.files)} figures into {page.folder}"
        + "; the page is large: give fewer runs" * (size > LIMIT))
    return page.out


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("one page about runs: what differs, metrics with intervals, curves, classes, calibration, pictures")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of main_pretrain.py and main_finetune.py")
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="figures for print go beside it")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
