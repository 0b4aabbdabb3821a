"""Where samples come from: JSONL files in the LLaVA format, WebDataset tar shards and tables, by index.

All are random access, locally and at URLs (storage.py): a JSONL file by the offsets of its lines, a tar by
the offsets of its members (shards.py), a table by arithmetic (tables.py). The order of draws can then be ours
(order.py). Shards at URLs are drawn slice by slice, so that storage sees one large request for many
neighbours; see `Slices` in order.py.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from owl2.data.order import SLICE
from owl2.data.readers.arrow import SUFFIXES
from owl2.data.readers.bad_files import open_whole
from owl2.data.readers.cache import local_copy, read_slice
from owl2.data.readers.rows import find_row
from owl2.data.readers.shards import Shard, num_unknown, open_shard, read_member
from owl2.data.readers.storage import Location, is_url, join, list_files, list_names, look_at, read_bytes
from owl2.data.readers.tables import TableSource
from owl2.data.sample import (
    DataError,
    Sample,
    StoredImage,
    not_a_llava_row,
    sample_from_caption,
    sample_from_llava,
)

Shuffle = Literal["samples", "slices"]
"""Whether a pass visits single samples by lot, or slices of neighbours by lot, mixed within a window."""
Read = Callable[[int, int], bytes]
"""Offset and size to the bytes of a shard."""
MAX_SPARSE = 4
"""A slice whose pairs lie scattered over more than so many times their size is read member by member."""


class Source(Protocol):
    """A corpus with random access."""

    name: str
    num_incomplete: int
    damaged: dict[str, str]
    """Shards or tables that are left out whole, with the reason."""
    in_slices: bool
    """Whether neighbours should be drawn soon after one another."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class JsonlSource:
    """A JSONL file of LLaVA rows; image paths are relative to `image_root` (default: the file's folder).

    A file at a URL is copied to the cache; its images are not.
    """

    num_incomplete = 0

    def __init__(
        self, name: str, path: Location, image_root: Location | None = None, *, in_slices: bool = False
    ):
        self.name = name
        self.damaged: dict[str, str] = {}
        self.in_slices = in_slices
        self.path = path
        self.image_root = image_root or (str(path).rpartition("/")[0] if is_url(path) else Path(path).parent)
        self.rows = local_copy(look_at(path)) if is_url(path) else Path(path)
        self.line_numbers, self.offsets = _index_lines(self.rows)
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __len__(self) -> int:
        return len(self.line_numbers)

    def __getitem__(self, index: int) -> Sample:
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        try:
            row: dict[str, Any] = json.loads(read_bytes(self.rows, begin, end - begin))
            return sample_from_llava(self.name, row, self._image)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place = f"{self.name}: line {self.line_numbers[index]} of {self.path}"
            raise not_a_llava_row(place, error) from error

    def _image(self, name: str) -> StoredImage:
        return StoredImage(name, partial(read_bytes, join(self.image_root, name)))


