"""Text to ids and back, over a sentencepiece model or a `tokenizer.json`.

Both speak only of plain text: a special token typed by a user is ordinary text, and BOS, EOS and image tokens
are put in by the processor. Decoding is defined on bytes (`token_bytes`): the text of ids is the bytes of
their tokens, joined, read as UTF-8. That makes streaming exact by construction (see streaming.py) and
gives both kinds one behaviour. Encoding is the library's own. Released behaviour: slow LLaMA tokenizer,
official mm_utils.py:181, where every piece of text gets sentencepiece's dummy space in front.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from owl2.errors import Owl2Error
from owl2.files import write_file

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCEPIECE_SPACE = "▁"


class TokenizerError(Owl2Error, ValueError):
    """A tokenizer that is missing, unreadable or of a kind that this package cannot decode."""


class Tokenizer(Protocol):
    """What the processor, generation and training need of a tokenizer."""

    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    vocab_size: int
    """One more than the highest id: the rows that the embedding must have at least."""
    add_bos: bool
    """Whether a prompt starts with `bos_token_id`."""
    dummy_space: bool
    """Whether `encode` puts a space in front of any text; `decode` takes one away again."""

    def encode(self, text: str, *, space: bool = False) -> list[int]:
        """Return the ids of plain text, without BOS or EOS. `space` asks for a space in front of it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to the text; nothing for special tokens and ids past the vocabulary."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""
        ...


class _ByteVocabulary:
    """The decoding half that both tokenizers share."""

    def __init__(self, table: list[bytes], *, dummy_space: bool) -> None:
        self._table = table
        self.vocab_size = len(table)
        self.dummy_space = dummy_space

    def token_bytes(self, token_id: int) -> bytes:
        """Return what one id adds to the text.

        Special tokens add nothing, and so do ids past the vocabulary: an embedding may have more rows
        than the tokenizer has tokens.

        Raises:
            IndexError: a negative id, such as an image token.
        """
        if token_id < 0:
            raise IndexError(f"token id {token_id} is negative: image tokens have no text, leave them out")
        return self._table[token_id] if token_id < len(self._table) else b""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(token_id) for token_id in ids)
        if self.dummy_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")


