"""Files at URLs that are kept on a local disk: whole lists of rows, tables, and slices of shards; and
indices.

Everything is in `$OWL2_CACHE` (by default `~/.cache/owl2`), is named by path, size and stamp of the file it
was made from, appears whole or not at all, and is shared by all ranks and workers that see the folder: one of
them fetches, the others wait for it. Any of it may be deleted at any time between runs.
"""

import gzip
import hashlib
import os
import shutil
import zlib
from pathlib import Path

from filelock import FileLock

from owl2.data.readers.storage import BLOCK_BYTES, StoredFile, is_url, open_file, read_bytes
from owl2.data.sample import DataError
from owl2.files import cache_folder, write_file

MAX_SLICE_BYTES = 16_000_000_000
"""All slices of shards together; the oldest go first. Twice the windows of six corpora with images of 200
KB."""
_NUM_LOCKS = 256


def key_of(stored: StoredFile) -> str:
    """Return a name for what is made from this very content of a file."""
    path = stored.path if is_url(stored.path) else os.path.abspath(stored.path)
    content = repr((path, stored.size, stored.stamp)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()[:32]


def cache_path(kind: str, name: str) -> Path:
    """Return the path of a file of the cache; its folder exists.

    Raises:
        DataError: the cache cannot be written.
    """
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be made ({error}); set OWL2_CACHE to a folder that can be written"
        ) from error
    return folder / name


def lock_of(path: Path) -> FileLock:
    """Return the lock of a file of the cache; a few locks serve all files."""
    number = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % _NUM_LOCKS
    return FileLock(cache_path("locks", f"{path.parent.name}-{number}"))


def local_copy(stored: StoredFile, *, unpack: bool = False) -> Path:
    """Return a whole file on the local disk, fetched at the first call; `unpack` a `.gz`.

    Raises:
        DataError: it changed while it was fetched, or is no whole `.gz`.
    """
    path = cache_path("files", key_of(stored) + (".unpacked" if unpack else ""))
    with lock_of(path):
        if not path.exists():
            temporary = path.with_name(f".{path.name}.tmp")
            with open_file(stored) as packed, temporary.open("wb") as file:
                source = gzip.GzipFile(fileobj=packed) if unpack else packed
                try:
                    shutil.copyfileobj(source, file, BLOCK_BYTES)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise DataError(
                        f"{stored.path} is no whole .gz: {error}; make or fetch it again"
                    ) from error
            if not unpack and temporary.stat().st_size != stored.size:
                raise DataError(f"{stored.path} no longer has {stored.size:,} bytes; start again")
            temporary.replace(path)
    return path


def read_slice(stored: StoredFile, begin: int, end: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a shard from `offset` on, out of its slice [begin, end), fetched in one request.

    Fewer bytes come back if the shard ends early.
    """
    path = cache_path("slices", f"{key_of(stored)}-{begin}-{end}")
    try:
        return read_bytes(path, offset - begin, size)
    except FileNotFoundError:
        pass
    with lock_of(path):
        if path.exists():  # another process was first
            return read_bytes(path, offset - begin, size)
        data = read_bytes(stored.path, begin, end - begin)
        if len(data) == end - begin:  # else the shard is damaged, and its slice is not kept
            write_file(path, data)
            _drop_oldest(path.parent)
        return data[offset - begin :][:size]


def _drop_oldest(folder: Path) -> None:
    """Keep the slices of shards within MAX_SLICE_BYTES."""
    slices = []
    for entry in os.scandir(folder):
        try:
            slices.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        except FileNotFoundError:
            continue  # another process dropped it, or has just given it its name
    excess = sum(size for _, size, _ in slices) - MAX_SLICE_BYTES
    for _, size, path in sorted(slices):
        if excess <= 0:
            break
        Path(path).unlink(missing_ok=True)
        excess -= size
