"""Asking a judge to grade free answers, with nothing paid twice and nothing lost.

Every reply is appended to `judge/<task>.jsonl` before the next counts, keyed by all that was asked, so an
interrupted grading goes on where it was. What it will cost is said before the first request. A reply without
a readable grade is asked for again, a bounded number of times, and then reported: never a zero in silence.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error
from owl2.eval.answers.grades import checked_row, grades_path
from owl2.eval.answers.predictions import read_lines, sha256
from owl2.eval.engines.chat_client import ChatClient, Completion, EndpointError
from owl2.eval.judge.prompts import JUDGES, Judge, video_grade
from owl2.eval.task import Answer, Task

MAX_ATTEMPTS = 5
"""How often an unreadable reply is asked for again, the first time included."""
CHARACTERS_PER_TOKEN = 4


class JudgeError(Owl2Error, ValueError):
    """Grades that cannot be had or imported; the message says of what."""


@dataclass(frozen=True)
class Estimate:
    """What grading would take."""

    calls: int
    cached: int
    prompt_tokens: int
    new_tokens: int

    def cost(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices, which are per million tokens."""
        return (self.prompt_tokens * price_in + self.new_tokens * price_out) / 1e6


@dataclass(frozen=True)
class _Call:
    """A grading that is still to be asked for."""

    answer: Answer
    run: int


class Grading:
    """The grading of one task's answers by one judge."""

    def __init__(self, folder: Path, task: Task, answers: Sequence[Answer], model: str, runs: int = 1):
        """Look up what is graded already.

        Args:
            runs: how often each answer is graded; MM-Vet's paper takes the mean of five.

        Raises:
            JudgeError: the task has no judge.
        """
        if task.judge is None:
            judged = "only " + ", ".join(sorted(JUDGES)) + " are judged"
            raise JudgeError(f"{task.name} is scored without a judge; {judged}")
        self.judge: Judge = JUDGES[task.judge]
        self.path = grades_path(folder, task.name)
        self.model = model
        known = _readable_keys(self.path)
        wanted = [_Call(answer, run) for run in range(runs) for answer in answers]
        self.calls = [call for call in wanted if self._key(call) not in known]
        self.num_cached = len(wanted) - len(self.calls)

    def estimate(self) -> Estimate:
        """What the missing gradings would take, from the characters of their prompts."""
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
        """Grade what is not graded; return the ids whose judge never gave a readable grade.

        Raises:
            EndpointError: the server cannot be used; what it said so far is kept.
        """
        unread = []
        failure: EndpointError | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(parallel) as askers, self.path.open("ab", buffering=0) as file:
            _end_torn_line(self.path)
            waiting = [askers.submit(self._grade, client, call) for call in self.calls]
            try:
                for done in as_completed(waiting):
                    if done.cancelled():
                        continue
                    if isinstance(error := done.exception(), EndpointError):
                        failure = error
                        _cancel(waiting)  # what is on its way is still kept: it is paid for
                        continue
                    row = done.result()
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
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
        for attempt in range(MAX_ATTEMPTS):
            messages, settings = self.judge.ask(item, output, attempt)
            completion = client.complete(messages, **settings)
            grade = self.judge.read(completion.text)
            if grade is not None:
                break
        return {
            "key": self._key(call),
            "id": item.id,
            "output_hash": sha256(output),
            "judge": self.model,
            "model": completion.model,
            "run": call.run,
            "reply": completion.text,
            "attempts": attempt + 1,
            "prompt_tokens": completion.prompt_tokens,
            "new_tokens": completion.new_tokens,
            "grade": grade,
        }

    def _key(self, call: _Call) -> str:
        messages, settings = self.judge.ask(call.answer.item, call.answer.output, 0)
        return sha256(json.dumps([call.answer.item.id, self.model, messages, settings, call.run]))


def import_grades(folder: Path, task: Task, answers: Sequence[Answer], file: Path) -> int:
    """Take over grades that an official script made; return how many answers got one.

    Read are MM-Vet's `..-grade-..runs.json`, MMHal-Bench's list of 96 replies (in the order of the
    questions), and Video-ChatGPT's combined `{key: [{"pred", "score"}, ...]}`, whose keys must be our ids.

    Raises:
        JudgeError: the file is of no such form, or grades no answer of this run.
    """
    if task.judge is None:
        raise JudgeError(f"{task.name} is scored without a judge: there is nothing to import")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        rows = _IMPORTS[task.judge](raw, answers)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise JudgeError(
            f"{file}: no grades as the official script of {task.name} writes them: {error!r}"
        ) from error
    by_id = {answer.item.id: answer for answer in answers}
    own = [row for row in rows if row["id"] in by_id]
    if not own:
        known = ", ".join(list(by_id)[:3])
        raise JudgeError(f"{file}: none of its {len(rows)} grades is of an answer here (ids as {known})")
    path = grades_path(folder, task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in own:
        shared = {"output_hash": sha256(by_id[row["id"]].output), "judge": f"imported from {file.name}"}
        lines.append(json.dumps({"key": "", **row, **shared}, ensure_ascii=False) + "\n")
    with path.open("ab", buffering=0) as grades:
        _end_torn_line(path)
        grades.write("".join(lines).encode())
    return len({row["id"] for row in own})


def _import_mmvet(raw: Any, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [
        {"id": name, "run": run, "model": model, "grade": {"score": float(score)}}
        for name, graded in raw.items()
        for run, (model, score) in enumerate(zip(graded["model"], graded["score"], strict=True))
    ]


def _import_mmhal(raw: Any, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    if len(raw) != len(answers):
        raise ValueError(f"{len(raw)} replies for {len(answers)} answers")
    rows = []
    for answer, reply in zip(answers, raw, strict=True):
        grade = JUDGES["mmhal"].read(reply["choices"][0]["message"]["content"])
        rows.append({"id": answer.item.id, "run": 0, "model": str(reply.get("model", "")), "grade": grade})
    return rows


def _import_video(raw: Any, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [
        {"id": name, "run": 0, "model": "", "grade": video_grade(graded[0])} for name, graded in raw.items()
    ]


_IMPORTS: Mapping[str, Callable[[Any, Sequence[Answer]], list[dict[str, Any]]]] = {
    "mmvet": _import_mmvet,
    "mmhal": _import_mmhal,
    "video_chatgpt": _import_video,
}


def _readable_keys(path: Path) -> set[str]:
    """Keys of gradings that need not be asked for again."""
    if not path.exists():
        return set()
    rows = (checked_row(path, number, row) for number, row in read_lines(path))
    return {row.get("key", "") for row in rows if row["grade"] is not None}


def _cancel(waiting: Sequence[Future[Any]]) -> None:
    for call in waiting:
        call.cancel()


def _end_torn_line(path: Path) -> None:
    """Cut off what a killed process left of its last line."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
