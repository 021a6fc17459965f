"""Sections of util/report.py about runs as a whole: the answer, the runs, what differs, metrics, differences."""
import numpy as np

from util.bootstrap import COLUMNS as WITH_INTERVAL
from util.compare import BETTER, UNDECIDED, WORSE
from util.metrics import column_text, column_title
from util.metrics_command import COLUMNS as ALL_COLUMNS
from util.report_groups import Group, setting_title, show
from util.report_page import Markup, details, escape, paragraph, table
from util.report_runs import is_number
from util.report_sweeps import Comparison

HEADLINE = ("overall", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece", "nll", "brier")
ACCURACIES = ("overall", "many", "medium", "few")
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
    body = turned([titled(group) for group in scored], [column_title(column) for column in shown],
                  [[cell(group, column) for column in shown] for group in scored])
    several = any(len(group.scored) > 1 for group in scored)
    how = ["Many: more than 100 training images, few: fewer than 20. ECE by the score of the loss's own activation."]
    how += ["Small print: the 95 % interval over test images (bootstrap), for one run; ± is the deviation over seeds. ECE of "
            "several seeds is the mean of theirs; a reliability diagram below lays their answers together, and has another."
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


def turned(names: list, titles: list[str], cells: list[list], corner: str = "") -> str:
    """A table with a row a name, and on a narrow screen the same with a column a name."""
    wide = table([corner, *titles], [[name, *row] for name, row in zip(names, cells, strict=True)])
    narrow = table([corner, *names], [[title, *column] for title, *column in zip(titles, *cells, strict=True)])
    return f'<div class="roomy">{wide}</div><div class="narrow">{narrow}</div>'


def titled(group: Group) -> Markup:
    """A group's name, and below it the settings that differ."""
    more = group.label[len(group.name):].strip(" ()")
    name = escape(group.name).replace("_", "_<wbr>").replace("/", "/<wbr>")
    return Markup(name + f"<small>{escape(more)}</small>" * bool(more))


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
            body += turned([name for name, *_ in rows], ["pairs", *titles], [row for _, *row in rows], f"{best.name} minus")
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
