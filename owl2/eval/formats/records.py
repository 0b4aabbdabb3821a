"""Reading the official files: JSON, lines of JSON, tables, and the images they name.

What all readers share is how they fail: a file or record that is not in its format is an `EvalDataError` with
the file and the record's number, and images are counted before the model runs, so that a download cut short
is found in the first second and not in the third hour. Cells of tables stay text: "None", "nan" and "1" are
options of real questions, and only the task knows which.
"""

import base64
import binascii
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.data.sample import StoredImage
from owl2.eval.task import DataFile, DataMissing, EvalDataError
from owl2.processor.images import ImageError

MAX_CELL_CHARACTERS = 1 << 28
"""A cell may hold an image in base64."""


@dataclass(frozen=True)
class Record:
    """One record of a file; asking for a field that it lacks is an error that names file and record."""

    where: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(f"no field {name!r}, only {', '.join(map(str, self.fields))}")
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self[name]
        if not isinstance(value, str):
            raise self.error(f"{name} is {value!r:.60}, not text")
        return value

    def one_of(self, name: str, allowed: Iterable[str]) -> str:
        """A field that must be one of these."""
        value = str(self[name])
        if value not in allowed:
            raise self.error(f"{name} is {value!r:.60}, not one of {', '.join(allowed)}")
        return value

    def error(self, reason: str) -> EvalDataError:
        return EvalDataError(f"{self.where}: {reason}")


def read_text(file: Path) -> str:
    """A text file.

    Raises:
        EvalDataError: not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvalDataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        EvalDataError: not JSON.
    """
    return _parse_json(read_text(file), str(file))


def as_records(rows: Any, file: Path, first: int = 1) -> list[Record]:
    """Rows of a JSON file as records, counted from `first`.

    Raises:
        EvalDataError: not a list of objects.
    """
    if not isinstance(rows, list):
        raise EvalDataError(f"{file}: expected a list of records, found {type(rows).__name__}")
    records = []
    for number, row in enumerate(rows, start=first):
        if not isinstance(row, dict):
            raise EvalDataError(f"{file}: record {number} is {type(row).__name__}, expected an object")
        records.append(Record(f"{file}: record {number}", row))
    return records


def read_jsonl(file: Path) -> list[Record]:
    """A file of one JSON object a line; blank lines are skipped.

    Raises:
        EvalDataError: a line that is no JSON object.
    """
    records = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        row = _parse_json(line, where)
        if not isinstance(row, dict):
            raise EvalDataError(f"{where} is {type(row).__name__}, expected an object")
        records.append(Record(where, row))
    return records


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


def read_tsv(file: Path) -> list[Record]:
    """A table with a header and tabs between cells, as text; an empty cell is "".

    Raises:
        EvalDataError: a row with more or fewer cells than the header.
    """
    header, *rows = read_rows(file, delimiter="\t") or [[]]
    records = []
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise EvalDataError(f"{file}: row {number} has {len(row)} cells, the header {len(header)}")
        records.append(Record(f"{file}: row {number}", dict(zip(header, row, strict=True))))
    return records


def read_parquet(files: Sequence[Path]) -> list[Record]:
    """The rows of parquet files of a dataset, in the order of the files.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{files[0]} needs pyarrow: pip install 'owl2[eval]'") from error
    records = []
    for file in files:
        rows = parquet.read_table(file).to_pylist()
        records += [Record(f"{file}: row {number}", row) for number, row in enumerate(rows, start=1)]
    return records


def official(found: Mapping[str, Path], files: Sequence[DataFile], path: str) -> list[Path]:
    """Of what `Task.find` found: the file called `path`, then those that may stand instead of it."""
    names = [file.path for file in files if path in (file.path, file.instead_of)]
    return [found[name] for name in names if name in found]


def folder_images(task: str, data: Path, folder: str, names: Iterable[str]) -> dict[str, StoredImage]:
    """Images of a folder by name, all of which must be there.

    Raises:
        DataMissing: there is no such folder.
        EvalDataError: some of the files are not there; says how many.
    """
    if not (data / folder).is_dir():
        raise DataMissing(task, [folder])
    wanted = list(dict.fromkeys(names))
    missing = [name for name in wanted if not (data / folder / name).is_file()]
    if missing:
        raise EvalDataError(
            f"{task}: {len(missing)} of {len(wanted)} images are not in {data / folder}, the first is "
            f"{missing[0]}; unpack the whole download there"
        )
    return {name: StoredImage(f"{folder}/{name}", (data / folder / name).read_bytes) for name in wanted}


def base64_image(name: str, text: str) -> StoredImage:
    """An image that is in the table itself."""

    def read() -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ImageError(f"not base64: {error}") from error

    return StoredImage(name, read)


def parquet_image(record: Record, column: str) -> StoredImage:
    """An image in a parquet file, in the layout of `datasets`: `{"bytes": ..., "path": ...}`."""
    cell = record[column]
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        raise record.error(f"{column} has no bytes")
    return StoredImage(f"{record.where} {cell.get('path') or column}", lambda: content)


def fingerprint(text: str) -> str:
    """A short name for a long text, as for the cluster of the questions on one passage."""
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise EvalDataError(f"{where}: not JSON ({error})") from error
