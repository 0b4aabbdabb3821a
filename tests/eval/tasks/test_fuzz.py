"""Damaged records of every benchmark: read, skipped or an error that a user sees, never a traceback."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from owl2.errors import Owl2Error
from owl2.eval.task import Answer, Task, all_tasks, find_task
from tests.eval.tasks.miniature import data_of

ROUNDS = 12
TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
VALUES: list[Any] = [
    *(None, [], {}, "", 0, -1, 1.5, True, 10**30, float("nan"), "x", "\ud800", "\x00", "\u2028", "None"),
    *([None], ["a", 1], {"a": 1}, [[]], [{}]),
]
BYTES = [b"\xff", b"\t", b"\n", b'"', b"", b"\x00", b"{", b"\\ud800"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in place of something else."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def damage(text: str, rng: random.Random) -> bytes:
    """Another value somewhere in a JSON file or line, or other bytes."""
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    for whole in (True, False):
        try:
            value = json.loads(text if whole else lines[number])
        except ValueError:
            continue
        changed = json.dumps(put(value, rng.choice(places(value)), rng.choice(VALUES)))
        lines[number] = changed
        return (changed if whole else "\n".join(lines)).encode()
    content = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content))
        content[at : at + rng.randint(0, 3)] = rng.choice(BYTES)
    return bytes(content)


def texts_of(task: Task) -> list[Path]:
    data = data_of(task.name)
    places = [data / file.path for file in task.files if (data / file.path).exists()]
    files = [path for place in places for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [path.relative_to(data) for path in files if path.suffix in TEXTS]


@pytest.mark.parametrize("name", sorted(all_tasks()))
def test_a_damaged_record_is_read_or_skipped_or_an_error_for_the_user(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    data = data_of(name)
    for top in {file.path.split("/")[0] for file in task.files if (data / file.path).exists()}:
        shutil.copytree(data / top, tmp_path / top)
    rng = random.Random(name)
    for _ in range(ROUNDS):
        file = rng.choice(texts_of(task))
        (tmp_path / file).write_bytes(damage((data / file).read_text(), rng))
        try:
            items = task.load(tmp_path).items
        except Owl2Error:
            items = []
        for item in items:
            assert all(template.messages(item) for template in task.templates.values())
            item.id.encode()
        if items:
            task.score([Answer(item, "A", task.parse(item, "A")) for item in items])
        (tmp_path / file).write_bytes((data / file).read_bytes())
