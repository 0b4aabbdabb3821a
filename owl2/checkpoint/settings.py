"""Settings in the JSON files of a checkpoint folder that have no effect here.

Each field of `config.json`, `generation_config.json`, `preprocessor_config.json` and `tokenizer_config.json`
is used, or known to have no effect for the reason that a table here gives, or named in one warning for the
folder. An unknown field that is null, false, 0 or empty switches something off and is not named.

Source of the names: files on the Hugging Face hub (LLaMA, LLaVA, mPLUG-Owl2 and its fine-tunes Q-Instruct,
OneAlign and DeQA-Score), and the configuration classes of `transformers` 4.31 to 5.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from owl2.checkpoint.errors import CheckpointError
from owl2.errors import Owl2Warning
from owl2.files import in_short, read_json
from owl2.model.config import AbstractorConfig, DecoderConfig, VisionConfig
from owl2.processor.tokenizer import SPECIAL_TOKENS, token_text

GENERATION_DEFAULTS: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
"""What `transformers` writes into every `config.json`; other values there would be settings of generation."""

LIBRARY = {
    "notes of the library that wrote the file": """
        _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures auto_map
        custom_pipelines dtype model_type name_or_path processor_class tokenizer_class torch_dtype
        transformers_version""",
    "how the library's own classes run and what they return": """
        base_model_tp_plan chunk_size_feed_forward is_composition is_decoder is_encoder_decoder
        output_attentions output_hidden_states output_scores remove_invalid_values return_dict
        return_dict_in_generate tie_encoder_decoder torchscript tf_legacy_loss use_bfloat16 use_cache
        use_flash_attn""",
    "heads and classes that this model does not have": """
        finetuning_task id2label label2id num_labels prefix problem_type projection_dim
        task_specific_params""",
    "the start of weights that come from the checkpoint": "initializer_factor initializer_range",
    "the maximum length yields to max_new_tokens": "max_length",
    "other special tokens than those that begin, end and pad": "decoder_start_token_id sep_token_id",
}
"""Without effect in `config.json` and the parts within it, by reason."""

CONFIG = {
    "read by the training code of the release and of its fine-tunes": """
        binary_rating_loss closeset_rating_loss continuous_rating_loss detach_pred_std freeze_backbone
        freeze_vision_model image_grid_pinpoints softkl_loss tune_visual_abstractor use_fix_std
        visual_abstractor_lr weight_desp weight_in_level weight_next_token weight_rank weight_softkl""",
    "how matrix products were split in pre-training; the result is the same": "pretraining_tp",
}
"""Without effect in `config.json`."""

TOKENIZER = {
    "notes of the library that wrote the file": """
        __type auto_map backend device_map is_local name_or_path processor_class special_tokens_map_file
        tokenizer_class tokenizer_file vocab_file""",
    "the context of config.json is the limit": "max_length model_max_length",
    "padding never enters the model and nothing is cut without a word": """
        pad_to_multiple_of pad_token_type_id padding padding_side stride truncation truncation_side
        truncation_strategy""",
    "the prompt templates of owl2 are used": "chat_template use_default_system_prompt",
    "decoded text is the bytes of the tokens": """
        clean_up_tokenization_spaces errors spaces_between_special_tokens""",
    "tokens are those of tokenizer.model or tokenizer.json; typed in a text they are text": """
        added_tokens_decoder additional_special_tokens cls_token extra_special_tokens mask_token sep_token
        split_special_tokens unk_token""",
    "what a batch is called": "model_input_names",
}
"""Without effect in `tokenizer_config.json`."""

PREPROCESSOR = {
    "notes of the library that wrote the file": """
        _processor_class _valid_processor_keys auto_map feature_extractor_type image_processor_type
        processor_class""",
    "images are always converted to RGB": "do_convert_rgb",
    "how the library's own classes run and what they return": """
        data_format default_to_square device disable_grouping input_data_format return_tensors""",
}
"""Without effect in `preprocessor_config.json`."""

GENERATION = {
    "notes of the library that wrote the file": "_from_model_config transformers_version",
    "config.json and the tokenizer have them": "bos_token_id pad_token_id",
    "the maximum length yields to max_new_tokens": "max_length",
    "how the library's own classes run and what they return": "cache_implementation use_cache",
}
"""Without effect in `generation_config.json`."""

CONFIG_USED = {
    *(field.name for field in dataclasses.fields(DecoderConfig)),
    *("attention_bias", "hidden_act", "image_aspect_ratio", "image_token_id", "mam", "mlp_bias"),
    *("rope_parameters", "visual_config"),
}
VISION_USED = {field.name for field in dataclasses.fields(VisionConfig)}
ABSTRACTOR_USED = {
    *(field.name for field in dataclasses.fields(AbstractorConfig)),
    *("add_v2t_pos_emb", "encoder_hidden_size", "grid_size", "use_cls_token"),
}
TOKENIZER_USED = {"add_bos_token", "bos_token", "eos_token", "legacy", "pad_token"}
PREPROCESSOR_USED = {
    *("crop_size", "do_center_crop", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std"),
    *("owl2", "resample", "rescale_factor", "resize", "size", "template"),
}
GENERATION_USED = {
    *("do_sample", "early_stopping", "eos_token_id", "length_penalty", "max_new_tokens", "min_new_tokens"),
    *("min_p", "num_beams", "repetition_penalty", "seed", "stop", "temperature", "top_k", "top_p"),
}
"""The fields of `GenerationConfig`, which the package above this one has."""

TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
"""Settings of text, which the library writes into the visual parts too and nobody reads there."""

OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that switch an unknown setting off."""


