"""Sections of util/report.py with pictures: images that a run gets wrong with most confidence, and reconstructions."""
import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import build_dataset
from datasets.decode import UnreadableImage
from datasets.imageset import ImageSet
from datasets.transforms import eval_transform, to_pil
from models_mae import as_pair
from util import reconstruct
from util.calibration import confidence
from util.figures_pictures import draw_rows
from util.figures_report import fit
from util.predictions import read_json
from util.report_classes import shown
from util.report_groups import Group
from util.report_page import Page, details, escape, paragraph
from util.report_runs import Run, origin
from util.report_text import clean

PICTURES = 12  # a setting
LARGEST = 160  # pixels of a picture in the page
SMALL = 64  # up to it, pixels stay squares when a picture is enlarged
ENCODERS = 4


def most_wrong(run: Run, most: int = PICTURES) -> np.ndarray:
    """Places of the wrong answers with the highest confidence, by the run's own activation, highest first.

    Of equal confidences (scores saturate at 1) the one that is further ahead of the true class comes first.
    """
    logits, labels = run.predictions.logits, run.predictions.labels
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    score = confidence(logits[wrong], run.result["activation"]) if len(wrong) else np.zeros(0)
    ahead = logits[wrong].max(axis=1) - logits[wrong, labels[wrong]] if len(wrong) else np.zeros(0)
    return wrong[np.lexsort((-ahead, -score))][:most]


def scored_images(run: Run) -> tuple[ImageSet, dict[str, int]]:
    """The data set of a run's evaluation by its args.json, and {id: place} in it. ValueError where it cannot be read, or has
    other classes."""
    flags = run.flags
    held_out = flags.get("val_fraction") is not None
    images = build_dataset(flags["dataset"], "train" if held_out else flags.get("split") or "test", flags.get("data_path"),
                           flags.get("mean"), flags.get("std"), flags.get("imb_factor"), flags.get("data_seed"))
    names = run.predictions.class_names
    if sorted(images.class_names) != sorted(names):
        raise ValueError(f"{images.source} has other classes than the run")
    return images.in_order(names), {str(name): place for place, name in enumerate(images.ids)}


def load_wrong(run: Run, places: np.ndarray) -> list[Image.Image]:
    """The pictures at `places` of the predictions, cut as the network sees them. ValueError where they are not there."""
    if run.predictions.ids is None:
        raise ValueError("predictions.npz has no ids")
    images, place_of = scored_images(run)
    transform = eval_transform(as_pair(run.flags["input_size"]), run.flags.get("crop_pct", 1.0))
    found = []
    for place in places:
        name = str(run.predictions.ids[place])
        if name not in place_of or images.labels[place_of[name]] != run.predictions.labels[place]:
            raise ValueError(f"{images.source} has no image {name} of that class")
        found.append(to_pil(transform(images.image(place_of[name]))))
    return found


def wrong_section(page: Page, part: list[Group], mark: str) -> str:
    """For each setting the pictures of its first run, with what they are, what they were taken for and how surely."""
    groups, body = shown(part)
    for place, group in enumerate(groups):
        run = group.scored[0]
        places = most_wrong(run)
        made = wrong_pictures(page, run, places, f"wrong{mark}_{place}") if len(places) else paragraph("No image is wrong.")
        if len(group.scored) > 1:
            made += paragraph(f"Of {run.name}, the first of {len(group.scored)} seeds.", "note")
        body += made if len(groups) == 1 else details(group.label, made, place == 0)
    return body


