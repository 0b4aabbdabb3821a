"""Files of one JSON object a line: reading them, and repairing what a killed process left.

A line that we append is one write with its line break, so after a kill a file holds whole lines and at most
one torn one at its end: `read_jsonl(path, ours=True)` leaves it out, `cut_torn_line` removes it before more
is appended. In other people's files the last line may lack its line break and is whole all the same.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error


class JsonlError(Owl2Error, ValueError):
    """A line that is no JSON object; the message names file and line."""


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; `where` names it in errors.

    Raises:
        JsonlError: it is not JSON, nested too deep, not UTF-8, or no object.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise JsonlError(f"{where}: not JSON ({error}): repair or delete this line") from None
    if not isinstance(row, dict):
        raise JsonlError(f"{where}: holds a {type(row).__name__}, expected an object")
    return row


def read_jsonl(path: Path, *, ours: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object); blank lines are skipped.

    Args:
        path: the file.
        ours: leave out a last line without line break, which a killed run of ours has torn.

    Raises:
        JsonlError: a line that is no JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if ours and not line.endswith(b"\n"):
                return
            if line.strip():
                yield number, parse_object(line, f"{path}:{number}")


def to_line(row: Mapping[str, Any]) -> bytes:
    """A line of such a file, UTF-8 with its line break; half a surrogate pair is written as its escape."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


def cut_torn_line(path: Path) -> None:
    """Remove the unfinished last line of a file of ours, in place; nothing if there is none."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:  # from the end, so that large files cost as little as small ones
            begin = max(0, end - 65536)
            file.seek(begin)
            chunk = file.read(end - begin)
            if begin + len(chunk) == file.seek(0, os.SEEK_END) and chunk.endswith(b"\n"):
                return
            if (last := chunk.rfind(b"\n")) >= 0:
                file.truncate(begin + last + 1)
                return
            end = begin
        file.truncate(0)
