"""Official files as records: JSON, JSON lines, tables, parquet.

Whatever is wrong with one record costs that record: it becomes a `Skipped` with file, place and reason. A
file that cannot be read at all is an `EvalDataError`. Cells of tables stay text: "None", "nan" and "1" are
options of real questions, and only the task knows which. Compressed files, a byte order mark, Windows line
ends and a last line without one are read like any other.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from owl2.eval.task import DataFile, EvalDataError, RecordError, Skipped
from owl2.jsonl import JsonlError, parse_object

MAX_CELL_CHARACTERS = 1 << 28
"""A cell may hold an image in base64."""
GZIP_MAGIC = b"\x1f\x8b"

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One record of a file; a field that is missing or wrong raises `RecordError`."""

    where: str
    """File and record, for messages."""
    fields: Mapping[str, Any]
    number: int = 0
    """Place in the file, counted from 0; skipped records count."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            self.fail(f"no field {name!r}, only {', '.join(map(str, self.fields))}")
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self[name]
        if not isinstance(value, str):
            self.fail(f"{name} is {value!r:.60}, not text")
        if not _is_unicode(value):
            self.fail(f"{name} has half a surrogate pair: {value!r:.60}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of text, of at least one."""
        value = self[name]
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            self.fail(f"{name} is {value!r:.60}, expected a list of text of at least one")
        if not all(map(_is_unicode, value)):
            self.fail(f"{name} has half a surrogate pair: {value!r:.60}")
        return tuple(value)

    def id(self, name: str) -> str:
        """A field that some files write as text and others as a whole number, as text."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int):
            return self.text(name)
        return str(value)

    def whole(self, name: str) -> int:
        """A field that must be a whole number."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{name} is {value!r:.60}, expected a whole number")
        return value

    def one_of(self, name: str, allowed: Iterable[str]) -> str:
        """A field that must be one of these."""
        value = str(self[name])
        if value not in allowed:
            self.fail(f"{name} is {value!r:.60}, not one of {', '.join(allowed)}")
        return value

    def inner(self, name: str, value: Any) -> "Record":
        """An object within this record."""
        if not isinstance(value, dict):
            self.fail(f"{name} has {value!r:.60}, expected an object")
        return Record(f"{self.where}: {name}", value, self.number)

    def fail(self, reason: str, *, lacks_file: bool = False) -> NoReturn:
        """Give this record up.

        Raises:
            RecordError: always.
        """
        raise RecordError(Skipped(self.where, reason, lacks_file))


Records = list[Record | Skipped]
"""What a file holds, in order."""


def usable(records: Iterable[Record | Skipped], make: Callable[[Record], T]) -> Iterator[T | Skipped]:
    """What `make` returns for each record, or why the record cannot be used."""
    for record in records:
        if isinstance(record, Skipped):
            yield record
            continue
        try:
            made = make(record)
        except RecordError as error:
            yield error.skipped
        else:
            yield made


def by_id(records: Iterable[Record | Skipped], name: str) -> tuple[dict[str, Record], list[Skipped]]:
    """Records by the field that identifies them; and those without one, or whose id came before."""
    found: dict[str, Record] = {}
    skipped = []
    for pair in usable(records, lambda record: (record.id(name), record)):
        if isinstance(pair, Skipped):
            skipped.append(pair)
        elif pair[0] in found:
            again = f"{name} {pair[0]} again, after {found[pair[0]].where}"
            skipped.append(Skipped(pair[1].where, again))
        else:
            found[pair[0]] = pair[1]
    return found, skipped


def read_text(file: Path) -> str:
    """A text file, compressed or not.

    Raises:
        EvalDataError: it cannot be read, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvalDataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise EvalDataError(f"{file}: cannot be read ({error})") from error


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        EvalDataError: not JSON.
    """
    return _parse(read_text(file), file)


