"""JSONL files: a row a line, found by its offset.

Where rows begin is worked out in one pass over the file, which also hashes it (0.7 GB/s on one core), and
kept in the cache: 16 bytes a row, mapped by all processes. A line that cannot be read is a sample that cannot
be used; a file that as a whole is not UTF-8 is an error at once.
"""

import codecs
import hashlib
import json
import time
from array import array
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from owl2.data.readers.base import Source
from owl2.data.readers.cache import cache_path, key_of, local_copy, lock_of
from owl2.data.readers.rows import ROLES, Column, checked_path, decoded, form_of, media_of_name, sample_of
from owl2.data.readers.storage import Location, StoredFile, is_url, join, look_at, read_bytes
from owl2.data.sample import DataError, Sample, StoredImage
from owl2.files import write_file
from owl2.jsonl import JsonlError, parse_object

MIN_BROKEN_LINES = 10
"""A file is never refused for so few lines that are not UTF-8."""
SETTLED_NS = 2_000_000_000
"""Age of a file whose next change will be seen in its date: file systems count time in steps."""
_SPACE = b" \t\r\n"
"""White space of JSON, and no other: a line of it is skipped, and so read with the row before."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonlSource(Source):
    """A JSONL file whose rows are conversations, or images with captions.

    Paths of images are relative to `image_root` (default: the file's folder). A file at a URL is copied to
    the cache; its images are not. The fingerprint covers every byte of the file and nothing of the images.
    """

    def __init__(
        self, name: str, path: Location, image_root: Location | None = None, *, in_slices: bool = False
    ):
        self.name = name
        self.in_slices = in_slices
        self.path = path
        self.image_root = image_root or (str(path).rpartition("/")[0] if is_url(path) else Path(path).parent)
        self.file = local_copy(look_at(path)) if is_url(path) else Path(path)
        self.lines = _open_lines(look_at(self.file))
        if self.lines.is_foreign:
            raise DataError(
                f"{name}: {path} is not UTF-8 ({self.lines.num_broken:,} of {len(self):,} lines are not); "
                f"convert it, for instance by `iconv -f latin1 -t utf-8` or `iconv -f utf-16 -t utf-8`"
            )
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __len__(self) -> int:
        return len(self.lines.numbers)

    def fingerprint(self) -> str:
        return self.lines.digest

    def __getitem__(self, index: int) -> Sample:
        self._check(index)
        begin, end = self.lines.offsets[index : index + 2].tolist()
        number = self.lines.numbers[index]
        where = f"{self.name}: line {number} of {self.path}"
        try:
            row = parse_object(decoded(read_bytes(self.file, begin, end - begin), where), where)
        except JsonlError as error:
            raise DataError(str(error), "not a JSON object") from error
        columns = [column for column in map(_column, row.keys(), row.values()) if column is not None]
        cells = {role: row[name] for role, name in form_of(columns, where).columns.items()}
        key = str(cells["key"]) if "key" in cells else f"{Path(self.path).name}:{number}"
        return sample_of(self.name, key, cells, partial(self._stored, where))

    def _stored(self, where: str, media: Any) -> StoredImage:
        """Return the file that a path, or an object with one, is."""
        if isinstance(media, dict):
            media = media.get("path") or media.get("url")
        path = checked_path(media, f"{where}: an image or clip")
        return StoredImage(path, partial(read_bytes, join(self.image_root, path)))


_TEXT = frozenset(("caption", "image", "video", "system", "key"))
_MEDIA = frozenset(("image", "video", "key"))
_OTHER = frozenset(("key",))
_TURNS = frozenset(("conversation", "key"))
_KNOWN = frozenset(name for names in ROLES.values() for name in names)


def _column(name: str, value: Any) -> Column | None:
    """Return what a value of a row is; None if it is empty."""
    if isinstance(value, list) and name in ROLES["conversation"] and all(map(_is_turn, value)):
        return Column(name, "list of turns", _TURNS)
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, str):
        return Column(name, "text", _TEXT, "" if name in _KNOWN else media_of_name(value))
    if isinstance(value, dict):
        return Column(name, "object", _MEDIA if _is_media(value) else _OTHER)
    if isinstance(value, list):
        is_media = all(item is None or isinstance(item, str) or _is_media(item) for item in value)
        media = media_of_name(value[0]) if isinstance(value[0], str) else ""
        return Column(name, "list of text" if is_media else "list", _MEDIA if is_media else _OTHER, media)
    return Column(name, "number", _OTHER)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and (
        value.keys() >= {"from", "value"} or value.keys() >= {"role", "content"}
    )


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"path", "url", "bytes"})


@dataclass(frozen=True, eq=False)
class Lines:
    """What one pass over a file found."""

    numbers: np.ndarray
    """(rows,) int64: the line of each row; blank lines are no rows."""
    offsets: np.ndarray
    """(rows + 1,) int64: where rows begin, and the size of the file."""
    digest: str
    num_broken: int
    """Lines that are not UTF-8."""
    num_unicode: int
    """Lines that are, and not ASCII."""
    is_utf_16: bool

    @property
    def is_foreign(self) -> bool:
        """Whether the file as a whole is not UTF-8."""
        return self.is_utf_16 or self.num_broken > max(MIN_BROKEN_LINES, self.num_unicode)


def _open_lines(stored: StoredFile) -> Lines:
    """Return what a pass over a file finds, from the cache if it can be kept there.

    A file that was written just now may be written again with the same size and date: it is not kept.
    """
    if time.time_ns() - int(stored.stamp) < SETTLED_NS:
        return _read_lines(_scan(stored))
    try:
        path = cache_path("index", f"{key_of(stored)}.lines")
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
    num_broken = num_unicode = 0
    is_utf_16 = False
    with open(stored.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if line.strip(_SPACE):
                numbers.append(number)
                offsets.append(position)
            if not line.isascii():
                is_utf_16 = is_utf_16 or (number == 1 and line.startswith(_UTF_16))
                is_broken = not _is_utf_8(line)
                num_broken += is_broken
                num_unicode += not is_broken
            position += len(line)
    offsets.append(position)
    found = {
        "digest": digest.hexdigest(),
        "num_broken": num_broken,
        "num_unicode": num_unicode,
        "is_utf_16": is_utf_16,
    }
    header = json.dumps(found).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + offsets.tobytes() + numbers.tobytes()


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
