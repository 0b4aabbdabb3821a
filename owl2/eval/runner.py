"""Ask a model every question of some benchmarks and keep the answers.

Plan: the files of each task are found and read, and each item belongs to one rank by the hash of its id.
Ask: what the folder does not yet have is sorted by length, longest first, within windows, questions on one
image together, and answered in batches; each batch is on disk before the next begins. The answers do not
depend on the batches (tested), so a run may be killed, continued and divided anew at any time.
"""

import dataclasses
import difflib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.eval.answers.predictions import Prediction, PredictionWriter, RunConfig, sha256, shard_of
from owl2.eval.engines.local import Engine, Prompt, Reply, images_of
from owl2.eval.formats.frames import NUM_FRAMES, frames_of
from owl2.eval.task import RETIRED_TEMPLATES, DataMissing, Item, Task, all_tasks, find_task

WINDOW = 2048
"""Items that are sorted by length together; only these are in memory as prompts."""


class RunError(Owl2Error, ValueError):
    """Settings that no run can have; the message names the nearest valid choice."""


@dataclass(frozen=True)
class Batching:
    """How many prompts are answered together; answers do not depend on it."""

    max_rows: int = 32
    max_tokens: int = 8192
    """Prompt and new tokens of all rows; a single longer prompt still makes a batch."""


@dataclass(frozen=True)
class Shard:
    """Which part of the items this process answers."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Plan:
    """A task with what this process asks of it."""

    task: Task
    template: str
    items: list[Item]
    """Those of this rank."""
    num_items: int
    """Those of all ranks."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    task: str
    num_asked: int
    """In this run."""
    num_kept: int
    """Answered by an earlier one."""
    errors: dict[str, str]
    """Item -> why it could not be asked."""
    seconds: float

    @property
    def is_in_vain(self) -> bool:
        """Whether no question could be asked."""
        return 0 < self.num_asked == len(self.errors)


def choose_tasks(names: str) -> list[Task]:
    """The tasks of `a,b` or `all`.

    Raises:
        UnknownTask: the message has the nearest one.
    """
    wanted = (
        list(all_tasks()) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    )
    return [find_task(name) for name in dict.fromkeys(wanted)]


def choose_template(task: Task, template: str | None) -> str:
    """The wanted template if the task has it, else its first."""
    return template if template is not None and template in task.templates else next(iter(task.templates))


def check_template(tasks: Sequence[Task], template: str | None) -> None:
    """Raise RunError if no task has this template."""
    if template in RETIRED_TEMPLATES:
        raise RunError(f"template {template!r} {RETIRED_TEMPLATES[template]}")
    known = list(dict.fromkeys(name for task in tasks for name in task.templates))
    if template is not None and template not in known:
        near = difflib.get_close_matches(template, known, n=1, cutoff=0)
        raise RunError(f"no task has a template {template!r}; nearest is {near[0]!r} of {', '.join(known)}")


def plan_tasks(
    tasks: Sequence[Task],
    data: Path,
    *,
    template: str | None = None,
    limit: int | None = None,
    shard: Shard | None = None,
) -> tuple[list[Plan], list[DataMissing]]:
    """Read the items of every task whose files are there; return also what is missing.

    Args:
        limit: only the first items of each task.

    Raises:
        EvalDataError: a file that is not in the official format.
        RunError: no task has this template.
    """
    check_template(tasks, template)
    shard = shard or Shard()
    plans, missing = [], []
    for task in tasks:
        try:
            items = task.load(data).items[:limit]
        except DataMissing as error:
            missing.append(error)
            continue
        own = [item for item in items if shard_of(task.name, item.id, shard.world_size) == shard.rank]
        plans.append(Plan(task, choose_template(task, template), own, len(items)))
    return plans, missing


