"""The run: ask an engine every question of some benchmarks and keep the answers.

Plan: each task's files are read once, `--limit` chooses a sample, and each item belongs to one rank by the
hash of its id. A benchmark that cannot be read does not stop the others. Ask: items that the folder has no
answer to are sorted by length within windows, the longest first and questions on one image together, and
answered in batches; each batch is on disk before the next one begins. The answers do not depend on the
batches (tested), so a run may be killed, continued and spread over other ranks at any time.
"""

import dataclasses
import difflib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.eval.answers.predictions import (
    Prediction,
    PredictionWriter,
    RunConfig,
    check_identity,
    shard_of,
)
from owl2.eval.engines.engine import Engine, EngineError, Prompt, Reply, images_of, text_of
from owl2.eval.formats.frames import NUM_FRAMES, frames_of
from owl2.eval.hashing import short_hash
from owl2.eval.questions import keep_questions
from owl2.eval.sampling import describe_sample, sample_items
from owl2.eval.task import (
    RETIRED_TEMPLATES,
    DataMissing,
    Decoding,
    Item,
    Items,
    Task,
    UnknownTask,
    all_tasks,
    find_task,
)
from owl2.files import write_file
from owl2.jsonl import read_jsonl, to_line
from owl2.processor.template import TEMPLATES
from owl2.registry import fault_of

WINDOW = 2048
"""Items that are sorted by length together; only these are in memory as prompts."""
SKIPPED_FILE = "skipped.jsonl"
"""In the run's folder: records of the official files that no question can be made of."""
MISSING = "missing"
"""The first word of the reason of a benchmark without its files."""
NOT_RUN_FILE = "not_run.jsonl"
"""In the run's folder: benchmarks that were wanted and could not run."""


class RunError(Owl2Error, ValueError):
    """Settings that no run can have, or a run that could not ask; the message says what to do."""


@dataclass(frozen=True)
class Batching:
    """How many prompts are answered together; answers do not depend on it."""

    max_rows: int = 32
    max_tokens: int = 8192
    """Prompt and new tokens of all rows; a single longer prompt still makes a batch."""


@dataclass(frozen=True)
class Shard:
    """The part of the items that this process answers."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A task with what this process asks of it."""

    task: Task
    template: str
    decoding: Decoding
    items: list[Item]
    """Those of this rank."""
    num_items: int
    """Those of all ranks."""
    loaded: Items
    """Everything that the files hold."""
    sample: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotRun:
    """A benchmark that was wanted and cannot run."""

    task: str
    reason: str
    missing: tuple[str, ...] = ()
    """Files that are not there; empty for any other reason."""
    is_fault: bool = False
    """Whether its files are there but cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a plan."""

    task: str
    num_asked: int
    """In this run."""
    num_kept: int
    """Answered by an earlier one."""
    errors: dict[str, str]
    """Item -> why it has no answer."""
    seconds: float

    @property
    def has_failed(self) -> bool:
        """Whether no question has an answer, earlier ones included."""
        return not self.num_kept and 0 < self.num_asked == len(self.errors)


class Watch:
    """Receives the progress of a run; this one ignores it."""

    def begin(self, plan: Plan, engine: Engine) -> None:
        """A task begins."""

    def advance(self, count: int) -> None:
        """This many more items have an answer, earlier ones included."""

    def end(self, plan: Plan, outcome: Outcome) -> None:
        """A task is done."""


def choose_tasks(names: str) -> list[Task]:
    """The tasks of `a,b` or `all`.

    Raises:
        UnknownTask: the message has the nearest one.
    """
    wanted = (
        list(all_tasks()) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    )
    if not wanted:
        raise UnknownTask(f"{names!r} names no benchmark; write their names, separated by commas, or all")
    return [find_task(name) for name in dict.fromkeys(wanted)]


