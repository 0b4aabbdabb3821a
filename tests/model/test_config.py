"""Configurations: the released `config.json` both ways, presets, and an error for what cannot be a model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from owl2.model import ConfigError, Owl2Config, build, preset
from owl2.model.config import (
    PRESETS,
    AbstractorConfig,
    DecoderConfig,
    MamConfig,
    RopeScaling,
    VisionConfig,
    decoder_from_dict,
)
from tests.model.tiny import tiny_config

LLAMA3 = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
DINO = VisionConfig(
    hidden_act="gelu", use_pre_layernorm=False, use_patch_bias=True, use_layer_scale=True, use_cls_token=False
)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        tiny_config(num_key_value_heads=2, rope_scaling=LLAMA3, rope_theta=5e5, tie_word_embeddings=True),
        tiny_config(MamConfig(norm=False), head_dim=32, bos_token_id=None),
        Owl2Config(vision=DINO, image_token_id=-7),
    ],
)
def test_a_config_survives_its_json_and_builds(config: Owl2Config) -> None:
    assert Owl2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert build(config, device="meta").config == config


def test_the_released_config_json_is_the_tiny_preset(golden_folder: Path) -> None:
    assert Owl2Config.from_dict(json.loads((golden_folder / "config.json").read_text())) == preset("tiny")


def test_what_we_write_has_every_key_and_value_of_a_released_config_json(golden_folder: Path) -> None:
    released = json.loads((golden_folder / "config.json").read_text())
    ours = preset("tiny").to_dict()

    def missing(theirs: dict[str, Any], mine: dict[str, Any], at: str = "") -> list[str]:
        out = []
        for key, value in theirs.items():
            if isinstance(value, dict):
                out += missing(value, mine.get(key, {}), f"{at}{key}.")
            elif mine.get(key, "absent") != value:
                out.append(at + key)
        return out

    # Dropout of the ViT is zero in every release and has no field here.
    assert missing(released, ours) == ["visual_config.visual_model.attention_dropout"]


def test_defaults_are_the_released_7b_so_that_an_empty_config_is_one() -> None:
    assert Owl2Config.from_dict({"model_type": "mplug_owl2"}) == preset("owl2_7b") == Owl2Config()


def test_nulls_in_a_released_config_mean_the_default() -> None:
    raw = {
        **preset("tiny").to_dict(),
        "num_key_value_heads": None,
        "head_dim": None,
        "pad_token_id": None,
        "rope_scaling": None,
    }
    raw["visual_config"]["visual_abstractor"]["grid_size"] = None
    assert Owl2Config.from_dict(raw) == preset("tiny")


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'owl_7b'; nearest is 'owl2_7b' of owl2_7b, tiny"):
        preset("owl_7b")


def test_replace_changes_one_field_of_a_frozen_config() -> None:
    config = preset("tiny").replace(image_token_id=-1)
    assert config.image_token_id == -1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.image_token_id = -2  # type: ignore[misc]


BAD_FIELDS = {
    "vision heads": (lambda: VisionConfig(num_attention_heads=7), "vision.num_attention_heads = 7"),
    "vision patch": (lambda: VisionConfig(image_size=450), "patch_size = 14 must divide image_size = 450"),
    "vision patch zero": (lambda: VisionConfig(patch_size=0), "vision.patch_size = 0"),
    "vision act": (
        lambda: VisionConfig(hidden_act="relu"),
        "vision.hidden_act = 'relu' must be one of quick_gelu, gelu",
    ),
    "abstractor heads": (
        lambda: AbstractorConfig(num_attention_heads=5),
        "abstractor.num_attention_heads = 5",
    ),
    "kv heads": (lambda: DecoderConfig(num_key_value_heads=5), "num_key_value_heads = 5 must divide"),
    "kv heads zero": (lambda: DecoderConfig(num_key_value_heads=0), "num_key_value_heads = 0"),
    "odd head": (lambda: DecoderConfig(head_dim=15), "head_dim 15 must be even"),
    "widths": (
        lambda: Owl2Config(abstractor=AbstractorConfig(hidden_size=512)),
        "abstractor.hidden_size 512 must equal vision.hidden_size 1024",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_an_impossible_field_is_an_error_with_its_name_and_numbers(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def changed(**changes: Any) -> dict[str, Any]:
    return {**preset("tiny").to_dict(), **changes}


def with_abstractor(**changes: Any) -> dict[str, Any]:
    raw = preset("tiny").to_dict()
    raw["visual_config"]["visual_abstractor"].update(changes)
    return raw


BAD_FILES = {
    "another model": (changed(model_type="llava"), "model_type is 'llava'; expected 'mplug_owl2'"),
    "no model type": ({}, "model_type is None"),
    "activation": (changed(hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    "attention bias": (changed(attention_bias=True), "attention_bias = True is not supported"),
    "mlp bias": (changed(mlp_bias=True), "mlp_bias = True is not supported"),
    "rope": (changed(rope_scaling={"type": "yarn"}), "rope_scaling.rope_type = 'yarn' is not one of"),
    "grid": (with_abstractor(grid_size=32), "grid_size = 32 is not supported here; expected 4"),
    "class token": (with_abstractor(use_cls_token=False), "use_cls_token = False is not supported"),
    "dead option": (with_abstractor(add_v2t_pos_emb=True), "add_v2t_pos_emb = True is not supported"),
    "heads": (
        changed(num_attention_heads=5, head_dim=None),
        "num_attention_heads = 5 must divide hidden_size",
    ),
}


@pytest.mark.parametrize(("raw", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_config_json_that_this_model_cannot_be_is_an_error(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Owl2Config.from_dict(raw)


def test_decoder_fields_of_other_llama_family_configs_are_read() -> None:
    smollm2 = {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "eos_token_id": [2, 0],
        "transformers_version": "4.42.3",
    }
    config = decoder_from_dict(smollm2)
    assert (config.head_dim, config.num_key_value_heads, config.eos_token_id) == (64, 3, (2, 0))
    assert config.rope_theta == 100000
    llama3 = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **dataclasses.asdict(LLAMA3)}}
    assert decoder_from_dict(llama3).rope_scaling == LLAMA3
    newer = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **dataclasses.asdict(LLAMA3)}}
    assert decoder_from_dict(newer) == decoder_from_dict(llama3)


WRONG_NUMBERS = {
    "text": (changed(rms_norm_eps="1e-6"), "rms_norm_eps = '1e-6' must be a number"),
    "null": (changed(rope_theta=None), "rope_theta = None must be a number"),
    "null context": (changed(max_position_embeddings=None), "max_position_embeddings = None must be a whole"),
    "fraction": (changed(num_hidden_layers=2.5), "num_hidden_layers = 2.5 must be a whole number"),
    "truth": (changed(vocab_size=True), "vocab_size = True must be a whole number"),
    "zero": (changed(num_hidden_layers=0), "num_hidden_layers = 0 must be 1 or more"),
    "negative": (changed(vocab_size=-5), "vocab_size = -5 must be 1 or more"),
    "nan": (changed(rms_norm_eps=float("nan")), "rms_norm_eps = nan must be a finite number"),
    "infinity": (changed(rope_theta=float("inf")), "rope_theta = inf must be a finite number"),
    "huge": (changed(hidden_size=10**12), "hidden_size = 1000000000000 must be at most 16,777,216"),
    "very deep": (changed(num_hidden_layers=10**6), "num_hidden_layers = 1000000 must be at most 1,000"),
    "heads as text": (changed(num_attention_heads="4", head_dim=None), "num_attention_heads = '4' must be a"),
    "no heads": (changed(num_attention_heads=0, head_dim=None), "num_attention_heads = 0 must divide"),
    "no ends": (changed(eos_token_id=[]), "eos_token_id is an empty list"),
    "end as text": (changed(eos_token_id="</s>"), "eos_token_id = '</s>' must be a whole number or a list"),
    "negative end": (changed(eos_token_id=[2, -1]), r"eos_token_id = \(2, -1\) must be 0 or more"),
    "no queries": (
        with_abstractor(num_learnable_queries=0),
        "abstractor.num_learnable_queries = 0 must be 1",
    ),
    "no object": (changed(visual_config=None), "visual_config = None must be an object"),
    "list": (changed(visual_config={"visual_model": []}), r"visual_model = \[\] must be an object"),
    "switch": (changed(mam={"norm": "yes"}), "mam.norm = 'yes' must be true or false"),
    "real token": (changed(image_token_id=5), "image_token_id = 5 is one of the 128 tokens"),
    "half a rope": (
        changed(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        "low_freq_factor is missing",
    ),
    "no band": (
        changed(rope_scaling={"rope_type": "llama3", **dataclasses.asdict(LLAMA3), "high_freq_factor": 1.0}),
        "rope_scaling.high_freq_factor = 1.0 must be above low_freq_factor = 1.0",
    ),
}


@pytest.mark.parametrize(("raw", "message"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS.keys())
def test_a_wrong_number_in_a_config_json_is_one_sentence_with_its_field(
    raw: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        Owl2Config.from_dict(raw)
    assert "\n" not in str(raised.value)


def test_several_end_tokens_are_kept() -> None:
    config = Owl2Config.from_dict(changed(eos_token_id=[2, 0, 7]))
    assert config.decoder.end_tokens == {0, 2, 7}
    assert Owl2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert preset("tiny").decoder.end_tokens == {2}