class TarSource:
    """A folder of WebDataset shards with one image and one `.txt` caption a key."""

    def __init__(self, name: str, folder: Location, *, in_slices: bool = False):
        self.name = name
        self.in_slices = in_slices
        stored = list_files(folder, ".tar")
        if not stored:
            raise DataError(f"{name}: no *.tar in {folder}")
        if unknown := num_unknown(stored):
            print(f"{name}: indexing {unknown:,} shards of {folder}, once", file=sys.stderr, flush=True)
        self.shards, self.damaged = open_whole(name, stored, open_shard)
        self.num_incomplete = sum(shard.num_incomplete for shard in self.shards)
        """Keys with an image but no caption or the reverse; shown at start-up, never drawn."""
        self.firsts = [0, *accumulate(shard.num_pairs for shard in self.shards)]
        """Index of each shard's first sample, and of none after the last."""
        if not len(self):
            raise DataError(f"{name}: no key with an image and a .txt caption in {len(stored)} shards")

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Sample:
        number, row = find_row(self.name, self.firsts, index)
        shard = self.shards[number]
        begin_image, image_size, begin_text, text_size = shard.extents(row)[0].tolist()
        read = self._reader(number, row)
        name, data = _read_member(shard, read, begin_text, text_size)
        key = os.path.splitext(name)[0]
        try:
            caption = data.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"{self.name}: the caption of {shard.stem}/{key} is not UTF-8: {error}"
            raise DataError(message, "text is not UTF-8") from error
        image = StoredImage(
            f"{shard.name}:{key}", lambda: _read_member(shard, read, begin_image, image_size)[1]
        )
        return sample_from_caption(self.name, f"{shard.stem}/{key}", caption, image)

    def _reader(self, number: int, row: int) -> Read:
        """Return what reads a pair: its slice in one request where neighbours come soon, else each member."""
        shard, first = self.shards[number], self.firsts[number]
        direct = partial(read_bytes, shard.stored.path)
        if not (self.in_slices and is_url(shard.stored.path)):
            return direct
        # Those of its slice that are in this shard.
        begin_row = max(0, (first + row) // SLICE * SLICE - first)
        end_row = min(shard.num_pairs, ((first + row) // SLICE + 1) * SLICE - first)
        extents = shard.extents(begin_row, end_row - begin_row).reshape(-1, 2)  # images' and captions'
        begin, end = int(extents[:, 0].min()), int(extents.sum(axis=1).max())
        is_scattered = end - begin > MAX_SPARSE * int(extents[:, 1].sum())
        return direct if is_scattered else partial(read_slice, shard.stored, begin, end)


def open_source(
    name: str, path: Location, image_root: Location | None = None, shuffle: Shuffle | None = None
) -> Source:
    """Open a `.jsonl`, `.parquet` or `.arrow` file, or a folder of tar shards or of such tables.

    Args:
        path: local, or a URL; of tables also a pattern, as `folder/train-*.parquet`.
        shuffle: None for what suits the source: slices for shards at a URL, samples for all else.

    Raises:
        DataError: none of them, or empty.
        StorageError: storage that does not answer.
    """
    try:
        kind = _kind_of(name, path)
        shuffle = shuffle or ("slices" if is_url(path) and kind == "shards" else "samples")
        in_slices = shuffle == "slices"
        if kind == "shards":
            return TarSource(name, path, in_slices=in_slices)
        reader = TableSource if kind == "tables" else JsonlSource
        return reader(name, path, image_root, in_slices=in_slices)
    except FileNotFoundError as error:
        raise DataError(f"{name}: {path} does not exist") from error


def _kind_of(name: str, path: Location) -> Literal["lines", "tables", "shards"]:
    """What a path leads to: told from its name, of a folder from the names in it.

    A `.parquet` beside the `.tar` of its name is img2dataset's list of what is in the shard.
    """
    is_folder = not is_url(path) and Path(path).is_dir()
    if str(path).endswith(".jsonl") and not is_folder:
        return "lines"
    if str(path).endswith(SUFFIXES) and not is_folder:
        return "tables"
    if not is_url(path) and not is_folder and Path(path).exists():
        kinds = "a .jsonl, .parquet or .arrow file nor a folder of .tar shards or such tables"
        raise DataError(f"{name}: {path} is neither {kinds}")
    names = list_names(path)
    shards = {file for file in names if file.endswith(".tar")}
    tables = {
        file for file in names if file.endswith(SUFFIXES) and f"{os.path.splitext(file)[0]}.tar" not in shards
    }
    if shards and tables:
        raise DataError(
            f"{name}: {path} has both {len(shards):,} .tar shards and {len(tables):,} tables, such as "
            f"{min(tables)}; put them in folders of their own, or say path: {path}/*.parquet"
        )
    if not shards and not tables:
        raise DataError(f"{name}: {path} has no *.tar, *.parquet or *.arrow of its own; it has {names[:5]}")
    return "shards" if shards else "tables"


def _read_member(shard: Shard, read: Read, offset: int, size: int) -> tuple[str, bytes]:
    data = read(offset, size)
    path = shard.stored.path
    if len(data) != size:
        message = f"{path}: {len(data)} of {size} bytes at {offset}; the shard is truncated"
        raise DataError(message, "shard is damaged")
    try:
        return read_member(data)
    except DataError as error:
        raise DataError(
            f"{path} has changed since it was indexed: at {offset} is {error}", error.kind
        ) from error


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the line number of each row (rows,), and where rows begin and the last ends (rows + 1,)."""
    numbers, offsets, position = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                numbers.append(number)
                offsets.append(position)
            position += len(line)
    return np.asarray(numbers, dtype=np.int64), np.asarray([*offsets, position], dtype=np.int64)
