"""The README.md of an exported model: what it is, on what it was trained, what it reached, how to use it."""
from util.trained import Trained

USE = {
    "timm": 'model = timm.create_model("local-dir:DIR", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    "safetensors": "python predict.py DIR photographs            # in the project that made it",
    "hf": 'model = transformers.ViTMAEForPreTraining.from_pretrained("DIR")',
    "onnx": 'session = onnxruntime.InferenceSession("DIR/model.onnx")\n'
            'scores = session.run(None, {"images": images})[0]          # (N, C, H, W) float32, normalised as below',
    "torch_export": 'model = torch.export.load("DIR/model.pt2").module()\n'
                    "scores = model(images)                                     # (N, C, H, W) float32, normalised as below",
}
SETTINGS = ("model", "patch_size", "embed_dim", "depth", "num_heads", "cls_token", "input_size", "loss", "loss_args", "tau",
            "test_prior", "sampler", "head_bias", "epochs", "warmup_epochs", "lr", "blr", "min_lr", "batch_size",
            "accum_iter", "effective_batch_size", "weight_decay", "layer_decay", "drop_path", "smoothing", "mixup", "cutmix",
            "reprob", "aa", "mask_ratio", "norm_pix_loss", "ema", "imb_factor", "data_seed", "seed")
METRICS = {"overall": "top-1 %", "many": "many-shot %", "medium": "medium-shot %", "few": "few-shot %",
           "balanced_accuracy": "mean over classes %", "ece": "ECE %", "nll": "NLL", "train_loss": "training loss"}


def model_card(trained: Trained, checkpoint: dict, form: str, metrics: dict | None) -> str:
    """Markdown with the front matter that model hubs read; the licence is left to the one who publishes it.

    metrics: metrics.json of the run, None where there is none of this epoch.
    """
    settings, stage = checkpoint["args"], 2 if trained.criterion else 1
    what = "a classifier, balanced fine-tuning (stage 2)" if stage == 2 else "an encoder, masked pretraining (stage 1)"
    epochs = f"{trained.epochs} epoch{'s' * (trained.epochs != 1)}"
    library = {"timm": "library_name: timm\n", "hf": "library_name: transformers\n"}.get(form, "")
    tags = "image-classification" if stage == 2 else "image-feature-extraction"
    lines = [f"---\n{library}pipeline_tag: {tags}\n# license: choose one; the data it was trained on may bind you\n---",
             f"# {settings['model']}, {settings['dataset']}", f"LiVT, {what}, {epochs}.",
             "## Use", f"```\n{USE[form]}\n```", *outputs(trained), "## Data", *data(trained, checkpoint),
             "## Results", *results(metrics), "## Settings",
             table((f"`--{name}`", settings[name]) for name in SETTINGS if settings.get(name) not in (None, [], False))]
    return "\n\n".join(lines) + "\n"


def outputs(trained: Trained) -> list[str]:
    """What goes in and what comes out."""
    size = f"{trained.size[0]} x {trained.size[1]}"
    channels = f"{trained.record.channels} channel{'s' * (trained.record.channels != 1)}"
    lines = [f"Images: {channels} in [0, 1], minus mean {numbers(trained.record.mean)}, over std "
             f"{numbers(trained.record.std)}; resized (bicubic) so that they cover {size} / {trained.crop_pct:g}, and cut to "
             f"the middle {size}."]
    if trained.criterion is None:
        return [*lines, "Features; there is no head."]
    kind = trained.criterion.activation
    words = "each class's own, so that they do not add up to 1" if kind == "sigmoid" else "adding up to 1"
    lines.append(f"Scores: logits of {len(trained.class_names):,} classes, in the order of `label_names` in config.json; the "
                 f"{kind} of them are probabilities, {words}.")
    if trained.criterion.cosine_head:
        lines.append("The head is a cosine classifier: features and class directions are divided by their norms, and the "
                     f"cosine is multiplied by {trained.criterion.logit_scale:g}.")
    return lines


def data(trained: Trained, checkpoint: dict) -> list[str]:
    """The data set by its name, and how skewed it is."""
    counts = checkpoint["class_counts"]
    words = f"`{checkpoint['args']['dataset']}`, {sum(counts):,} training images"
    if trained.criterion:
        words += f" of {len(counts):,} classes, from {max(counts):,} of the largest down to {min(counts):,} of the smallest"
    return [words + "."]


def results(metrics: dict | None) -> list[str]:
    """The numbers of the run, with the images that gave them."""
    if metrics is None:
        return ["None: there was no metrics.json of this epoch beside the checkpoint."]
    rows = [(words, f"{metrics[name]:.4g}") for name, words in METRICS.items() if isinstance(metrics.get(name), int | float)]
    scored = f"On {metrics['num_samples']:,} images, split {metrics.get('split')}. " if "num_samples" in metrics else ""
    return [f"{scored}Many-shot classes have more than 100 training images, few-shot fewer than 20." * bool(scored)
            or "Of the training images.", table(rows)]


def table(rows) -> str:
    """A table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def numbers(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
