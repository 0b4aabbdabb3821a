"""Values of options and settings, read by the type of their field.

What a value looks like never decides what it is. `null`, `1e3`, `#1.png` or `[a]` is text where the field is
text, on the command line and in a YAML file alike; a number only where the field is a number; nothing only
where the field may be empty. A value that does not fit is one sentence that names the field.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from owl2.errors import Faults, Owl2Error

ELSEWHERE = {
    "batch_size": "global_batch_size",
    "bf16": "dtype",
    "cutoff_len": "data.max_tokens",
    "dataset": "data.sources",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "parallel.activation_checkpointing",
    "logging_steps": "log_every",
    "lora_alpha": "lora.alpha",
    "lora_rank": "lora.rank",
    "max_length": "data.max_tokens",
    "max_steps": "steps",
    "model_name_or_path": "model",
    "num_train_epochs": "epochs",
    "output_dir": "run",
    "per_device_train_batch_size": "micro_batch_size",
    "report_to": "trackers",
    "save_steps": "save_every",
    "save_total_limit": "keep_last",
    "warmup_ratio": "optim.warmup_steps",
}
"""Names that other frameworks have for keys of a stage, to be understood in `nearest`."""
NULL = ("null", "~")
"""How a field that is no text is left empty on the command line."""
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")


class UsageError(Owl2Error, ValueError):
    """A command, option or value that does not exist; the message has the nearest one that does."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(1)]`."""

    low: float
    high: float = 2**63 - 1
    open: bool = False
    """Whether `low` itself is out of range."""

    def __str__(self) -> str:
        above = "" if self.high in (math.inf, 2**63 - 1) else f" and at most {self.high:,}"
        return f"{f'above {self.low:g}' if self.open else f'{self.low:g} or more'}{above}"

    def check(self, value: float, where: str) -> None:
        """Raise UsageError if the value is out of range."""
        if value < self.low or (self.open and value == self.low):
            raise UsageError(f"{where} {value} must be {'above' if self.open else 'at least'} {self.low:g}")
        if value > self.high:
            raise UsageError(f"{where} {value} must be at most {self.high:,}")


Count = Annotated[int, Range(1)]
Amount = Annotated[float, Range(0, math.inf)]
Seed = Annotated[int, Range(0)]


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like `word`.

    Of dotted keys, one of the same name or of its initials at any level, or what other frameworks call so;
    then those of its own level.
    """
    level, _, name = word.lstrip("-").rpartition(".")
    initials = "".join(part[:1] for part in re.split("[-_]", name))

    def likeness(other: str) -> tuple[bool, bool, float]:
        other_level, _, other_name = other.lstrip("-").rpartition(".")
        is_meant = other_name in (name, initials) and len(other_name) > 1
        is_meant |= other.lstrip("-") == ELSEWHERE.get(name)
        return is_meant, other_level == level, difflib.SequenceMatcher(None, other, word).ratio()

    return max(known, key=likeness)


def read(value: Any, kind: Any, where: str, faults: Faults | None = None) -> Any:
    """Return `value` as `kind`.

    Args:
        value: text as it was typed, or what `parse_yaml` returns: text, None, lists and dicts of them.
        kind: `str`, `Path`, `int`, `float`, `bool`, a `Literal`, a list, tuple, dict or union of them,
            `Annotated` with a `Range`, or a dataclass of such fields.
        where: the option or key, for errors.
        faults: gets the errors of fields and items in place of an exception; the default, or None, then
            stands for the value of a field, and an item is left out.

    Raises:
        UsageError: the value does not fit; for settings, with all that is wrong in them.
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = read(value, members[0], where)
        for bounds in members[1:]:
            bounds.check(number, where)
        return number
    if origin in (Union, UnionType):
        return _read_union(value, members, where, faults)
    if dataclasses.is_dataclass(kind):
        return _read_fields(value, kind, where, faults)
    if origin in (list, tuple):
        return _read_items(value, kind, where, faults)
    if origin is dict:
        pairs = parse_yaml(value, where) if isinstance(value, str) else value
        if not isinstance(pairs, dict):
            raise _wrong(value, kind, where)
        return {
            read(key, members[0], where): read(item, members[1], f"{where}.{key}")
            for key, item in pairs.items()
        }
    if value is None or isinstance(value, list | dict):
        raise _wrong(value, kind, where)
    text = value if isinstance(value, str) else str(value)
    if origin is Literal:
        if text not in members:
            known = ", ".join(members)
            raise UsageError(
                f"{where}: {_shown(text)} is not one of {known}; the nearest is {nearest(text, members)!r}"
            )
        return text
    if kind in (str, Path):
        return _read_text(text, kind, where)
    return _read_number(text, kind, where)


