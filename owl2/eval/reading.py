"""Reading official files: a record's fields with the place in every error, and the pictures that are there.

Benchmarks come as JSON arrays, JSON lines or wrapped in an object, and the same benchmark in several of
these; what a file is, is seen from its content, never from its name. Pictures and clips are only looked up,
not opened. What is missing is counted over the whole benchmark and said at once, before a model runs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from owl2.data.sample import Picture, jsonl_picture
from owl2.eval.task import DataMissing, EvalDataError, Item

CLIP_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")
_NAMED = 3
"""How many missing files an error names."""


@dataclass(frozen=True)
class Record:
    """An object of an official file and where it stands."""

    fields: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """A field that is text."""
        return str(self._get(name, str))

    def whole(self, name: str) -> int:
        """A field that is a whole number."""
        return int(self._get(name, int))

    def id(self, name: str) -> str:
        """A field that names something: text or a whole number."""
        return str(self._get(name, (str, int)))

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of text.

        Raises:
            EvalDataError: as all of these: missing, or of another type.
        """
        values = self._get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise EvalDataError(f"{self.where}: {name} is {values!r:.80}, expected a list of text")
        return tuple(values)

    def records(self, name: str) -> list["Record"]:
        """A field that is a list of objects."""
        return records_of(self._get(name, list), f"{self.where}: {name}")

    def _get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self.fields:
            raise EvalDataError(
                f"{self.where}: {name} is missing; there are {', '.join(self.fields) or 'none'}"
            )
        value = self.fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(one.__name__ for one in kinds)
            raise EvalDataError(f"{self.where}: {name} is {value!r:.80}, expected {expected}")
        return value


def read_json(file: Path) -> Any:
    """The value of a JSON file; of JSON lines, the list of theirs (one line alone reads as its value).

    Raises:
        EvalDataError: neither; the message has the file and the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalDataError(f"{file}: cannot be read ({error})") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise EvalDataError(f"{file}:{error.lineno}: not JSON ({error.msg}); is it cut short?") from error
    values = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise EvalDataError(f"{file}:{number}: not a line of JSON ({error.msg})") from error
    return values


def records_of(value: Any, where: str) -> list[Record]:
    """The objects of a list, or the one object alone, each with its place.

    Raises:
        EvalDataError: something else.
    """
    values = [value] if isinstance(value, Mapping) else value
    if not isinstance(values, list):
        raise EvalDataError(f"{where}: expected a list of records, found {type(value).__name__}")
    for number, one in enumerate(values):
        if not isinstance(one, Mapping):
            raise EvalDataError(f"{where}: record {number} is {one!r:.80}, expected an object")
    return [Record(one, f"{where}: record {number}") for number, one in enumerate(values)]


def first_found(task: str, found: Mapping[str, Path], paths: Sequence[str]) -> Path:
    """The first of several files that are as good as each other.

    Raises:
        DataMissing: none is there.
    """
    for path in paths:
        if path in found:
            return found[path]
    raise DataMissing(task, [" or ".join(paths)])


@dataclass
class Folder:
    """What a benchmark wants from a folder, and what of it is missing."""

    task: str
    data: Path
    path: str
    """Relative to `data`."""
    _wanted: set[str] = field(default_factory=set)
    _missing: dict[str, str] = field(default_factory=dict)
    _listings: dict[Path, set[str]] = field(default_factory=dict)

    def picture(self, name: str, where: str) -> Picture:
        """A picture below the folder; `where` says who wants it, should it be missing."""
        self._wanted.add(name)
        if (self.data / self.path / name).name not in self._listing((self.data / self.path / name).parent):
            self._missing.setdefault(name, where)
        return jsonl_picture(self.data, f"{self.path}/{name}")

    def clip(self, names: Sequence[str], where: str) -> Path:
        """A clip or GIF with any of these names, whatever its suffix."""
        listing = self._listing(self.data / self.path)
        self._wanted.add(names[0])
        for name in names:
            for suffix in CLIP_SUFFIXES:
                if name + suffix in listing:
                    return self.data / self.path / (name + suffix)
        self._missing.setdefault(names[0], where)
        return self.data / self.path / names[0]

    def check(self) -> None:
        """Say everything that was wanted and is missing.

        Raises:
            EvalDataError: with how many of how many, and the first few.
        """
        if not self._missing:
            return
        named = [f"{name} ({where})" for name, where in list(self._missing.items())[:_NAMED]]
        more = ", ..." if len(self._missing) > _NAMED else ""
        raise EvalDataError(
            f"{self.task}: {len(self._missing):,} of {len(self._wanted):,} files are missing in "
            f"{self.data / self.path}: {', '.join(named)}{more}; unpack the benchmark's archive there"
        )

    def _listing(self, folder: Path) -> set[str]:
        """One look at a folder instead of one a file: benchmarks have 40,000 pictures in one."""
        if folder not in self._listings:
            self._listings[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        return self._listings[folder]


def checked(task: str, items: list[Item], *folders: Folder) -> list[Item]:
    """The items, if their names are unique and all their files are there.

    Raises:
        EvalDataError: no items, a name twice, or missing files.
    """
    if not items:
        raise EvalDataError(f"{task}: the files hold no question of this split")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise EvalDataError(f"{task}: two items are called {item.id}; are two splits in one file?")
        seen.add(item.id)
    for folder in folders:
        folder.check()
    return items
