"""Fields of configurations: type and bounds are declared with the field, and checked in one place.

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        top_k: int = number(0, ge=0)

        def __post_init__(self) -> None:
            check_fields(self, SamplingError)

A wrong type, NaN, infinity, a number outside of the bounds or text that is no text is one sentence with the
field's name. Configurations may be nested, in lists too.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from owl2.errors import Faults, Owl2Error

MAX_INT = 2**63 - 1
"""Upper bound of every whole number, unless its field has a smaller one."""

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "null",
}


def number(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    inf: bool = False,
    hint: str = "",
) -> Any:
    """A numeric field with its bounds, which hold for each number of a tuple too.

    Args:
        default: without one the field is required.
        ge: at least this; `gt`: above it; `le`: at most; `lt`: below.
        inf: whether infinity is allowed. NaN never is.
        hint: ends the error message.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "inf": inf, "hint": hint}
    return dataclasses.field(default=default, metadata=bounds)


def check_fields(config: Any, error: type[Owl2Error], where: str = "") -> None:
    """Check type and bounds of every field of a dataclass, and of those in its fields.

    Args:
        config: an instance.
        error: what is raised, with all faults.
        where: name of the configuration, in front of the field's; may be empty.
    """
    faults = Faults()
    find_faults(config, error, faults, where)
    faults.raise_all()


def find_faults(config: Any, error: type[Owl2Error], faults: Faults, where: str = "") -> None:
    """As `check_fields`, but add the errors to `faults`; a key that is at fault already is not checked."""
    kind: Any = type(config)
    for name, hint, bounds in _fields(kind):
        value, key = getattr(config, name), f"{where}.{name}".lstrip(".")
        if key in faults.keys or (value is None and faults.errors):  # stands for a value that was at fault
            continue
        if not _is_a(value, hint):
            faults.add(error(f"{key} = {_short(value)} must be {in_words(hint)}"), key)
            continue
        is_list = isinstance(value, list | tuple)
        for number, item in enumerate(value if is_list else [value]):
            if dataclasses.is_dataclass(item):
                find_faults(item, error, faults, f"{key}{_place(item, number)}" if is_list else key)
            elif isinstance(item, int | float) and (problem := _out_of_bounds(item, bounds)):
                advice = f"; {bounds['hint']}" if bounds.get("hint") else ""
                faults.add(error(f"{key} = {_short(value)} must be {problem}{advice}"), key)
            elif isinstance(item, str | Path) and not _is_text(str(item), bounds.get("blank", False)):
                what = "text without NUL and broken characters, and not empty"
                faults.add(error(f"{key} = {_short(value)} must be {what}"), key)


def _place(item: Any, number: int) -> str:
    """Where in a list a configuration is: its name if it has one."""
    name = getattr(item, "name", None)
    return f".{name}" if isinstance(name, str) and name and name.isprintable() else f"[{number}]"


@lru_cache
def _fields(kind: Any) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """Name, type and bounds of each field of a dataclass."""
    hints = get_type_hints(kind)
    return [(f.name, hints[f.name], f.metadata) for f in dataclasses.fields(kind)]


def bounds_in_words(bounds: Mapping[str, Any]) -> str:
    """The bounds of a number, as "0 or more and below 1"; empty without any."""
    low = [f"{bounds['ge']:g} or more"] if bounds.get("ge") is not None else []
    low += [f"above {bounds['gt']:g}"] if bounds.get("gt") is not None else []
    high = [f"at most {bounds['le']:,}"] if bounds.get("le") is not None else []
    high += [f"below {bounds['lt']:g}"] if bounds.get("lt") is not None else []
    return " and ".join([*low, *high])


def _out_of_bounds(value: float, bounds: Mapping[str, Any]) -> str:
    """What a number must be that it is not; empty if it is within the bounds."""
    ge, gt, le, lt = (bounds.get(name) for name in ("ge", "gt", "le", "lt"))
    if isinstance(value, float) and not (math.isfinite(value) or (bounds.get("inf") and value > 0)):
        return "a finite number"
    if ge is not None and value < ge:
        return f"{ge} or more"
    if gt is not None and value <= gt:
        return f"above {gt}"
    if lt is not None and value >= lt:
        return f"below {lt}"
    most = MAX_INT if le is None and isinstance(value, int) else le
    return f"at most {most:,}" if most is not None and value > most else ""


def _is_text(text: str, may_be_blank: bool) -> bool:
    """Whether text can be written to a file and be a file's name; some fields may be white space alone."""
    try:
        return b"\0" not in os.fsencode(text) and bool(text if may_be_blank else text.strip())
    except UnicodeEncodeError:
        return False


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; whole numbers are numbers, true and false are not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is list and isinstance(value, tuple)):
            return False
        has_length = origin is list or ... in arguments or len(value) == len(arguments)
        return has_length and all(_is_a(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_a(item, argument)
            for pair in value.items()
            for item, argument in zip(pair, arguments, strict=True)
        )
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(in_words(each) for each in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(each).lower() for each in arguments)
    if origin in (list, tuple):
        return f"a list, each item {in_words(arguments[0])}"
    return WORDS.get(hint, "keys and values")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
