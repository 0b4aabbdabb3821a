"""Opening a source of samples, whatever its format: told from the path, and in a folder from the names in
it."""

import os
import re
from pathlib import Path
from typing import Any, Literal, cast

from owl2.data.readers.arrow import SUFFIXES
from owl2.data.readers.base import Shuffle, Source
from owl2.data.readers.jsonl import JsonlSource
from owl2.data.readers.shards import TarSource
from owl2.data.readers.storage import Location, is_url, list_names
from owl2.data.readers.tables import TableSource
from owl2.data.sample import DataError
from owl2.errors import Owl2Error
from owl2.registry import Registry

SOURCES: Registry[Source] = Registry("source", "owl2.data.readers", "owl2.sources", key="suffix")
source = SOURCES.add
"""Register a reader of other files: a `Source` whose class attribute `suffix`, as in ".lmdb", is the end of
their names. It is called as `JsonlSource` is, with name, path, image root and `in_slices`."""

COMPRESSED = re.compile(r"\.(tar|parquet|arrow)\.(gz|bz2|xz|zst|lz4|zip)$|\.tgz$")
"""Ends of the names of shards and tables that would be passed over."""


def open_source(
    name: str, path: Location, image_root: Location | None = None, shuffle: Shuffle | None = None
) -> Source:
    """Open a `.jsonl`, `.parquet` or `.arrow` file, or a folder of tar shards or of such tables.

    Args:
        name: the source's name in messages.
        path: local, or a URL; of tables also a pattern, as `folder/train-*.parquet`.
        image_root: where image paths in JSONL and tables begin; default: the file's folder.
        shuffle: None for what suits the source: slices for shards at a URL, samples for all else.

    Raises:
        DataError: none of them, or empty.
        StorageError: storage that does not answer.
    """
    path = os.path.expanduser(path)
    image_root = None if image_root is None else os.path.expanduser(image_root)
    try:
        for suffix, other in SOURCES.all().items():
            if str(path).endswith(suffix):
                return cast(Any, other)(name, path, image_root, in_slices=shuffle == "slices")
        kind = _kind_of(name, path)
        shuffle = shuffle or ("slices" if is_url(path) and kind == "shards" else "samples")
        in_slices = shuffle == "slices"
        if kind == "shards":
            return TarSource(name, path, in_slices=in_slices)
        reader = TableSource if kind == "tables" else JsonlSource
        return reader(name, path, image_root, in_slices=in_slices)
    except FileNotFoundError as error:
        raise DataError(f"{name}: {path} does not exist") from error
    except Owl2Error:
        raise
    except (OSError, ValueError) as error:  # no right to read it, or a name that no file can have
        raise DataError(f"{name}: {path} cannot be read: {error}") from error


def _kind_of(name: str, path: Location) -> Literal["jsonl", "tables", "shards"]:
    """Return what a path leads to.

    A `.parquet` next to the `.tar` of its name is img2dataset's list of what is in the shard.
    """
    is_folder = not is_url(path) and Path(path).is_dir()
    if str(path).endswith(".jsonl") and not is_folder:
        return "jsonl"
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
    if packed := sorted(file for file in names if COMPRESSED.search(file)):
        raise DataError(
            f"{name}: {path} has {len(packed):,} compressed file(s), such as {packed[0]}, which are not "
            f"read; unpack them or put them into another folder"
        )
    if shards and tables:
        raise DataError(
            f"{name}: {path} has both {len(shards):,} .tar shards and {len(tables):,} tables, such as "
            f"{min(tables)}; put them into separate folders, or say path: {path}/*.parquet"
        )
    if not shards and not tables:
        raise DataError(f"{name}: {path} has no *.tar, *.parquet or *.arrow of its own; it has {names[:5]}")
    return "shards" if shards else "tables"
