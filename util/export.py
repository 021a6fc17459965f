"""A trained model for other programs: one folder with weights, config.json and a model card.

    python -m util.export runs/bft/last.pth --format timm --out exported
    python -m util.export runs/mgp/last.pth --format hf --out exported_mae

timm           timm.create_model("local-dir:DIR", pretrained=True); of stage 1 the encoder, with mean-pooled features
safetensors    the weights by MAE's names, all of them; this project opens it like a checkpoint
hf             ViTMAEForPreTraining.from_pretrained(DIR), of stage 1
onnx           model.onnx, of any batch size
torch_export   model.pt2 for torch.export.load, of any batch size

Images go in as config.json says: RGB (or grey) in [0, 1], minus mean, over std. What comes out are the logits that the
activation in config.json makes probabilities of, and of stage 1 features.
"""
import importlib.util
import json
import os
import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models_vit import CosineHead
from util.args import Parser, run_command
from util.model_card import model_card
from util.predictions import read_json
from util.run import say
from util.trained import Trained, encode, load_classifier_model, load_encoder_model, load_mae, own_pool
from util.weights import open_weights, read_safetensors
from util.weights_config import EXPORTED
from util.weights_hf import from_hf, mae_config, to_hf

# Flags that name places of the machine that trained.
PLACES = ("output_dir", "resume", "finetune", "data_path", "device")
EXTERNAL_BYTES = 2**30  # a protobuf, which ONNX files are, ends at 2 GiB: larger weights lie beside
NEEDS = {"onnx": "onnx", "onnxscript": "onnxscript"}


class Deployed(nn.Module):
    """images (N, C, H, W), normalised -> what the activation takes, (N, classes); of stage 1 features (N, D)."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.model, self.pool = trained.model, None if trained.criterion else own_pool(trained)
        self.scale = trained.criterion.logit_scale if trained.criterion else 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pool:
            return encode(self.model, images, self.pool)
        return self.model(images) * self.scale


def example(trained: Trained, batch: int) -> torch.Tensor:
    """Made-up normalised images (batch, C, H, W)."""
    return torch.randn(batch, trained.record.channels, *trained.size, generator=torch.Generator().manual_seed(batch))


def architecture(trained: Trained) -> dict:
    """What timm's create_model needs. ValueError for a head that timm's VisionTransformer does not have."""
    model, stage_1 = trained.model, trained.criterion is None
    if isinstance(model.head, CosineHead):
        raise ValueError(f"{trained.path} has the cosine head of --loss {trained.settings['loss']}, which divides the features "
                         "by their norm, and timm's VisionTransformer has no such head: use --format onnx or torch_export, "
                         "which compute it, or safetensors for this project")
    pool = "token" if trained.settings.get("cls_token") else "avg"
    patch, width, heads = model.patch_embed.patch_size[0], model.embed_dim, model.blocks[0].attn.num_heads
    args = {"img_size": list(trained.size), "patch_size": patch, "embed_dim": width, "depth": len(model.blocks),
            "num_heads": heads, "in_chans": trained.record.channels, "global_pool": pool}
    args |= {"fc_norm": False} if stage_1 else {}  # stage 1 norms every token, and the mean follows
    scale = trained.settings.get("layer_scale")
    args |= {"init_values": scale} if scale else {}
    known = f"vit_{trained.settings['model'].removeprefix('mae_').removeprefix('vit_')}_224"
    return {"architecture": known if timm.is_model(known) else "vit_base_patch16_224", "num_features": width,
            "global_pool": pool, "model_args": args}


def preprocessing(trained: Trained) -> dict:
    """timm's pretrained_cfg: how its images are prepared."""
    return {"tag": EXPORTED, "input_size": [trained.record.channels, *trained.size], "fixed_input_size": True,
            "interpolation": "bicubic", "crop_pct": trained.crop_pct, "crop_mode": "center", "mean": list(trained.record.mean),
            "std": list(trained.record.std), "num_classes": len(trained.class_names) if trained.criterion else 0,
            "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head", "license": None}


def config_of(trained: Trained, checkpoint: dict) -> dict:
    """config.json: names in label order, images, scores, and under EXPORTED what this project opens the folder with."""
    settings = {name: None if name in PLACES else value for name, value in checkpoint["args"].items()}
    kept = {"stage": checkpoint["stage"], "args": settings, "class_names": checkpoint["class_names"],
            "class_counts": list(map(int, checkpoint["class_counts"])),
            "progress": {"epoch": checkpoint["progress"]["epoch"],
                         "group_counts": list(map(int, checkpoint["progress"].get("group_counts", [])))}}
    cfg = preprocessing(trained)
    config = {"num_classes": cfg["num_classes"], "pretrained_cfg": cfg, EXPORTED: kept}
    if trained.criterion:
        config |= {"label_names": trained.class_names, "activation": trained.criterion.activation}
    return config


def write_weights(trained: Trained, folder: Path, config: dict) -> float:
    """--format timm: model.safetensors and the architecture in config.json; returns the largest difference of outputs."""
    config |= architecture(trained)
    write_tensors(trained.model.state_dict(), folder)
    write_json(folder / "config.json", config)
    # What create_model makes of that file, also in versions of timm that do not know local-dir: yet.
    theirs = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"]).eval()
    theirs.load_state_dict(read_safetensors(folder / "model.safetensors"))
    return largest(trained, Deployed(trained).eval(), theirs)