def check_names(tasks: Sequence[Task]) -> None:
    """Raise RunError if two tasks, such as files of questions, would write the same predictions."""
    titles: dict[str, str] = {}
    for task in tasks:
        if task.name in titles:
            raise RunError(
                f"{titles[task.name]} and {task.title} are both kept as {task.name}: rename one of them"
            )
        titles[task.name] = task.title


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
    beams: int | None = None,
    has_likelihoods: bool = True,
    shard: Shard | None = None,
) -> tuple[list[Plan], list[NotRun]]:
    """Read the questions of every task that can be read; return also which cannot, and why.

    Args:
        limit: at most this many items of each task, a seeded sample.
        beams: in place of the number that belongs to each template.
        has_likelihoods: whether the engine can compare the likelihoods of given texts.

    Raises:
        RunError: no task has this template.
    """
    check_template(tasks, template)
    shard = shard or Shard()
    plans, not_run = [], []
    for task in tasks:
        if task.mode == "rank" and not has_likelihoods:
            not_run.append(NotRun(task.name, "compares likelihoods, which a server's chat API does not give"))
            continue
        try:
            loaded = task.load(data)
        except DataMissing as error:
            not_run.append(NotRun(task.name, f"{MISSING} {', '.join(error.paths)}", error.paths))
            continue
        except (Owl2Error, OSError, ModuleNotFoundError) as error:  # the last for a format's own package
            reason = str(error).removeprefix(f"{task.name}: ")
            not_run.append(NotRun(task.name, reason, is_fault=True))
            continue
        except Exception as error:
            if "file" not in task.origin:
                raise
            file = task.origin["file"]  # a task from outside costs itself
            not_run.append(NotRun(task.name, f"{file}{fault_of(error, file)}", is_fault=True))
            continue
        items = loaded.items if limit is None else sample_items(task.name, loaded.items, limit)
        chosen = choose_template(task, template)
        decoding = task.decoding_of(chosen)
        plans.append(
            Plan(
                task=task,
                template=chosen,
                decoding=decoding if beams is None else dataclasses.replace(decoding, num_beams=beams),
                items=[i for i in items if shard_of(task.name, i.id, shard.world_size) == shard.rank],
                num_items=len(items),
                loaded=loaded,
                sample=describe_sample(limit),
            )
        )
    return plans, not_run


def run_plans(
    engine: Engine,
    plans: Sequence[Plan],
    data: Path,
    out: Path,
    *,
    not_run: Sequence[NotRun] = (),
    batching: Batching | None = None,
    shard: Shard | None = None,
    watch: Watch | None = None,
) -> list[Outcome]:
    """Run all plans and record in `out` which records were skipped and which benchmarks could not run.

    Raises:
        RunError: there is nothing to ask.
        PredictionError, EngineError: see `run_plan`.
    """
    check_plans(plans, not_run, data)
    watch = watch or Watch()
    shard = shard or Shard()
    for plan in plans:  # all of them before the first question, which may be hours earlier
        check_identity(out, config_of(plan, engine, data))
    if shard.rank == 0:
        record_omissions(out, plans, not_run)
        for plan in plans:
            keep_questions(plan.task, out)
    outcomes = []
    for plan in plans:
        watch.begin(plan, engine)
        outcome = run_plan(engine, plan, data, out, batching=batching, shard=shard, advance=watch.advance)
        watch.end(plan, outcome)
        outcomes.append(outcome)
    return outcomes


def check_plans(plans: Sequence[Plan], not_run: Sequence[NotRun], data: Path) -> None:
    """Raise RunError if there is nothing to ask."""
    if not plans:
        reasons = "; ".join(f"{one.task}: {one.reason}" for one in not_run[:3])
        more = f"; and {len(not_run) - 3} more" if len(not_run) > 3 else ""
        raise RunError(
            f"nothing to ask: none of the {len(not_run)} benchmarks has its files below {data} in a usable "
            f"form ({reasons}{more}); `owl2 eval data --data {data}` says where to get them"
        )


def check_outcomes(outcomes: Sequence[Outcome], not_run: Sequence[NotRun]) -> None:
    """Raise RunError if a benchmark whose files are there was not run, or had no question answered."""
    failed = [f"{one.task} was not run: {one.reason}" for one in not_run if one.is_fault]
    for outcome in outcomes:
        if outcome.has_failed:
            name, why = next(iter(outcome.errors.items()))
            failed.append(
                f"{outcome.task} got no answer to any of {outcome.num_asked:,} questions: {name}: {why}"
            )
    if failed:
        total = len(outcomes) + len(not_run)
        raise RunError(
            f"{len(failed)} of {total} benchmarks failed, the others are done. " + "; ".join(failed)
        )


def record_omissions(out: Path, plans: Sequence[Plan], not_run: Sequence[NotRun]) -> None:
    """Update `skipped.jsonl` and `not_run.jsonl` for these benchmarks; lines of others stay."""
    names = {plan.task.name for plan in plans} | {one.task for one in not_run}
    skipped = [
        {"task": plan.task.name, "where": record.where, "reason": record.reason}
        for plan in plans
        for record in plan.loaded.skipped
    ]
    reasons = [{"task": one.task, "reason": one.reason} for one in not_run]
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in ((SKIPPED_FILE, skipped), (NOT_RUN_FILE, reasons)):
        rows = [row for row in _rows(out / name) if row.get("task") not in names] + rows
        if rows:
            write_file(out / name, b"".join(to_line(row) for row in rows))
        else:
            (out / name).unlink(missing_ok=True)


