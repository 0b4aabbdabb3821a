"""Parquet and Arrow files as the Hugging Face hub has them: a folder of them, one file, or a pattern.

`rows.py` says how a row is read, `arrow.py` how a single row is reached. Images may be in the table, as
`datasets` keeps them, or in files of their own; either way their bytes stay where they are until an image is
opened.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from owl2.data.readers.arrow import SUFFIXES, Table, open_table, unprepared
from owl2.data.readers.base import FilesSource
from owl2.data.readers.paths import find_files
from owl2.data.readers.rows import (
    FORMS,
    LOOKS,
    TURN_KEYS,
    UNKNOWN,
    UNREAD,
    Column,
    Form,
    Names,
    form_of,
    names_of,
    sample_of,
    stored_media,
)
from owl2.data.readers.storage import Location
from owl2.data.sample import DataError, Sample, StoredImage


class TableSource(FilesSource[Table]):
    """Rows of Parquet and Arrow files: conversations, or images with captions.

    Paths of images are relative to `image_root` (default: the folder of the files). The fingerprint covers
    the columns that are read: all text, and sizes and last bytes of the images that are in the table.
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
        if find_spec("pyarrow") is None:
            raise DataError(f"{name}: {path} needs pyarrow: pip install 'owl2[data]'")
        self.name = name
        self.in_slices = in_slices
        stored = find_files(name, path, SUFFIXES)
        self.image_root = image_root or os.path.dirname(stored[0].path)
        if todo := unprepared(stored):
            size = sum(file.size for file in todo) / 1e6
            what = f"{len(todo):,} of {len(stored):,} files ({size:,.1f} MB) of {path}"
            print(f"{name}: preparing {what}, once", file=sys.stderr, flush=True)
        self._open_files(
            stored, partial(open_table, form_of=partial(_form_of_schema, name, names=names_of(columns, name)))
        )
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __getitem__(self, index: int) -> Sample:
        number, row = self._find(index)
        table = self.files[number]
        form: Form = table.form
        place = f"{table.name}:{row}"
        scalars = table.cells(row, [*form.columns.values(), *form.unread])
        try:
            cells = {
                role: _media(scalars[column]) if role in ("image", "video") else scalars[column].as_py()
                for role, column in form.columns.items()
            }
            for column, role in form.unread.items():
                if not cells.get(role) and _is_filled(scalars[column]):
                    message = (
                        f"{self.name}: row {place} has {LOOKS[role]} in {column} alone, which is not read"
                    )
                    raise DataError(message, UNREAD)
            if "caption" in cells:
                cells["caption"] = cells["caption"] or ""
            cells = {role: cell for role, cell in cells.items() if cell is not None}
            if missing := [role for role in FORMS[form.kind] if role != "image" and role not in cells]:
                raise DataError(f"{self.name}: row {place} has no {' and no '.join(missing)}", UNKNOWN)
            return sample_of(self.name, str(cells.get("key", place)), cells, partial(self._stored, place))
        except UnicodeDecodeError as error:
            message = f"{self.name}: a text of row {place} is not UTF-8: {error}"
            raise DataError(message, "text is not UTF-8") from error

    def _stored(self, place: str, media: Any) -> StoredImage:
        """Return the file that a cell is, or what a part of a message holds."""
        read, path = _data_and_path(media)
        if read is not None:
            return StoredImage(f"{place} ({path})" if path else place, read)
        return stored_media(path, self.image_root, f"{self.name}: row {place}")


def _media(cell: Any) -> list[Any]:
    """Return the images or clips in a cell, none opened: those of a list, or one if it has bytes or a
    path."""
    if not cell.is_valid:
        return []
    if is_list(cell.type):
        return list(cell.values)
    return [cell] if _data_and_path(cell) != (None, "") else []


def _is_filled(cell: Any) -> bool:
    """Whether a cell holds anything; those that look like media are texts, bytes, structs and lists of
    them."""
    return bool(_media(cell)) if cell.is_valid and not is_list(cell.type) else bool(cell.as_py())


def _data_and_path(media: Any) -> tuple[Callable[[], bytes] | None, Any]:
    """Return what reads an image's bytes, or None, and its path or nothing; `media` is a cell or Python's
    value.

    Bytes in a cell are not copied before they are read.
    """
    import pyarrow

    if not isinstance(media, pyarrow.Scalar):
        return None, media
    parts = [media]
    if pyarrow.types.is_struct(media.type):
        parts = [media[field.name] for field in media.type if field.name in ("bytes", "path")]
    read, path = None, ""
    for part in parts:
        if part.is_valid and is_bytes(part.type):
            read = part.as_py
        elif part.is_valid:
            path = part.as_py()
    return read, path


def _form_of_schema(source: str, path: str, schema: Any, names: Names = ()) -> Form:
    """Return how a table is read, from its `pyarrow.Schema`; raises as `form_of`."""
    where = f"{source}: {path}"
    if absent := [name for _, name in names if name not in schema.names]:
        raise DataError(f"{where} has no column {absent[0]}; it has {', '.join(schema.names)}", UNKNOWN)
    return form_of([_column(field) for field in schema], where, names)


def _column(field: Any) -> Column:
    """Return what a column of a table is by its `pyarrow.Field`."""
    from pyarrow import types

    kind = field.type
    fits = {role for role, fit in _FITS.items() if fit(kind)}
    inner = kind.value_type if is_list(kind) else kind
    is_media = not types.is_null(inner) and (is_bytes(inner) or _fields(inner).keys() >= {"bytes", "path"})
    return Column(field.name, str(kind), frozenset(fits), "image" if is_media else "")


def is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind)


def is_bytes(kind: Any) -> bool:
    """Also of no type at all, as a column or field in which every cell is null."""
    from pyarrow import types

    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null)
    return any(check(kind) for check in checks)


def _is_text(kind: Any) -> bool:
    """As `is_bytes`, also of no type at all."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(check(kind) for check in checks)


def _is_media(kind: Any) -> bool:
    """Bytes, a path, a struct with either or both as `bytes` and `path`, or a list of these."""
    kind = kind.value_type if is_list(kind) else kind
    fields = _fields(kind)
    if {"bytes", "path"} & fields.keys():
        is_path = "path" not in fields or _is_text(fields["path"])
        return is_path and ("bytes" not in fields or is_bytes(fields["bytes"]))
    return is_bytes(kind) or _is_text(kind)


def _is_conversation(kind: Any) -> bool:
    turn = _fields(kind.value_type).keys() if is_list(kind) else set()
    return any(turn >= keys for keys in TURN_KEYS)


def _is_text_or_turns(kind: Any) -> bool:
    return _is_text(kind) or _is_conversation(kind)


def _is_caption(kind: Any) -> bool:
    """Text, or a list of texts, one of which is taken."""
    return _is_text(kind.value_type if is_list(kind) else kind)


def _is_key(kind: Any) -> bool:
    from pyarrow import types

    return _is_text(kind) or types.is_integer(kind)


def _fields(kind: Any) -> dict[str, Any]:
    """Types of a struct's fields, none of anything else."""
    from pyarrow import types

    return {field.name: field.type for field in kind} if types.is_struct(kind) else {}


_FITS: dict[str, Callable[[Any], bool]] = {
    "conversation": _is_conversation,
    "system": _is_text,
    "image": _is_media,
    "caption": _is_caption,
    "video": _is_media,
    "question": _is_text_or_turns,
    "input": _is_text,
    "history": is_list,
    "answer": _is_text_or_turns,
    "key": _is_key,
}
"""Whether a column of this type can have a role."""
