"""Grading: a judge model grades free answers; nothing is paid twice and nothing is lost.

Every reply is appended to `judge/<task>.jsonl` before the next one counts, keyed by everything that was
asked, so an interrupted grading continues where it was. An estimate of the cost comes before the first
request. A reply without a readable grade is asked for again, a bounded number of times, and then reported: it
is never counted as zero.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error
from owl2.eval.answers.grades import checked_row, grades_path
from owl2.eval.engines.chat_client import (
    ChatClient,
    Completion,
    EndpointError,
    NoAnswerError,
    UnreadableError,
)
from owl2.eval.hashing import short_hash
from owl2.eval.judge.prompts import JUDGES
from owl2.eval.task import Answer, Task
from owl2.jsonl import cut_torn_line, read_jsonl, to_line

MAX_ATTEMPTS = 5
"""How often a grade is asked for until a reply can be read, the first time included."""
CHARACTERS_PER_TOKEN = 4


class JudgeError(Owl2Error, ValueError):
    """Grades that cannot be asked for or imported; the message says of what."""


@dataclass(frozen=True)
class Estimate:
    """The cost of the missing grades."""

    calls: int
    cached: int
    prompt_tokens: int
    new_tokens: int

    def cost(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are per million tokens."""
        return (self.prompt_tokens * price_in + self.new_tokens * price_out) / 1e6


@dataclass(frozen=True)
class _Call:
    """A grade that is still to be asked for."""

    answer: Answer
    run: int


class Grading:
    """The grading of one task's answers by one judge."""

    def __init__(
        self, folder: Path, task: Task, answers: Sequence[Answer], model: str | None = None, runs: int = 1
    ):
        """Look up what is graded already.

        Args:
            model: the judge; None for the model that the benchmark's official script asks.
            runs: how often each answer is graded; MM-Vet's paper takes the mean of five.

        Raises:
            JudgeError: the task has no judge.
        """
        if task.judge is None:
            judged = "only " + ", ".join(sorted(JUDGES)) + " are judged"
            raise JudgeError(f"{task.name} is scored without a judge; {judged}")
        self.task = task
        self.judge = JUDGES[task.judge]
        self.path = grades_path(folder, task.name)
        self.model = model or self.judge.model
        known = _readable_keys(self.path)
        wanted = [_Call(answer, run) for run in range(runs) for answer in answers]
        self.calls = [call for call in wanted if self._key(call) not in known]
        self.num_cached = len(wanted) - len(self.calls)

    def estimate(self) -> Estimate:
        """The cost of the missing grades, from the characters of their prompts."""
        characters = 0
        for call in self.calls:
            messages, _ = self.judge.ask(call.answer.item, call.answer.output, 0)
            characters += sum(len(message["content"]) for message in messages)
        calls = len(self.calls)
        return Estimate(
            calls, self.num_cached, characters // CHARACTERS_PER_TOKEN, calls * self.judge.new_tokens
        )

    def ask(
        self, client: ChatClient, *, parallel: int = 8, advance: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Ask for the missing grades; return the ids of answers without a readable one.

        Raises:
            EndpointError: the server cannot be used; its replies so far are kept.
        """
        unread = []
        failure: EndpointError | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(parallel) as askers, self.path.open("ab", buffering=0) as file:
            cut_torn_line(self.path)
            waiting = [askers.submit(self._grade, client, call) for call in self.calls]
            try:
                for done in as_completed(waiting):
                    if done.cancelled():
                        continue
                    if isinstance(error := done.exception(), EndpointError):
                        failure = error
                        _cancel(waiting)  # replies that are on their way are still kept: they are paid for
                        continue
                    row = done.result()
                    file.write(to_line(row))
                    if row["grade"] is None:
                        unread.append(row["id"])
                    advance()
            except BaseException:
                _cancel(waiting)
                raise
        if failure is not None:
            raise failure
        return sorted(set(unread))

    def _grade(self, client: ChatClient, call: _Call) -> dict[str, Any]:
        item, output = call.answer.item, call.answer.output
        completion = Completion("", "", 0, 0)
        grade: Mapping[str, float] | None = None
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            messages, settings = self.judge.ask(item, output, attempt)
            try:
                completion = client.complete(messages, **settings)
            except NoAnswerError as error:  # refused, or a reply without text: this grade only
                reason = str(error)
                if isinstance(error, UnreadableError):
                    break
                continue
            grade = self.judge.read(completion.text)
            if grade is not None:
                reason = ""
                break
        return {
            "key": self._key(call),
            "id": item.id,
            "output_hash": short_hash(output),
            "judge": self.model,
            "model": completion.model,
            "run": call.run,
            "reply": completion.text,
            "attempts": attempt + 1,
            "prompt_tokens": completion.prompt_tokens,
            "new_tokens": completion.new_tokens,
            "grade": grade,
            **({"error": reason} if reason else {}),
        }

    def _key(self, call: _Call) -> str:
        messages, settings = self.judge.ask(call.answer.item, call.answer.output, 0)
        return short_hash(json.dumps([call.answer.item.id, self.model, messages, settings, call.run]))


def ask_judges(
    gradings: Sequence[Grading], endpoint: str, *, parallel: int, advance: Callable[[], None]
) -> list[str]:
    """Ask for the missing grades of several tasks; return `task/id` of answers without a readable grade.

    Raises:
        EndpointError: the server cannot be used; its replies so far are kept.
    """
    clients = [ChatClient(endpoint, grading.model) for grading in gradings]
    return [
        f"{grading.task.name}/{name}"
        for grading, client in zip(gradings, clients, strict=True)
        for name in grading.ask(client, parallel=parallel, advance=advance)
    ]


def _readable_keys(path: Path) -> set[str]:
    """Keys of grades that need not be asked for again."""
    if not path.exists():
        return set()
    rows = (checked_row(path, number, row) for number, row in read_jsonl(path, ours=True))
    return {row.get("key", "") for row in rows if row["grade"] is not None}


def _cancel(waiting: Sequence[Future[Any]]) -> None:
    for call in waiting:
        call.cancel()
