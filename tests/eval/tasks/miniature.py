"""The miniature benchmarks, copies of them to be broken, and answers to their items."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from owl2.eval.task import Answer, Item, Score, Task, all_tasks, find_task
from owl2.processor.template import render

DATA = Path(__file__).parents[2] / "data" / "benchmarks"
"""The miniatures of the paper's benchmarks, some of which share folders."""
NAMES = sorted(all_tasks())
OF_PAPER = [name for name in NAMES if any(key.startswith("owl2-") for key in find_task(name).templates)]
"""Those with the authors' prompts: all of the paper but `seed_bench_ppl`, which has SEED-Bench's own."""


def data_of(name: str) -> Path:
    """Where the miniature of a benchmark is: a folder of its name next to its test, else with the paper's."""
    own = Path(__file__).parent / name
    return own if own.is_dir() else DATA


def copy(tmp_path: Path, *folders: str) -> Path:
    """A data folder with these parts of the miniature."""
    for folder in folders:
        shutil.copytree(DATA / folder, tmp_path / folder)
    return tmp_path


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def write_lines(file: Path, values: list[Any]) -> None:
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file's value in place."""
    value = read(file)
    change(value)
    write(file, value)


def skipped(name: str, data: Path) -> list[str]:
    """Why records of a benchmark cannot be used."""
    return [str(record) for record in find_task(name).load(data).skipped]


def by_id(items: list[Item]) -> dict[str, Item]:
    return {item.id: item for item in items}


def answers(task: Task, items: list[Item], outputs: Mapping[str, str]) -> list[Answer]:
    """What a model wrote, by item; the rest it left blank."""
    return [
        Answer(item, outputs.get(item.id, ""), task.parse(item, outputs.get(item.id, ""))) for item in items
    ]


def figures(scores: list[Score]) -> dict[str, float]:
    """Value by metric and group."""
    return {" ".join(filter(None, (score.metric, score.group))): round(score.value, 6) for score in scores}


def prompt(task: Task, item: Item, template: str = "owl2-2023") -> str:
    """All that the model is shown, with `<|image|>` for each image."""
    asked = task.templates[template]
    chunks = render(asked.messages(item), generation_prompt=True, answer_prefix=asked.answer_prefix)
    return "".join("<|image|>" if chunk.kind == "image" else chunk.text for chunk in chunks)
