"""Models out of checkpoints, for everything that looks into a trained network or uses one.

Model, size, channels, statistics and classes are the checkpoint's own; no flag has to repeat them.
"""
import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from datasets import LAYOUTS, RECORDS, build_dataset, find_record
from datasets.imageset import ImageSet, Record
from datasets.transforms import Normalize, eval_transform
from models_mae import MaskedAutoencoderViT, as_pair, build_mae, patch_grid
from models_vit import Classifier, build_vit, load_classifier, load_encoder
from util.args_finetune import LOSS_SETTINGS, build_criterion
from util.checkpoint import check_stage, load_checkpoint, trained_weights
from util.losses import Loss
from util.precision import choose_amp, choose_attention
from util.seed import derive_seed, seeded
from util.weights import open_weights

CPU = torch.device("cpu")
# Sets whose images have the channels that they have; images in files are read as grey or colour, whatever they are.
IN_MEMORY = ("embedded", "cifar10_lt", "cifar100_lt")
# Sets without a split to evaluate, and most of them without labels.
STAGE_1_ONLY = ("unlabeled", "shards")


@dataclass
class Trained:
    """A model in evaluation mode on its device, and what it was trained with.

    stage: "pretrain" or "finetune"; settings: the flags of its training; record: channel statistics of its images;
    epochs: whole epochs behind it; class_counts: training images (C,). criterion is the loss of stage 2, whose activation
    and logit_scale make scores of logits; None for stage 1.
    """

    path: str
    stage: str
    model: nn.Module
    settings: dict
    record: Record
    normalize: Normalize
    epochs: int
    class_names: list[str]
    class_counts: list[int]
    criterion: Loss | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        return as_pair(self.settings["input_size"])

    @property
    def crop_pct(self) -> float:
        """Share of the resized image that its evaluation sees; all of it where stage 1 says nothing."""
        return self.settings.get("crop_pct", 1.0)

    @property
    def name(self) -> str:
        """Checkpoint and epoch, for tables."""
        return f"{self.path}, {self.epochs} epoch{'s' * (self.epochs != 1)}"

    def batch(self, images: list[Image.Image], crop_pct: float | None = None) -> torch.Tensor:
        """PIL images as `ImageSet.image` gives them -> (N, C, H, W) normalised on the model's device."""
        transform = eval_transform(self.size, self.crop_pct if crop_pct is None else crop_pct)
        return self.normalize(torch.stack([transform(image) for image in images]).to(self.normalize.factor.device))


def open_checkpoint(path, stage: str | None = None) -> dict:
    """As `load_checkpoint`, of a folder that util/export.py made too."""
    if not Path(path).is_dir():
        return load_checkpoint(path, stage)
    weights = open_weights(path)
    if weights.checkpoint is None:
        raise ValueError(f"{path} is of {weights.form} and does not say what it was trained on: give a last.pth of this "
                         "project, or a folder that python -m util.export made of one")
    check_stage(path, weights.checkpoint, stage)
    return weights.checkpoint


def load_mae(path, device: torch.device = CPU) -> Trained:
    """The autoencoder of a stage-1 checkpoint. ValueError for a file that `load_checkpoint` refuses, and for one of stage 2,
    which has no decoder."""
    state = open_checkpoint(path)
    if state["stage"] != "pretrain":
        source = state["args"].get("finetune")
        raise ValueError(f"{path} is a classifier of stage 2 and has no decoder to reconstruct with: give the last.pth of "
                         "main_pretrain.py" + f" that it began with, {source}" * bool(source))
    model = autoencoder(state["args"], record_of(state).channels)
    load_classifier(model, trained_weights(state))
    return assemble(path, state, model, device)


def load_classifier_model(path, device: torch.device = CPU) -> Trained:
    """The classifier of a stage-2 checkpoint, model(images) -> logits (N, C). ValueError as of `load_checkpoint`."""
    state = open_checkpoint(path, "finetune")
    settings = state["args"]
    loss = argparse.Namespace(**{name: settings[name] for name in LOSS_SETTINGS})
    criterion = build_criterion(loss, state["class_counts"], state["class_names"])
    model = classifier(settings, record_of(state).channels, len(state["class_names"]), criterion.cosine_head)
    load_classifier(model, trained_weights(state))
    return assemble(path, state, model, device, criterion)


