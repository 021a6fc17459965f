"""Weights as others write them, out of models with random weights."""
import argparse
import json

import torch
from safetensors.torch import save_file

from models_mae import build_mae
from models_vit import build_vit
from util.weights_hf import to_hf


def small(classes=3, size=16, pool="avg"):
    torch.manual_seed(0)
    model = build_vit("vit_tiny_patch16", classes, size, patch_size=4, embed_dim=32, depth=2, num_heads=2, global_pool=pool)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def small_mae(size=16):
    torch.manual_seed(1)
    return build_mae("mae_vit_tiny_patch16", size, 3, 4, 32, 2, 2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def as_published(state, path):
    """As MAE and LiVT save: a pickled Namespace beside the weights."""
    args = argparse.Namespace(lr=1e-3, input_size=16, distributed=False, betas=(0.9, 0.95))
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 799, "scaler": {}, "args": args}, path)
    return path


def as_bare(state, path):
    torch.save(state, path)
    return path


def as_wrapped(state, path):
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "arch": "vit"}, path)
    return path


def as_safetensors(state, path):
    save_file(state, path)
    return path


def as_folder(state, path):
    path.mkdir()
    save_file(to_hf(state), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"num_attention_heads": 2, "image_size": 16}))
    return path


WRITERS = {"published": as_published, "bare": as_bare, "wrapped": as_wrapped, "safetensors": as_safetensors, "hf": as_folder}


def string_sorted(classes):
    """Official ids in the order of a tree of folders."""
    return sorted(range(classes), key=str)
