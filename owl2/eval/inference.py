"""Batch inference: a file of prompts becomes a file of answers, row by row in the same order.

Prompts are asked as evaluation asks its questions (`runner.py`): sorted by length, several together, appended
as they come below `OUT.parts`, so that whatever stops it costs the running batch alone. When every row has an
answer or a reason why it has none, `OUT` is written at once and the parts are removed.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.answers.predictions import read_task
from owl2.eval.engines.engine import Engine
from owl2.eval.questions import Questions, as_written, read_questions
from owl2.eval.runner import Batching, Plan, RunError, Shard, Watch, run_plans
from owl2.eval.task import Decoding, Item, Items, Skipped, Template
from owl2.files import write_file
from owl2.generate.config import GenerationConfig
from owl2.jsonl import read_jsonl, to_line

TASK = "prompts"


class Prompts(Questions):
    """The rows of a file as prompts; nothing is scored."""

    name = TASK
    title = "prompts"
    templates: ClassVar[dict[str, Template]] = {"as-written": Template("the rows as they are", as_written)}
    metric = ""

    def __init__(self, file: Path, root: Path | None = None):
        """Read the rows; their numbers from 1 identify them, as ids of their own may be missing or repeat.

        Args:
            file: JSON lines or a JSON array, as of `read_questions`.
            root: folder of the paths of images; default: the file's.

        Raises:
            EvalDataError: neither JSON lines nor a JSON array, or no row is a prompt.
        """
        self.names: dict[str, str] = {}
        """The own id of each row that can be asked."""
        rows: list[Item | Skipped] = []
        for number, row in enumerate(read_questions(file, root=root), start=1):
            if isinstance(row, Item):
                self.names[str(number)] = row.id
                row = replace(row, id=str(number))
            rows.append(row)
        self.file, self.root, self.rows = file, root, rows  # type: ignore[misc]
        self.expected = (len(rows),)  # type: ignore[misc]
        self._check_usable(len(self.names), [row for row in rows if isinstance(row, Skipped)])


def decoding_of(config: GenerationConfig) -> Decoding:
    """Settings of generation as evaluation records them."""
    settings = {"max_new_tokens": config.max_new_tokens, **config.to_dict()}
    named = {field.name: settings.pop(field.name) for field in fields(Decoding) if field.name in settings}
    return Decoding(**named, more=tuple(sorted(settings.items())))


def generate_file(
    engine: Engine,
    task: Prompts,
    target: Path,
    config: GenerationConfig,
    *,
    batching: Batching | None = None,
    shard: Shard | None = None,
    watch: Watch | None = None,
) -> int:
    """Answer the prompts that have no answer yet; return how many of all rows still have none.

    Row i of `target` is `{"id": ..., "question": ..., "answer": ...}`, or has `error` in place of the answer.
    A row samples with a seed of its own, made of `config.seed` and its number, whatever it is batched with.

    Args:
        shard: the rows of this process; each of several processes runs with the same files.

    Raises:
        PredictionError: other settings, another model or other rows were begun with.
        RunError: `target` is another file.
    """
    shard = shard or Shard()
    parts = target.with_name(f"{target.name}.parts")
    if target.exists():
        if sum(1 for _ in read_jsonl(target)) != len(task.rows):
            raise RunError(f"{target} exists, and does not answer {task.file}; name another file")
        return 0
    items = [row for row in task.rows if isinstance(row, Item)]
    skipped = [row for row in task.rows if isinstance(row, Skipped)]
    mine = [item for item in items if int(item.id) % shard.world_size == shard.rank]
    plan = Plan(
        task=task,
        template="as-written",
        decoding=decoding_of(config),
        items=mine,
        num_items=len(items),
        loaded=Items(items, skipped),
    )
    run_plans(
        engine, [plan], task.file.parent, parts, not_run=(), batching=batching, shard=shard, watch=watch
    )
    found = read_task(parts, TASK)
    answers = found.by_id if found is not None else {}
    missing = sum(item.id not in answers for item in items)
    if not missing:
        write_file(
            target, b"".join(to_line(_row(task, n, row, answers)) for n, row in enumerate(task.rows, 1))
        )
        shutil.rmtree(parts, ignore_errors=True)
    return missing


def _row(task: Prompts, number: int, row: Item | Skipped, answers: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row, Skipped):
        return {"id": str(number), "error": row.reason}
    asked = {"id": task.names[row.id], "question": row.question}
    answer = answers[row.id]
    return asked | ({"error": answer.error} if answer.error else {"answer": answer.output.strip()})


def count_errors(target: Path) -> Sequence[str]:
    """The reasons of the rows of a finished file that have no answer."""
    return [str(row["error"]) for _, row in read_jsonl(target) if "error" in row]
