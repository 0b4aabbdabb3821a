"""GGUF files of LLaMA-family models (llama.cpp's format): weights dequantised, tokenizer rebuilt.

One file holds everything: metadata, tensor table, aligned data. The first two are parsed here, because the
`gguf` package takes seconds for a vocabulary of 50,000 entries (SmolLM2: 6.9 s of CPU against 0.2 s); it is
used for dequantisation only. llama.cpp rotates neighbouring rows of a head where LLaMA in the Hugging Face
layout rotates its halves, so GGUF files have query and key reordered; that is undone here.

Source: ggml's gguf.md (format), llama.cpp's convert_hf_to_gguf.py (names, order of rows).
"""

import struct
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError, first_few
from owl2.checkpoint.gguf_tokenizer import rebuild_tokenizer
from owl2.checkpoint.llama import tensor_names
from owl2.checkpoint.parts import LanguagePart, Recipe, account
from owl2.model.config import DecoderConfig, RopeScaling
from owl2.model.decoder import rotary_frequencies

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMS = 4

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
ROPE_FACTORS = "rope_freqs.weight"
REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)


@dataclass(frozen=True)
class StoredTensor:
    """An entry of the tensor table."""

    shape: tuple[int, ...]
    """In PyTorch's order, the reverse of the file's."""
    kind: int
    """ggml's type: 0 F32, 3 Q4_1, 8 Q8_0, ..."""
    offset: int
    """In bytes from the beginning of the file."""


