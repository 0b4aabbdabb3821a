"""The text path of a checkpoint as a GGUF file for llama.cpp: the decoder's text weights and its tokenizer.

llama.cpp has no modality-adaptive module, so images are not in the file; text alone takes exactly this path.
Tensors go to the file one at a time. Sources of names and forms: see `gguf.py`, which reads them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.folder import read_config
from owl2.checkpoint.gguf import ROPE_FACTORS, THEIRS
from owl2.checkpoint.gguf_tokenizer import CONTROL, UNKNOWN, pre_tokenizer_name
from owl2.checkpoint.llama import tensor_names
from owl2.checkpoint.tensors import TensorFolder
from owl2.model.config import DecoderConfig
from owl2.model.decoder import rotary_frequencies
from owl2.processor.tokenizer import JsonTokenizer, SentencePieceTokenizer, load_tokenizer

Kind = Literal["float32", "float16", "q8_0"]
NORMAL, UNUSED, BYTE = 1, 5, 6
"""ggml's other token types."""
TEXT_BRANCH = ".multiway.0"
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Written:
    """What was written."""

    num_tensors: int
    num_bytes: int
    left_out: int
    """Tensors of the checkpoint that text does not pass: vision, and MAM's visual weights."""


def write_gguf(folder: Path, out: Path, kind: Kind = "float16") -> Written:
    """Write the text path of a checkpoint folder.

    Args:
        folder: in the released layout or ours.
        out: the file; it must not exist.
        kind: type of the matrices; vectors are float32 in any case.

    Raises:
        CheckpointError: `gguf` is missing, `out` exists, a tensor is missing, a tokenizer that llama.cpp does
            not have, or rows that `kind` cannot divide into its blocks.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError("GGUF files need the gguf package: pip install 'owl2[gguf]'") from error
    if out.exists():
        raise CheckpointError(f"{out} exists; choose another name, or remove it")
    config, files = read_config(folder).decoder, TensorFolder(folder)
    sources = {name: _source(name, files, folder) for name in tensor_names(config)}
    vocabulary, factors = _vocabulary(folder, config), _rope_factors(config)

    def encoded(name: str) -> np.ndarray:
        """A tensor as it is in the file."""
        weight = _reordered(name, files.read(sources[name], dtype=torch.float32), config).numpy()
        if weight.ndim == 1 or kind == "float32":
            return weight
        if kind == "float16":
            return weight.astype(np.float16)
        return gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)

    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, "llama")
    try:
        _add_shape(writer, config)
        for name, value in vocabulary.items():
            getattr(writer, f"add_{name}")(value)
        for name, source in sources.items():
            shape = files.shapes[source]
            form = _form(name, shape, kind if len(shape) > 1 else "float32")
            writer.add_tensor_info(_name(name), *form)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in sources:
            writer.write_tensor_data(encoded(name))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    used = set(sources.values())
    left_out = sum(name not in used and "inv_freq" not in name for name in files.files)
    return Written(len(sources), out.stat().st_size, left_out)


def _form(name: str, shape: tuple[int, ...], kind: Kind) -> tuple[Any, ...]:
    """Shape, type, bytes and ggml's type of a tensor, as the writer takes them."""
    import gguf

    if kind != "q8_0":
        dtype = np.dtype(kind)
        return shape, dtype, int(np.prod(shape)) * dtype.itemsize
    coded = gguf.GGMLQuantizationType.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[coded]
    if shape[-1] % block:
        raise CheckpointError(
            f"{name} has rows of {shape[-1]}, which q8_0 cannot divide into blocks of {block}; write float16"
        )
    in_bytes = gguf.quant_shape_to_byte_shape(shape, coded)
    return in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), coded


def _source(name: str, files: TensorFolder, folder: Path) -> str:
    """The tensor of the text branch of this name."""
    module = name.removesuffix(".weight")
    for found in (name, f"{module}{TEXT_BRANCH}.weight"):
        if found in files.files:
            return found
    raise CheckpointError(f"{folder} lacks {name}")


def _name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    module = name.removesuffix(".weight")
    if not module.startswith("model.layers."):
        return f"{THEIRS[module]}.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{THEIRS[rest]}.weight"


def _reordered(name: str, weight: Tensor, config: DecoderConfig) -> Tensor:
    """Rows of queries and keys as llama.cpp rotates them: neighbours in place of halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = name.split(".")[-2]
    if module not in heads:
        return weight.contiguous()
    return weight.unflatten(0, (heads[module], 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _add_shape(writer: Any, config: DecoderConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _rope_factors(config: DecoderConfig) -> np.ndarray | None:
    """Llama 3's rescaling as a divisor of each frequency; None without it."""
    if config.rope_scaling is None:
        return None
    plain = replace(config, rope_scaling=None)
    return (rotary_frequencies(plain) / rotary_frequencies(config)).float().numpy()


def _vocabulary(folder: Path, config: DecoderConfig) -> dict[str, Any]:
    """Arguments of the writer's `add_` methods for the tokenizer."""
    tokenizer = load_tokenizer(folder)
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = dict(_sentencepiece(folder, config))
    elif isinstance(tokenizer, JsonTokenizer):
        found = dict(_byte_level(folder, config))
    else:
        raise CheckpointError(f"{folder}: {type(tokenizer).__name__} is no tokenizer that llama.cpp has")
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    found |= {f"{name}_token_id": number for name, number in ids.items() if number is not None}
    return found | {"add_bos_token": tokenizer.add_bos, "chat_template": CHAT}


def _byte_level(folder: Path, config: DecoderConfig) -> Iterator[tuple[str, Any]]:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8-sig")
    raw, name = json.loads(text), pre_tokenizer_name(text)
    if name is None or raw["model"].get("type") != "BPE":
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: llama.cpp has no name for this way to split text; those of GPT-2, "
            f"SmolLM and Llama 3, and sentencepiece models, are written"
        )
    tokens = {
        number: token for token, number in Tokenizer.from_str(text).get_vocab(with_added_tokens=True).items()
    }
    special = {added["id"] for added in raw["added_tokens"]}
    rows = range(config.vocab_size)
    yield "tokenizer_model", "gpt2"
    yield "tokenizer_pre", name
    yield "token_list", [tokens.get(row, f"[PAD{row}]") for row in rows]
    yield "token_types", [CONTROL if row in special else NORMAL if row in tokens else UNUSED for row in rows]
    merges = raw["model"]["merges"]
    yield "token_merges", [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _sentencepiece(folder: Path, config: DecoderConfig) -> Iterator[tuple[str, Any]]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    size = pieces.get_piece_size()

    def kind(row: int) -> int:
        if row >= size or pieces.is_unused(row):
            return UNUSED
        if pieces.is_unknown(row):
            return UNKNOWN
        return CONTROL if pieces.is_control(row) else BYTE if pieces.is_byte(row) else NORMAL

    rows = range(config.vocab_size)
    yield "tokenizer_model", "llama"
    yield "tokenizer_pre", "default"
    yield "token_list", [pieces.id_to_piece(row) if row < size else f"[PAD{row}]" for row in rows]
    yield "token_scores", [pieces.get_score(row) if row < size else -1e9 for row in rows]
    yield "token_types", [kind(row) for row in rows]
    yield "unk_token_id", pieces.unk_id()
    yield "add_space_prefix", True
