"""The tokenizer inside a GGUF file, rebuilt as `tokenizer.json` and `tokenizer_config.json`.

Two kinds exist for the LLaMA family. `gpt2` is byte-level BPE with its merges in the file and a named rule
for splitting text first. `llama` is a sentencepiece BPE, stored as pieces and scores: its merges are all
pairs of pieces that form a piece, best score first, which is the order in which sentencepiece applies them.

Source: llama.cpp's llama-vocab.cpp (pre-tokenizer names), the tokenizer.json of SmolLM2, Llama 3 and Llama 2.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from owl2.checkpoint.errors import CheckpointError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""ggml's token types outside the ordinary vocabulary."""

SPACE = "▁"

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def rebuild_tokenizer(meta: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Return the tokenizer files, by name, of a GGUF file's metadata.

    Raises:
        CheckpointError: no tokenizer in the file, or one of an unknown kind.
    """
    kind = meta.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(meta, where)
    elif kind == "llama":
        tokenizer = _sentencepiece(meta)
    else:
        raise CheckpointError(f"{where} has a tokenizer of the kind {kind!r}; expected gpt2 or llama")
    tokens, types = meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type", [])
    special = (CONTROL, UNKNOWN) if kind == "llama" else (CONTROL,)
    tokenizer.add_special_tokens([_added(tokens[i]) for i, t in enumerate(types) if t in special])
    tokenizer.add_tokens([_added(tokens[i]) for i, t in enumerate(types) if t == USER_DEFINED])
    config = _config(meta, kind)
    if config["add_bos_token"]:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, meta["tokenizer.ggml.bos_token_id"])],
        )
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)


def _config(meta: Mapping[str, Any], kind: str) -> dict[str, Any]:
    tokens = meta["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = meta.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is not None:
            config[f"{ours}_token"] = tokens[index]
    # llama.cpp's defaults where the file does not say: a sentencepiece prompt begins with BOS.
    config["add_bos_token"] = "bos_token" in config and meta.get(
        "tokenizer.ggml.add_bos_token", kind == "llama"
    )
    if "tokenizer.chat_template" in meta:
        config["chat_template"] = meta["tokenizer.chat_template"]
    return config


def _splitters() -> dict[str, list[pre_tokenizers.PreTokenizer]]:
    """Ways to split text before merging, by llama.cpp's names."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    return {
        "default": [gpt2],
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    }


def pre_tokenizer_name(tokenizer_json: str) -> str | None:
    """llama.cpp's name for how a `tokenizer.json` splits text; None if it has none."""

    def steps(state: dict[str, Any] | None) -> list[dict[str, Any]]:
        parts = state.get("pretokenizers", [state]) if state else []
        # How offsets are trimmed changes no token.
        return [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]

    wanted = steps(json.loads(tokenizer_json).get("pre_tokenizer"))
    for name, parts in reversed(_splitters().items()):  # gpt-2 before default
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        if steps(json.loads(tokenizer.to_str())["pre_tokenizer"]) == wanted:
            return name
    return None


def _byte_level(meta: Mapping[str, Any], where: str) -> Tokenizer:
    pre, splitters = meta.get("tokenizer.ggml.pre", "default"), _splitters()
    if pre not in splitters:
        raise CheckpointError(f"{where}: pre-tokenizer {pre!r} is not one of {', '.join(splitters)}")
    if "tokenizer.ggml.merges" not in meta:
        raise CheckpointError(f"{where} has a gpt2 tokenizer without merges")
    vocabulary = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    # Llama 3 looks up a whole word before it merges, and so finds words that no sequence of merges forms.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(meta: Mapping[str, Any]) -> Tokenizer:
    tokens, scores = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.scores"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)]
    model = BPE(vocabulary, _merges(vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, best score first, as sentencepiece merges them."""
    merges = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
