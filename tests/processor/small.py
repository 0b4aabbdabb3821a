"""Helpers of the processor's tests: random text, and a sentencepiece vocabulary as a `tokenizer.json`."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers

from owl2.processor import ImageTransform, Processor, Tokenizer

SENTENCES = (
    "the image shows an owl on a branch and two red apples beside green cups near one window what is in "
    "image describe how many colour where left right yes no please answer question USER ASSISTANT"
)
WORDS = SENTENCES.split()
ODD_TEXT = "naïve café · 你好 🦙 e\u0301 \t tab\nline  two   three 1234 (a) </s> <|image|> <0x41> �"


def random_text(rng: random.Random, length: int = 12) -> str:
    """Words, digits, punctuation, runs of spaces and newlines, and characters no vocabulary has."""
    pieces = [*WORDS, *ODD_TEXT, " ", "  ", "\n", ".", ",", "?", "42"]
    return "".join(rng.choice(pieces) + rng.choice(["", " ", " "]) for _ in range(rng.randrange(1, length)))


def llama_json(model: bytes) -> str:
    """Return a sentencepiece BPE model as a `tokenizer.json` of LLaMA's kind, the merges by score."""
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(model)
    count = pieces.get_piece_size()
    vocabulary = {pieces.id_to_piece(token_id): token_id for token_id in range(count)}
    learned = [
        i for i in range(count) if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    ]
    merges = []
    for token_id in sorted(learned, key=pieces.get_score, reverse=True):
        piece = pieces.id_to_piece(token_id)
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str()


LLAMA_CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>"},
    "unk_token": "<unk>",
    "add_bos_token": True,
}


def make_processor(tokenizer: Tokenizer, **changes: Any) -> Processor:
    """Return a processor with 3 tokens an image of 28 px."""
    options: dict[str, Any] = {"image_token_id": -200, "tokens_per_image": 3, **changes}
    return Processor(tokenizer, ImageTransform(28), **options)


def noise(width: int, height: int, low: int = 0, high: int = 256) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_folder(folder: Path, files: Mapping[str, bytes | dict[str, Any]]) -> Path:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    return folder