class SentencePieceTokenizer(_ByteVocabulary):
    """A sentencepiece `tokenizer.model`, used as the released code uses LLaMA's.

    Each `encode` call gets the model's dummy space in front, whatever `space` says: the released code
    tokenises each piece of a prompt alone. The padding id is the unknown token's where the model has no
    padding token, as in the release.
    """

    def __init__(self, model: bytes, companions: Mapping[str, bytes] | None = None) -> None:
        """Build from the bytes of `tokenizer.model` and of the files beside it, which are kept as they are.

        Raises:
            TokenizerError: not a sentencepiece model, or one without an end token.
        """
        self._model = model
        self._companions = dict(companions or {})
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise TokenizerError(f"tokenizer.model is not a sentencepiece model: {error}") from error
        if self._pieces.eos_id() < 0:
            raise TokenizerError("tokenizer.model has no end token (</s>)")
        probe = self._pieces.encode("a", out_type=str)[0]
        super().__init__(list(self._piece_bytes()), dummy_space=probe.startswith(_SENTENCEPIECE_SPACE))
        config = json.loads(self._companions.get("tokenizer_config.json", b"{}"))
        bos, pad = self._pieces.bos_id(), self._pieces.pad_id()
        self.bos_token_id: int | None = bos if bos >= 0 else None
        self.eos_token_id: int = self._pieces.eos_id()
        self.pad_token_id: int = pad if pad >= 0 else self._pieces.unk_id()
        self.add_bos: bool = self.bos_token_id is not None and config.get("add_bos_token", True)

    @classmethod
    def from_folder(cls, folder: Path) -> "SentencePieceTokenizer":
        names = ("tokenizer_config.json", "special_tokens_map.json")
        companions = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return cls((folder / "tokenizer.model").read_bytes(), companions)

    def encode(self, text: str, *, space: bool = False) -> list[int]:
        """Return the ids of plain text behind the dummy space; of "" only if `space` asks for it."""
        if not text and space:
            return [self._pieces.piece_to_id(_SENTENCEPIECE_SPACE)]
        return self._pieces.encode(text)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and the files that came with it (or what `transformers` needs)."""
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": self.add_bos, "add_eos_token": False}
        files = {
            "tokenizer_config.json": _to_json(config),
            **self._companions,
            "tokenizer.model": self._model,
        }
        for name, data in files.items():
            write_file(folder / name, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model, self._companions)

    def _piece_bytes(self) -> Iterator[bytes]:
        for token_id in range(self._pieces.get_piece_size()):
            piece = self._pieces.id_to_piece(token_id)
            if self._pieces.is_control(token_id) or self._pieces.is_unknown(token_id):
                yield b""
            elif self._pieces.is_byte(token_id):
                yield bytes.fromhex(piece[3:5])
            else:
                yield piece.replace(_SENTENCEPIECE_SPACE, " ").encode()


class JsonTokenizer(_ByteVocabulary):
    """A `tokenizer.json` of the `tokenizers` library: byte-level or sentencepiece-like BPE.

    Special tokens, and whether prompts start with BOS, come from `tokenizer_config.json`; where that does
    not say whether, the tokenizer's own post-processor is asked. Padding falls back to the end token.
    """

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        """Build from the text of `tokenizer.json` and the content of `tokenizer_config.json`.

        Raises:
            TokenizerError: unreadable, an unknown kind of decoder, or a special token that is missing.
        """
        self._json = tokenizer_json
        self._config = dict(config)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token_id: int | None = self._special_id("bos_token")
        eos = self._special_id("eos_token")
        if eos is None:
            raise TokenizerError("tokenizer_config.json names no eos_token: answers could never end")
        self.eos_token_id: int = eos
        pad = self._special_id("pad_token")
        self.pad_token_id: int = eos if pad is None else pad
        self.add_bos: bool = self.bos_token_id is not None and self._starts_with_bos()
        self._tokenizer.encode_special_tokens = True
        super().__init__(self._token_table(), dummy_space=False)
        self.dummy_space = b"".join(map(self.token_bytes, self.encode("a"))).startswith(b" ")

    @classmethod
    def from_folder(cls, folder: Path) -> "JsonTokenizer":
        path = folder / "tokenizer_config.json"
        if not path.is_file():
            raise TokenizerError(f"{path} is missing: it names the special tokens of tokenizer.json")
        return cls((folder / "tokenizer.json").read_text("utf-8"), json.loads(path.read_text("utf-8")))

    def encode(self, text: str, *, space: bool = False) -> list[int]:
        """Return the ids of plain text; literals of special tokens in it are ordinary text."""
        if space and not self.dummy_space:
            text = " " + text
        elif space and not text:
            lone_space = self._tokenizer.token_to_id(_SENTENCEPIECE_SPACE)
            return [] if lone_space is None else [lone_space]
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` as it was read, and `tokenizer_config.json`."""
        write_file(folder / "tokenizer.json", self._json.encode())
        write_file(folder / "tokenizer_config.json", _to_json(self._config))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._json, self._config)

    def _special_id(self, name: str) -> int | None:
        token = self._config.get(name)
        if isinstance(token, Mapping):
            token = token["content"]
        if token is None:
            return None
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise TokenizerError(f"tokenizer_config.json: {name} {token!r} is not in tokenizer.json")
        return token_id

    def _starts_with_bos(self) -> bool:
        stated = self._config.get("add_bos_token")
        if stated is not None:
            return stated
        return self._tokenizer.encode("a").ids[:1] == [self.bos_token_id]

    def _token_table(self) -> list[bytes]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        silent = {token_id for token_id, token in added.items() if token.special}
        silent |= {self.eos_token_id, self.pad_token_id}
        table = [b""] * (max(vocabulary.values()) + 1)
        to_bytes = self._bytes_of_token()
        for token, token_id in vocabulary.items():
            if token_id not in silent:
                table[token_id] = to_bytes(token)
        return table

    def _bytes_of_token(self) -> Any:
        kinds = set(_decoder_kinds(json.loads(self._json).get("decoder")))
        if "ByteLevel" in kinds:
            return _byte_level_bytes
        if kinds & {"Metaspace", "ByteFallback", "Replace"}:
            return _sentencepiece_bytes
        raise TokenizerError(
            f"tokenizer.json has the decoder {sorted(kinds) or None}; expected ByteLevel (GPT-2, SmolLM2, "
            f"Llama 3) or a sentencepiece-like one (Metaspace, ByteFallback)"
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a checkpoint folder's tokenizer; `tokenizer.model` wins over `tokenizer.json`.

    Raises:
        TokenizerError: the folder has neither, or the file is unreadable.
    """
    folder = Path(folder)
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer.from_folder(folder)
    if (folder / "tokenizer.json").is_file():
        return JsonTokenizer.from_folder(folder)
    raise TokenizerError(
        f"{folder} has neither tokenizer.model nor tokenizer.json; copy the tokenizer files of the language "
        f"model into it"
    )


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _decoder_kinds(decoder: Mapping[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoder_kinds(part)
    else:
        yield decoder["type"]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    if all(character in _BYTE_LEVEL for character in token):
        return bytes(_BYTE_LEVEL[character] for character in token)
    return token.encode()  # an added token: it stands for itself


def _sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode()
