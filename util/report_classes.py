"""Sections of util/report.py about classes: accuracy by size, confusions, reliability. A part is groups of the same images."""
from typing import NamedTuple

import numpy as np

from util import figures
from util.calibration import calibration, confidence
from util.figures import NAMED_CLASSES
from util.figures_compare import COLORS, draw_class_accuracies
from util.figures_report import draw_frequency, fit
from util.metrics import MATRIX_MAX_CLASSES, confusion_matrix
from util.report_groups import Group
from util.report_page import Page, Shaded, columns, details, paragraph, table

DETAILED = 8  # settings of which every class, pair and picture is shown
BARS = 12  # classes beside one another in bars of several settings
CONFUSIONS = 10
LOWEST = 10
SIDE_BY_SIDE = 4  # reliability diagrams in a row


def counts_of(group: Group) -> np.ndarray:
    """Training images (C,) of the classes of a group."""
    return np.array(group.scored[0].predictions.result["class_counts"])


def shown(part: list[Group]) -> tuple[list[Group], str]:
    """The groups that are shown in detail, and a sentence where these are not all: the best by overall accuracy."""
    if len(part) <= DETAILED:
        return part, ""
    best = sorted(part, key=lambda group: -group.mean("overall"))[:DETAILED]
    kept = [group for group in part if group in best]
    return kept, paragraph(f"Shown are the {DETAILED} of {len(part)} settings with the highest overall accuracy.", "note")


def accuracy_section(page: Page, part: list[Group], mark: str) -> str:
    """Accuracy of every class, largest first: one figure for a few settings, else one each, and a table."""
    groups, body = shown(part)
    counts, names = counts_of(groups[0]), groups[0].scored[0].class_names
    same = all((counts_of(group) == counts).all() for group in groups)
    title = "accuracy by class, largest class first"
    if same and 1 < len(groups) <= len(COLORS) and len(names) <= BARS:
        figure = draw_class_accuracies({group.label: group.class_accuracy() for group in groups}, counts, names, title)
        body += page.figure(f"classes{mark}", fit(figure), f"Bars of {title} for {', '.join(group.name for group in groups)}",
                            title.capitalize() + ", means over seeds." * any(len(group.scored) > 1 for group in groups))
    else:
        for place, group in enumerate(groups):
            figure = figures.draw_per_class_accuracy(group.class_accuracy(), counts_of(group), names)
            made = page.figure(f"classes{mark}_{place}", fit(figure), f"Bars of {title} for {group.name}, and the training "
                               "images of the classes as a line", f"{group.label}: {title}.")
            body += made if len(groups) == 1 else details(group.label, made, place == 0)
    return body + class_table(groups, counts, names, same)


def class_table(groups: list[Group], counts: np.ndarray, names: list[str], same: bool) -> str:
    """All classes, or of many those that the first group is worst at, with accuracies shaded by their size."""
    accuracy = np.array([group.class_accuracy() for group in groups])
    order, what = np.argsort(-counts, kind="stable"), "Table of all classes"
    if len(names) > NAMED_CLASSES:
        best = groups[int(np.argmax([group.mean("overall") for group in groups]))]
        of_best = best.class_accuracy()
        order = np.argsort(np.where(np.isnan(of_best), np.inf, of_best), kind="stable")[:LOWEST]
        what = f"The {LOWEST} of {len(names):,} classes that {best.name} is worst at"
    head = ["class", *(["training images"] if same else []), *(group.name for group in groups)]
    rows = []
    for k in order:
        cells = [f"{counts[k]:,}"] if same else []
        for place, group in enumerate(groups):
            value = accuracy[place, k]
            text = "-" if np.isnan(value) else f"{value:.1f}"
            text += "" if same else f" ({counts_of(group)[k]:,})"
            cells.append(Shaded(text, 0.0 if np.isnan(value) else value / 100))
        rows.append([names[k], *cells])
    note = "" if same else paragraph("In brackets: training images.", "note")
    more = paragraph("python -m util.metrics RUN --csv writes all of them.", "note") if len(names) > NAMED_CLASSES else ""
    return details(f"{what}: accuracy in percent", table(head, rows) + note + more)


