"""What `submit.reproduce --report` writes: reproduce.md, and reproduce.html with the figures drawn."""
from datetime import date

from submit import bias_figures, settings
from submit.experiment import Figure, Table
from submit.filled import Block, Results, Section, figure_section, table8, table_section
from util.figures_report import fit
from util.provenance import git_revision
from util.report_curves import curve_figures, sweep_figures
from util.report_groups import Group
from util.report_page import Markup, Page, columns, escape, paragraph
from util.report_page import table as html_table
from util.report_pictures import draw_reconstructions
from util.report_runs import Run, read_run
from util.report_sweeps import Sweep
from util.run import say

BIASES = {"figure4": ("Both biases over the prior of a class", bias_figures.draw_over_prior),
          "figure5": ("Both biases of CIFAR-10-LT over the imbalance factor", bias_figures.draw_over_factor)}
LEGEND = ("A cell is the paper's number / ours: the mean over seeds with its standard deviation, {difference}and in [] the "
          "95 % interval of all over test images (bootstrap, first seed). Accuracies, ECE and MCE in %; the last epoch, which "
          "nothing chose. ECE and MCE are of the confidence that the loss trains, softmax for CE and the losses made of it, "
          "sigmoid for BCE and those made of it: rows of the two kinds do not compare (the released code takes softmax for "
          "all; metrics.json has both). \"-\": there is no such number. {seeds}.")
SMALL = ("**These are small versions**: other images and networks than the paper's, so that its numbers stand here for the "
         "order of rows, and no difference to them is given.")


def sections_of(studies: dict, results: Results) -> list[Section]:
    """A section for each name, in their order."""
    found = []
    for name, study in studies.items():
        if isinstance(study, Table):
            found.append(table_section(name, study, results))
        elif isinstance(study, Figure):
            found.append(figure_section(name, study, results))
        elif name == "table8":
            found.append(table8())
        elif name in BIASES:
            found.append(Section(name, BIASES[name][0], "Drawn from the losses themselves, in reproduce.html."))
        else:
            found.append(settings_section(name))
    return found


def settings_section(name: str) -> Section:
    """Tables 9 and 10, read back from the recipes."""
    head, rows = settings.COLUMNS, settings.settings_table(int(name.removeprefix("table")))
    block = Block("paper and recipe", list(head), [list(row) for row in rows])
    return Section(name, settings.TABLES[name], "Read from the recipes.", [block])


def heading(section: Section) -> str:
    """"Table 6: title"."""
    kind = "Table" if section.name.startswith("table") else "Figure"
    return f"{kind} {section.name.removeprefix(kind.lower())}: {section.title}"


def legend(results: Results) -> str:
    """What a cell holds."""
    seeds = f"Seed{'s' * (len(results.seeds) > 1)} {', '.join(map(str, results.seeds))}"
    return LEGEND.format(difference="in () the difference, " * results.differences, seeds=seeds)


def markdown(sections: list[Section], results: Results, lead: str) -> str:
    """The report as Markdown."""
    lines = ["# Tables and figures", "", *([lead, ""] if lead else []), legend(results), ""]
    for section in sections:
        lines += [f"## {heading(section)}", "", section.text, ""]
        for block in section.blocks:
            lines += [f"*{block.caption}*", ""] * bool(block.caption)
            lines += [f"| {' | '.join(row)} |" for row in (block.head, ["---"] * len(block.head), *block.rows)]
            lines.append("")
    return "\n".join(lines)


def as_groups(figure: Figure, results: Results) -> dict[str, dict[float, Group]]:
    """{label: {x: its finished runs as a report reads them}}, without points that have none."""
    found: dict[str, dict[float, Group]] = {}
    for label, points in figure.series.items():
        for x, run in points.items():
            runs: list[Run] = [read_run(folder, label) for folder in results.folders(run).values()]
            if runs:
                found.setdefault(label, {})[x] = Group(label, runs, {})
    return found


def pictures(page: Page, name: str, figure: Figure, results: Results) -> str:
    """A figure of runs, drawn from those that are finished."""
    if figure.kind == "pictures":
        folders = {label: list(results.folders(run).values())[:1] for label, points in figure.series.items()
                   for run in points.values()}
        there = {label: of[0] for label, of in folders.items() if of}
        if not there:
            return paragraph("No encoder is finished.", "warn")
        made = draw_reconstructions([folder / "last.pth" for folder in there.values()], page.folder / f"{name}.png")
        page.files += made
        words = "; ".join(f"{label}: {folder.name}" for label, folder in there.items())
        return page.picture(made[0], f"Reconstructions by {words}", f"Under the same masks, from above: {words}.")
    series = as_groups(figure, results)
    if not series:
        return paragraph("No run is finished.", "warn")
    if figure.kind == "curves":
        return columns(curve_figures(page, "finetune", [group for points in series.values() for group in points.values()]))
    return columns(sweep_figures(page, Sweep(name, figure.xlabel, series, figure.log, []), ""))


def body_of(page: Page, section: Section, results: Results) -> str:
    """A section as HTML."""
    body = [paragraph(section.text)]
    if section.name in BIASES:
        body.append(page.figure(section.name, fit(BIASES[section.name][1]()), section.title, section.title))
    if isinstance(section.study, Figure):
        body.append(pictures(page, section.name, section.study, results))
    for block in section.blocks:
        words = tuple(range(1, len(block.head)))
        read = section.name in settings.TABLES
        rows = block.rows if read else [[name, *map(breaking, cells)] for name, *cells in block.rows]
        body += [f"<h3>{escape(block.caption)}</h3>", html_table(block.head, rows, "wide" if read else "breaks", words)]
    return "".join(body)


def breaking(cell: str) -> Markup:
    """A cell that may go on in a second line before its interval, and nowhere else."""
    return Markup(" ".join(f"<span>{escape(part)}</span>" for part in cell.replace(" [", "\n[").split("\n")))


def write(studies: dict, results: Results, small: bool) -> str:
    """Write reproduce.md and reproduce.html where the results are; returns the Markdown."""
    out = results.out
    sections = sections_of(studies, results)
    lead = SMALL if small else ""
    text = markdown(sections, results, lead)
    page = Page(out / "reproduce.html")
    for section in sections:
        page.add(section.name, heading(section), body_of(page, section, results))
    page.write("Tables and figures of the paper" + ", small versions" * small,
               paragraph(lead.replace("**", "") or legend(results), "lead") + paragraph(legend(results)) * small,
               f"Written by python -m submit.reproduce on {date.today()}, revision {git_revision() or 'unknown'}.")
    (out / "reproduce.md").write_text(text + "\n")
    say(text)
    say(f"wrote {out / 'reproduce.md'} and {page.out}, its figures into {page.folder}")
    return text