class GGUFFile:
    """The metadata and tensor table of a GGUF file, and its dequantised tensors."""

    def __init__(self, file: Path):
        """Read metadata and tensor table.

        Raises:
            CheckpointError: not a GGUF file, an unknown version, or cut short.
        """
        self.file = file
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self._at = 0
        try:
            self._content: np.ndarray = np.memmap(file, dtype=np.uint8, mode="r")
            self._read_header()
        except CheckpointError:
            raise
        except (struct.error, ValueError, KeyError) as error:
            raise CheckpointError(f"{file} is damaged or cut short at byte {self._at}") from error

    def read(self, name: str) -> Tensor:
        """Return a tensor, dequantised to float32.

        Raises:
            CheckpointError: the `gguf` package is missing, the type is unknown, or the file is cut short.
        """
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError as error:
            raise CheckpointError("GGUF files need the gguf package: pip install 'owl2[gguf]'") from error
        stored = self.tensors[name]
        try:
            kind = GGMLQuantizationType(stored.kind)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{self.file}: {name} is of the unknown type {stored.kind}") from error
        *rows, columns = stored.shape
        row_bytes = columns // block * block_bytes
        end = stored.offset + int(np.prod(rows, dtype=np.int64)) * row_bytes
        if end > len(self._content):
            raise CheckpointError(
                f"{self.file} is cut short: {name} reaches to byte {end} of {len(self._content)}"
            )
        raw = np.array(self._content[stored.offset : end]).reshape(*rows, row_bytes)
        values = np.ascontiguousarray(dequantize(raw, kind), dtype=np.float32)
        return torch.from_numpy(values).reshape(stored.shape)

    def _read_header(self) -> None:
        magic = bytes(self._take(4))
        version, num_tensors, num_fields = self._unpack("IQQ")
        if magic != MAGIC or version not in VERSIONS:
            raise CheckpointError(
                f"{self.file} begins with {magic!r}, version {version}: not a GGUF file of version 2 or 3"
            )
        for _ in range(num_fields):
            name = self._string()
            self.metadata[name] = self._value(self._unpack("I")[0])
        entries = []
        for _ in range(num_tensors):
            name = self._string()
            num_dims = self._unpack("I")[0]
            if num_dims > MAX_DIMS:
                raise ValueError(f"a tensor of {num_dims} dimensions")
            shape = self._unpack("Q" * num_dims)[::-1]
            entries.append((name, shape, *self._unpack("IQ")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        self.tensors = {n: StoredTensor(shape, kind, start + offset) for n, shape, kind, offset in entries}

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._unpack(SCALARS[kind])[0]
        inner, count = self._unpack("IQ")
        if inner in (STRING, ARRAY):
            return [self._value(inner) for _ in range(count)]
        return list(self._unpack(f"{count}{SCALARS[inner]}"))

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        return bytes(self._take(length)).decode("utf-8")

    def _unpack(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, length: int) -> memoryview:
        taken = self._content[self._at : self._at + length].data
        if len(taken) < length:
            raise struct.error("end of file")
        self._at += length
        return taken


def read_gguf(file: Path) -> LanguagePart:
    """Read a LLaMA-family GGUF file, its weights dequantised and its tokenizer rebuilt.

    Raises:
        CheckpointError: not GGUF, another architecture, or a feature that the decoder lacks.
    """
    gguf = GGUFFile(file)
    try:
        config = _config(gguf)
        tokenizer_files = rebuild_tokenizer(gguf.metadata, str(file))
    except CheckpointError:
        raise
    except Exception as error:  # what values of the wrong type or a damaged vocabulary lead to
        raise CheckpointError(f"{file} has damaged metadata ({type(error).__name__}: {error})") from error
    recipes = {name: _recipe(name, config) for name in tensor_names(config)}
    where = f"{file} (GGUF)"
    return LanguagePart(
        origin=where,
        config=config,
        recipes=recipes,
        read_source=gguf.read,
        tokenizer_files=tokenizer_files,
        unused=account(gguf.tensors, recipes, (ROPE_FACTORS,), where),
    )


def _config(gguf: GGUFFile) -> DecoderConfig:
    meta = gguf.metadata
    kind = meta.get("general.architecture")
    if kind != "llama":
        raise CheckpointError(f"{gguf.file} has the architecture {kind!r}; expected 'llama'")
    scaling = meta.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"{gguf.file}: rope scaling {scaling!r} is not supported")
    lacking = [f"llama.{key}" for key in REQUIRED if f"llama.{key}" not in meta]
    if "token_embd.weight" not in gguf.tensors:
        lacking.append("token_embd.weight")
    if lacking:
        raise CheckpointError(f"{gguf.file} lacks {first_few(lacking)}")
    width, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    head_dim = meta.get("llama.attention.key_length", width // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if meta.get(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{gguf.file}: {key} = {meta[key]} differs from the head dimension {head_dim}; unsupported"
            )
    theta = meta.get("llama.rope.freq_base", 10000.0)
    ends = [
        meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")
    ]  # text, turn, message
    first, *others = dict.fromkeys(end for end in ends if end is not None) or [2]
    return DecoderConfig(
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=meta.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=_shortest(meta["llama.attention.layer_norm_rms_epsilon"]),
        rope_theta=_shortest(theta),
        rope_scaling=_rope_scaling(gguf, head_dim, theta),
        tie_word_embeddings="output.weight" not in gguf.tensors,
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=(first, *others) if others else first,
        pad_token_id=meta.get("tokenizer.ggml.padding_token_id", first),
    )


def _shortest(value: float) -> float:
    """Return the shortest decimal of a float32: 9.999999747e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _recipe(name: str, config: DecoderConfig) -> Recipe:
    module = name.removesuffix(".weight")
    if not module.startswith("model.layers."):
        return Recipe((f"{THEIRS[module]}.weight",))
    _, _, layer, rest = module.split(".", 3)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    source = (f"blk.{layer}.{THEIRS[rest]}.weight",)
    return (
        Recipe(source, partial(halves_from_pairs, num_heads=heads[rest])) if rest in heads else Recipe(source)
    )


def halves_from_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a query or key projection from rotated neighbours to rotated halves."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _rope_scaling(gguf: GGUFFile, head_dim: int, theta: float) -> RopeScaling | None:
    """Recognise Llama 3's rescaling, which a GGUF file stores as a divisor of every frequency.

    The largest divisor is the factor; the other three numbers are the same in every Llama 3 release, and are
    checked.
    """
    if ROPE_FACTORS not in gguf.tensors:
        return None
    divisors = gguf.read(ROPE_FACTORS)
    if bool((divisors == 1).all()):
        return None
    scaling = RopeScaling(
        factor=divisors.max().item(),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    plain = DecoderConfig(head_dim=head_dim, rope_theta=theta)
    scaled = replace(plain, rope_scaling=scaling)
    expected = rotary_frequencies(plain) / rotary_frequencies(scaled)
    if not torch.allclose(divisors, expected, rtol=1e-4):
        raise CheckpointError(f"{gguf.file}: {ROPE_FACTORS} is not Llama 3's rescaling; unsupported")
    return scaling
