"""Where samples come from: JSONL files in the LLaVA format and WebDataset tar shards, by index.

Both are random access: a JSONL file by the offsets of its lines, a tar by the offsets of its members, found
in one pass over the headers when the source is opened. The order of draws can then be ours (order.py).
"""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from owl2.data.sample import DataError, Picture, Sample, jsonl_picture, sample_from_caption, sample_from_llava

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Source(Protocol):
    """A corpus with random access."""

    name: str
    num_incomplete: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class JsonlSource:
    """A JSONL file of LLaVA rows; image paths are relative to `image_root` (default: the file's folder)."""

    num_incomplete = 0

    def __init__(self, name: str, path: Path, image_root: Path | None = None):
        self.name = name
        self.path = path
        self.image_root = image_root or path.parent
        self.offsets = _line_offsets(path)
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Sample:
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            line = file.read(int(self.offsets[index + 1] - self.offsets[index]))
        try:
            row: dict[str, Any] = json.loads(line)
            return sample_from_llava(self.name, row, lambda name: jsonl_picture(self.image_root, name))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.name}: line {index + 1} of {self.path} is not a LLaVA row: {error!r}"
            ) from error


@dataclass(frozen=True)
class _Member:
    shard: int
    image_offset: int
    image_size: int
    text_offset: int
    text_size: int
    key: str
    suffix: str


class TarSource:
    """A folder of WebDataset shards with one picture and one `.txt` caption a key."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.shards = sorted(folder.glob("*.tar"))
        if not self.shards:
            raise DataError(f"{name}: no *.tar in {folder}")
        self.members: list[_Member] = []
        self.num_incomplete = 0
        """Keys with a picture but no caption or the reverse; shown at start-up, never drawn."""
        for number, shard in enumerate(self.shards):
            members, incomplete = _index_tar(name, shard, number)
            self.members += members
            self.num_incomplete += incomplete
        if not self.members:
            raise DataError(f"{name}: no key with a picture and a .txt caption in {len(self.shards)} shards")

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Sample:
        member = self.members[index]
        shard = self.shards[member.shard]
        try:
            caption = _read_span(shard, member.text_offset, member.text_size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}: caption {member.key} of {shard.name} is not UTF-8") from error
        picture = Picture(
            f"{shard.name}:{member.key}{member.suffix}",
            lambda: _read_span(shard, member.image_offset, member.image_size),
        )
        return sample_from_caption(self.name, f"{shard.stem}/{member.key}", caption, picture)


def open_source(name: str, path: Path, image_root: Path | None = None) -> Source:
    """Open a `.jsonl` file or a folder of tar shards.

    Raises:
        DataError: neither, or empty.
    """
    if path.is_dir():
        return TarSource(name, path)
    if path.suffix == ".jsonl" and path.is_file():
        return JsonlSource(name, path, image_root)
    what = "does not exist" if not path.exists() else "is neither a .jsonl file nor a folder of .tar shards"
    raise DataError(f"{name}: {path} {what}")


def _line_offsets(path: Path) -> np.ndarray:
    """(rows + 1,) int64: where each line begins, and the end of the last."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return np.asarray([*offsets, position], dtype=np.int64)


def _index_tar(name: str, shard: Path, number: int) -> tuple[list[_Member], int]:
    """Return the complete members of a shard and the number of incomplete keys."""
    pictures: dict[str, tuple[int, int, str]] = {}
    texts: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                key, suffix = os.path.splitext(info.name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    pictures[key] = (info.offset_data, info.size, suffix)
                elif suffix == ".txt":
                    texts[key] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DataError(f"{name}: shard {shard} is not a readable tar: {error}") from error
    members = [
        _Member(number, *pictures[key][:2], *texts[key], key, pictures[key][2])
        for key in pictures
        if key in texts
    ]
    return members, len(pictures.keys() ^ texts.keys())


def _read_span(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise DataError(f"{path}: {len(data)} of {size} bytes at {offset}; the shard is truncated")
    return data