def frequency_section(page: Page, part: list[Group], mark: str) -> str:
    """Accuracy over class frequency, a dot a class and a smoothed line for each setting."""
    groups, note = shown(part)
    classes = {group.label: (counts_of(group), group.class_accuracy()) for group in groups}
    drawn = {label: (counts, accuracy) for label, (counts, accuracy) in classes.items()
             if ((counts > 0) & ~np.isnan(accuracy)).any()}
    if not drawn:
        return paragraph("No class has both training and test images, so there is nothing to draw.")
    figure = page.figure(f"frequency{mark}", draw_frequency(drawn), "Scatter of class accuracy over training images of the "
                         f"class, with a smoothed line, for {', '.join(group.name for group in groups)}",
                         "A dot is a class; lines are means weighted by a Gaussian over the logarithm of the class size. "
                         "Dotted: the borders of few, medium and many.")
    return columns([figure]) + note


class Confusion(NamedTuple):
    """Images of class `label` that were answered `answer`: their number (mean over seeds), and percent of the class."""
    label: int
    answer: int
    images: float
    share: float


def largest_confusions(group: Group, most: int = CONFUSIONS) -> list[Confusion]:
    """The pairs with the most images, largest first; of equal ones the lower classes first."""
    runs = [run.predictions for run in group.scored]
    labels = np.concatenate([run.labels for run in runs])
    answers = np.concatenate([run.logits.argmax(axis=1) for run in runs])
    classes = runs[0].logits.shape[1]
    wrong = labels != answers
    pairs, times = np.unique(labels[wrong] * classes + answers[wrong], return_counts=True)
    images = np.bincount(labels, minlength=classes)
    found = []
    for place in np.argsort(-times, kind="stable")[:most]:
        label, answer = divmod(int(pairs[place]), classes)
        found.append(Confusion(label, answer, times[place] / len(runs), 100.0 * times[place] / images[label]))
    return found


def confusion_section(page: Page, part: list[Group], mark: str) -> str:
    """The largest confusions of each setting as a table, and the whole matrix where it can be seen."""
    groups, body = shown(part)
    for place, group in enumerate(groups):
        names, counts = group.scored[0].class_names, counts_of(group)
        rows = [[names[pair.label], f"{counts[pair.label]:,}", names[pair.answer], f"{counts[pair.answer]:,}",
                 f"{pair.images:,.0f}" if len(group.scored) == 1 else f"{pair.images:,.1f}",
                 Shaded(f"{pair.share:.1f} %", pair.share / 100)] for pair in largest_confusions(group)]
        head = ["true class", "training images", "taken for", "training images", "images", "of the class"]
        made = table(head, rows, "wide", (2,)) if rows else paragraph("No image is wrong.")
        if rows and 1 < len(names) <= MATRIX_MAX_CLASSES:
            matrix = sum(confusion_matrix(run.predictions.logits.argmax(axis=1), run.predictions.labels, len(names))
                         for run in group.scored)
            figure = fit(figures.draw_confusion(matrix, names, counts), square=True)
            made += page.figure(f"confusion{mark}_{place}", figure, f"Confusion matrix of {group.name} in percent of the true "
                                "class", f"{group.label}: confusion matrix, largest class first.")
        body += made if len(groups) == 1 else details(group.label, made, place == 0)
    if any(len(group.scored) > 1 for group in groups):
        body += paragraph("Of several seeds: mean numbers of images.", "note")
    return body


def reliability_section(page: Page, part: list[Group], mark: str) -> str:
    """Accuracy by confidence for each setting, by the scores of its own activation, all seeds together."""
    groups, body = shown(part)
    diagrams = {}
    for group in groups:
        score = [confidence(run.predictions.logits, run.result["activation"]) for run in group.scored]
        right = [run.predictions.logits.argmax(axis=1) == run.predictions.labels for run in group.scored]
        diagrams[group.name[:24]] = calibration(np.concatenate(score), np.concatenate(right))
    names = list(diagrams)
    pooled = " Seeds lie in one diagram, so its ECE is not the mean of theirs." * any(len(g.scored) > 1 for g in groups)
    for start in range(0, len(names), SIDE_BY_SIDE):
        some = names[start:start + SIDE_BY_SIDE]
        figure = fit(figures.draw_reliability_diagram({name: diagrams[name] for name in some}))
        body += page.figure(f"reliability{mark}_{start // SIDE_BY_SIDE}", figure, "Reliability diagrams: "
                            + ", ".join(f"{name} ECE {diagrams[name].ece:.1f} %" for name in some),
                            "Accuracy by confidence of the answer, 15 bins; below, where the images lie." + pooled)
    return body
