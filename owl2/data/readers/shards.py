"""WebDataset shards: tars in which each key has an image and a text, or a text alone.

The text is a caption (`.txt`), or a row of JSON (`.json`) with a caption, a question with its answer or a
conversation, read as `rows.py` says; next to a caption, `.json` is what img2dataset says about the image, and
not read. A key is a name without its last suffix. In a shard in which no two names agree in that, it ends at
the first dot, as WebDataset has it: `a.img.jpg` and `a.cap.txt`.

A tar has no table of contents, so every header is read once, in one pass over the shard, for an index of 16
bytes a pair. The index is a file in the cache, named by the shard's path, size and stamp: a changed shard
gets another index, and a read-only corpus stays as it is. Opening reads one line of it, reading a sample 16
bytes: memory does not grow with the corpus. Headers are parsed again when a member is read, which gives its
name and shows that the index still fits.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from owl2.data.readers.base import SLICE, FilesSource, LostFile
from owl2.data.readers.cache import cache_path, key_of, lock_of, read_slice
from owl2.data.readers.jsonl import row_sample
from owl2.data.readers.paths import find_files
from owl2.data.readers.rows import NO_OBJECT, ROLES, captioned, decoded, names_of, stored_media
from owl2.data.readers.storage import Location, StoredFile, is_url, open_file, read_bytes
from owl2.data.sample import DataError, Sample, StoredImage, printable
from owl2.files import write_file
from owl2.jsonl import JsonlError, parse_object

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_SPARSE = 4
"""A slice whose pairs are spread over more than this many times their size is read member by member."""
_FORMAT = 3
"""Of the index; another one makes indices of before unknown."""
_CELL = np.dtype("<u4")
"""A pair is four of them: the block where the image's first header begins, the bytes from there to the end
of its data, and the same of the text. Without an image its size is 0. Tars are made of blocks of 512 bytes,
so 32 bits reach 2 TB."""
_PAIR_BYTES = 4 * _CELL.itemsize
_LARGEST = np.iinfo(_CELL).max
_TAIL_BYTES = 64
"""Bytes at the end of each image that the hash covers: the end of a compressed image depends on all of it."""

Extent = tuple[int, int]
"""Offset and size in bytes of a member, its headers included."""
Read = Callable[[int, int], bytes]
"""Offset and size to the bytes of a shard."""


class TarSource(FilesSource["Shard"]):
    """WebDataset shards with one image and one caption or row a key.

    The fingerprint covers the names and the order of the members, all texts that are read, and sizes and last
    bytes of the images: another image of the same size is noticed unless it also ends like the one before.
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
        stored = find_files(name, path, (".tar",))
        unknown = sum(is_url(file.path) and not index_path(file).exists() for file in stored)
        if unknown:
            print(f"{name}: indexing {unknown:,} shards of {path}, once", file=sys.stderr, flush=True)
        self._open_files(stored, open_shard)
        doubled = [shard for shard in self.files if shard.num_doubled]
        self.lost = [*self.lost, *(LostFile(shard.name, f"{name}: {shard.doubled}") for shard in doubled)]
        self.num_lost += sum(shard.num_doubled for shard in doubled)
        self.num_incomplete = sum(shard.num_incomplete for shard in self.files)
        if not len(self):
            reasons = "".join(f"; {file.reason}" for file in self.lost)
            raise DataError(
                f"{name}: no key with an image and a .txt caption in {len(stored)} shards, and no row in "
                f".json{reasons}"
            )

    def __getitem__(self, index: int) -> Sample:
        number, row = self._find(index)
        shard = self.files[number]
        begin_image, image_size, begin_text, text_size = shard.extents(row)[0].tolist()
        read = self._reader(number, row)
        name, data = _read_at(shard, read, begin_text, text_size)
        stem, suffix = os.path.splitext(name)
        key = printable(stem)
        place = f"{shard.stem}/{key}"
        image = StoredImage(f"{shard.name}:{key}", lambda: _read_at(shard, read, begin_image, image_size)[1])
        if suffix.lower() == ".txt":
            caption = decoded(data, f"{self.name}: the caption of {place}")
            return captioned(self.name, place, caption, image)
        return self._row(place, data, [image] if image_size else [])

    def _row(self, place: str, data: bytes, images: list[StoredImage]) -> Sample:
        """Read a row of JSON. An image next to it is the row's, whatever path the row gives."""
        where = f"{self.name}: {place}.json"
        try:
            row = parse_object(decoded(data, where), where)
        except JsonlError as error:
            raise DataError(str(error), NO_OBJECT) from error
        own = dict(self.names).get("image") or next((name for name in ROLES["image"] if name in row), "image")
        more = {own: images} if images else {}

        def stored(media: Any) -> StoredImage:
            if isinstance(media, StoredImage):
                return media
            return stored_media(media, self.image_root or os.path.dirname(self.files[0].stored.path), where)

        row = {name: value for name, value in row.items() if name not in ROLES["image"] or not images}
        row = {name: value for name, value in row.items() if name not in ROLES["key"]}
        return row_sample(self.name, row, where, place, self.names, stored, **more)

    def _reader(self, number: int, row: int) -> Read:
        """Return what reads a pair: its slice in one request if neighbours come soon, else each member."""
        shard, first = self.files[number], self.firsts[number]
        direct = partial(read_bytes, shard.stored.path)
        if not (self.in_slices and is_url(shard.stored.path)):
            return direct
        # The rows of the slice that are in this shard: a slice may begin in one shard and end in the next.
        begin_row = max(0, (first + row) // SLICE * SLICE - first)
        end_row = min(shard.num_rows, ((first + row) // SLICE + 1) * SLICE - first)
        extents = shard.extents(begin_row, end_row - begin_row).reshape(-1, 2)  # of images and texts
        extents = extents[extents[:, 1] > 0]
        begin, end = int(extents[:, 0].min()), int(extents.sum(axis=1).max())
        is_scattered = end - begin > MAX_SPARSE * int(extents[:, 1].sum())
        return direct if is_scattered else partial(read_slice, shard.stored, begin, end)


@dataclass(frozen=True)
class Shard:
    """A shard and its index."""

    stored: StoredFile
    index: Path
    pairs_at: int = 0
    """Where the pairs begin in the file of the index."""
    num_rows: int = 0
    """Keys with an image and a caption."""
    num_incomplete: int = 0
    """Keys without an image or a caption of their own."""
    num_doubled: int = 0
    """Keys that are left out because they have two images or two captions."""
    doubled: str = ""
    """Names them."""
    damage: str | None = None
    """Why the shard cannot be used."""
    content: str = ""
    """A hash of what the fingerprint covers."""

    @property
    def name(self) -> str:
        return self.stored.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")

    def digest(self) -> str:
        return self.content

    def extents(self, first: int, count: int = 1) -> np.ndarray:
        """Return offset and size of image and caption of some pairs, (count, 4) int64, in bytes."""
        at = self.pairs_at + first * _PAIR_BYTES
        pairs = np.fromfile(self.index, _CELL, 4 * count, offset=at).reshape(count, 4).astype(np.int64)
        pairs[:, ::2] *= tarfile.BLOCKSIZE
        return pairs


def index_path(stored: StoredFile) -> Path:
    """Return the path of a shard's index in the cache."""
    return cache_path("index", f"{key_of(stored)}.{_FORMAT}")


def open_shard(stored: StoredFile) -> Shard:
    """Open a shard by its index, which is made and kept if there is none yet.

    Raises:
        StorageError: the storage does not answer.
    """
    path = index_path(stored)
    if not path.exists():
        with lock_of(path):
            if not path.exists():
                try:
                    index = _scan(stored).to_bytes(stored)
                except DataError as error:
                    index = _Scan(damage=str(error)).to_bytes(stored)
                except OSError as error:  # may be gone at the next start, so it is not kept
                    return Shard(stored, path, damage=f"shard {stored.path} is not a readable tar: {error}")
                write_file(path, index)
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


def members(file: BinaryIO, shard: str, size: int) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Yield the files and links in a tar, each with the number of its archive.

    `cat a.tar b.tar` makes a file of two archives; tarfile stops at the end mark of the first, and with
    `ignore_zeros` also passes over damaged headers. Here every archive is read, and anything between two
    files but a header or an end mark is an error.

    Raises:
        DataError: the file is no tar, is cut, or is damaged in the middle.
    """
    number, begin = 0, 0
    while begin < size or not number:
        file.seek(begin)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
                    if not info.isdir():
                        yield number, info
                end = tar.offset
        except tarfile.TarError as error:
            raise DataError(f"shard {shard} is not a readable tar: {error}", "shard is damaged") from error
        file.seek(end)
        # tarfile takes a damaged header and a cut between two files for the end of the archive.
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise DataError(
                f"shard {shard} is truncated or damaged at byte {end:,} of {size:,}: neither a file nor the "
                f"end mark of a tar is there; make or fetch the shard again",
                "shard is damaged",
            )
        number, begin = number + 1, _skip_zeros(file, end + tarfile.BLOCKSIZE, size)


def _skip_zeros(file: BinaryIO, begin: int, size: int) -> int:
    """Return the first block from `begin` on that is not zero, or `size`."""
    while data := file.read(tarfile.RECORDSIZE):
        if rest := data.lstrip(b"\0"):
            return begin + (len(data) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        begin += len(data)
    return size


@dataclass
class _Scan:
    """What one pass over a shard found."""

    pairs: list[tuple[Extent, Extent]] = field(default_factory=list)
    """Image and caption of the complete keys."""
    num_incomplete: int = 0
    num_doubled: int = 0
    doubled: str = ""
    damage: str | None = None
    content: str = ""

    def to_bytes(self, stored: StoredFile) -> bytes:
        """Return the file of an index: a line of JSON, then the pairs."""
        record = {name: value for name, value in vars(self).items() if name != "pairs"}
        record["num_rows"] = len(self.pairs)
        header: dict[str, Any] = {"of": printable(stored.path), "size": stored.size, "shard": record}
        table = np.asarray(self.pairs, dtype=np.int64).reshape(-1, 4)
        table[:, ::2] //= tarfile.BLOCKSIZE
        if table.size and table.max() > _LARGEST:
            raise DataError(f"shard {stored.path} has a member of more than 4 GB or beyond 2 TB")
        return json.dumps(header).encode() + b"\n" + table.astype(_CELL).tobytes()


def _scan(stored: StoredFile) -> _Scan:
    """Read all headers of a shard.

    Raises:
        DataError: not a tar, one that ends early or is damaged in the middle.
        OSError: the file cannot be read.
    """
    found: dict[str, dict[Key, tuple[str, Extent]]] = {"image": {}, "text": {}, "row": {}}
    doubled: dict[Key, str] = {}
    linked: set[Key] = set()
    digest = hashlib.sha256()
    with open_file(stored) as file:
        for archive, info in members(file, stored.path, stored.size):
            stem, suffix = os.path.splitext(info.name)
            kind = _KINDS.get(suffix.lower())
            if kind is None:
                continue
            key = (archive, stem)  # archives in one file may count their keys from 0 each
            if not info.isfile():  # tar stores the second name of a file as a link, without its content
                if kind != "row":
                    linked.add(key)
                continue
            if key in found[kind] and kind != "row":
                doubled.setdefault(key, info.name)
            found[kind][key] = (info.name, (info.offset, info.offset_data + info.size - info.offset))
            if kind != "row":
                skipped = 0 if kind == "text" else max(0, info.size - _TAIL_BYTES)
                _add(digest, file, info.name, info.offset_data, info.size, skipped)
        written = found["text"].keys() | found["row"].keys()
        if found["image"] and written and not found["image"].keys() & written:
            found = _by_first_dot(found)
        images, texts = found["image"], {**_rows(found, file, digest), **found["text"]}
    whole = (texts.keys() & images.keys()) - doubled.keys()
    alone = [key for key in texts if key not in images and key not in found["text"]]
    pairs = [(extent, texts[key][1]) for key, (_, extent) in images.items() if key in whole]
    pairs += [((0, 0), texts[key][1]) for key in alone]
    shown = ", ".join(f"{stem} twice ({name})" for (_, stem), name in [*doubled.items()][:3])
    shown += ", ..." if len(doubled) > 3 else ""
    return _Scan(
        pairs,
        num_incomplete=len((images.keys() | texts.keys() | linked) - doubled.keys() - whole - {*alone}),
        num_doubled=len(doubled),
        doubled=f"shard {stored.path} has {printable(shown)}" if doubled else "",
        content=digest.hexdigest(),
    )


Key = tuple[int, str]
"""Number of the archive in the file, and a name in it."""
_KINDS = {**dict.fromkeys(IMAGE_SUFFIXES, "image"), ".txt": "text", ".json": "row"}


def _add(digest: Any, file: BinaryIO, name: str, begin: int, size: int, skipped: int) -> bytes:
    """Add a member to the hash, its content from `skipped` bytes on, which is returned."""
    digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
    file.seek(begin + skipped)
    data = file.read(size - skipped)
    digest.update(data)
    return data


def _by_first_dot(found: Mapping[str, dict[Key, Any]]) -> dict[str, dict[Key, Any]]:
    """Return the members by WebDataset's keys, without those of which a key has two of a kind."""
    keyed: dict[str, dict[Key, Any]] = {}
    for kind, by_stem in found.items():
        names: dict[Key, list[Any]] = {}
        for (archive, stem), member in by_stem.items():
            folder, _, name = stem.rpartition("/")
            names.setdefault((archive, f"{folder}/{name.partition('.')[0]}"), []).append(member)
        keyed[kind] = {key: of_key[0] for key, of_key in names.items() if len(of_key) == 1}
    return keyed


def _rows(found: Mapping[str, dict[Key, Any]], file: BinaryIO, digest: Any) -> dict[Key, Any]:
    """Return the members that are rows, and add them to the hash: those of an image without a caption, and
    those without an image that hold a conversation or a question."""
    rows = {}
    for key, (name, (begin, size)) in found["row"].items():
        if key in found["text"]:
            continue
        file.seek(begin)
        data = read_member(file.read(size))[1]
        if key in found["image"] or _is_row(data):
            rows[key] = found["row"][key]
            digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape") + data)
    return rows


def _is_row(data: bytes) -> bool:
    """Whether JSON without an image is a row, and no account of an image that is missing."""
    try:
        row = parse_object(data, "")
    except JsonlError:
        return False
    has = {role for role, names in ROLES.items() if row.keys() & {*names}}
    return "conversation" in has or {"question", "answer"} <= has


def _read_at(shard: Shard, read: Read, offset: int, size: int) -> tuple[str, bytes]:
    """Return name and content of a member."""
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
