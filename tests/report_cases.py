"""Run folders as the two stages write them, made up, for the tests of util.report."""
import json

import numpy as np
import torch
from PIL import Image

from util import report_page
from util.metrics import evaluate_logits
from util.run import RunFolder

COUNTS, NAMES = [500, 130, 20, 19], ["ant", "bee", "cat", "elk"]
EVALUATED = ("overall", "many", "medium", "few")


def made_run(folder, seed=0, names=NAMES, counts=COUNTS, images=120, skill=1.0, finished=True, epochs=3, draw=0, ids=None,
             record=None, **flags):
    """A run of stage 2; the higher `skill`, the more is right. draw: which labels, and with the seed, which logits."""
    labels = np.random.default_rng(draw).integers(0, len(names), images)
    logits = np.random.default_rng([draw, seed, 1]).normal(size=(images, len(names)))
    logits[np.arange(images), labels] += skill
    run = RunFolder(folder)
    settings = {"output_dir": str(folder), "resume": None, "seed": seed, "dataset": "embedded", "split": "test",
                "epochs": epochs, "loss": "bal_bce", "loss_args": [], "tau": 1.0, "finetune": None, "lr": 0.001, **flags}
    run.create(settings, {"data_hash": "d", "class_counts": counts, **(record or {})})
    result = evaluate_logits(logits.astype(np.float32), labels, counts, "sigmoid")
    write_log(folder, epochs, {key: result[key] for key in EVALUATED})
    if finished:
        run.write_predictions(torch.from_numpy(logits), torch.from_numpy(labels), np.arange(images) if ids is None else ids)
        run.write_json("metrics.json", {**result, "split": settings["split"], "data_source": "made up", "class_names": names,
                                        "class_counts": counts})
    return folder


def stand_in(monkeypatch):
    """{name of the file: Figure}: figures are drawn but not rendered, which takes most of the time; white pictures stand in."""
    figures = {}

    def save(figure, path):
        paths = [path, path.with_suffix(".pdf")]
        figures[path.stem] = figure
        for target in paths:
            Image.new("RGB", (198, 150), "white").save(target)
        return paths

    monkeypatch.setattr(report_page, "save_figure", save)
    return figures


def made_encoder(folder, **flags):
    """A run of stage 1 without a checkpoint."""
    run = RunFolder(folder)
    run.create({"output_dir": str(folder), "seed": 0, "mask_ratio": 0.75, "epochs": 3, "dataset": "embedded", **flags},
               {"data_hash": "d", "class_counts": COUNTS})
    write_log(folder, 3)
    run.write_json("metrics.json", {"epoch": 2, "train_loss": 0.5})
    return folder


def write_log(folder, epochs, evaluated=None):
    """log.jsonl with a falling loss."""
    lines = [{"epoch": epoch, "train_loss": 2.0 / (1 + epoch), "lr": 1e-3, **({"eval": evaluated} if evaluated else {})}
             for epoch in range(epochs)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
