"""Names of Hugging Face's ViT and ViTMAE, and MAE's for the same tensors. No tensor changes but that q, k and v are joined.

Files name the layers in several ways, by the version that wrote them; all are read, and the published weights' is written.
"""
import re

import torch

ENCODER_LAYER = re.compile(r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")
DECODER_LAYER = re.compile(r"decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)")
# Within a layer: Hugging Face's name, then MAE's. The first of two that mean one thing is the one written.
LAYER = {
    "layernorm_before": "norm1", "layernorm_after": "norm2",
    "attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v",
    "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v",
    "attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}
OUTSIDE = {
    "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
}
DECODER = {
    "decoder.mask_token": "mask_token", "decoder.decoder_pos_embed": "decoder_pos_embed",
    **{f"decoder.{name}.{kind}": f"{name}.{kind}" for name in ("decoder_embed", "decoder_norm", "decoder_pred")
       for kind in ("weight", "bias")},
}
HEAD = {"classifier.weight": "head.weight", "classifier.bias": "head.bias"}


def is_hf(state: dict) -> bool:
    """Whether a state dict has Hugging Face's names of a ViT."""
    return any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in state)


def from_hf(state: dict) -> dict:
    """Hugging Face's names -> MAE's. A name that is not known stays as it is, for the check of the architecture to tell.

    ValueError where a layer has not all of q, k and v.
    """
    tensors, joined = {}, {}
    for key, value in state.items():
        layer, decoder = ENCODER_LAYER.fullmatch(key), DECODER_LAYER.fullmatch(key)
        number, name, kind = (layer or decoder).groups() if layer or decoder else (None, None, None)
        inside = f"{'decoder_' * bool(decoder)}blocks.{number}"
        if name in LAYER and len(LAYER[name]) == 1:
            joined.setdefault(f"{inside}.attn.qkv.{kind}", {})[LAYER[name]] = value
        elif name in LAYER:
            tensors[f"{inside}.{LAYER[name]}.{kind}"] = value
        else:
            bare = key.removeprefix("vit.")
            tensors[{**OUTSIDE, **DECODER, **HEAD}.get(bare, bare)] = value
    for key, parts in joined.items():
        if set(parts) != set("qkv"):
            raise ValueError(f"weights of Hugging Face's form with {', '.join(sorted(parts))} alone of q, k, v for {key}: the "
                             "file is not whole, use another copy")
        tensors[key] = torch.cat([parts[part] for part in "qkv"])
    return tensors


def to_hf(state: dict) -> dict:
    """The names of MAE's autoencoder -> those of ViTMAEForPreTraining, in the form of the published weights."""
    outside = {ours: f"vit.{theirs}" for theirs, ours in OUTSIDE.items()} | {ours: theirs for theirs, ours in DECODER.items()}
    within = {ours: theirs for theirs, ours in reversed(LAYER.items())}
    tensors = {}
    for key, value in state.items():
        if "blocks." not in key:
            tensors[outside[key]] = value
            continue
        where, number, name, kind = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", key).groups()
        prefix = f"decoder.decoder_layers.{number}" if where else f"vit.encoder.layer.{number}"
        if name == "attn.qkv":
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                tensors[f"{prefix}.{within[part]}.{kind}"] = piece.clone()
        else:
            tensors[f"{prefix}.{within[name]}.{kind}"] = value
    return tensors


def mae_config(model, settings: dict) -> dict:
    """config.json of ViTMAEForPreTraining for an autoencoder `model` and the flags of its training."""
    encoder, decoder = model.blocks[0], model.decoder_blocks[0]
    return {
        "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", "dtype": "float32", "hidden_act": "gelu",
        "image_size": model.img_size[0], "patch_size": model.patch_size, "num_channels": model.in_chans,
        "hidden_size": model.pos_embed.shape[-1], "num_hidden_layers": len(model.blocks),
        "num_attention_heads": encoder.attn.num_heads, "intermediate_size": encoder.mlp.fc1.out_features,
        "decoder_hidden_size": model.decoder_pos_embed.shape[-1], "decoder_num_hidden_layers": len(model.decoder_blocks),
        "decoder_num_attention_heads": decoder.attn.num_heads, "decoder_intermediate_size": decoder.mlp.fc1.out_features,
        "layer_norm_eps": model.norm.eps, "qkv_bias": True, "mask_ratio": settings["mask_ratio"],
        "norm_pix_loss": settings["norm_pix_loss"], "initializer_range": 0.02, "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }
