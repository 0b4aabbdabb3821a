"""CLIP's vision tower in the Hugging Face layout (`clip` or `clip_vision_model`) as our vision encoder.

The same ViT under other names. CLIP normalises only its pooled output with the last LayerNorm; the released
mPLUG-Owl2 applies it to every token, and so do we. A text tower in the same files is left aside.

Source: the state dictionary of `transformers`' CLIPVisionModel, in both spellings (with `vision_model.`
before every name or, since transformers 5, without).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owl2.checkpoint.parts import (
    CLIP_NORMALISATION,
    Recipe,
    VisionPart,
    account,
    affine,
    read_normalisation,
    woven_qkv,
)
from owl2.checkpoint.tensors import TensorFolder
from owl2.model.config import VisionConfig

FOREIGN = ("text_model.", "visual_projection.", "text_projection.", "logit_scale")


def read_clip(folder: Path, config: Mapping[str, Any]) -> VisionPart:
    """Read a CLIP folder; `config` is its `config.json`.

    Raises:
        CheckpointError: missing or unknown tensors.
        ConfigError: an activation or size that our encoder lacks.
    """
    raw = config.get("vision_config") or config
    vision = VisionConfig(
        hidden_size=raw.get("hidden_size", 768),
        intermediate_size=raw.get("intermediate_size", 3072),
        num_hidden_layers=raw.get("num_hidden_layers", 12),
        num_attention_heads=raw.get("num_attention_heads", 12),
        num_channels=raw.get("num_channels", 3),
        image_size=raw.get("image_size", 224),
        patch_size=raw.get("patch_size", 32),
        hidden_act=raw.get("hidden_act", "quick_gelu"),
        layer_norm_eps=raw.get("layer_norm_eps", 1e-5),
    )
    files = TensorFolder(folder)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in files.files) else ""
    recipes = _recipes(prefix, vision)
    where = f"{folder} (CLIP)"
    foreign = (*FOREIGN, f"{prefix}embeddings.position_ids")
    return VisionPart(
        origin=where,
        config=vision,
        recipes=recipes,
        read_source=files.read,
        normalisation=read_normalisation(folder, CLIP_NORMALISATION),
        unused=account(files.files, recipes, foreign, where),
    )


def _recipes(prefix: str, config: VisionConfig) -> dict[str, Recipe]:
    their = f"{prefix}embeddings"
    recipes = {
        "embeddings.cls_token": Recipe((f"{their}.class_embedding",), lambda t: t.reshape(1, 1, -1)),
        "embeddings.position_embedding": Recipe((f"{their}.position_embedding.weight",), lambda t: t[None]),
        "embeddings.patch_embed.weight": Recipe((f"{their}.patch_embedding.weight",)),
        **affine("embeddings.pre_layernorm", f"{prefix}pre_layrnorm"),  # CLIP's own spelling
        **affine("post_layernorm", f"{prefix}post_layernorm"),
    }
    for i in range(config.num_hidden_layers):
        our, their = f"encoder.layers.{i}", f"{prefix}encoder.layers.{i}"
        qkv = (f"{their}.self_attn.q_proj", f"{their}.self_attn.k_proj", f"{their}.self_attn.v_proj")
        recipes |= woven_qkv(f"{our}.self_attn.query_key_value", qkv, config.num_attention_heads)
        recipes |= affine(f"{our}.self_attn.dense", f"{their}.self_attn.out_proj")
        recipes |= affine(f"{our}.input_layernorm", f"{their}.layer_norm1")
        recipes |= affine(f"{our}.post_attention_layernorm", f"{their}.layer_norm2")
        recipes |= affine(f"{our}.mlp.fc1", f"{their}.mlp.fc1")
        recipes |= affine(f"{our}.mlp.fc2", f"{their}.mlp.fc2")
    return recipes