def load_encoder_model(path, device: torch.device = CPU, untrained: bool = False) -> Trained:
    """The encoder of either stage, timm's VisionTransformer without a head: `encode` makes features of images.

    untrained: fresh weights of the same architecture instead, as a run of the checkpoint's seed starts with.
    """
    state = open_checkpoint(path)
    settings, channels = state["args"], record_of(state).channels
    with seeded(derive_seed(settings["seed"], "start")):
        if state["stage"] == "finetune":
            cosine_head = "head.bias" not in trained_weights(state)
            model = classifier(settings, channels, len(state["class_names"]), cosine_head)
            if not untrained:
                load_classifier(model, trained_weights(state))
        else:
            weights = autoencoder(settings, channels).state_dict() if untrained else trained_weights(state)
            named = {**settings, "model": settings["model"].removeprefix("mae_"), "cls_token": True}
            model = classifier(named, channels, 1)
            load_encoder(model, weights, patch_grid(as_pair(settings["input_size"]), model.patch_embed.patch_size[0]))
    model.head = nn.Identity()
    return assemble(path, state, model, device)


def encode(model: Classifier, images: torch.Tensor, pool: str) -> torch.Tensor:
    """Features (N, D) of normalised images (N, C, H, W): the "mean" over the patch tokens, or the "cls" token.

    Normed as the model does it: before pooling where it ends in a norm, behind it where it has an fc_norm.
    """
    tokens = model.forward_features(images)
    return model.fc_norm(tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0])


def own_pool(trained: Trained) -> str:
    """The pooling that a classifier was trained with, and "mean" for stage 1."""
    return "cls" if trained.settings.get("cls_token") else "mean"


def load_split(trained: Trained, split: str | None, dataset: str | None = None, data_path: str | None = None,
               imb_factor: float | None = None, data_seed: int | None = None) -> ImageSet:
    """Images for a trained model with its own statistics: a split of the data set that it was trained on, or of another one.

    What is None is the checkpoint's, unless `dataset` names another set; split None is the one to look at: test, or train
    of a set that is for stage 1 only. ValueError as `build_dataset`, and where the channels differ.
    """
    settings = trained.settings if dataset in (None, trained.settings["dataset"]) else {}
    dataset = dataset or settings["dataset"]
    if dataset in IN_MEMORY and RECORDS[dataset].channels != trained.record.channels:
        raise ValueError(f"{trained.path} was trained on images of {trained.record.channels} channels, --dataset {dataset} has "
                         f"{RECORDS[dataset].channels}: give images of its own kind")
    path, factor, seed = (settings.get(name) if given is None else given for name, given in (
        ("data_path", data_path), ("imb_factor", imb_factor), ("data_seed", data_seed)))
    if path is None and dataset in LAYOUTS:
        raise ValueError(f"--dataset {dataset} needs --data_path DIR: {LAYOUTS[dataset]}")
    split = split or ("train" if dataset in STAGE_1_ONLY else "test")
    return build_dataset(dataset, split, path, trained.record.mean, trained.record.std, factor, seed)


def record_of(state: dict) -> Record:
    """Channel statistics of a checkpoint: its flags', or those of its data set."""
    settings = state["args"]
    return find_record(settings["dataset"], settings["mean"], settings["std"])


def autoencoder(settings: dict, channels: int) -> MaskedAutoencoderViT:
    """The network of stage 1 with fresh weights, by the flags of its training."""
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss")
    return build_mae(settings["model"], as_pair(settings["input_size"]), channels, settings["patch_size"],
                     settings["embed_dim"], settings["depth"], settings["num_heads"],
                     **{name: settings[name] for name in names})


def classifier(settings: dict, channels: int, classes: int, cosine_head: bool = False) -> Classifier:
    """The network of stage 2 with fresh weights, by the flags of its training."""
    return build_vit(settings["model"], classes, as_pair(settings["input_size"]), channels,
                     global_pool="token" if settings["cls_token"] else "avg", patch_size=settings["patch_size"],
                     embed_dim=settings["embed_dim"], depth=settings["depth"], num_heads=settings["num_heads"],
                     cosine_head=cosine_head, layer_scale=settings.get("layer_scale"))


def assemble(path, state: dict, model: nn.Module, device: torch.device, criterion: Loss | None = None) -> Trained:
    """Put the model on its device, with the attention that is fast there, beside what its checkpoint says."""
    choose_attention(model, device, choose_amp("auto", device)[0])
    record = record_of(state)
    return Trained(str(path), state["stage"], model.to(device).eval(), state["args"], record, Normalize(record, device),
                   state["progress"]["epoch"], state["class_names"], state["class_counts"], criterion)
