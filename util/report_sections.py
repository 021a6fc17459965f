"""Sections of util/report.py about runs as a whole: the answer, the runs, what differs, metrics, sweeps, training curves."""
import numpy as np

from util import figures
from util.bootstrap import COLUMNS as WITH_INTERVAL
from util.compare import BETTER, UNDECIDED, WORSE
from util.figures_report import draw_curves, draw_points, fit, group_style
from util.metrics import column_text, column_title
from util.metrics_command import COLUMNS as ALL_COLUMNS
from util.report_groups import Group, setting_title, show
from util.report_page import Markup, Page, columns, details, escape, paragraph, table
from util.report_runs import Run, is_number
from util.report_sweeps import LOG_FROM, Comparison, Sweep, point, size_sweep, sweeps

HEADLINE = ("overall", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece", "nll", "brier")
ACCURACIES = ("overall", "many", "medium", "few")
MAX_LINES = 24  # curves in one figure
MAX_SWEEPS = 4
MAX_ROWS = 12  # runs in a table that is not folded
STAGES = {"finetune": "stage 2", "pretrain": "stage 1"}


def number(group: Group, column: str) -> str:
    """Mean of a metric in words: with its interval for one run, with the deviation over several."""
    mean, deviation = group.mean(column), group.std(column)
    if mean is None:
        return "-"
    unit = "" if column in ("brier", "nll") else " %"
    if deviation is not None:
        return f"{column_text(column, mean)} ± {column_text(column, deviation)}{unit}"
    bounds = group.scored[0].bounds.get(column)
    return f"{column_text(column, mean)}{unit}" + (f" [{', '.join(f'{b:.1f}' for b in bounds)}]" if bounds else "")


def answer(groups: list[Group], parts: list[list[Group]], compared: list[Comparison]) -> str:
    """What the page says, in a sentence or three."""
    scored = [group for part in parts for group in part]
    if not scored:
        return no_result(groups)
    if len(parts) > 1:
        return (f"The runs were scored on {len(parts)} different sets of images, so they stand side by side and are not "
                "compared across them.")
    best = compared[0].best if compared else scored[0]
    images = f"{len(best.scored[0].predictions.labels):,} {best.scored[0].result.get('split') or ''} images".replace("  ", " ")
    over = f" over {len(best.scored)} seeds" if len(best.scored) > 1 else ""
    groups_of = ", ".join(f"{name} {number(best, name)}" for name in ACCURACIES[1:] if best.mean(name) is not None)
    if not compared:
        return f"{best.name} has {number(best, 'overall')} of {images} right{over} ({groups_of})."
    sentences = [f"{best.name} is best by overall accuracy: {number(best, 'overall')} of {images} right{over}."]
    sure = [c for c in compared if c.rows and c.rows[0].verdict == BETTER]
    open_ = [c for c in compared if c.rows and c.rows[0].verdict != BETTER]
    if sure:
        sentences.append(f"It is ahead of {listed(sure)} by more than noise.")
    if open_:
        sentences.append(f"Against {listed(open_)} no difference is shown: what is seen lies within noise.")
    if any(c.seeds == 1 for c in compared):
        sentences.append("Where a setting has one run, this says nothing about another seed.")
    return " ".join(sentences)


def listed(compared: list[Comparison]) -> str:
    """Names of the others, each with the difference in points, the first five."""
    words = [f"{c.other.name} ({c.rows[0].difference:+.1f} points [{', '.join(f'{b:.1f}' for b in c.rows[0].interval)}])"
             for c in compared[:5]]
    if len(compared) > 5:
        return f"{', '.join(words)} and {len(compared) - 5} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def no_result(groups: list[Group]) -> str:
    """The answer where nothing was scored."""
    losses = {group.name: [run.log[-1]["train_loss"] for run in group.runs if run.log] for group in groups}
    known = [(name, float(np.mean(values))) for name, values in losses.items() if values and all(map(is_number, values))]
    stages = " and ".join(dict.fromkeys(STAGES[group.runs[0].stage] for group in groups))
    if not known:
        return f"Runs of {stages} without a result yet."
    words = ", ".join(f"{name} {loss:.4f}" for name, loss in known[:6]) + f" and {len(known) - 6} more" * (len(known) > 6)
    return f"Runs of {stages}, none of them scored. Training loss of the last epoch: {words}."


def runs_section(groups: list[Group]) -> str:
    """Every run with its state and what is wrong with it."""
    head = ["run", "stage", "epochs", "seed", "training images", "scored on", "state"]
    rows, notes = [], []
    for group in groups:
        for run in group.runs:
            epochs = f"{len(run.log)} of {run.flags.get('epochs')}" if run.log or not run.flags.get("eval") else "evaluation"
            images = sum(run.record.get("class_counts") or [])
            state = "finished" if run.finished else Markup('<span class="bad">not finished</span>')
            rows.append([run.name, STAGES[run.stage], epochs, show(run.flags.get("seed")), f"{images:,}" if images else "-",
                         run.scored_on if run.result else "-", state])
            notes += [paragraph(f"{run.name}: {note}.", "warn") for note in run.notes]
    made = table(head, rows, "wide", (1, 5, 6))
    return (made if len(rows) <= MAX_ROWS else details(f"{len(rows)} runs", made)) + "".join(notes)


def settings_section(groups: list[Group]) -> str:
    """What differs between the settings of one stage, and, folded, what they share."""
    parts = []
    for stage, words in STAGES.items():
        of_stage = [group for group in groups if group.runs[0].stage == stage]
        if not of_stage:
            continue
        varied = list(of_stage[0].varied)
        if varied:
            head = ["setting", "seeds", *(setting_title(name) for name in varied)]
            parts.append(table(head, [[group.name, seeds(group), *(show(group.varied[name])[:60] for name in varied)]
                                      for group in of_stage]))
        else:
            group = of_stage[0]
            parts.append(paragraph(f"{words.capitalize()}: one setting, seed{'s' * (len(group.runs) > 1)} {seeds(group)}."))
        same = {name: value for name, value in of_stage[0].runs[0].settings.items() if name not in varied}
        rows = [[setting_title(name), show(value)] for name, value in sorted(same.items())]
        parts.append(details(f"{len(rows)} settings that are the same ({words})",
                             table(["setting", "value"], rows, "wide", (1,))))
    return "".join(parts)


def seeds(group: Group) -> str:
    """The seeds of a group's runs."""
    return ", ".join(show(run.flags.get("seed")) for run in group.runs)


def metrics_section(parts: list[list[Group]]) -> str:
    """The metrics side by side, everything else folded."""
    scored = [group for part in parts for group in part]
    if not scored:
        return ""
    shown = [column for column in HEADLINE if any(group.mean(column) is not None for group in scored)]
    body = table(["", *(column_title(column) for column in shown)],
                 [[titled(group), *(cell(group, column) for column in shown)] for group in scored])
    several = any(len(group.scored) > 1 for group in scored)
    how = ["Many: more than 100 training images, few: fewer than 20. ECE by the score of the loss's own activation."]
    how += ["Small print: the 95 % interval over test images (bootstrap), for one run; ± is the deviation over seeds."
            if several else "Small print: the 95 % interval over test images (bootstrap)."]
    everything = table(["", *(group.name for group in scored)],
                       [[column_title(column), *(cell(group, column) for group in scored)] for column in ALL_COLUMNS
                        if column != "activation"])
    body += paragraph(" ".join(how), "note") + details("All metrics", everything)
    if several:
        rows = [[run.name, *(cell(Group(run.name, [run], {}), column) for column in shown)]
                for group in scored for run in group.scored]
        body += details("Every run by itself", table(["", *(column_title(column) for column in shown)], rows))
    return body


def titled(group: Group) -> Markup:
    """A group's name, and below it the settings that differ."""
    more = group.label[len(group.name):].strip(" ()")
    return Markup(escape(group.name) + f"<small>{escape(more)}</small>" * bool(more))


def cell(group: Group, column: str) -> Markup:
    """A metric of a group for a table, what is known of its uncertainty below it."""
    mean, deviation = group.mean(column), group.std(column)
    if mean is None:
        return Markup("-")
    text = column_text(column, mean)
    if deviation is not None:
        return Markup(f"{text}<small>± {column_text(column, deviation)}</small>")
    bounds = group.scored[0].bounds.get(column) if column in WITH_INTERVAL else None
    return Markup(text + (f"<small>[{', '.join(column_text(column, bound) for bound in bounds)}]</small>" if bounds else ""))


def comparison_section(compared: list[list[Comparison]], reasons: list[str]) -> str:
    """Best against each other one: differences with intervals, and what they show."""
    body = "".join(paragraph(f"Not compared: {reason}.", "warn") for reason in dict.fromkeys(reasons))
    for part in (part for part in compared if part):
        best, first = part[0].best, next((c.rows for c in part if c.rows), None)
        for c in (c for c in part if not c.rows):
            body += paragraph(f"{c.other.name} is not compared with {best.name}: {c.why}.", "warn")
        if first:
            rows = [[titled(c.other), str(c.seeds), *(difference(row) for row in c.rows)] for c in part if c.rows]
            titles = [column_title(row.column).replace(" %", ", points") for row in first]
            body += table([f"{best.name} minus", "pairs", *titles], rows)
    if any(compared):
        body += paragraph(
            "Positive: the first setting is higher. Intervals are 95 %, by a bootstrap paired over test images and, where "
            "both have several seeds, over seeds (python -m util.compare). Each row errs in about 5 % of cases where there is "
            "nothing, and the best of many was chosen by the same images.", "note")
    return body


def difference(row) -> Markup:
    """A row of util.compare for a table."""
    if row.difference is None:
        return Markup("-")
    kind = {BETTER: "good", WORSE: "bad", UNDECIDED: ""}[row.verdict]
    bounds = f"[{', '.join(f'{bound:.1f}' for bound in row.interval)}]" if row.interval else ""
    return Markup(f'<span class="{kind}">{row.difference:+.1f}</span><small>{bounds}</small>'
                  f'<small class="verdict">{row.verdict}</small>')


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
        # What was looked at once, at the end, has no course.
        if lines and (name in ("loss", "lr") or any(len(epochs) > 1 for seeds in lines.values() for epochs, _ in seeds)):
            made.append(page.figure(f"training_{stage}_{name}", draw_curves(lines, ylabel, is_log),
                                    f"{ylabel} over the epochs of {', '.join(list(lines)[:6])}",
                                    f"{ylabel[0].upper()}{ylabel[1:]} over the epochs{several}.{more}"))
    return made