def warn_of_ignored_settings(folder: Path) -> None:
    """Name the settings of a folder that are ignored, in one warning; say nothing if there are none.

    Raises:
        CheckpointError: a file is damaged.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # rank 0 of a training run says it for all
    files = [
        f"{name}: {', '.join(f'{field} = {in_short(value)}' for field, value in fields.items())}"
        for name, fields in ignored_settings(folder).items()
        if fields
    ]
    if files:
        warnings.warn(
            f"{folder} has settings that owl2 ignores: {'; '.join(files)}", Owl2Warning, stacklevel=3
        )


def ignored_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings that are neither used nor known to have no effect, by file and field.

    Raises:
        CheckpointError: a file is damaged.
    """

    def read(name: str) -> dict[str, Any]:
        return read_json(folder / name, CheckpointError) if (folder / name).exists() else {}

    tokenizer = read("tokenizer_config.json")
    ignored = {
        "config.json": _of_config(read("config.json")),
        "generation_config.json": _unknown(read("generation_config.json"), GENERATION_USED, GENERATION),
        "preprocessor_config.json": _unknown(
            read("preprocessor_config.json"), PREPROCESSOR_USED, PREPROCESSOR
        ),
        "tokenizer_config.json": _unknown(tokenizer, TOKENIZER_USED, TOKENIZER),
    }
    if (folder / "tokenizer.model").is_file():  # tokenizer.json holds both, tokenizer.model neither
        if tokenizer.get("add_prefix_space") is False:
            ignored["tokenizer_config.json"]["add_prefix_space"] = False
        stated = [*tokenizer.items(), *read("special_tokens_map.json").items()]
        special = {token_text(token) for name, token in stated if name in SPECIAL_TOKENS}
        added = read("added_tokens.json")
        ignored["added_tokens.json"] = {token: added[token] for token in added if token not in special}
    return ignored


def _of_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    ignored = _unknown(raw, CONFIG_USED, LIBRARY | CONFIG)
    aspect = raw.get("image_aspect_ratio")
    if aspect not in (None, "pad"):
        ignored["image_aspect_ratio"] = aspect
    visual = raw.get("visual_config", {})
    for name, used in (("visual_model", VISION_USED), ("visual_abstractor", ABSTRACTOR_USED)):
        nested = _unknown(visual.get(name, {}), used | GENERATION_DEFAULTS.keys() | TOKENS, LIBRARY)
        ignored |= {f"{name}.{field}": value for field, value in nested.items()}
    return ignored


def _unknown(raw: Mapping[str, Any], used: Set[str], reasons: Mapping[str, str]) -> dict[str, Any]:
    known = used | {name for names in reasons.values() for name in names.split()}
    return {
        name: value
        for name, value in raw.items()
        if name not in known and value not in OFF and value != GENERATION_DEFAULTS.get(name)
    }
