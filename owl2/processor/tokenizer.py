"""Tokenizers: text to ids and back, with a sentencepiece model or a `tokenizer.json`.

Both handle plain text only: a special token typed by a user is ordinary text, and the processor inserts BOS,
EOS and image tokens. Decoding is defined on bytes (`token_bytes`): the text of ids is the concatenated bytes
of their tokens, read as UTF-8. That makes streaming exact by construction (see streaming.py) and gives both
kinds one behaviour. Encoding is the library's own. Released behaviour: slow LLaMA tokenizer, official
mm_utils.py:181, where every piece of text gets sentencepiece's dummy space in front.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from owl2.errors import Owl2Error
from owl2.files import in_short, parse_json, seems_to_be, write_file

COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that may accompany `tokenizer.model`."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")

MAX_TOKENS = 10_000_000
"""No vocabulary is larger; a damaged file can claim billions."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCEPIECE_SPACE = "▁"
_NO_DUMMY_SPACE = b"\x1a\x02\x18\x00"
"""`normalizer_spec { add_dummy_prefix: false }`, which overrides that field when appended to a model."""


class TokenizerError(Owl2Error, ValueError):
    """A tokenizer that is missing, unreadable or of a kind that this package cannot decode."""


class Tokenizer(Protocol):
    """The interface that the processor, generation and training use."""

    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    vocab_size: int
    """One more than the highest id: the least number of rows of the embedding."""
    add_bos: bool
    """Whether a prompt starts with `bos_token_id`."""
    dummy_space: bool
    """Whether `encode` puts a space in front of any text; `decode` removes one."""
    end_strips: tuple[bool, bool]
    """Whether white space is removed before and after an end token."""

    def encode(self, text: str, *, space: bool = False, after_end: bool = False) -> list[int]:
        """Return the ids of plain text, without BOS or EOS.

        Args:
            space: put a space in front of the text.
            after_end: the text follows an end token, without a space.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds; none for special tokens and ids past the vocabulary."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""
        ...


class _ByteVocabulary:
    """Decoding, which both tokenizers share."""

    def __init__(self, table: list[bytes], *, dummy_space: bool) -> None:
        self._table = table
        self.vocab_size = len(table)
        self.dummy_space = dummy_space

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds to the text.

        Special tokens add none, nor do ids past the vocabulary: an embedding may have more rows than the
        tokenizer has tokens.

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

    Each `encode` call puts the model's dummy space in front, whatever `space` says: the released code
    tokenises each piece of a prompt alone. With `"legacy": false` it is taken away again after an end token.
    The padding id is the unknown token's if the model has no padding token, as in the release.
    """

    def __init__(self, model: bytes, companions: Mapping[str, bytes] | None = None) -> None:
        """Build from the bytes of `tokenizer.model` and of its `COMPANIONS`, which are kept as they are.

        Raises:
            TokenizerError: a damaged file, or a model without an end token.
        """
        self._model = model
        self._companions = dict(companions or {})
        try:
            self._pieces = _load_pieces(model)
            table = list(self._piece_bytes())
            probe = self._pieces.encode("a", out_type=str)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            found = seems_to_be(model) or f"is not a sentencepiece model: {error}"
            raise TokenizerError(f"tokenizer.model {found}") from error
        super().__init__(table, dummy_space=probe.startswith(_SENTENCEPIECE_SPACE))
        config, special, added = (
            parse_json(self._companions.get(name, b"{}"), name, TokenizerError) for name in COMPANIONS
        )
        bos, pad = self._pieces.bos_id(), self._pieces.pad_id()
        self.bos_token_id: int | None = bos if bos >= 0 else None
        self.eos_token_id: int = self._find_end(special.get("eos_token") or config.get("eos_token"), added)
        self.pad_token_id: int = pad if pad >= 0 else self._pieces.unk_id()
        self.add_bos: bool = self.bos_token_id is not None and _flag(config, "add_bos_token", True)
        self.end_strips = _strips(special.get("eos_token"))
        self._is_legacy = _flag(config, "legacy", "legacy" not in config)  # null is false, as in 4.31

    @classmethod
    def from_folder(cls, folder: Path) -> "SentencePieceTokenizer":
        companions = {name: _read(folder, name) for name in COMPANIONS if (folder / name).exists()}
        return cls(_read(folder, "tokenizer.model"), companions)

    def encode(self, text: str, *, space: bool = False, after_end: bool = False) -> list[int]:
        """Return the ids of plain text behind the dummy space; of "" only if `space` asks for it."""
        if not text and space:
            return [self._pieces.piece_to_id(_SENTENCEPIECE_SPACE)]
        ids = self._pieces.encode(text)
        return self._without_dummy_space(text, ids) if after_end and not self._is_legacy else ids

    def _without_dummy_space(self, text: str, ids: list[int]) -> list[int]:
        """Take the dummy space away from the ids of text, as the slow tokenizer of transformers 4.31 does.

        It cuts the space off the first piece: `▁US ER :` becomes `US ER :`, though LLaMA has a piece `USER`.
        Where the rest of the piece is none, 4.31 makes it the unknown token; here the text is split again.
        """
        first = self._pieces.id_to_piece(ids[0]) if ids else ""
        if text.startswith(" ") or not first.startswith(_SENTENCEPIECE_SPACE):
            return ids
        rest = first.removeprefix(_SENTENCEPIECE_SPACE)
        token_id = self._pieces.piece_to_id(rest)
        if rest and self._pieces.id_to_piece(token_id) != rest:
            return self._pieces_without_dummy_space.encode(text)
        return [*([token_id] if rest else []), *ids[1:]]

    @cached_property
    def _pieces_without_dummy_space(self) -> sentencepiece.SentencePieceProcessor:
        return _load_pieces(self._model + _NO_DUMMY_SPACE)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and the files that came with it (or the one that `transformers` needs)."""
        ids = {"bos": self.bos_token_id, "eos": self.eos_token_id, "pad": self.pad_token_id}
        tokens = {name: i for name, i in ids.items() if i is not None and i < self.vocab_size}
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": self.add_bos,
            "add_eos_token": False,
            "legacy": True,
            **{f"{name}_token": self._pieces.id_to_piece(i) for name, i in tokens.items()},
        }
        files = {
            "tokenizer_config.json": _to_json(config),
            **self._companions,
            "tokenizer.model": self._model,
        }
        for name, data in files.items():
            write_file(folder / name, data)

    def _find_end(self, stated: Any, added: Mapping[str, Any]) -> int:
        """Return the id of the end token that the files state, or else of the model's own."""
        if not stated:
            if self._pieces.eos_id() < 0:
                raise TokenizerError("tokenizer.model has no end token (</s>)")
            return self._pieces.eos_id()
        text = _token_text("eos_token", stated)
        token_id = self._pieces.piece_to_id(text)
        if self._pieces.id_to_piece(token_id) == text:
            return token_id
        if type(added.get(text)) is not int:
            raise TokenizerError(f"eos_token {text!r} is neither in tokenizer.model nor in added_tokens.json")
        return added[text]

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

    `tokenizer_config.json` (or `special_tokens_map.json`) states the special tokens and whether prompts start
    with BOS; if it does not say, the tokenizer's own post-processor decides. Padding falls back to the end
    token.
    """

    end_strips = (False, False)

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        """Build from the text of `tokenizer.json` and the content of `tokenizer_config.json`.

        Raises:
            TokenizerError: unreadable, an unknown kind of decoder, or a missing special token.
        """
        self._json = tokenizer_json
        self._config = dict(config)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.encode("a")
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
        self.bos_token_id: int | None = self._special_id("bos_token")
        eos = self._special_id("eos_token")
        if eos is None:
            raise TokenizerError("tokenizer_config.json names no eos_token: answers could never end")
        self.eos_token_id: int = eos
        pad = self._special_id("pad_token")
        self.pad_token_id: int = eos if pad is None else pad
        starts_with_bos = self._tokenizer.encode("a").ids[:1] == [self.bos_token_id]
        add_bos = _flag(self._config, "add_bos_token", starts_with_bos)
        self.add_bos: bool = self.bos_token_id is not None and add_bos
        self._tokenizer.encode_special_tokens = True
        super().__init__(self._token_table(), dummy_space=False)
        self.dummy_space = b"".join(map(self.token_bytes, self.encode("a"))).startswith(b" ")

    @classmethod
    def from_folder(cls, folder: Path) -> "JsonTokenizer":
        if not (folder / "tokenizer_config.json").exists():
            raise TokenizerError(
                "tokenizer_config.json is missing: it names the special tokens of tokenizer.json"
            )
        data = _read(folder, "tokenizer.json")
        parse_json(data, "tokenizer.json", TokenizerError)
        special, config = (
            parse_json(_read(folder, name), name, TokenizerError) if (folder / name).exists() else {}
            for name in ("special_tokens_map.json", "tokenizer_config.json")
        )
        special = {name: special[name] for name in SPECIAL_TOKENS if name in special}
        return cls(data.decode("utf-8-sig"), {**special, **config})

    def encode(self, text: str, *, space: bool = False, after_end: bool = False) -> list[int]:
        """Return the ids of plain text; literals of special tokens in it are ordinary text."""
        if space and not self.dummy_space:
            text = " " + text
        elif space and not text:
            lone_space = self._tokenizer.token_to_id(_SENTENCEPIECE_SPACE)
            return [] if lone_space is None else [lone_space]
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` as it was read, and `tokenizer_config.json`, which names a class."""
        write_file(folder / "tokenizer.json", self._json.encode())
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        write_file(folder / "tokenizer_config.json", _to_json(config))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._json, self._config)

    def _special_id(self, name: str) -> int | None:
        stated = self._config.get(name)
        if not stated:
            return None
        token = _token_text(name, stated)
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise TokenizerError(f"tokenizer_config.json: {name} {token!r} is not in tokenizer.json")
        return token_id

    def _token_table(self) -> list[bytes]:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        silent = {token_id for token_id, token in added.items() if token.special}
        silent |= {self.eos_token_id, self.pad_token_id}
        highest = max(vocabulary.values())
        if highest >= MAX_TOKENS:
            raise TokenizerError(f"tokenizer.json has the token id {highest:,}, beyond any vocabulary")
        table = [b""] * (highest + 1)
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
        TokenizerError: the folder has neither, or one of its tokenizer files is damaged.
    """
    folder = Path(folder)
    try:
        if (folder / "tokenizer.model").exists():
            return SentencePieceTokenizer.from_folder(folder)
        if (folder / "tokenizer.json").exists():
            return JsonTokenizer.from_folder(folder)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error
    raise TokenizerError(
        f"{folder} has neither tokenizer.model nor tokenizer.json; copy the tokenizer files of the language "
        f"model into it"
    )


def token_text(stated: Any) -> str | None:
    """The text of a special token as a JSON file states it: text, or an object with the text as `content`."""
    text = stated.get("content") if isinstance(stated, Mapping) else stated
    return text if isinstance(text, str) else None


def _token_text(name: str, stated: Any) -> str:
    text = token_text(stated)
    if text is None or not text.isprintable():
        raise TokenizerError(
            f"tokenizer_config.json: {name} is {in_short(stated)}, expected the text of a token"
        )
    return text


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"tokenizer_config.json: {name} is {in_short(value)}, expected true or false")
    return default if value is None else value


def _strips(end_token: Any) -> tuple[bool, bool]:
    """Whether the slow tokenizer of transformers 4.31 strips the text before and after the end token.

    It does where `special_tokens_map.json` states the token as plain text, or as an object that says so.
    """
    if isinstance(end_token, Mapping):
        return bool(end_token.get("lstrip")), bool(end_token.get("rstrip"))
    return bool(end_token), bool(end_token)


def _load_pieces(model: bytes) -> sentencepiece.SentencePieceProcessor:
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(model)
    return pieces


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise TokenizerError(f"{name} cannot be read: {error.strerror}") from error


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
    """GPT-2's alphabet: printable Latin-1 bytes are themselves, the others U+0100 and following."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    if all(character in _BYTE_LEVEL for character in token):
        return bytes(_BYTE_LEVEL[character] for character in token)
    return token.encode()  # an added token, which is plain text


def _sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode()
