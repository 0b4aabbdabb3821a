"""What is kept on a local disk of files at URLs: whole lists of rows, and pieces of shards.

Everything lies in `$OWL2_CACHE` (by default `~/.cache/owl2`), is named by place, size and stamp of what it
is of, appears whole or not at all, and is shared by all ranks and workers that see the folder: one of them
fetches, the others wait for it. Any of it may be deleted at any time between runs.
"""

import hashlib
import os
from pathlib import Path

from filelock import FileLock

from owl2.data.readers.storage import BLOCK_BYTES, Stored, read_bytes
from owl2.data.sample import DataError
from owl2.files import cache_folder, write_file

MAX_SLICE_BYTES = 16_000_000_000
"""Kept of shards in all; the oldest go first. Twice the windows of six corpora with images of 200 KB."""
_NUM_LOCKS = 256


def key_of(stored: Stored) -> str:
    """Return a name for what is kept of this very content of a file."""
    return hashlib.sha256(repr((stored.path, stored.size, stored.stamp)).encode()).hexdigest()[:32]


def kept(kind: str, name: str) -> Path:
    """Return the place of something that is kept; its folder is there."""
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be made ({error}); set OWL2_CACHE to a folder to write in"
        ) from error
    return folder / name


def lock_of(path: Path) -> FileLock:
    """Return the lock of something that is kept; a few locks serve all of it."""
    number = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % _NUM_LOCKS
    return FileLock(kept("locks", f"{path.parent.name}-{number}"))


def local_copy(stored: Stored) -> Path:
    """Return a whole file on the local disk, fetched at the first call.

    Raises:
        DataError: it changed while it was fetched.
    """
    path = kept("files", key_of(stored))
    with lock_of(path):
        if not path.exists():
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("wb") as file:
                for offset in range(0, stored.size, BLOCK_BYTES):
                    file.write(read_bytes(stored.path, offset, min(BLOCK_BYTES, stored.size - offset)))
            if temporary.stat().st_size != stored.size:
                raise DataError(f"{stored.path} is not {stored.size:,} bytes long any more; start again")
            temporary.replace(path)
    return path


def read_slice(stored: Stored, begin: int, end: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a shard from `offset` on, from its piece [begin, end), fetched in one request.

    Fewer bytes come back where the shard ends early.
    """
    path = kept("slices", f"{key_of(stored)}-{begin}-{end}")
    try:
        return read_bytes(path, offset - begin, size)
    except FileNotFoundError:
        pass
    with lock_of(path):
        if path.exists():  # another process was first
            return read_bytes(path, offset - begin, size)
        data = read_bytes(stored.path, begin, end - begin)
        if len(data) == end - begin:  # else the shard is damaged, and so is not kept
            write_file(path, data)
            _drop_oldest(path.parent)
        return data[offset - begin :][:size]


def _drop_oldest(folder: Path) -> None:
    """Keep the pieces of shards within MAX_SLICE_BYTES."""
    pieces = []
    for entry in os.scandir(folder):
        try:
            pieces.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        except FileNotFoundError:
            continue  # another process dropped it, or has just given it its name
    excess = sum(size for _, size, _ in pieces) - MAX_SLICE_BYTES
    for _, size, path in sorted(pieces):
        if excess <= 0:
            break
        Path(path).unlink(missing_ok=True)
        excess -= size
