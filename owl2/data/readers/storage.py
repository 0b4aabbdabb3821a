"""Bytes of a corpus in a local folder or at a URL that fsspec opens (`s3://`, `https://`, ...).

Local files are opened directly: that takes 12 us a read, fsspec 88. A request to a URL that fails is repeated
a few times, with a message each time. After the last one the run stops: leaving out samples because a network
was down would change what the model learns from. Only "there is no such file" is an answer; it is raised at
once, as `FileNotFoundError`, and counts as a fault of the sample.
"""

import errno
import io
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from owl2.errors import Owl2Error

WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Waits before each repetition of a request."""
BLOCK_BYTES = 8 << 20
"""Bytes of a request where a file at a URL is read from one end to the other."""
THREADS = 8
"""Requests at a time if many files are looked at."""
_STAMPS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_FINAL_STATUS = range(400, 500)
_PASSING_STATUS = (408, 429)

Location = str | Path
"""A local path, or a URL as a string."""
T = TypeVar("T")


class StorageError(Owl2Error, RuntimeError):
    """Storage that does not answer, or refuses; the message names the file and what was tried."""


@dataclass(frozen=True)
class StoredFile:
    """A file as `look_at` found it."""

    path: str
    size: int
    stamp: str
    """What changes with the content: an ETag or the time of the last change; empty if neither is known."""


def is_url(location: Location) -> bool:
    return "://" in str(location)


def join(folder: Location, name: str) -> str:
    """Return the path or URL of `name` below `folder`; a URL or an absolute path stays as it is."""
    if is_url(name):
        return name
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def look_at(location: Location) -> StoredFile:
    """Return size and stamp of a file.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage does not answer.
    """
    path = str(location)
    if not is_url(path):
        status = os.stat(path)
        return StoredFile(path, status.st_size, str(status.st_mtime_ns))
    return _stored(path, _ask(path, "asked for", lambda fs: fs.info(path)))


def list_files(folder: Location, *suffixes: str) -> list[StoredFile]:
    """Return the files directly in a folder whose names end in one of `suffixes`, sorted by name.

    An HTTP server must show the folder as a page of links.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: the storage does not answer.
    """
    found = {path: info for path, info in _entries(folder).items() if path.endswith(suffixes)}
    if not is_url(folder):
        return [look_at(path) for path in sorted(found)]
    with ThreadPoolExecutor(THREADS) as pool:  # HTTP lists names alone
        return list(
            pool.map(
                lambda path: look_at(path) if found[path].get("size") is None else _stored(path, found[path]),
                sorted(found),
            )
        )


def list_names(folder: Location) -> list[str]:
    """Return the names directly in a folder; raises as `list_files` does."""
    return sorted(path.rstrip("/").rpartition("/")[2] for path in _entries(folder))


def read_bytes(location: Location, offset: int = 0, size: int | None = None) -> bytes:
    """Return `size` bytes from `offset` on, fewer where the file ends; by default all.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage does not answer, or does not serve parts of files.
    """
    path = str(location)
    if not is_url(path):
        with open(path, "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            return file.read(-1 if size is None else size)
    if size is None:
        return _ask(path, "read", lambda fs: fs.cat_file(path))
    data = _ask(path, "read", lambda fs: fs.cat_file(path, start=offset, end=offset + size))
    if len(data) > size:
        raise StorageError(
            f"{path}: {len(data):,} bytes came in answer to a request for {size:,} from {offset:,} on; the "
            f"server must honour Range requests"
        )
    return data


def read_media(root: Location, path: str) -> bytes:
    """Return a whole file below `root`, also if its path has backslashes (Windows) or another Unicode form
    (macOS) than the disk.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the storage does not answer.
    """
    location = join(root, path)
    try:
        return read_bytes(location)
    except FileNotFoundError:
        if is_url(location):
            raise
        for form in ("NFC", "NFD"):
            other = Path(join(root, unicodedata.normalize(form, path.replace("\\", "/"))))
            if other.is_file():
                return other.read_bytes()
        reason = "No such file or directory; paths in rows begin at image_root"
        raise FileNotFoundError(errno.ENOENT, reason, str(location)) from None


def open_file(stored: StoredFile) -> BinaryIO:
    """Open a file for reading with seeks; one at a URL in requests of BLOCK_BYTES."""
    if not is_url(stored.path):
        return open(stored.path, "rb")
    return io.BufferedReader(_Ranges(stored), BLOCK_BYTES)


class _Ranges(io.RawIOBase):
    """A file at a URL: each `readinto` is a request."""

    def __init__(self, stored: StoredFile):
        self.stored = stored
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.stored.size}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self.stored.size - self.position))
        data = read_bytes(self.stored.path, self.position, size) if size else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _entries(folder: Location) -> dict[str, dict[str, Any]]:
    """Return what is directly in a folder: its path, and what a listing at a URL says of it."""
    if not is_url(folder):
        return {os.path.join(folder, name): {} for name in os.listdir(folder)}
    url = str(folder).rstrip("/") + "/"
    protocol = url.partition("://")[0]
    rows = _ask(url, "listed", lambda fs: fs.ls(url, detail=True))
    return {name if is_url(name) else f"{protocol}://{name}": row for row in rows for name in [row["name"]]}


def _ask(path: str, done: str, request: Callable[[Any], T]) -> T:
    """Return what the file system of a URL answers; `done` is the participle for errors: could not be `read`.

    The instance comes from fsspec's own cache in each call: one from before a fork may not be used after it.
    """
    protocol = path.partition("://")[0]
    try:
        files = fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(
            f"{path}: {error}; `pip install 'owl2[s3]'` or 'owl2[http]', or what it names"
        ) from error
    except ValueError as error:
        raise StorageError(f"{path}: fsspec knows no storage {protocol}://") from error
    for attempt, wait_s in enumerate((*WAITS_S, None), start=1):
        try:
            return request(files)
        except Exception as error:  # each storage has its own: botocore's, aiohttp's, OSError, TimeoutError
            if _is_absent(error):
                raise
            if isinstance(error, ValueError):
                raise FileNotFoundError(f"{path!r} is no address: {error}") from error
            reason = f"{path} could not be {done}: {type(error).__name__}: {error}"
            if wait_s is None or _is_final(error):
                raise StorageError(f"{reason} (attempt {attempt} of {len(WAITS_S) + 1})") from error
            print(f"{reason}; attempt {attempt + 1} in {wait_s:g} s", file=sys.stderr, flush=True)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _is_absent(error: Exception) -> bool:
    """Whether there is no such file.

    fsspec raises FileNotFoundError for any file that HTTP cannot look at; its cause has the status.
    """
    cause = error.__cause__
    is_other = isinstance(cause, OSError) and not isinstance(cause, _ABSENT)
    return isinstance(error, _ABSENT) and getattr(cause, "status", 404) == 404 and not is_other


def _is_final(error: Exception) -> bool:
    """Whether asking again is useless."""
    status = getattr(error, "status", None)
    refused = status in _FINAL_STATUS and status not in _PASSING_STATUS
    return refused or isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError"


def _stored(path: str, info: dict[str, Any]) -> StoredFile:
    if info.get("size") is None:
        raise StorageError(f"{path}: the server does not say how large the file is")
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return StoredFile(path, int(info["size"]), stamp)