def read_object(file: Path, *fields: str) -> dict[str, Any]:
    """A JSON file that is one object with at least these fields.

    Raises:
        EvalDataError: another format.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise EvalDataError(f"{file}: expected an object, found {type(content).__name__}")
    missing = [name for name in fields if name not in content]
    if missing:
        raise EvalDataError(f"{file}: no {', '.join(missing)} in it, only {', '.join(content) or 'nothing'}")
    return content


def as_records(rows: Any, file: Path) -> Records:
    """Rows of a JSON file as records.

    Raises:
        EvalDataError: not a list.
    """
    if not isinstance(rows, list):
        raise EvalDataError(f"{file}: expected a list of records, found {type(rows).__name__}")
    return [_record(f"{file}: record {number + 1}", row, number) for number, row in enumerate(rows)]


def read_records(file: Path) -> Records:
    """Records of a JSON array or of JSON lines, told apart by content; blank lines are skipped.

    Raises:
        EvalDataError: neither of them.
    """
    text = read_text(file)
    if text.lstrip().startswith("["):
        return as_records(_parse(text, file), file)
    return _read_lines(text, file)


def read_any(file: Path) -> Records | dict[str, Any]:
    """The same, or the object of a JSON file that is one.

    Raises:
        EvalDataError: none of these.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":  # behind the first object
            return _read_lines(text, file)
        raise EvalDataError(f"{file}: not JSON ({error}); download it again") from error
    return content if isinstance(content, dict) else as_records(content, file)


def read_rows(file: Path, delimiter: str = ",") -> list[list[str]]:
    """The cells of a table without header, as text.

    Raises:
        EvalDataError: quotes that do not close.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    # strict: a quote that never closes would swallow the rest of the file into one cell.
    reader = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise EvalDataError(f"{file}: line {reader.line_num}: {error}") from error


def read_table(file: Path, *, quoted: bool = True) -> Records:
    """A table with a header and tabs between cells, as text; an empty cell is "".

    Args:
        quoted: whether quotes enclose cells; else they are characters, and a line is a row.
    """
    if quoted:
        header, *rows = read_rows(file, delimiter="\t") or [[]]
    else:
        lines = read_text(file).replace("\r\n", "\n").rstrip("\n").split("\n")
        header, *rows = [line.split("\t") for line in lines]
    records: Records = []
    for number, row in enumerate(rows):
        where = f"{file}: {f'row {number + 1}' if quoted else f'line {number + 2}'}"
        if len(row) == len(header):
            records.append(Record(where, dict(zip(header, row, strict=True)), number))
        else:
            records.append(Skipped(where, f"{len(row)} cells, the header has {len(header)}"))
    return records


def read_parquet(files: Sequence[Path]) -> Records:
    """The rows of a dataset's parquet files, in the order of the files.

    Raises:
        EvalDataError: a file that is not parquet, or none.
        ModuleNotFoundError: pyarrow is not installed.
    """
    if not files:
        raise EvalDataError("no parquet files in the folder")
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{files[0]} needs pyarrow: pip install 'owl2[eval]'") from error
    records: Records = []
    for file in files:
        try:
            rows = parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise EvalDataError(f"{file}: not a parquet file ({error}); download it again") from error
        for number, row in enumerate(rows, start=1):
            records.append(Record(f"{file}: row {number}", row, len(records)))
    return records


def official(found: Mapping[str, Path], files: Sequence[DataFile], path: str) -> Path:
    """Of the files that `Task.find` found, the one called `path`, or the first that replaces it."""
    names = [file.path for file in files if path in (file.path, file.instead_of)]
    return next(found[name] for name in names if name in found)


def fingerprint(text: str) -> str:
    """A short name for a long text, such as the passage that several questions share."""
    return hashlib.blake2s(text.encode(errors="replace"), digest_size=6).hexdigest()


def _parse(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise EvalDataError(f"{file}: not JSON ({error}); download it again") from error


def _read_lines(text: str, file: Path) -> Records:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records: Records = []
    for count, (number, line) in enumerate(lines):
        where = f"{file}: line {number}"
        try:
            records.append(Record(where, parse_object(line, where), count))
        except JsonlError as error:
            records.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
    if records and all(isinstance(record, Skipped) for record in records):
        raise EvalDataError(f"{file}: neither a JSON array nor JSON lines; the first: {records[0]}")
    return records


def _record(where: str, row: Any, number: int) -> Record | Skipped:
    if isinstance(row, dict):
        return Record(where, row, number)
    return Skipped(where, f"{type(row).__name__}, expected an object")


def _is_unicode(text: str) -> bool:
    """Whether a text has no half surrogate pairs, which JSON allows and no tokenizer takes."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
