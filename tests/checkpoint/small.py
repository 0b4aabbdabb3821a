"""Whole checkpoint folders of tiny models, with the files that released and other people's folders have."""

import json
from pathlib import Path
from typing import Any

from owl2.checkpoint import save_checkpoint
from owl2.processor import ImageTransform, Processor, Tokenizer
from tests.model.tiny import tiny_model

JSON_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")

LIBRARY_PART = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_range": 0.02,
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.28.1",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
"""What transformers 4 adds to each part of the released configuration (shortened)."""

ONE_ALIGN = {
    "_name_or_path": "q-future/one-align",
    "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_mplug_owl2.MPLUGOwl2LlamaForCausalLM"},
    "freeze_vision_model": False,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.31.0",
    "tune_visual_abstractor": True,
    "use_cache": True,
    "visual_abstractor_lr": None,
}
"""Fields that OneAlign's `config.json` has besides the model's shape."""

RELEASED_PREPROCESSOR = {
    "crop_size": 56,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 56,
}
LLAMA_TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False},
    "clean_up_tokenization_spaces": False,
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False},
    "model_max_length": 2048,
    "pad_token": None,
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


def write_checkpoint(folder: Path, tokenizer: Tokenizer, **transform: Any) -> Path:
    """Write a folder as training leaves it: a tiny model with a processor for 56 px."""
    model = tiny_model(
        vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=128
    )
    processor = Processor(
        tokenizer,
        ImageTransform(56, **transform),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
    )
    save_checkpoint(model, folder, processor=processor)
    return folder


def edit(file: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    """Change fields of a JSON file, which is created if it is not there."""
    raw = json.loads(file.read_text()) if file.exists() else {}
    kept = {name: value for name, value in raw.items() if name not in drop}
    file.write_text(json.dumps({**kept, **changes}))


def make_released(folder: Path, **config: Any) -> Path:
    """Give a folder of `write_checkpoint` the JSON files of a released one, without fields of ours."""
    edit(folder / "config.json", drop=("mam", "image_token_id", "head_dim", "pad_token_id"), **ONE_ALIGN)
    raw = json.loads((folder / "config.json").read_text())
    visual = {name: {**LIBRARY_PART, **part} for name, part in raw["visual_config"].items()}
    visual["visual_model"] |= {"projection_dim": 768, "use_flash_attn": False, "attention_dropout": 0.0}
    edit(folder / "config.json", visual_config=visual, **config)
    (folder / "preprocessor_config.json").write_text(json.dumps(RELEASED_PREPROCESSOR))
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA_TOKENIZER))
    (folder / "generation_config.json").write_text(
        json.dumps({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    return folder
