"""Where the pairs of a WebDataset shard lie: an index of 16 bytes a pair, made once and kept.

A tar has no table of contents, so every header is read once, in one pass over the shard. The result is a
file in the cache, named by the shard's place, size and stamp: a changed shard gets another index, and a
read-only corpus stays as it is. Opening reads a line of it, drawing 16 bytes: nothing grows with the corpus.
Headers are parsed again when a member is read, which gives its name and shows that the index still fits.
"""

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from owl2.data.readers.cache import kept, key_of, lock_of
from owl2.data.readers.storage import Stored, is_url, open_file
from owl2.data.sample import DataError
from owl2.files import write_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_ROW = np.dtype("<u4")
"""A pair is four of them: the block where the image's first header begins, the bytes from there to the end
of its data, and the same of the caption. Tars are made of blocks of 512 bytes, so 32 bits reach 2 TB."""
_ROW_BYTES = 4 * _ROW.itemsize
_LARGEST = np.iinfo(_ROW).max

Extent = tuple[int, int]
"""Offset and size in bytes of a member, its headers included."""


@dataclass(frozen=True)
class Shard:
    """A shard and its index."""

    stored: Stored
    index: Path
    rows_at: int
    """Where the rows begin in the file of the index."""
    num_pairs: int
    num_incomplete: int
    """Keys with an image but no caption or the reverse."""
    damage: str | None
    """Why the shard cannot be used."""

    @property
    def name(self) -> str:
        return self.stored.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")

    def extents(self, first: int, count: int = 1) -> np.ndarray:
        """Return offset and size of image and caption of some pairs, (count, 4) int64, in bytes."""
        at = self.rows_at + first * _ROW_BYTES
        rows = np.fromfile(self.index, _ROW, 4 * count, offset=at).reshape(count, 4).astype(np.int64)
        rows[:, ::2] *= tarfile.BLOCKSIZE
        return rows


def index_path(stored: Stored) -> Path:
    """Return where the index of a shard is kept."""
    return kept("index", key_of(stored))


def open_shard(stored: Stored) -> Shard:
    """Open a shard by its index, which is made and kept if there is none yet.

    Raises:
        StorageError: the storage does not answer.
    """
    path = index_path(stored)
    if not path.exists():
        with lock_of(path):
            if not path.exists():
                try:
                    _write_index(path, stored, *_scan(stored))
                except DataError as error:
                    _write_index(path, stored, [], 0, str(error))
                except OSError as error:  # may be gone at the next start, so it is not kept
                    return Shard(stored, path, 0, 0, 0, f"shard {stored.path} is not a readable tar: {error}")
    with path.open("rb") as file:
        line = file.readline()
    return Shard(stored, path, len(line), **json.loads(line)["shard"])


def read_member(data: bytes) -> tuple[str, bytes]:
    """Return name and content of the tar member that these bytes are, its headers included.

    Raises:
        DataError: they are none.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            info = tar.next()
    except tarfile.TarError as error:
        raise DataError(f"no member of a tar where one was: {error}", "shard is damaged") from error
    if info is None or info.offset_data + info.size != len(data):
        raise DataError("another member of the tar where one was", "shard is damaged")
    return info.name, data[info.offset_data :]


def _write_index(
    path: Path, stored: Stored, rows: list[tuple[Extent, Extent]], num_incomplete: int, damage: str | None
) -> None:
    record = {"num_pairs": len(rows), "num_incomplete": num_incomplete, "damage": damage}
    header: dict[str, Any] = {"of": stored.path, "size": stored.size, "stamp": stored.stamp, "shard": record}
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    table[:, ::2] //= tarfile.BLOCKSIZE
    if table.size and table.max() > _LARGEST:
        raise DataError(f"shard {stored.path} has a member of more than 4 GB or beyond 2 TB")
    write_file(path, json.dumps(header).encode() + b"\n" + table.astype(_ROW).tobytes())


def _scan(stored: Stored) -> tuple[list[tuple[Extent, Extent]], int, None]:
    """Return the extents of image and caption of the complete keys, and the number of incomplete ones.

    Raises:
        DataError: not a tar, one that ends early or is damaged in the middle, or a key that occurs twice.
        OSError: the file cannot be read.
    """
    images: dict[str, Extent] = {}
    texts: dict[str, Extent] = {}
    try:
        with open_file(stored) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in iter(tar.next, None):
                tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
                key, suffix = os.path.splitext(info.name)
                kind = suffix.lower()
                if not info.isfile() or kind not in (*IMAGE_SUFFIXES, ".txt"):
                    continue
                members = texts if kind == ".txt" else images
                if key in members:
                    raise DataError(f"shard {stored.path} has {key} twice ({info.name})")
                members[key] = (info.offset, info.offset_data + info.size - info.offset)
            end = tar.offset
            # tarfile takes a damaged header and a cut between two files for the end of the archive.
            file.seek(end)
            is_whole = file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except tarfile.TarError as error:
        raise DataError(f"shard {stored.path} is not a readable tar: {error}") from error
    if not is_whole:
        raise DataError(
            f"shard {stored.path} is truncated or damaged at byte {end:,} of {stored.size:,}: neither a file "
            f"nor the end mark of a tar is there; make or fetch the shard again"
        )
    rows = [(extent, texts[key]) for key, extent in images.items() if key in texts]
    return rows, len(images.keys() ^ texts.keys()), None


def num_unknown(shards: list[Stored]) -> int:
    """Return how many shards at URLs must be read from one end to the other to be indexed."""
    return sum(is_url(shard.path) and not index_path(shard).exists() for shard in shards)
