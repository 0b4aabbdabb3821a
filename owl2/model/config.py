"""The shape of a model, as frozen dataclasses, and the presets that have a name.

`Owl2Config.from_dict` and `to_dict` speak the layout of the released `config.json` (decoder fields at the
top level, `visual_config.visual_model` and `visual_config.visual_abstractor` nested), so that one file
serves the released code and ours. What the release cannot express (grouped-query attention, tied
embeddings, RoPE variants, MAM switches, DINOv2-style encoders) are extra fields with the released
behaviour as their default. Defaults are mPLUG-Owl2-7B.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from owl2.errors import Owl2Error


class ConfigError(Owl2Error, ValueError):
    """A configuration that no model can have; the message names the field and the nearest valid choice."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder: CLIP ViT-L/14 as released, or a DINOv2-style one."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    """Side in pixels that the position table was made for; other sizes interpolate it."""
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    """`quick_gelu` (CLIP) or `gelu` (DINOv2)."""
    layer_norm_eps: float = 1e-6
    use_cls_token: bool = True
    use_pre_layernorm: bool = True
    """LayerNorm after the position embedding, as CLIP has and DINOv2 has not."""
    use_post_layernorm: bool = True
    """LayerNorm on all tokens of the last layer."""
    use_patch_bias: bool = False
    use_layer_scale: bool = False
    """DINOv2's learned gain on each residual branch."""

    def __post_init__(self) -> None:
        _divides("vision.num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        _divides("vision.patch_size", self.patch_size, "image_size", self.image_size)
        _one_of("vision.hidden_act", self.hidden_act, ("quick_gelu", "gelu"))

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class AbstractorConfig:
    """The visual abstractor: learnable queries that read [queries; image features]. Equations 1-2."""

    num_learnable_queries: int = 64
    hidden_size: int = 1024
    """Equal to the vision encoder's width: queries and features share the key and value projections."""
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    intermediate_size: int = 2816
    layer_norm_eps: float = 1e-6
    """Of the FFN's inner norm; the other norms have 1e-5 in the released model."""

    def __post_init__(self) -> None:
        _divides("abstractor.num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's rescaling of the rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class MamConfig:
    """Which parts of the modality-adaptive module have a visual way of their own. Equations 4, 6 and 7."""

    norm: bool = True
    key: bool = True
    value: bool = True

    @property
    def enabled(self) -> bool:
        return self.norm or self.key or self.value


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A LLaMA-family decoder. Defaults are LLaMA-2-7B with the release's rms_norm_eps of 1e-6."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    """Tokens, visual ones included, that the decoder was trained for; longer prompts are an error."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int = 2
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        _divides(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} must be even for rotary embeddings")


@dataclass(frozen=True, kw_only=True)
class Owl2Config:
    """A whole mPLUG-Owl2."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mam: MamConfig = field(default_factory=MamConfig)
    image_token_id: int = -200
    """Stands in `input_ids` at every visual position. The released IMAGE_TOKEN_INDEX; never a real token."""

    def __post_init__(self) -> None:
        if self.abstractor.hidden_size != self.vision.hidden_size:
            raise ConfigError(
                f"abstractor.hidden_size {self.abstractor.hidden_size} must equal vision.hidden_size "
                f"{self.vision.hidden_size}: keys and values are projected from [queries; image features]"
            )

    @property
    def tokens_per_image(self) -> int:
        """K queries and the end-of-image vector `vit_eos`: 65 in the released model."""
        return self.abstractor.num_learnable_queries + 1

    def replace(self, **changes: Any) -> "Owl2Config":
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return `config.json` in the released layout, plus our extra fields."""
        vision = dataclasses.asdict(self.vision)
        abstractor = {
            **dataclasses.asdict(self.abstractor),
            "encoder_hidden_size": self.vision.hidden_size,
            "grid_size": self.vision.grid_size,
            "use_cls_token": self.vision.use_cls_token,
            "add_v2t_pos_emb": False,
            "attention_probs_dropout_prob": 0.0,
        }
        decoder = dataclasses.asdict(self.decoder)
        if self.decoder.rope_scaling is not None:
            decoder["rope_scaling"]["rope_type"] = "llama3"
        return {
            "architectures": ["MPLUGOwl2LlamaForCausalLM"],
            "model_type": "mplug_owl2",
            **decoder,
            "hidden_act": "silu",
            "attention_bias": False,
            "visual_config": {"visual_model": vision, "visual_abstractor": abstractor},
            "mam": dataclasses.asdict(self.mam),
            "image_token_id": self.image_token_id,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Owl2Config":
        """Read a released or our `config.json`. Bookkeeping keys of other tools are ignored.

        Raises:
            ConfigError: not an mPLUG-Owl2 configuration, or one with a feature that this model lacks.
        """
        if raw.get("model_type") != "mplug_owl2":
            raise ConfigError(f"model_type is {raw.get('model_type')!r}; expected 'mplug_owl2'")
        visual = raw.get("visual_config", {})
        _require_fixed(raw, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
        vision = _pick(VisionConfig, visual.get("visual_model", {}))
        abstractor_raw = visual.get("visual_abstractor", {})
        _require_fixed(
            abstractor_raw,
            {"use_cls_token": vision.use_cls_token, "grid_size": vision.grid_size, "add_v2t_pos_emb": False},
        )
        return cls(
            vision=vision,
            abstractor=_pick(AbstractorConfig, abstractor_raw),
            decoder=decoder_from_dict(raw),
            mam=_pick(MamConfig, raw.get("mam", {})),
            image_token_id=raw.get("image_token_id", -200),
        )


def decoder_from_dict(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the decoder's fields of a LLaMA-family `config.json` (released Owl2, LLaMA, SmolLM2, ...)."""
    heads = raw.get("num_attention_heads", DecoderConfig.num_attention_heads)
    values = dict(raw)
    rope = {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _one_of("rope_scaling.rope_type", kind, ("default", "llama3"))
    values["rope_scaling"] = _pick(RopeScaling, rope) if kind == "llama3" else None
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        hidden = raw.get("hidden_size", DecoderConfig.hidden_size)
        _divides("num_attention_heads", heads, "hidden_size", hidden)
        values["head_dim"] = hidden // heads
    for name in ("eos_token_id", "pad_token_id"):
        if isinstance(values.get(name), list):
            values[name] = values[name][0]
        if values.get(name) is None:
            values.pop(name, None)
    return _pick(DecoderConfig, values)


def preset(name: str) -> Owl2Config:
    """Return a named configuration.

    Raises:
        ConfigError: unknown name; the message has the nearest one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0)
        raise ConfigError(f"unknown preset {name!r}; nearest is {near[0]!r} of {', '.join(PRESETS)}")
    return PRESETS[name]


def _pick(cls: type, raw: Mapping[str, Any]) -> Any:
    return cls(**{f.name: raw[f.name] for f in dataclasses.fields(cls) if f.name in raw})


def _require_fixed(raw: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, value in fixed.items():
        if raw.get(key) not in (None, value):
            raise ConfigError(f"{key} = {raw[key]!r} is not supported here; expected {value!r}")


def _divides(name: str, value: int, of_name: str, of: int) -> None:
    if value <= 0 or of % value:
        raise ConfigError(f"{name} = {value} must divide {of_name} = {of}")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} = {value!r} is not one of {', '.join(choices)}")


PRESETS: dict[str, Owl2Config] = {
    "owl2_7b": Owl2Config(),
    "tiny": Owl2Config(
        vision=VisionConfig(
            hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=56
        ),
        abstractor=AbstractorConfig(
            num_learnable_queries=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=88,
        ),
        decoder=DecoderConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
        ),
    ),
}