def read_not_run(out: Path) -> dict[str, str]:
    """Benchmarks that were wanted and could not run -> why."""
    return {str(row.get("task")): str(row.get("reason")) for row in _rows(out / NOT_RUN_FILE)}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.exists() else []


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

    Raises:
        PredictionError: `out` holds answers of another identity.
        EngineError: the engine cannot go on; the answers so far are kept.
    """
    begin = time.perf_counter()
    shard = shard or Shard()
    config = config_of(plan, engine, data)
    errors: dict[str, str] = {}
    num_asked = 0
    with PredictionWriter(out, config, shard.rank, shard.world_size) as writer:
        known = engine.identity.get("conversation")
        conversation = known if known in TEMPLATES else None  # a server's is its own
        make = partial(prompt_of, plan.task, plan.template, _decoding_of(plan, engine))
        unanswered = [item for item in plan.items if not _is_answered(item, make, writer.answered)]
        advance(len(plan.items) - len(unanswered))
        batches = _batches(engine, unanswered, make, batching or Batching())
        for batch, replies, seconds, failure in _answer(engine, batches):
            rows = [
                _prediction(prompt, reply, seconds / len(batch), conversation)
                for prompt, reply in zip(batch, replies, strict=True)
                if reply is not None
            ]
            writer.write(rows)
            if failure is not None:
                raise failure
            errors |= {row.id: row.error for row in rows if row.error}
            num_asked += len(batch)
            advance(len(batch))
    return Outcome(
        task=plan.task.name,
        num_asked=num_asked,
        num_kept=len(plan.items) - num_asked,
        errors=errors,
        seconds=time.perf_counter() - begin,
    )


def config_of(plan: Plan, engine: Engine, data: Path) -> RunConfig:
    """The identity of a task's answers, which is written at the head of its files."""
    return RunConfig(
        task=plan.task.name,
        template=plan.template,
        mode=plan.task.mode,
        decoding=_decoding_of(plan, engine).to_dict(),
        engine={**engine.identity, "frames": NUM_FRAMES},
        data=str(data.absolute()),
        source=engine.source,
        sample=plan.sample,
        origin=plan.task.origin,
    )


def _decoding_of(plan: Plan, engine: Engine) -> Decoding:
    return plan.decoding if engine.has_beams else dataclasses.replace(plan.decoding, num_beams=1)


def prompt_of(task: Task, name: str, decoding: Decoding, item: Item) -> Prompt:
    """What is asked about an item; a clip's frames take the place of its images."""
    if item.video is not None:
        item = dataclasses.replace(item, images=frames_of(item.video, item.segment))
    template = task.template(name)
    choices = (template.choices(item) if template.choices else item.choices) if task.mode == "rank" else {}
    return Prompt(item.id, template.messages(item), template.answer_prefix, decoding, choices)


def prompt_hash(prompt: Prompt) -> str:
    """Tell prompts apart by everything that is asked; images count by their names."""
    texts = [
        [message["role"], message["content"]]
        if isinstance(message["content"], str)
        else [message["role"], [part.get("text") for part in message["content"]]]
        for message in prompt.messages
    ]
    names = [Path(image.name).name for image in images_of(prompt)]
    asked: list[Any] = [texts, names, prompt.answer_prefix, prompt.decoding.to_dict(), dict(prompt.choices)]
    return short_hash(json.dumps(asked))


def _is_answered(item: Item, make: Callable[[Item], Prompt], answered: Mapping[str, Prediction]) -> bool:
    known = answered.get(item.id)
    return known is not None and not known.error and known.prompt_hash == prompt_hash(make(item))


def _prediction(prompt: Prompt, reply: Reply, seconds: float, conversation: str | None) -> Prediction:
    kept = {name: getattr(reply, name) for name in Reply.__dataclass_fields__}
    asked = text_of(prompt, conversation)
    return Prediction(
        **kept, id=prompt.id, prompt_hash=prompt_hash(prompt), seconds=round(seconds, 5), prompt=asked
    )


Answered = tuple[list[Prompt], Sequence[Reply | None], float, EngineError | None]
"""A batch, its replies, the seconds they took, and why the engine cannot go on."""


def _answer(engine: Engine, batches: Iterator[list[Prompt]]) -> Iterator[Answered]:
    """Answer batch after batch; meanwhile a thread prepares the next one."""
    with ThreadPoolExecutor(1) as reader:
        waiting: tuple[list[Prompt], Any] | None = None
        for batch in batches:
            upcoming = (batch, reader.submit(engine.prepare, batch))
            if waiting is not None:
                yield _timed(engine, *waiting)
            waiting = upcoming
        if waiting is not None:
            yield _timed(engine, *waiting)


def _timed(engine: Engine, batch: list[Prompt], prepared: Any) -> Answered:
    begin = time.perf_counter()
    failure = None
    try:
        replies: Sequence[Reply | None] = engine.answer(prepared.result())
    except EngineError as error:
        failure, replies = error, error.replies or [None] * len(batch)
    return batch, replies, time.perf_counter() - begin, failure


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