def read_share(text: str, option: str = "--shard") -> tuple[int, int]:
    """Read i/n, the i-th of n parts from 1, as in 3/8."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"{option} {text} must be 1/N to N/N, as in 3/8")
    return int(number), int(count)


def at_home(value: Any) -> Any:
    """A path, or each of a list, with `~` as the home folder; any other value as it is."""
    if isinstance(value, list):
        return type(value)(map(at_home, value))
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _read_text(text: str, kind: type, where: str) -> Any:
    if "\0" in text:
        raise UsageError(f"{where} has a NUL character: {_shown(text)}")
    if kind is Path:
        if not text:
            raise UsageError(f"{where} is empty; name a file or a folder")
        return Path(text)  # a file's name may be bytes that are not UTF-8
    try:  # where the locale is ASCII, arguments have escapes in place of their UTF-8
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError:
        raise UsageError(f"{where} is not UTF-8 text: {_shown(text)}") from None


def _read_number(text: str, kind: type, where: str) -> Any:
    word = text.strip().lower()
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[word]
        if kind is int:
            return int(word, 16) if word.startswith("0x") else int(word)
        number = float(word.replace(".inf", "inf"))
    except (KeyError, ValueError):
        raise _wrong(text, kind, where) from None
    if math.isnan(number):
        raise _wrong(text, kind, where)
    return number


def _read_union(value: Any, members: tuple[Any, ...], where: str, faults: Faults | None) -> Any:
    """The first member that fits; text is never taken for an empty field."""
    rest = [member for member in members if member is not NoneType]
    is_text = any(member in (str, Path) for member in rest)
    if len(rest) < len(members) and (value is None or (not is_text and value in NULL)):
        return None
    for member in rest[:-1]:
        try:
            return read(value, member, where)
        except UsageError:
            continue
    try:
        return read(value, rest[-1], where, faults)
    except UsageError:
        if len(rest) == 1:
            raise
        raise _wrong(value, Union[*rest], where) from None


def _read_items(value: Any, kind: Any, where: str, faults: Faults | None) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if isinstance(value, str):
        value = parse_yaml(value, where)
    if not isinstance(value, list) or (origin is tuple and len(value) != len(members)):
        raise _wrong(value, kind, where)
    own, items = Faults() if faults is None else faults, []
    for number, item in enumerate(value):
        place = f"{where}[{number}]"
        with own.collect(place):
            items.append(read(item, members[number if origin is tuple else 0], place, faults))
    if faults is None:
        own.raise_all()
    return tuple(items) if origin is tuple else items


def _read_fields(value: Any, kind: Any, where: str, faults: Faults | None) -> Any:
    if isinstance(value, str):
        value = parse_yaml(value, where)
    if not isinstance(value, dict):
        raise _wrong(value, kind, where)
    own, given = Faults() if faults is None else faults, {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    kinds = get_type_hints(kind, include_extras=True)
    prefix = f"{where}." if where else ""
    for key, item in value.items():
        if key not in fields:
            near = nearest(str(key), names_of(kind))
            whole = f" ({prefix}{near})" if where and "[" not in where else ""
            own.add(
                UsageError(f"there is no setting {prefix}{key}; the nearest valid key is {near!r}{whole}")
            )
            continue
        with own.collect(prefix + key):
            given[key] = read(item, kinds[key], prefix + key, faults)
    missing = [prefix + name for name, field in fields.items() if name not in value and is_required(field)]
    if missing:
        own.add(UsageError(f"missing: {', '.join(missing)}"), *missing)
    if faults is None:
        own.raise_all()
    absent = {name: None for name, field in fields.items() if name not in given and is_required(field)}
    return kind(**given, **absent)


def names_of(kind: Any) -> Iterator[str]:
    """The dotted names of a dataclass's fields, with those of the groups in it."""
    for name, inner in get_type_hints(kind).items():
        yield name
        groups = () if get_origin(inner) is list else (inner, *get_args(inner))
        for group in filter(dataclasses.is_dataclass, groups):
            yield from (f"{name}.{below}" for below in names_of(group))


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _wrong(value: Any, kind: Any, where: str) -> UsageError:
    return UsageError(f"{where} must be {describe(kind)}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in one line of bounded length."""
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def describe(kind: Any) -> str:
    """What a value of this kind is, in words."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe(members[0])
    if origin is Literal:
        return " or ".join(members)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe(member) for member in members if member is not NoneType))
    if origin is list:
        return "a list, such as [a, b]"
    if origin is tuple:
        return f"a list of {len(members)}, such as [{', '.join('abcdef'[: len(members)])}]"
    names = {str: "text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "settings, such as {key: value}")


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars are text, except empty ones and `null`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (declared by PyYAML)
        first: [resolver for resolver in resolvers if resolver[0].rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"the key {key!r} comes twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML or JSON into dicts and lists of text; only an empty or `null` scalar is None.

    Types are for the field to decide, so numbers, booleans and dates stay as they were written.

    Raises:
        UsageError: it is not YAML, or a key comes twice; names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise UsageError(f"{where}{place} is not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deep") from None
