"""Opening a source of samples, whatever its format: told from the path, and in a folder from the names in
it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from owl2.data.readers.arrow import SUFFIXES
from owl2.data.readers.base import Shuffle, Source
from owl2.data.readers.jsonl import JSON_SUFFIXES, JsonlSource
from owl2.data.readers.paths import expand_braces, nested
from owl2.data.readers.rows import FOREIGN, NO_OBJECT, UNKNOWN, UNREAD, media_of_name
from owl2.data.readers.shards import TarSource
from owl2.data.readers.storage import Location, is_url, list_names
from owl2.data.readers.tables import TableSource
from owl2.data.sample import DataError
from owl2.errors import Owl2Error
from owl2.registry import Registry

SOURCES: Registry[Source] = Registry("source", "owl2.data.readers", "owl2.sources", key="suffix")
source = SOURCES.add
"""Register a reader of other files: a `Source` whose class attribute `suffix`, as in ".lmdb", is the end of
their names. It is called as `JsonlSource` is, with name, path, image root and `in_slices`,
and with `columns` if the configuration has any."""

COMPRESSED = re.compile(r"\.(tar|parquet|arrow)\.(gz|bz2|xz|zst|lz4|zip)$|\.tgz$")
"""Ends of the names of shards and tables that would be passed over."""
READERS: dict[tuple[str, ...], type[JsonlSource | TableSource | TarSource]] = {
    JSON_SUFFIXES: JsonlSource,
    SUFFIXES: TableSource,
    (".tar",): TarSource,
}
"""Who reads files with these suffixes."""
NUM_TRIED = 8
"""Rows, evenly spread, of which one must be in a form that is read, for a source to open."""
MAX_NAMED = 10


def open_source(
    name: str,
    path: Location,
    image_root: Location | None = None,
    shuffle: Shuffle | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
    """Open files of JSON, tables or tar shards: one, a folder of tables or shards, or a pattern.

    Args:
        name: the source's name in messages.
        path: local, or a URL; patterns as `folder/train-*.parquet` or `{00..12}.tar`.
        image_root: where image paths in rows begin; default: the file's folder.
        shuffle: None for what suits the source: slices for shards at a URL, samples for all else.
        columns: names of columns that are not known: `{"conversations": "dialog"}`.

    Raises:
        DataError: none of them, empty, or rows in a form that is not read.
        StorageError: storage that does not answer.
    """
    path = os.path.expanduser(path)
    image_root = None if image_root is None else os.path.expanduser(image_root)
    try:
        for suffix, other in SOURCES.all().items():
            if str(path).endswith(suffix):
                more = {"columns": columns} if columns else {}
                return cast(Any, other)(name, path, image_root, in_slices=shuffle == "slices", **more)
        path, reader = _resolved(name, path)
        shuffle = shuffle or ("slices" if is_url(path) and reader is TarSource else "samples")
        opened = reader(name, path, image_root, in_slices=shuffle == "slices", columns=columns)
        if reader is JsonlSource or not is_url(path):
            _check_form(opened)
        return opened
    except FileNotFoundError as error:
        raise DataError(f"{name}: {error.filename or path} does not exist") from error
    except Owl2Error:
        raise
    except (OSError, ValueError) as error:  # no right to read it, or a name that no file can have
        raise DataError(f"{name}: {path} cannot be read: {error}") from error


def _check_form(source: Source) -> None:
    """Raise DataError if none of a few rows is in a form that is read."""
    faults = []
    for index in range(0, len(source), -(-len(source) // NUM_TRIED)):
        try:
            source[index]
        except DataError as error:
            if error.kind not in (UNKNOWN, UNREAD, FOREIGN, NO_OBJECT):
                return
            faults.append(error)
        except Exception:  # whatever is wrong with it costs this row alone
            return
        else:
            return
    first = str(faults[0]).removeprefix(f"{source.name}: ")
    if faults[0].kind == NO_OBJECT:
        first += "; expected is an object a line, or an array of objects"
    rows = f"none of {len(faults)} rows that were tried can" if len(faults) > 1 else "its only row cannot"
    raise DataError(f"{source.name}: {rows} be read; {first}", faults[0].kind)


def _resolved(name: str, path: Location) -> tuple[Location, type[JsonlSource | TableSource | TarSource]]:
    """Return what a path leads to, and who reads it."""
    parts = expand_braces(path)
    readers = [next((r for ends, r in READERS.items() if part.endswith(ends)), None) for part in parts]
    is_folder = len(parts) == 1 and not is_url(path) and Path(parts[0]).is_dir()
    if not is_folder and readers[0] is not None:
        if any(reader is not readers[0] for reader in readers):
            raise DataError(f"{name}: {path} mixes kinds of files; make a source of each")
        return path, readers[0]
    if not is_url(path) and not is_folder and (len(parts) > 1 or Path(parts[0]).exists()):
        raise DataError(
            f"{name}: {path} is neither a .jsonl, .json, .parquet, .arrow or .tar file nor a folder of .tar "
            f"shards or tables"
        )
    return _of_folder(name, parts[0])


def _of_folder(name: str, path: str) -> tuple[str, type[TableSource | TarSource]]:
    """Return where a folder's shards or tables are.

    A `.parquet` next to the `.tar` of its name is img2dataset's list of what is in the shard.
    """
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
    if shards or tables:
        return path, TarSource if shards else TableSource
    inner = [] if is_url(path) else nested(path, (".tar", *SUFFIXES))
    if len(inner) == 1:
        return inner[0], TarSource if nested(path, (".tar",)) else TableSource
    meant = inner or [f"{path}/{file}" for file in names if file.endswith(JSON_SUFFIXES)]
    message = f"{name}: {path} has no *.tar, *.parquet or *.arrow of its own; it has {names[:5]}"
    if meant:
        rest = f", and {len(meant) - MAX_NAMED:,} more" if len(meant) > MAX_NAMED else ""
        message += f"; say which is meant as path: {' or '.join(meant[:MAX_NAMED])}{rest}"
    elif any(media_of_name(file) == "image" for file in names):
        message += "; a folder of images needs a .jsonl or .json file with a row for each of them"
    raise DataError(message)