def run_plan(
    engine: Engine,
    plan: Plan,
    data: Path,
    out: Path,
    *,
    batching: Batching | None = None,
    shard: Shard | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Answer a plan's items that `out` has no answer to, and write the answers below `out`.

    Args:
        advance: told how many items are done, old answers included.

    Raises:
        PredictionError: `out` holds answers that came about in another way.
        EngineError: the engine cannot go on.
    """
    begin = time.perf_counter()
    shard = shard or Shard()
    config = config_of(plan, engine, data)
    errors: dict[str, str] = {}
    num_asked = 0
    with PredictionWriter(out, config, shard.rank, shard.world_size) as writer:
        make = partial(prompt_of, plan.task, plan.template)
        unanswered = [item for item in plan.items if not _is_answered(item, make, writer.answered)]
        advance(len(plan.items) - len(unanswered))
        batches = _batches(engine, unanswered, make, batching or Batching())
        for batch, replies, seconds in _answer(engine, batches):
            rows = [
                _prediction(p, reply, seconds / len(batch)) for p, reply in zip(batch, replies, strict=True)
            ]
            writer.write(rows)
            errors |= {row.id: row.error for row in rows if row.error}
            num_asked += len(batch)
            advance(len(batch))
    num_kept = len(plan.items) - num_asked
    return Outcome(plan.task.name, num_asked, num_kept, errors, time.perf_counter() - begin)


def config_of(plan: Plan, engine: Engine, data: Path) -> RunConfig:
    """What is written at the head of a task's files."""
    decoding = asdict(plan.task.decoding_of(plan.template))
    return RunConfig(
        plan.task.name,
        plan.template,
        plan.task.mode,
        decoding,
        {**engine.identity, "frames": NUM_FRAMES},
        str(data.absolute()),
        engine.source,
    )


def prompt_of(task: Task, name: str, item: Item) -> Prompt:
    """What is asked about an item with a template; a clip's frames take the place of its images."""
    if item.video is not None:
        item = dataclasses.replace(item, images=frames_of(item.video, item.segment))
    template = task.template(name)
    choices = (template.choices(item) if template.choices else item.choices) if task.mode == "rank" else {}
    return Prompt(item.id, template.messages(item), template.answer_prefix, task.decoding_of(name), choices)


def prompt_hash(prompt: Prompt) -> str:
    """Tell prompts apart by everything that is asked; images count by their names."""
    texts = [
        [message["role"], message["content"]]
        if isinstance(message["content"], str)
        else [message["role"], [part.get("text") for part in message["content"]]]
        for message in prompt.messages
    ]
    names = [Path(image.name).name for image in images_of(prompt)]
    asked: list[Any] = [texts, names, prompt.answer_prefix, asdict(prompt.decoding), dict(prompt.choices)]
    return sha256(json.dumps(asked))


def _is_answered(item: Item, make: Callable[[Item], Prompt], answered: Mapping[str, Prediction]) -> bool:
    known = answered.get(item.id)
    return known is not None and not known.error and known.prompt_hash == prompt_hash(make(item))


def _prediction(prompt: Prompt, reply: Reply, seconds: float) -> Prediction:
    return Prediction(
        prompt.id,
        reply.output,
        prompt_hash(prompt),
        reply.prompt_tokens,
        reply.new_tokens,
        round(seconds, 5),
        reply.log_likelihoods,
        reply.error,
    )


def _answer(
    engine: Engine, batches: Iterator[list[Prompt]]
) -> Iterator[tuple[list[Prompt], list[Reply], float]]:
    """Yield batch, replies and seconds; while a batch is answered, a thread prepares the next."""
    with ThreadPoolExecutor(1) as reader:
        waiting: tuple[list[Prompt], Any] | None = None
        for batch in batches:
            upcoming = (batch, reader.submit(engine.prepare, batch))
            if waiting is not None:
                yield _timed(engine, *waiting)
            waiting = upcoming
        if waiting is not None:
            yield _timed(engine, *waiting)


def _timed(engine: Engine, batch: list[Prompt], prepared: Any) -> tuple[list[Prompt], list[Reply], float]:
    begin = time.perf_counter()
    replies = engine.answer(prepared.result())
    return batch, replies, time.perf_counter() - begin


def _batches(
    engine: Engine, items: Sequence[Item], make: Callable[[Item], Prompt], batching: Batching
) -> Iterator[list[Prompt]]:
    """Cut each window into batches, in the order of `_sort`."""
    for begin in range(0, len(items), WINDOW):
        batch: list[Prompt] = []
        tokens = 0
        for length, prompt in _sort(engine, [make(item) for item in items[begin : begin + WINDOW]]):
            needed = length + _new_tokens(prompt)
            if batch and (len(batch) == batching.max_rows or tokens + needed > batching.max_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append(prompt)
            tokens += needed
        if batch:
            yield batch


def _sort(engine: Engine, prompts: Sequence[Prompt]) -> list[tuple[int, Prompt]]:
    """Lengths and prompts, the longest first: what does not fit fails at once.

    Prompts that show the same images stay together, in the place of their longest, as a batch encodes a
    image once. The shorter ones among them cost nothing: padding is no token.
    """
    groups: dict[tuple[StoredImage, ...], list[tuple[int, Prompt]]] = {}
    for prompt in prompts:
        groups.setdefault(images_of(prompt), []).append((engine.measure(prompt), prompt))
    for group in groups.values():
        group.sort(key=lambda pair: -pair[0])
    return [pair for group in sorted(groups.values(), key=lambda group: -group[0][0]) for pair in group]


def _new_tokens(prompt: Prompt) -> int:
    return 8 * len(prompt.choices) if prompt.choices else prompt.decoding.max_new_tokens
