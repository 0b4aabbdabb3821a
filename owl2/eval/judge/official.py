"""Grades that the benchmarks' own scripts made, taken over without asking anyone.

These files name questions, not answers, so the answers that were graded must lie next to them: a grade counts
only for exactly the answer of this run. Read are MM-Vet's `NAME_<judge>-grade-<n>runs.json`, MMHal-Bench's
list of 96 replies (in the order of the questions), and Video-ChatGPT's combined `{key: [{"pred", "score"},
...]}` with our ids as keys, whose second part has the answer itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.eval.answers.grades import grades_path
from owl2.eval.hashing import short_hash
from owl2.eval.judge.grading import JudgeError
from owl2.eval.judge.prompts import JUDGES, video_grade
from owl2.eval.task import Answer, Task
from owl2.jsonl import cut_torn_line, to_line


@dataclass(frozen=True)
class _Grade:
    """One grade of a file."""

    id: str
    run: int
    model: str
    grade: Mapping[str, float] | None


def import_grades(folder: Path, task: Task, answers: Sequence[Answer], file: Path) -> int:
    """Take over the grades of a file; return how many answers got one.

    Raises:
        JudgeError: the file is of no known form, grades no answer of this run or the answers of another run,
            or does not say which answers it grades.
    """
    if task.judge is None:
        raise JudgeError(f"{task.name} is scored without a judge: there is nothing to import")
    raw = _read(file, task)
    try:
        grades = _GRADES[task.judge](raw, answers)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise JudgeError(
            f"{file}: no grades as the official script of {task.name} writes them: {error!r}"
        ) from error
    by_id = {answer.item.id: answer for answer in answers}
    own = [grade for grade in grades if grade.id in by_id]
    if not own:
        known = ", ".join(list(by_id)[:3])
        raise JudgeError(f"{file}: none of its {len(grades)} grades is of an answer here (ids as {known})")
    _check_answers(file, task, raw, {grade.id: by_id[grade.id].output for grade in own})
    path = grades_path(folder, task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {"key": "", "judge": f"imported from {file.name}"}
    rows = [{**vars(grade), **shared, "output_hash": short_hash(by_id[grade.id].output)} for grade in own]
    with path.open("ab", buffering=0) as appended:
        cut_torn_line(path)
        appended.write(b"".join(to_line(row) for row in rows))
    return len({grade.id for grade in own})


def _check_answers(file: Path, task: Task, raw: Any, outputs: Mapping[str, str]) -> None:
    """Raise JudgeError unless the answers that were graded are known and are those of this run."""
    place, graded = file, _video_answers(raw) if task.judge == "video_chatgpt" else None
    if graded is None:
        near = [
            path for path in file.parent.glob("*.json") if path != file and file.stem.startswith(path.stem)
        ]
        if not near:
            raise JudgeError(
                f"{file}: nothing says which answers it grades. Put the file that was graded (from `owl2 "
                f"eval export`) next to it, under a name that {file.name} begins with, such as "
                f"{task.name}.json"
            )
        place = max(near, key=lambda path: len(path.stem))
        content = _read(place, task)
        try:
            graded = _ANSWERS[str(task.judge)](content, list(outputs))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise JudgeError(
                f"{place}: no answers as `owl2 eval export` writes them for {task.name}: {error!r}"
            ) from error
    other = [name for name, output in outputs.items() if graded.get(name, "").strip() != output.strip()]
    if other:
        raise JudgeError(
            f"{file} grades the answers of another run: {len(other):,} of {len(outputs):,} answers in "
            f"{place.name} differ from this run's, the first is {other[0]}. Grade this run's export, or "
            f"import into the run that these answers are from"
        )


def _read(file: Path, task: Task) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise JudgeError(
            f"{file}: no grades as the official script of {task.name} writes them: {error!r}"
        ) from error


def _mmvet_grades(raw: Any, answers: Sequence[Answer]) -> list[_Grade]:
    read = JUDGES["mmvet"].read
    return [
        _Grade(name, run, model, read(str(float(score))))
        for name, graded in raw.items()
        for run, (model, score) in enumerate(zip(graded["model"], graded["score"], strict=True))
    ]


def _mmhal_grades(raw: Any, answers: Sequence[Answer]) -> list[_Grade]:
    if len(raw) != len(answers):
        raise ValueError(f"{len(raw)} replies for {len(answers)} answers")
    read = JUDGES["mmhal"].read
    return [
        _Grade(
            answer.item.id, 0, str(reply.get("model", "")), read(reply["choices"][0]["message"]["content"])
        )
        for answer, reply in zip(answers, raw, strict=True)
    ]


def _video_grades(raw: Any, answers: Sequence[Answer]) -> list[_Grade]:
    return [_Grade(name, 0, "", video_grade(graded[0])) for name, graded in raw.items()]


def _video_answers(raw: Any) -> dict[str, str] | None:
    """The answers inside the combined file; None in a file that leaves them out."""
    pairs = {name: graded[1] for name, graded in raw.items() if len(graded) > 1}
    return {name: str(pair["pred"]) for name, pair in pairs.items()} if len(pairs) == len(raw) else None


_GRADES: Mapping[str, Callable[[Any, Sequence[Answer]], list[_Grade]]] = {
    "mmvet": _mmvet_grades,
    "mmhal": _mmhal_grades,
    "video_chatgpt": _video_grades,
}
_ANSWERS: Mapping[str, Callable[[Any, Sequence[str]], dict[str, str]]] = {
    "mmvet": lambda raw, ids: {name: str(output) for name, output in raw.items()},
    "mmhal": lambda raw, ids: dict(zip(ids, (str(row["model_answer"]) for row in raw), strict=True)),
    "video_chatgpt": lambda raw, ids: {name: str(row["pred"]) for name, row in raw.items()},
}
"""Answers by id, from what the official scripts grade."""
