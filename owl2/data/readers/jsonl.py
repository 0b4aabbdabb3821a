"""JSON files: a row a line (JSONL), or an array of rows, as LLaVA and LLaMA-Factory publish them.

What a file is follows from its first character, whatever its name. Where rows begin is worked out in one pass
over the file, which also hashes it (on one core, 0.7 GB/s of lines, 0.17 GB/s of an array), and kept in the
cache: 16 bytes a row, mapped by all processes, so that an array of GBs is never in memory. A row that cannot
be read is a sample that cannot be used; a file that as a whole is not UTF-8 is an error at once.
"""

import codecs
import hashlib
import json
import os
import re
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from owl2.data.readers.base import FilesSource
from owl2.data.readers.cache import cache_path, key_of, local_copy, lock_of
from owl2.data.readers.paths import find_files
from owl2.data.readers.rows import (
    NO_OBJECT,
    ROLES,
    TURN_KEYS,
    Column,
    Names,
    decoded,
    form_of,
    media_of_name,
    names_of,
    sample_of,
    stored_media,
)
from owl2.data.readers.storage import Location, StoredFile, is_url, look_at, read_bytes
from owl2.data.sample import DataError, Sample
from owl2.files import write_file
from owl2.jsonl import JsonlError, parse_object

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
MIN_BROKEN_LINES = 10
"""A file is never refused for so few lines that are not UTF-8."""
SETTLED_NS = 2_000_000_000
"""Age of a file whose next change will be seen in its date: file systems count time in steps."""
BLOCK_BYTES = 1 << 22
"""Bytes of an array that are looked at together."""
_HEAD_BYTES = 1 << 16
_SPACE = b" \t\r\n"
"""White space of JSON, and no other: a line of it is skipped, and so read with the row before."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ARRAY = re.compile(rb"(\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*[{\]]")
"""How an array of objects begins; other lists are lines that cannot be read."""
_END = -1
_QUOTE = 2
_STEPS = bytes(
    {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", 255), 34: _QUOTE}.get(n, 0) for n in range(256)
)
"""What each character does to the depth of brackets, as int8, and which is a quotation mark."""


class JsonlSource(FilesSource["RowFile"]):
    """JSON files whose rows are conversations, questions with answers, or images with captions.

    Paths of images are relative to `image_root` (default: the file's folder). A file at a URL is copied to
    the cache, and a `.gz` is unpacked there; its images are not. The fingerprint covers every byte of the
    file and nothing of the images.
    """

    def __init__(
        self,
        name: str,
        path: Location,
        image_root: Location | None = None,
        *,
        in_slices: bool = False,
        columns: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.in_slices = in_slices
        self.image_root = image_root
        self.names = names_of(columns, name)
        self._open_files(find_files(name, path, JSON_SUFFIXES), _open_file)
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def fingerprint(self) -> str:
        return self.files[0].digest() if len(self.files) == 1 else super().fingerprint()

    def __getitem__(self, index: int) -> Sample:
        number, place = self._find(index)
        file = self.files[number]
        where = f"{self.name}: {file.place(place)} of {file.path}"
        try:
            row = parse_object(decoded(file.row(place), where), where)
        except JsonlError as error:
            raise DataError(str(error), NO_OBJECT) from error
        key = f"{file.name}:{file.lines.numbers[place]}"
        root = self.image_root or os.path.dirname(file.path)
        return row_sample(
            self.name, row, where, key, self.names, partial(stored_media, root=root, place=where)
        )


def row_sample(
    source: str, row: Mapping[str, Any], where: str, key: str, names: Names, stored: Any, **more: Any
) -> Sample:
    """Turn an object of JSON into a sample.

    Args:
        where: names the row in errors.
        key: of a row that has none.
        names: see `names_of`.
        stored: makes a file of an image or clip.
        more: columns whose values are no JSON.

    Raises:
        DataError: it cannot be used.
    """
    given = [Column(name, "bytes", _MEDIA) for name in more]
    found = [_column(name, value) for name, value in row.items() if name not in more]
    form = form_of([*given, *(column for column in found if column is not None)], where, names)
    cells = {role: (more if name in more else row)[name] for role, name in form.columns.items()}
    return sample_of(source, str(cells.get("key", key)), cells, stored)


_TEXT = frozenset(("caption", "image", "video", "system", "key", "question", "input", "answer"))
_MEDIA = frozenset(("image", "video", "key"))
_MEDIA_OR_TEXTS = frozenset(("image", "video", "caption", "history", "key"))
_OTHER = frozenset(("key",))
_LIST = frozenset(("history", "key"))
_TURNS = frozenset(("conversation", "question", "answer", "key"))
_KNOWN = frozenset(name for names in ROLES.values() for name in names)
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _column(name: str, value: Any) -> Column | None:
    """Return what a value of a row is; None if it is empty."""
    if isinstance(value, list) and (value or name in ROLES["conversation"]) and all(map(_is_turn, value)):
        return Column(name, "list of turns", _TURNS)
    if value in _NOTHING or (name == "tools" and value == "[]"):
        return None
    if isinstance(value, str):
        return Column(name, "text", _TEXT, "" if name in _KNOWN else media_of_name(value))
    if isinstance(value, dict):
        return Column(name, "object", _MEDIA if _is_media(value) else _OTHER)
    if isinstance(value, list):
        is_media = all(item is None or isinstance(item, str) or _is_media(item) for item in value)
        media = media_of_name(value[0]) if isinstance(value[0], str) and name not in _KNOWN else ""
        return Column(
            name, "list of text" if is_media else "list", _MEDIA_OR_TEXTS if is_media else _LIST, media
        )
    return Column(name, "bool" if isinstance(value, bool) else "number", _OTHER)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(value.keys() >= keys for keys in TURN_KEYS)


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"path", "url", "bytes"})


@dataclass(frozen=True, eq=False)
class Lines:
    """What one pass over a file found."""

    numbers: np.ndarray
    """(rows,) int64: the line of each row, or its number in the array; blank lines are no rows."""
    offsets: np.ndarray
    """(rows + 1,) int64: where rows begin, and where the last one ends at the latest."""
    digest: str
    num_broken: int
    """Lines that are not UTF-8."""
    num_unicode: int
    """Lines that are, and not ASCII."""
    is_utf_16: bool
    is_array: bool = False
    fault: str = ""
    """Why nothing can be read."""

    @property
    def is_foreign(self) -> bool:
        """Whether the file as a whole is not UTF-8."""
        return self.is_utf_16 or self.num_broken > max(MIN_BROKEN_LINES, self.num_unicode)


@dataclass(frozen=True, eq=False)
class RowFile:
    """A JSON file and where its rows are."""

    path: str
    """As it was given."""
    local: Path
    """The file itself, or its copy in the cache."""
    lines: Lines

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def damage(self) -> str | None:
        if self.lines.is_foreign:
            return (
                f"{self.path} is not UTF-8 ({self.lines.num_broken:,} of {self.num_rows:,} lines are not); "
                f"convert it, for instance by `iconv -f latin1 -t utf-8` or `iconv -f utf-16 -t utf-8`"
            )
        return f"{self.path} {self.lines.fault}" if self.lines.fault else None

    @property
    def num_rows(self) -> int:
        return len(self.lines.numbers)

    def digest(self) -> str:
        return self.lines.digest

    def place(self, row: int) -> str:
        """Name a row by its line, or its number in the array."""
        return f"{'row' if self.lines.is_array else 'line'} {self.lines.numbers[row]}"

    def row(self, row: int) -> bytes:
        """Return the bytes of a row."""
        begin, end = self.lines.offsets[row : row + 2].tolist()
        data = read_bytes(self.local, begin, end - begin)
        return data.rstrip(_SPACE).removesuffix(b",") if self.lines.is_array else data


def _open_file(stored: StoredFile) -> RowFile:
    is_packed = stored.path.endswith(".gz")
    local = local_copy(stored, unpack=is_packed) if is_packed or is_url(stored.path) else Path(stored.path)
    return RowFile(stored.path, local, _open_lines(look_at(local)))


def _open_lines(stored: StoredFile) -> Lines:
    """Return what a pass over a file finds, from the cache if it can be kept there.

    A file that was written just now may be written again with the same size and date: it is not kept.
    """
    if time.time_ns() - int(stored.stamp) < SETTLED_NS:
        return _read_lines(_scan(stored))
    try:
        path = cache_path("index", f"{key_of(stored)}.rows")
        if not path.exists():
            with lock_of(path):
                if not path.exists():
                    write_file(path, _scan(stored))
        return _read_lines(np.memmap(path, np.uint8, "r"))
    except (DataError, OSError):  # a corpus on the local disk needs no cache
        return _read_lines(_scan(stored))


def _read_lines(content: Any) -> Lines:
    size = int(np.frombuffer(content, np.int64, 1)[0])
    header = json.loads(bytes(content[8 : 8 + size]))
    table = np.frombuffer(content, np.int64, offset=8 + size)
    num_rows = len(table) // 2
    return Lines(table[num_rows + 1 :], table[: num_rows + 1], **header)


def _scan(stored: StoredFile) -> bytes:
    """Return the size of a header, the header, offsets and numbers, in pieces of eight bytes."""
    digest = hashlib.sha256()
    numbers, offsets, position = array("q"), array("q"), 0
    num_broken = num_unicode = number = 0
    is_utf_16, tail = False, b""
    with open(stored.path, "rb") as file:
        is_array = _ARRAY.match(file.read(_HEAD_BYTES)) is not None
        file.seek(0)
        for number, piece in _elements(file) if is_array else enumerate(file, start=1):
            digest.update(piece)
            if number > 0 and piece.strip(_SPACE):
                numbers.append(number)
                offsets.append(position)
            if not piece.isascii():
                is_utf_16 = is_utf_16 or (number == 1 and piece.startswith(_UTF_16))
                is_broken = not _is_utf_8(piece)
                num_broken += is_broken
                num_unicode += not is_broken
            if number == _END:
                tail += piece.strip(_SPACE)[:2]
            else:
                position += len(piece)
    offsets.append(position)
    fault = ""
    if is_array and tail != b"]":
        end = "goes on after its end" if tail else "does not end; it was cut, fetch or make it again"
        fault = f"is a JSON array that has {len(numbers):,} rows and {end}"
    found = {
        "digest": digest.hexdigest(),
        "num_broken": num_broken,
        "num_unicode": num_unicode,
        "is_utf_16": is_utf_16,
        "is_array": is_array,
        "fault": fault,
    }
    header = json.dumps(found).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + offsets.tobytes() + numbers.tobytes()


def _elements(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lists and objects in an array with their numbers from 1, each with what is between it and the
    next one; before them, as 0, what is in front of the first, and after them, as _END, the closing bracket
    and what follows.

    Together the pieces are the whole file. A value that is neither list nor object is no piece of its own.
    """
    begun, held, depth, is_text, number = b"", b"", 0, False, 0
    while data := file.read(BLOCK_BYTES):
        data = held + data
        held = b"\\" if (len(data) - len(data.rstrip(b"\\"))) % 2 else b""  # it waits for what it escapes
        data = data.removesuffix(held)
        plain = data.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        steps = np.frombuffer(plain.translate(_STEPS), np.int8)
        places = np.flatnonzero(steps)
        steps = steps[places]
        # Within a text, the number of quotation marks so far is odd.
        in_text = (np.cumsum(steps == _QUOTE) + is_text) % 2 == 1
        is_text = bool(in_text[-1]) if len(in_text) else is_text
        outside = ~in_text & (steps != _QUOTE)
        places, steps = places[outside], steps[outside]
        depths = depth + np.cumsum(steps, dtype=np.int64)
        begin = 0
        for at in places[(steps == 1) & (depths == 2)].tolist():
            yield number, begun + data[begin:at]
            number, begun, begin = number + 1, b"", at
        if len(ends := places[depths == 0]):
            yield number, begun + data[begin : ends[0]]
            yield _END, data[ends[0] :] + held
            yield from ((_END, rest) for rest in iter(lambda: file.read(BLOCK_BYTES), b""))
            return
        begun += data[begin:]
        depth = int(depths[-1]) if len(depths) else depth
    yield number, begun + held


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
