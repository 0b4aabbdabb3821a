"""Tables whose rows are read one by one: Arrow files that are mapped into memory, in place or from the cache.

A Parquet file is compressed by row groups of hundreds of images, an Arrow stream has no table of contents,
and the batches of an Arrow file may be compressed too: reading one row of them costs as much as reading many.
Such a file, and any at a URL, is written once, a piece at a time, as an Arrow file in the cache, named by
path, size and stamp. A row is then found by arithmetic and costs a few microseconds and the pages it is on,
which the operating system shares among all ranks and workers.
"""

import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from owl2.data.readers.cache import cache_path, key_of, lock_of
from owl2.data.readers.storage import StoredFile, is_url, look_at, open_file
from owl2.data.sample import DataError
from owl2.files import write_file

SUFFIXES = (".parquet", ".arrow")
ROWS = 64
"""Rows of a batch in the cache. 64 images take some 20 MB while they are written; a batch's own 1.5 KB add
little even to captions without images."""
_OPEN_TABLES = 4096
"""Tables mapped at a time in a process; Linux allows 65,530 mappings. None holds a file descriptor."""
_TAIL_BYTES = 64
"""Bytes at the end of each image that the digest covers: the end of a compressed image depends on all of
it."""
_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Table:
    """A table that each process maps when it first reads a row."""

    name: str
    """Of the corpus's file, without its folder."""
    mapped: StoredFile
    """That file, or the one in the cache."""
    form: Any = None
    """How its rows are read, worked out from its schema."""
    num_rows: int = 0
    firsts: Sequence[int] = ()
    """Number of the first row of each record batch."""
    damage: str | None = None
    """Why the table cannot be used."""

    def cells(self, number: int, columns: Iterable[str]) -> dict[str, Any]:
        """Return these cells of a row by column, as `pyarrow.Scalar`s, which copy nothing.

        Raises:
            DataError: the file is another one than was opened, or damaged.
        """
        import pyarrow

        batch = bisect_right(self.firsts, number) - 1
        try:
            rows = _map(self.mapped).get_batch(batch)
        except pyarrow.ArrowException as error:
            raise DataError(f"{self.mapped.path}: row {number}: {error}", "shard is damaged") from error
        return {name: rows.column(name)[number - self.firsts[batch]] for name in columns}

    def digest(self) -> str:
        """Return a hash of the columns that are read, the same however the rows are cut into batches.

        Of media in the table it covers the sizes and the last bytes. It is worked out once and kept.
        """
        columns = sorted(self.form.columns.items())
        key = hashlib.sha256(repr((key_of(self.mapped), columns)).encode()).hexdigest()[:32]
        path = cache_path("digests", key)
        with lock_of(path):
            if not path.exists():
                write_file(path, self._hash(columns).encode())
        return path.read_text(encoding="utf-8")

    def _hash(self, columns: Sequence[tuple[str, str]]) -> str:
        hashes: dict[str, Any] = {}
        for number in range(len(self.firsts)):
            rows = _map(self.mapped).get_batch(number)
            for role, name in columns:
                _add(hashes, role, rows.column(name), is_media=role in ("image", "video"))
        parts = [f"{name} {digest.hexdigest()}" for name, digest in sorted(hashes.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _add(hashes: dict[str, Any], name: str, values: Any, *, is_media: bool) -> None:
    """Add an array to the hashes of its column: one a field, and one of the lengths of lists and texts.

    Each hash covers its values end to end, so it does not matter in which batches they come.
    """
    import pyarrow
    from pyarrow import compute, types

    def update(part: str, data: Any) -> None:
        hashes.setdefault(f"{name}{part}", hashlib.sha256()).update(np.ascontiguousarray(data).data)

    kind = values.type
    if types.is_dictionary(kind):
        values = values.dictionary_decode()
    kind = values.type
    if types.is_struct(kind):
        update(" is there", values.is_valid().to_numpy(zero_copy_only=False))
        for number, field in enumerate(kind):
            _add(hashes, f"{name}.{field.name}", compute.struct_field(values, [number]), is_media=is_media)
    elif types.is_list(kind) or types.is_large_list(kind):
        lengths = compute.fill_null(compute.list_value_length(values), -1)
        update(" lengths", lengths.to_numpy(zero_copy_only=False).astype(np.int64))
        _add(hashes, f"{name}[]", values.flatten(), is_media=is_media)
    elif str(kind).endswith(("binary", "binary_view", "string", "string_view")):
        is_tail = is_media and "binary" in str(kind)
        values = values.cast(pyarrow.large_binary())
        lengths = compute.fill_null(compute.binary_length(values), -1)
        update(" lengths", lengths.to_numpy(zero_copy_only=False).astype(np.int64))
        values = compute.fill_null(compute.binary_slice(values, -_TAIL_BYTES) if is_tail else values, b"")
        _, offsets, data = values.buffers()
        if data is not None and len(values):
            begin, end = np.frombuffer(offsets, np.int64)[[values.offset, values.offset + len(values)]]
            update("", np.frombuffer(data, np.uint8)[begin:end])
    else:
        update("", np.frombuffer("".join(f"{value!r}\n" for value in values.to_pylist()).encode(), np.uint8))


def table_path(stored: StoredFile) -> Path:
    """Return the path in the cache of a table that cannot be read in place."""
    return cache_path("tables", f"{key_of(stored)}.arrow")


def unprepared(tables: Sequence[StoredFile]) -> list[StoredFile]:
    """Return those that must be written to the cache before their rows can be read."""
    return [stored for stored in tables if not (_is_in_place(stored) or _is_kept(stored))]


FormOf = Callable[[str, Any], Any]
"""The path of a table and its `pyarrow.Schema` to the form of its rows."""


def open_table(stored: StoredFile, form_of: FormOf) -> Table:
    """Open a table, which is written to the cache first if it cannot be read in place.

    Raises:
        DataError: from `form_of`, before anything is written; or the cache has no room.
        StorageError: the storage does not answer.
    """
    name = stored.path.rpartition("/")[2]
    if _is_in_place(stored):
        return _table(name, stored, form_of(stored.path, _map(stored).schema), is_even=False)
    path, damage = table_path(stored), _damage_path(stored)
    if not _is_kept(stored):
        with lock_of(path):
            if not _is_kept(stored):
                try:
                    _prepare(stored, path, form_of)
                except _Damaged as error:
                    if not error.is_lasting:
                        return Table(name, stored, damage=str(error))
                    write_file(damage, str(error).encode())
    if damage.exists():
        return Table(name, stored, damage=damage.read_text(encoding="utf-8"))
    mapped = look_at(path)
    return _table(name, mapped, form_of(stored.path, _map(mapped).schema), is_even=True)


class _Damaged(Exception):
    """A table that cannot be read from one end to the other."""

    def __init__(self, stored: StoredFile, error: Exception | str):
        super().__init__(f"table {stored.path} is damaged or none: {error}; make or fetch it again")
        self.is_lasting = getattr(error, "errno", None) is None
        """Whether its content is at fault, not the disk it is on."""


def _is_kept(stored: StoredFile) -> bool:
    return table_path(stored).exists() or _damage_path(stored).exists()


def _damage_path(stored: StoredFile) -> Path:
    return table_path(stored).with_suffix(".damage")


def _is_in_place(stored: StoredFile) -> bool:
    """Whether it is a whole Arrow file on a local disk whose batches are not compressed."""
    import pyarrow

    if is_url(stored.path) or not Path(stored.path).is_file():
        return False
    with open(stored.path, "rb") as file:
        if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
            return False
    try:
        content, reader = _mapping(stored.path)
        first = reader.get_batch(0) if reader.num_record_batches else None
    except (pyarrow.ArrowException, OSError):
        return False
    columns = first.columns if first else []
    parts = [part for column in columns for part in column.buffers() if part is not None and part.size]
    return all(content.address <= part.address < content.address + content.size for part in parts)


def _table(name: str, mapped: StoredFile, form: Any, *, is_even: bool) -> Table:
    """`is_even`: all batches but the last have ROWS rows, so none of them needs to be looked at."""
    reader = _map(mapped)
    count = reader.num_record_batches
    if is_even:
        num_rows = (count - 1) * ROWS + reader.get_batch(count - 1).num_rows if count else 0
        firsts: Sequence[int] = range(0, num_rows, ROWS)
    else:
        *firsts, num_rows = accumulate((reader.get_batch(n).num_rows for n in range(count)), initial=0)
    return Table(name, mapped, form, num_rows, firsts)


@lru_cache(_OPEN_TABLES)
def _map(stored: StoredFile) -> Any:
    """Return the reader of an Arrow file as it was when it was looked at."""
    if look_at(stored.path) != stored:
        raise DataError(f"{stored.path} has changed since it was opened; start again", "shard is damaged")
    return _mapping(stored.path)[1]


def _mapping(path: str) -> tuple[Any, Any]:
    """Map an Arrow file: its bytes, and its reader. Threads of Arrow's own would not survive a fork."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(path) as file:
        content = file.read_buffer()
    return content, ipc.open_file(content, options=ipc.IpcReadOptions(use_threads=False))


def _prepare(stored: StoredFile, path: Path, form_of: FormOf) -> None:
    """Write a table as an Arrow file of even batches.

    Raises:
        _Damaged: it cannot be read.
        DataError: from `form_of`; or it cannot be written.
    """
    import pyarrow
    from pyarrow import ipc

    batches = _batches(stored)
    schema = next(batches)
    form_of(stored.path, schema)
    # An Arrow file has room for one dictionary a column, and Parquet's row groups have one each.
    flat = pyarrow.schema(
        field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
        for field in schema
    )
    temporary = path.with_name(f".{path.name}.tmp")  # what a killed process left is written over
    try:
        with temporary.open("wb") as file, ipc.new_file(file, flat) as writer:
            for batch in _even(batches, stored):
                writer.write_batch(batch.cast(flat))
        temporary.replace(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{stored.path} cannot be rewritten as an Arrow file: {error}") from error
    except OSError as error:
        raise DataError(
            f"{stored.path} ({stored.size:,} bytes) cannot be written to {path.parent}: {error}; "
            f"{shutil.disk_usage(path.parent).free:,} bytes are free there; set OWL2_CACHE to a larger disk"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        # Else 290 MB stay in this process after a file of 500 MB in pages of 100 MB.
        pyarrow.default_memory_pool().release_unused()


def _batches(stored: StoredFile) -> Iterator[Any]:
    """Yield the schema of a table, then its batches."""
    import pyarrow

    read = _parquet if stored.path.endswith(".parquet") else _arrow
    try:
        yield from read(stored)
    except (pyarrow.ArrowException, OSError) as error:
        raise _Damaged(stored, error) from error


def _parquet(stored: StoredFile) -> Iterator[Any]:
    """A file at a URL is read by its row groups' columns, a local one page by page."""
    from pyarrow import parquet

    is_local = not is_url(stored.path)
    place = stored.path if is_local else open_file(stored)
    with parquet.ParquetFile(place, memory_map=is_local, page_checksum_verification=True) as file:
        yield file.schema_arrow
        yield from file.iter_batches(batch_size=ROWS, use_threads=False)


def _arrow(stored: StoredFile) -> Iterator[Any]:
    """A stream as `datasets` writes it, or an Arrow file."""
    from pyarrow import ipc

    with open_file(stored) as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        file.seek(max(0, stored.size - len(_END_OF_STREAM)))
        is_whole = is_file or file.read() == _END_OF_STREAM
        file.seek(0)
        if not is_whole:  # Arrow takes a cut between two batches for the end
            raise _Damaged(stored, "the mark of its end is missing")
        reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
        yield reader.schema
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else reader


def _even(batches: Iterator[Any], stored: StoredFile) -> Iterator[Any]:
    """Cut and join batches to ROWS rows each, the last one to what is left."""
    pieces: list[Any] = []
    missing = ROWS
    for batch in batches:
        while batch.num_rows:
            pieces.append(batch.slice(0, missing))
            missing -= pieces[-1].num_rows
            batch = batch.slice(pieces[-1].num_rows)
            if not missing:
                yield _joined(pieces, stored)
                pieces, missing = [], ROWS
    if pieces:
        yield _joined(pieces, stored)


def _joined(pieces: Sequence[Any], stored: StoredFile) -> Any:
    import pyarrow

    if len(pieces) == 1:
        return pieces[0]
    batches = pyarrow.Table.from_batches(pieces).combine_chunks().to_batches()
    if len(batches) > 1:
        raise DataError(f"{stored.path}: {ROWS} of its rows are more than 2 GB, as large as a batch can be")
    return batches[0]