def write_hf(path: str, folder: Path, config: dict) -> float:
    """--format hf: names translated, config.json and preprocessor_config.json; returns the largest difference of weights."""
    mae = load_mae(path)
    model, (height, width) = mae.model, mae.model.img_size
    if height != width:
        raise ValueError(f"{path} takes images of {height} x {width}, and Hugging Face's ViTMAE takes squares: use --format "
                         "safetensors, or timm for the encoder")
    state = model.state_dict()
    write_tensors(to_hf(state), folder)
    config.clear()
    config.update(mae_config(model, mae.settings))
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": height, "width": width},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(mae.record.mean), "image_std": list(mae.record.std)})
    back = from_hf(read_safetensors(folder / "model.safetensors"))
    return max(difference(back[name], tensor) for name, tensor in state.items())


def write_onnx(trained: Trained, folder: Path) -> float | None:
    """--format onnx: model.onnx, images -> logits, of any batch size; returns the largest difference of outputs in onnxruntime,
    None where that is not installed. ValueError where the exporter's packages are not."""
    missing = [package for name, package in NEEDS.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime")
    model, size = Deployed(trained).eval(), sum(p.numel() * p.element_size() for p in trained.model.parameters())
    program = torch.onnx.export(model, (example(trained, 2),), dynamo=True, input_names=["images"],
                                output_names=["logits" if trained.criterion else "features"],
                                dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    program.save(str(folder / "model.onnx"), external_data=size > EXTERNAL_BYTES)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return largest(trained, model, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))


def write_program(trained: Trained, folder: Path) -> float:
    """--format torch_export: model.pt2 of any batch size; returns the largest difference of outputs."""
    model = Deployed(trained).eval()
    with torch.no_grad():
        program = torch.export.export(model, (example(trained, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "model.pt2")
    return largest(trained, model, torch.export.load(folder / "model.pt2").module())


@torch.no_grad()
def largest(trained: Trained, model: nn.Module, other) -> float:
    """Largest difference of what two functions of images give, over batches of 1 and of 3; where outputs are above 1, as a
    share of the largest, since that is what rounding goes by."""
    pairs = [(other(images), model(images)) for images in (example(trained, 1), example(trained, 3))]
    return max(difference(one, two) / max(1.0, float(two.abs().max())) for one, two in pairs)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference of two tensors; infinite where their shapes differ."""
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def write_tensors(state: dict, folder: Path) -> None:
    """model.safetensors; the metadata is what transformers looks for."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def export(path: str, form: str, folder: Path) -> float | None:
    """Write all files of one format into an empty folder; returns the largest difference that a check of it found, None
    where it could not be made."""
    weights = open_weights(path)
    if weights.checkpoint is None:
        raise ValueError(f"{path} is of {weights.form} and does not say its classes and images: export a last.pth of this "
                         "project")
    checkpoint, stage_1 = weights.checkpoint, weights.checkpoint["stage"] == "pretrain"
    if form == "hf" and not stage_1:
        raise ValueError(f"{path} is a classifier, and --format hf writes the autoencoder of stage 1: use --format timm, whose "
                         "folders Hugging Face's hub takes")
    trained = load_encoder_model(path) if stage_1 else load_classifier_model(path)
    for module in trained.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # as others have it; what is not fast here may be where it runs
    config = config_of(trained, checkpoint)
    if form == "timm":
        error = write_weights(trained, folder, config)
    elif form == "hf":
        error = write_hf(path, folder, config)
    elif form == "safetensors":
        write_tensors(weights.tensors, folder)
        back = read_safetensors(folder / "model.safetensors")
        error = max(difference(back[name], tensor) for name, tensor in weights.tensors.items())
    else:
        error = {"onnx": write_onnx, "torch_export": write_program}[form](trained, folder)
    write_json(folder / "config.json", config)
    card = model_card(trained, checkpoint, form, metrics_of(path, checkpoint))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return error


def metrics_of(path: str, checkpoint: dict) -> dict | None:
    """metrics.json beside a checkpoint where it is of the same epoch, else None."""
    beside = Path(path).parent / "metrics.json"
    if Path(path).is_dir() or not beside.is_file():
        return None
    metrics = read_json(beside)
    return metrics if metrics.get("epoch") == checkpoint["progress"]["epoch"] - 1 else None


TOLERANCES = {"timm": 1e-5, "safetensors": 0.0, "hf": 0.0, "onnx": 1e-4, "torch_export": 1e-5}
RELATIVE = ("timm", "onnx", "torch_export")  # whose difference is that of `largest`; the others' is of the weights


def main(args) -> None:
    """Write the folder, all of it or nothing; AssertionError, and nothing at --out, where the check of it fails."""
    out = Path(args.out).resolve()  # "." has no name to put another beside
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {args.out} is there and not empty: give another folder")
    beside = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        error = export(args.checkpoint, args.format, beside)
        if error is not None and not error <= TOLERANCES[args.format]:
            raise AssertionError(f"the export differs from the model by {error:g}, more than {TOLERANCES[args.format]:g}: "
                                 "nothing is written")
        if out.exists():  # files go into it: it may be the working folder of a shell, which would be left in a removed one
            for file in beside.iterdir():
                os.replace(file, out / file.name)
        else:
            os.replace(beside, out)
    except OSError as problem:
        raise ValueError(f"cannot write --out {args.out} ({problem.strerror or problem}): make room, or give another "
                         "folder") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    checked = "not checked against the model, which needs pip install onnxruntime" if error is None else \
        f"opened again, it differs from the model by at most {error:.1e}" + (
            " (of the largest output, where that is above 1)" if args.format in RELATIVE else "")
    say(f"wrote {args.out}; {checked}")


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("a trained model for other programs")
    parser.add_argument("checkpoint", metavar="CKPT", help="last.pth of either stage")
    parser.add_argument("--format", required=True, choices=list(TOLERANCES), help="hf is for stage 1; onnx needs the packages "
                        "onnx and onnxscript, and onnxruntime to be checked")
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder that is not there yet, or empty")
    return parser


if __name__ == "__main__":
    run_command(get_args_parser(), main)