def wrong_pictures(page: Page, run: Run, places: np.ndarray, name: str) -> str:
    """A gallery, and the same for print; a sentence and a list without pictures where the data set cannot be read."""
    names, logits, labels = run.class_names, run.predictions.logits[places], run.predictions.labels[places]
    answers, score = logits.argmax(axis=1), 100 * confidence(logits, run.result["activation"])
    words = [(names[label], names[answer], f"{sure:.1f} %" if sure < 99.95 else "100 %")
             for label, answer, sure in zip(labels, answers, score, strict=True)]
    try:
        pictures = load_wrong(run, places)
    except (ValueError, OSError, KeyError, UnreadableImage) as error:
        items = "".join(f"<li>{escape(true)} taken for {escape(answer)}, {sure}</li>" for true, answer, sure in words)
        return paragraph(f"The pictures cannot be shown, because the data set of args.json cannot be read here: "
                         f"{str(error).splitlines()[-1]}.", "warn") + f"<ul>{items}</ul>"
    tiles = []
    for picture, (true, answer, sure) in zip(pictures, words, strict=True):
        kind = ' class="pixels"' if max(picture.size) <= SMALL else ""
        tiles.append(f'<figure><img{kind} src="{thumbnail(picture)}" width="{picture.width}" height="{picture.height}" '
                     f'alt="{escape(true)} taken for {escape(answer)}"><figcaption>{escape(true)}<br>as {escape(answer)}<br>'
                     f"{sure}</figcaption></figure>")
    rows = {"image": np.stack([np.asarray(picture.convert("RGB"), dtype=np.float64) / 255 for picture in pictures])}
    captions = [f"{true}\nas {answer}\n{sure}" for true, answer, sure in words]
    page.save(name, fit(draw_rows(rows, f"{run.name}: wrong and most confident", captions, 6)))
    return f'<div class="gallery">{"".join(tiles)}</div>' + page.link(name, "The same for print: ")


def thumbnail(picture: Image.Image) -> str:
    """A picture as data: PNG as it is where it is small, else JPEG of at most LARGEST pixels a side."""
    small, data = picture.copy(), io.BytesIO()
    kind = "png" if max(small.size) <= SMALL else "jpeg"
    small.thumbnail((LARGEST, LARGEST))
    small.save(data, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def encoders(groups: list[Group]) -> list[tuple[str, Path | None]]:
    """(words, run folder) of every stage-1 run that is reported, or that a reported run began with; None where it is gone.

    A classifier that a run began with has no decoder, so it is none of them.
    """
    found: dict = {}
    for run in (run for group in groups for run in group.runs):
        if run.stage == "pretrain":
            found.setdefault(run.folder.resolve(), (run.name, run.folder))
        elif run.flags.get("finetune"):
            path = run.flags["finetune"]
            place = origin(path, run.folder, run.flags.get("output_dir"))
            if place and "mask_ratio" not in read_json(place / "args.json")["args"]:
                continue
            name = "/".join(place.resolve().parts[-2:]) if place else path
            found.setdefault(place.resolve() if place else path, (f"{clean(name)}, the encoder of {run.name}", place))
    return list(found.values())


def reconstruction_section(page: Page, groups: list[Group]) -> str:
    """What the encoders make of masked pictures: made by util.reconstruct under the same masks, else the runs' own figures."""
    known = encoders(groups)
    there = [(name, folder) for name, folder in known[:ENCODERS] if folder is not None]
    body = "".join(paragraph(f"No reconstruction: {name}, is not there.", "warn") for name, folder in known[:ENCODERS]
                   if folder is None)
    if len(known) > ENCODERS:
        body += paragraph(f"Shown are the first {ENCODERS} of {len(known)} encoders.", "note")
    if not there:
        return body
    names = "; ".join(name for name, _ in there)
    try:
        made = draw_reconstructions([folder / "last.pth" for _, folder in there], page.folder / "reconstructions.png")
    except (ValueError, OSError, UnreadableImage) as error:
        reason = str(error).splitlines()[-1]
        return body + own_figures(page, there, reason)
    page.files += made
    return body + page.picture(made[0], f"Pictures, the same masked, and reconstructions by {names}",
                               f"Test images, masked, and what the decoder makes of them: {names}.")


def draw_reconstructions(checkpoints: list[Path], out: Path) -> list[Path]:
    """`python -m util.reconstruct` on checkpoints, with its defaults."""
    flags = reconstruct.get_args_parser().parse_args(["--checkpoint", "given below"])
    flags.checkpoint, flags.out = [str(path) for path in checkpoints], str(out)
    return reconstruct.main(flags)


def own_figures(page: Page, there: list[tuple[str, Path]], reason: str) -> str:
    """figures/reconstructions.png of each run, with the reason why there is nothing newer."""
    body = paragraph(f"Not made anew ({reason}).", "warn")
    for name, folder in there:
        path = folder / "figures" / "reconstructions.png"
        if path.is_file():
            body += page.picture(path, f"Reconstructions by {name} at its last epoch", f"{name}: the run's own figure.")
        else:
            body += paragraph(f"{name} has no figures/reconstructions.png.", "warn")
    return body
