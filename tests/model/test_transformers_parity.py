"""The parts equal their counterparts in `transformers` on random weights: LLaMA, CLIP's ViT and DINOv2.

The weights are mapped here by hand, independently of the checkpoint readers. Numbers agree to 1e-5.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl2.model import padded_layout
from owl2.model.config import VisionConfig, decoder_from_dict
from owl2.model.vision import VisionEncoder
from tests.model.tiny import IMAGE, NO_MAM, assert_near, hidden_states, random_samples, tiny_model

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DECODERS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide_heads": {"head_dim": 32},
    "llama2_norm": {"rms_norm_eps": 1e-5},
    "llama3": {"num_key_value_heads": 2, "rope_parameters": LLAMA3},
    "smollm2": {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
}


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Give every parameter, norms and biases too, a value that would be missed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        start = 1.0 if parameter.ndim == 1 else 0.0
        parameter.normal_(start, spread, generator=generator)


@pytest.mark.parametrize("fields", DECODERS.values(), ids=DECODERS.keys())
@torch.no_grad()
def test_the_plain_decoder_is_llama(fields: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_hidden_layers": 2}
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{"vocab_size": 128, "num_key_value_heads": 4, **sizes, **fields})
    ).eval()
    randomise(reference)
    config = decoder_from_dict(reference.config.to_dict())
    model = tiny_model(NO_MAM, **vars(config))
    result = model.load_state_dict(reference.state_dict(), strict=False)
    assert result.unexpected_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    assert all(re.search("vision_model|visual_abstractor|inv_freq", name) for name in result.missing_keys)

    ids = torch.stack([s.ids for s in random_samples("96", "96")])
    assert_near(model(ids), reference(ids).logits)

    layout = padded_layout(ids, None, IMAGE)
    states = hidden_states(model, model.embed(ids, layout), layout)
    expected = reference(ids, output_hidden_states=True).hidden_states
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected, strict=True):
        assert_near(ours, theirs.flatten(0, 1))


CLIP_NAMES = [
    (r"^.*embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^.*embeddings\.patch_embedding\.", "embeddings.patch_embed."),
    (r"^.*embeddings\.position_embedding\.weight$", "embeddings.position_embedding"),
    (r"^.*pre_layrnorm\.", "embeddings.pre_layernorm."),
    (r"\.layer_norm1\.", ".input_layernorm."),
    (r"\.layer_norm2\.", ".post_attention_layernorm."),
    (r"\.out_proj\.", ".dense."),
    (r"\.(q|k|v)_proj\.", r".\1."),
]
DINO_NAMES = [
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embed."),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"^layernorm\.", "post_layernorm."),
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.attention\.(attention|output)\.", ".attention."),
    (r"\.attention\.(q|k|v)(uery|ey|alue|_proj)\.", r".self_attn.\1."),
    (r"\.attention\.(dense|o_proj)\.", ".self_attn.dense."),
    (r"\.layer_scale(1|2)\.lambda1$", r".layer_scale\1"),
]


def load_vision(encoder: VisionEncoder, state: dict[str, Tensor], names: list[tuple[str, str]]) -> None:
    """Rename `state`, fuse q, k and v head by head, and load it."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    renamed.pop("embeddings.mask_token", None)
    for name in [n for n in renamed if ".self_attn.q." in n]:
        parts = [renamed.pop(name.replace(".q.", f".{which}.")) for which in "qkv"]
        heads = [part.unflatten(0, (encoder.config.num_attention_heads, -1)) for part in parts]
        renamed[name.replace(".q.", ".query_key_value.")] = torch.stack(heads, dim=1).flatten(0, 2)
    own = encoder.state_dict()
    assert renamed.keys() == own.keys()
    encoder.load_state_dict({name: value.reshape(own[name].shape) for name, value in renamed.items()})


def tiny_vision(**fields: Any) -> VisionEncoder:
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return VisionEncoder(VisionConfig(**{"image_size": 56, **sizes, **fields}))


@pytest.mark.parametrize("size", [56, 84], ids=["table", "interpolated"])
@torch.no_grad()
def test_the_vision_encoder_is_clips(size: int) -> None:
    ours = tiny_vision(layer_norm_eps=1e-5)
    reference = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
        )
    ).eval()
    randomise(reference)
    load_vision(ours, reference.state_dict(), CLIP_NAMES)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    # CLIP normalises the class token alone; the release normalises every token.
    features = reference(pixels, interpolate_pos_encoding=size != 56).last_hidden_state
    inner = getattr(reference, "vision_model", reference)
    assert_near(ours(pixels), inner.post_layernorm(features))


@pytest.mark.parametrize("size", [(56, 56), (84, 84), (42, 98)], ids=["table", "interpolated", "oblong"])
@torch.no_grad()
def test_the_vision_encoder_is_dinov2(size: tuple[int, int]) -> None:
    ours = tiny_vision(hidden_act="gelu", use_pre_layernorm=False, use_patch_bias=True, use_layer_scale=True)
    reference = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
        )
    ).eval()
    randomise(reference)
    load_vision(ours, reference.state_dict(), DINO_NAMES)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    assert_near(ours(pixels), reference(pixels).last_hidden_state)
