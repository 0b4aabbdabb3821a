"""Configuration of the model: frozen dataclasses that check their fields, and named presets.

`Owl2Config.from_dict` and `to_dict` read and write the released `config.json` (decoder fields at the top
level, `visual_config.visual_model` and `visual_config.visual_abstractor` nested), so that one file serves the
released code and ours. What the release cannot express (grouped-query attention, tied embeddings, RoPE
variants, MAM switches, DINOv2-style encoders) are extra fields, whose defaults are the released behaviour.
All defaults together are mPLUG-Owl2-7B.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from owl2.errors import Owl2Error
from owl2.fields import check_fields, number


class ConfigError(Owl2Error, ValueError):
    """A configuration that no model can have; the message names the field and the nearest valid choice."""


def size(default: int) -> Any:
    """A width or a number of heads, tokens or pixels."""
    return number(default, ge=1, le=2**24)


def layers(default: int) -> Any:
    """A number of layers."""
    return number(default, ge=1, le=1000)


def epsilon(default: float) -> Any:
    """What a norm adds to the variance."""
    return number(default, gt=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder: CLIP ViT-L/14 as released, or a DINOv2-style one."""

    hidden_size: int = size(1024)
    intermediate_size: int = size(4096)
    num_hidden_layers: int = layers(24)
    num_attention_heads: int = size(16)
    num_channels: int = size(3)
    image_size: int = number(448, ge=1, le=2**14)
    """Side in pixels that the position table is for; other sizes interpolate it."""
    patch_size: int = size(14)
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """`quick_gelu` (CLIP) or `gelu` (DINOv2)."""
    layer_norm_eps: float = epsilon(1e-6)
    use_cls_token: bool = True
    use_pre_layernorm: bool = True
    """LayerNorm after the position embedding; CLIP has it, DINOv2 does not."""
    use_post_layernorm: bool = True
    """LayerNorm on all tokens of the last layer."""
    use_patch_bias: bool = False
    use_layer_scale: bool = False
    """DINOv2's learned gain on each residual branch."""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError, "vision")
        _divides("vision.num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        _divides("vision.patch_size", self.patch_size, "image_size", self.image_size)

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class AbstractorConfig:
    """The visual abstractor: learnable queries that read [queries; image features]. Equations 1-2."""

    num_learnable_queries: int = size(64)
    hidden_size: int = size(1024)
    """Equal to the vision encoder's width: queries and features share the key and value projections."""
    num_hidden_layers: int = layers(6)
    num_attention_heads: int = size(16)
    intermediate_size: int = size(2816)
    layer_norm_eps: float = epsilon(1e-6)
    """Of the FFN's inner norm; the other norms have 1e-5 in the released model."""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError, "abstractor")
        _divides("abstractor.num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's rescaling of the rotary frequencies (`rope_type: llama3`)."""

    factor: float = number(gt=0)
    low_freq_factor: float = number(gt=0)
    high_freq_factor: float = number(gt=0)
    original_max_position_embeddings: int = number(ge=1)

    def __post_init__(self) -> None:
        check_fields(self, ConfigError, "rope_scaling")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope_scaling.high_freq_factor = {self.high_freq_factor} must be above low_freq_factor = "
                f"{self.low_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class MamConfig:
    """Which parts of the modality-adaptive module have visual weights of their own. Equations 4, 6 and 7."""

    norm: bool = True
    key: bool = True
    value: bool = True

    def __post_init__(self) -> None:
        check_fields(self, ConfigError, "mam")

    @property
    def enabled(self) -> bool:
        return self.norm or self.key or self.value


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A LLaMA-family decoder. Defaults are LLaMA-2-7B with the release's rms_norm_eps of 1e-6."""

    vocab_size: int = size(32000)
    hidden_size: int = size(4096)
    intermediate_size: int = size(11008)
    num_hidden_layers: int = layers(32)
    num_attention_heads: int = size(32)
    num_key_value_heads: int = size(32)
    head_dim: int = size(128)
    max_position_embeddings: int = size(2048)
    """Tokens, visual ones included, that the decoder was trained for; longer prompts are an error."""
    rms_norm_eps: float = epsilon(1e-6)
    rope_theta: float = number(10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] = number(2, ge=0)
    """Every one of these ends an answer."""
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        check_fields(self, ConfigError)
        if self.eos_token_id == ():
            raise ConfigError(
                "eos_token_id is an empty list: answers could never end; name at least one token"
            )
        _divides(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} must be even for rotary embeddings")

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = self.eos_token_id
        return frozenset(ends if isinstance(ends, tuple) else (ends,))


@dataclass(frozen=True, kw_only=True)
class Owl2Config:
    """A complete mPLUG-Owl2."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    abstractor: AbstractorConfig = field(default_factory=AbstractorConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    mam: MamConfig = field(default_factory=MamConfig)
    image_token_id: int = -200
    """Marks every visual position in `input_ids`. The released IMAGE_TOKEN_INDEX; never a real token."""

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        if 0 <= self.image_token_id < self.decoder.vocab_size:
            raise ConfigError(
                f"image_token_id = {self.image_token_id} is one of the {self.decoder.vocab_size} tokens of "
                f"the vocabulary: it must be negative, or above them"
            )
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
        """Return `config.json` as released, with our extra fields."""
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
            ConfigError: not an mPLUG-Owl2 configuration, an impossible value, or a feature that this model
                lacks.
        """
        if raw.get("model_type") != "mplug_owl2":
            raise ConfigError(f"model_type is {raw.get('model_type')!r}; expected 'mplug_owl2'")
        visual = _object(raw, "visual_config")
        _require_fixed(raw, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
        vision = _pick(VisionConfig, _object(visual, "visual_model"))
        abstractor_raw = _object(visual, "visual_abstractor")
        _require_fixed(
            abstractor_raw,
            {"use_cls_token": vision.use_cls_token, "grid_size": vision.grid_size, "add_v2t_pos_emb": False},
        )
        return cls(
            vision=vision,
            abstractor=_pick(AbstractorConfig, abstractor_raw),
            decoder=decoder_from_dict(raw),
            mam=_pick(MamConfig, _object(raw, "mam")),
            image_token_id=raw.get("image_token_id", -200),
        )


def decoder_from_dict(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the decoder's fields of a LLaMA-family `config.json` (released Owl2, LLaMA, SmolLM2, ...).

    Raises:
        ConfigError: an impossible value, or a feature that this model lacks.
    """
    heads = raw.get("num_attention_heads", DecoderConfig.num_attention_heads)
    values = dict(raw)
    rope = {**_object(raw, "rope_parameters", nullable=True), **_object(raw, "rope_scaling", nullable=True)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _one_of("rope_scaling.rope_type", kind, ("default", "llama3"))
    values["rope_scaling"] = _pick(RopeScaling, rope) if kind == "llama3" else None
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        hidden = raw.get("hidden_size", DecoderConfig.hidden_size)
        values.pop("head_dim", None)
        if isinstance(hidden, int) and isinstance(heads, int):  # else DecoderConfig says what they must be
            _divides("num_attention_heads", heads, "hidden_size", hidden)
            values["head_dim"] = hidden // heads
    if isinstance(values.get("pad_token_id"), list):
        values["pad_token_id"] = next(iter(values["pad_token_id"]), None)
    for name in ("eos_token_id", "pad_token_id"):
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


def _object(raw: Mapping[str, Any], name: str, nullable: bool = False) -> Mapping[str, Any]:
    """An object inside of another; empty if it is not there."""
    value = raw.get(name, {})
    if value is None and nullable:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} = {value!r:.60} must be an object")
    return value


def _pick(cls: type, raw: Mapping[str, Any]) -> Any:
    """The configuration whose fields are in an object; other keys are ignored."""
    fields = dataclasses.fields(cls)
    for f in fields:
        if f.name not in raw and f.default is f.default_factory is dataclasses.MISSING:
            names = ", ".join(each.name for each in fields)
            raise ConfigError(f"{f.name} is missing: {names} are needed together")
    return cls(**{f.name: raw[f.name] for f in fields if f.name in raw})


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
