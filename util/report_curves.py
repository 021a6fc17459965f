"""Sections of util/report.py with lines: accuracy over a setting or over the network's size, and training curves."""
from util import figures
from util.figures_report import draw_curves, draw_points, fit, group_style
from util.report_groups import Group
from util.report_page import Page, columns, escape, paragraph
from util.report_runs import Run, is_number
from util.report_sections import ACCURACIES, STAGES
from util.report_sweeps import LOG_FROM, Sweep, point, size_sweep, sweeps

MAX_LINES = 24  # curves in one figure
MAX_SWEEPS = 4


def sweeps_section(page: Page, parts: list[list[Group]]) -> str:
    """Accuracy and calibration over every setting that varies as a number, and over the size of the network."""
    body = []
    for place, part in enumerate(parts):
        found = sweeps(part)
        size, why = size_sweep(part)
        for sweep in [*found[:MAX_SWEEPS], *([size] if size else [])]:
            body += [f"<h3>{escape(sweep.title)}</h3>", columns(sweep_figures(page, sweep, f"_{place}" * (len(parts) > 1)))]
            if sweep.left_out:
                body.append(paragraph(f"No point of it: {', '.join(sweep.left_out)}.", "note"))
        if len(found) > MAX_SWEEPS:
            body.append(paragraph(f"Not drawn: {', '.join(sweep.title for sweep in found[MAX_SWEEPS:])}.", "note"))
        if why:
            body.append(paragraph(f"No figure of accuracy over size: {why}.", "warn"))
    return "".join(body)


def sweep_figures(page: Page, sweep: Sweep, mark: str) -> list[str]:
    """Of one series accuracies by group and ECE; of several overall accuracy, few-shot accuracy and ECE."""
    name = sweep.key.replace(" ", "_").replace("loss_args_", "") + mark
    xlabel = sweep.title + " (log scale)" * sweep.log
    axes = {"ece": "ECE (%)", "overall": "overall accuracy (%)", "few": "few-shot accuracy (%)"}
    bars = "Bars: 95 % intervals over test images" + (", of several seeds one deviation." if any(
        len(group.scored) > 1 for points in sweep.series.values() for group in points.values()) else ".")
    made = []
    if len(sweep.series) == 1:
        of = next(iter(sweep.series.values()))
        lines = {column: series_points(of, column) for column in ACCURACIES}
        figure = draw_points({column: line for column, line in lines.items() if line}, xlabel, "top-1 accuracy (%)", sweep.log,
                             group_style)
        made.append(page.figure(f"{name}_accuracy", figure, f"Accuracy over {sweep.title}: {in_words(lines['overall'])}",
                                f"Accuracy over {sweep.title}. {bars}"))
    for column in ("ece",) if len(sweep.series) == 1 else ("overall", "few", "ece"):
        lines = {label: series_points(points, column) for label, points in sweep.series.items()}
        lines = {label: line for label, line in lines.items() if line}
        if lines:
            figure = draw_points(lines, xlabel, axes[column], sweep.log)
            made.append(page.figure(f"{name}_{column}", figure, f"{axes[column]} over {sweep.title}: "
                                    + "; ".join(f"{label} {in_words(line)}".strip() for label, line in list(lines.items())[:6]),
                                    f"{axes[column][:-4]} over {sweep.title}. {bars}"))
    return made


def series_points(points: dict[float, Group], column: str) -> list[tuple]:
    """[(x, mean, low, high)] of the groups that have the metric."""
    found = [(x, point(group, column)) for x, group in points.items()]
    return [(x, *value) for x, value in found if value]


def in_words(line: list[tuple]) -> str:
    """Points for an alternative text."""
    return ", ".join(f"{mean:.1f} % at {x:.3g}" for x, mean, *_ in line[:12])


def curves_section(page: Page, groups: list[Group]) -> str:
    """Losses, learning rates and accuracies over the epochs, by stage."""
    body = []
    for stage, words in STAGES.items():
        logged = [Group(group.name, [run for run in group.runs if run.log], group.varied) for group in groups
                  if group.runs[0].stage == stage and any(run.log for run in group.runs)]
        if not logged:
            continue
        body += [f"<h3>{words.capitalize()}</h3>"] * (len({group.runs[0].stage for group in groups}) > 1)
        if len(logged) == len(logged[0].runs) == 1:
            body.append(single_run(page, stage, logged[0].runs[0]))
        else:
            body.append(columns(curve_figures(page, stage, logged[:MAX_LINES])))
            if len(logged) > MAX_LINES:
                body.append(paragraph(f"{len(logged) - MAX_LINES} more settings are not drawn.", "note"))
    return "".join(body)


def finite(value) -> float | None:
    """A number, None for one that is not finite."""
    return value if is_number(value) else None


def single_run(page: Page, stage: str, run: Run) -> str:
    """The curves that a run draws itself, for print."""
    log = [{**record, "train_loss": finite(record["train_loss"]), "lr": finite(record["lr"])} for record in run.log]
    last = run.log[-1]
    return page.figure(f"training_{stage}", fit(figures.draw_training_curves(log)),
                       f"Training curves of {run.name} over {len(log)} epochs", f"{run.name}: {len(log)} epochs, training loss "
                       f"of the last {last['train_loss']:.4f}." if is_number(last["train_loss"]) else run.name)


def curve_figures(page: Page, stage: str, groups: list[Group]) -> list[str]:
    """One figure a quantity, one line a group."""
    values = [record["train_loss"] for group in groups for run in group.runs for record in run.log
              if is_number(record["train_loss"])]
    log = bool(values) and min(values) > 0 and max(values) > LOG_FROM / 2 * min(values)
    several = ", the range over seeds shaded" * any(len(group.runs) > 1 for group in groups)
    losses = " Losses of different functions are not comparable." * any("loss" in group.varied for group in groups)
    quantities = {"loss": ("training loss" + " (log scale)" * log, lambda record: record["train_loss"], log, losses),
                  "lr": ("learning rate (highest)", lambda record: record["lr"], False, "")}
    for column, words in (("overall", "overall"), ("few", "few-shot")):
        quantities[column] = (f"{words} accuracy (%)",
                              lambda record, key=column: (record.get("eval") or {}).get(key), False, "")
    made = []
    for name, (ylabel, read, is_log, more) in quantities.items():
        lines = {}
        for group in groups:
            seeds = [[(record["epoch"], finite(read(record))) for record in run.log] for run in group.runs]
            seeds = [list(zip(*kept, strict=True)) for of_run in seeds if (kept := [p for p in of_run if p[1] is not None
                                                                                   or name in ("loss", "lr")])]
            if seeds:
                lines[group.label] = seeds
        every = [seed for seeds in lines.values() for seed in seeds]
        if name == "lr" and len(lines) > 1 and all(seed == every[0] for seed in every):
            lines, more = {"": every[:1]}, " The same in all of them."
        # What was looked at once, at the end, has no course.
        if lines and (name in ("loss", "lr") or any(len(epochs) > 1 for seeds in lines.values() for epochs, _ in seeds)):
            made.append(page.figure(f"training_{stage}_{name}", draw_curves(lines, ylabel, is_log),
                                    f"{ylabel} over the epochs of {', '.join(list(lines)[:6]) or 'all runs'}",
                                    f"{ylabel[0].upper()}{ylabel[1:]} over the epochs{several}.{more}"))
    return made
