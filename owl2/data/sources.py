"""Where samples come from: JSONL files in the LLaVA format and WebDataset tar shards, by index.

Both are random access: a JSONL file by the offsets of its lines, a tar by the offsets of its members, found
in one pass over the headers when the source is opened. The order of draws can then be ours (order.py).
"""

import json
import os
import tarfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from owl2.data.sample import DataError, Picture, Sample, jsonl_picture, sample_from_caption, sample_from_llava

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_DAMAGED = 0.01
"""Share of a source's shards that may be damaged and left out; one of several always may."""


class Source(Protocol):
    """A corpus with random access."""

    name: str
    num_incomplete: int
    damaged: dict[str, str]
    """Shards that are left out whole, with the reason."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class JsonlSource:
    """A JSONL file of LLaVA rows; image paths are relative to `image_root` (default: the file's folder)."""

    num_incomplete = 0

    def __init__(self, name: str, path: Path, image_root: Path | None = None):
        self.name = name
        self.damaged: dict[str, str] = {}
        self.path = path
        self.image_root = image_root or path.parent
        self.line_numbers, self.offsets = _index_lines(path)
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __len__(self) -> int:
        return len(self.line_numbers)

    def __getitem__(self, index: int) -> Sample:
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            line = file.read(int(self.offsets[index + 1] - self.offsets[index]))
        try:
            row: dict[str, Any] = json.loads(line)
            return sample_from_llava(self.name, row, lambda name: jsonl_picture(self.image_root, name))
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.name}: line {self.line_numbers[index]} of {self.path} is not a LLaVA row: {error!r}",
                "text is not UTF-8" if isinstance(error, UnicodeError) else "not a LLaVA row",
            ) from error


class TarSource:
    """A folder of WebDataset shards with one picture and one `.txt` caption a key."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.shards = sorted(folder.glob("*.tar"))
        if not self.shards:
            raise DataError(f"{name}: no *.tar in {folder}")
        self.num_incomplete = 0
        """Keys with a picture but no caption or the reverse; shown at start-up, never drawn."""
        self.damaged: dict[str, str] = {}
        spans, names = [], []
        for number, shard in enumerate(self.shards):
            try:
                pairs, incomplete = _index_tar(name, shard)
            except DataError as error:
                self.damaged[shard.name] = str(error)
                if len(self.damaged) > max(len(self.shards) > 1, MAX_DAMAGED * len(self.shards)):
                    raise
                continue
            rows = [(number, *picture, *text) for picture, text in pairs.values()]
            spans.append(np.asarray(rows, dtype=np.int64).reshape(-1, 5))
            names.append(np.asarray([os.fsencode(picture) for picture in pairs], dtype=bytes))
            self.num_incomplete += incomplete
        # Two arrays instead of objects: 40 bytes and a name a sample, and workers share them untouched.
        self.spans = np.concatenate(spans)
        """(samples, 5): shard, offset and size of the picture, offset and size of the caption."""
        self.names = np.concatenate(names)
        """(samples,): the pictures' names in their shards, as bytes."""
        if not len(self):
            raise DataError(f"{name}: no key with a picture and a .txt caption in {len(self.shards)} shards")

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Sample:
        shard_number, picture_offset, picture_size, text_offset, text_size = self.spans[index].tolist()
        shard, name = self.shards[shard_number], os.fsdecode(self.names[index])
        key = f"{shard.stem}/{os.path.splitext(name)[0]}"
        try:
            caption = _read_span(shard, text_offset, text_size).decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"{self.name}: the caption of {key} is not UTF-8: {error}"
            raise DataError(message, "text is not UTF-8") from error
        picture = Picture(f"{shard.name}:{name}", lambda: _read_span(shard, picture_offset, picture_size))
        return sample_from_caption(self.name, key, caption, picture)


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


Span = tuple[int, int]
"""Offset and size in bytes."""


def _index_tar(name: str, shard: Path) -> tuple[dict[str, tuple[Span, Span]], int]:
    """Return picture name -> (picture, caption) of the complete keys, and the number of incomplete keys.

    Raises:
        DataError: not a tar, one that ends early or is damaged in the middle, or a key that occurs twice.
    """
    pictures: dict[str, tuple[str, Span]] = {}
    texts: dict[str, Span] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                key, suffix = os.path.splitext(info.name)
                kind = suffix.lower()
                if not info.isfile() or kind not in (*IMAGE_SUFFIXES, ".txt"):
                    continue
                if key in (texts if kind == ".txt" else pictures):
                    raise DataError(f"{name}: shard {shard} has {key} twice ({info.name})")
                if kind == ".txt":
                    texts[key] = (info.offset_data, info.size)
                else:
                    pictures[key] = (info.name, (info.offset_data, info.size))
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{name}: shard {shard} is not a readable tar: {error}") from error
    # tarfile takes a damaged header and a cut between two files for the end of the archive.
    size = shard.stat().st_size
    if _read_span(shard, end, min(tarfile.BLOCKSIZE, size - end)) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(
            f"{name}: shard {shard} is truncated or damaged at byte {end:,} of {size:,}: neither a file nor "
            f"the end mark of a tar is there; make or fetch the shard again"
        )
    pairs = {picture: (span, texts[key]) for key, (picture, span) in pictures.items() if key in texts}
    return pairs, len(pictures.keys() ^ texts.keys())


def _read_span(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        message = f"{path}: {len(data)} of {size} bytes at {offset}; the shard is truncated"
        raise DataError(message, "shard is damaged")
    return data
