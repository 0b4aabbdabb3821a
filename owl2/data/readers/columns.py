"""Which column of a table is what: by its name, and by whether its type can be that.

Corpora on the hub are alike in kind, conversations or images with captions, and differ in what they call
their columns. Names that are known stand in `ROLES`; a table that has none of them, or two for one role, is
an error that shows its columns and says what is expected, never a guess. Here `kind` is a `pyarrow.DataType`.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from owl2.data.sample import DataError

ROLES = {
    "conversation": ("conversations", "conversation", "messages"),
    "image": ("image", "images", "jpg", "jpeg", "png", "webp"),
    "caption": ("caption", "text", "txt"),
    "video": ("video", "videos"),
    "key": ("id", "question_id", "__key__"),
}
"""What a column may be called, by what it is for; of keys the first counts."""

Layout = Mapping[str, str]
"""The column of each role that a table has: `conversation`, or `image` and `caption`."""


def layout_of(source: str, path: str, schema: Any) -> Layout:
    """Return which column of a table is what, from its `pyarrow.Schema`.

    Raises:
        DataError: it has neither conversations nor images with captions, or two columns for one role.
    """
    found = {role: [name for name in names if name in schema.names] for role, names in ROLES.items()}
    needed = ["conversation"] if found["conversation"] else ["image", "caption"]
    used = ["conversation", "image", "video"] if found["conversation"] else needed
    faults = [f"no {role}" for role in needed if not found[role]]
    faults += [f"both {' and '.join(found[role])} for its {role}" for role in used if len(found[role]) > 1]
    layout = {role: found[role][0] for role in (*used, "key") if found[role]}
    faults += [
        f"{column} of type {schema.field(column).type}, which is no {role}"
        for role, column in layout.items()
        if not _FITS[role](schema.field(column).type)
    ]
    if faults:
        raise DataError(f"{source}: {path} has {', '.join(faults)}. {_expectation(schema)}")
    return layout


def _expectation(schema: Any) -> str:
    """What there is, and what to do about it."""
    known = [name for names in ROLES.values() for name in names]
    near = {name: difflib.get_close_matches(name, known, 1, 0.75) for name in schema.names}
    meant = [
        f"{name} may be meant as {names[0]}" for name, names in near.items() if names and name not in known
    ]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    turns, images, captions = (" or ".join(ROLES[role]) for role in ("conversation", "image", "caption"))
    wanted = (
        f"Expected is {turns}, a list of {{from, value}} or {{role, content}}, or one of {images}, with "
        f"bytes or paths, and one of {captions}; rename or drop columns"
    )
    return "; ".join([f"Its columns are {columns}. {wanted}", *meant])


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
    return turn >= {"from", "value"} or turn >= {"role", "content"}


def _is_key(kind: Any) -> bool:
    from pyarrow import types

    return _is_text(kind) or types.is_integer(kind)


def _fields(kind: Any) -> dict[str, Any]:
    """Types of a struct's fields, none of anything else."""
    from pyarrow import types

    return {field.name: field.type for field in kind} if types.is_struct(kind) else {}


_FITS: dict[str, Callable[[Any], bool]] = {
    "conversation": _is_conversation,
    "image": _is_media,
    "caption": _is_text,
    "video": _is_media,
    "key": _is_key,
}
"""Whether a column of this type can be what its name says."""
