"""CLIP's vision tower in the Hugging Face layout (`clip` or `clip_vision_model`) as our vision encoder.

The same ViT under other names. CLIP applies its last LayerNorm to the pooled output only; the released
mPLUG-Owl2 applies it to every token, and so do we. A text tower in the same files is ignored.

Source: the state dictionary of `transformers`' CLIPVisionModel, in both spellings (with `vision_model.`
before every name or, since transformers 5, without).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.parts import (
    CLIP_NORMALISATION,
    Recipe,
    VisionPart,
    affine,
    encoder_layers,
    read_vision_folder,
)
from owl2.model.config import VisionConfig

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MODULES = {
    "self_attn.dense": "self_attn.out_proj",
    "input_layernorm": "layer_norm1",
    "post_attention_layernorm": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""CLIP's names of the modules of a layer, by ours."""

FOREIGN = (
    "text_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "embeddings.position_ids",
)


def read_clip(folder: Path, config: Mapping[str, Any]) -> VisionPart:
    """Read a CLIP folder; `config` is its `config.json`.

    Raises:
        CheckpointError: missing or unknown tensors.
        ConfigError: an activation or size that our encoder lacks.
    """
    raw = config.get("vision_config") or config
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{folder}: vision_config is {raw!r:.60}, expected an object")
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
    return read_vision_folder(
        folder,
        "CLIP",
        vision,
        _recipes,
        prefix="vision_model.",
        foreign=FOREIGN,
        default=CLIP_NORMALISATION,
    )


def _recipes(prefix: str, config: VisionConfig) -> dict[str, Recipe]:
    theirs = f"{prefix}embeddings"
    return {
        "embeddings.cls_token": Recipe((f"{theirs}.class_embedding",), lambda t: t.reshape(1, 1, -1)),
        "embeddings.position_embedding": Recipe((f"{theirs}.position_embedding.weight",), lambda t: t[None]),
        "embeddings.patch_embed.weight": Recipe((f"{theirs}.patch_embedding.weight",)),
        **affine("embeddings.pre_layernorm", f"{prefix}pre_layrnorm"),  # CLIP's own spelling
        **affine("post_layernorm", f"{prefix}post_layernorm"),
        **encoder_layers(f"{prefix}encoder.layers", QKV, MODULES, config),
    }
