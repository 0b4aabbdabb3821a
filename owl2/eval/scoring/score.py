"""From predictions and data to figures, in seconds and without a model.

Scoring reads the official files again and joins each answer to its item by id, never by position. Answers
that belong to no item are an error (data of another split). Questions that could not be asked are scored as
empty answers. An unread answer is wrong, unless the official rule says otherwise (in POPE it is a yes). Both
are listed by id.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error
from owl2.eval.answers.grades import Grades, read_grades
from owl2.eval.answers.predictions import Predictions, RunConfig, read_task, tasks_of
from owl2.eval.scoring.intervals import Interval, interval_of, rescored_intervals
from owl2.eval.task import Answer, DataMissing, Score, Task, find_task
from owl2.processor.tokenizer import write_file

SCORES_FILE = "scores.json"


class ScoreError(Owl2Error, ValueError):
    """Predictions and data that do not belong together; the message names both."""


@dataclass(frozen=True)
class Figure:
    """A score and its interval."""

    score: Score
    interval: Interval | None


@dataclass(frozen=True)
class TaskResult:
    """Everything a report says of a task."""

    task: Task
    config: RunConfig
    figures: list[Figure]
    answers: list[Answer]
    num_items: int
    """Questions in the data, answered or not."""
    unparsed: list[str]
    """Ids of answers that could not be read."""
    errors: Mapping[str, str]
    """Id -> why the question could not be asked."""
    judge: Grades | None
    seconds: float
    """The model's time, of all ranks."""
    failures: list[Answer] = field(default_factory=list)
    """Wrong answers, the worst first."""

    @property
    def is_expected(self) -> bool:
        """Whether as many questions are answered as the official files have."""
        return len(self.answers) in self.task.expected


def score_run(folder: Path, data: Path | None = None, tasks: Sequence[str] | None = None) -> list[TaskResult]:
    """Score all tasks of a run folder.

    Args:
        data: folder of the benchmarks; default: where the run found them.
        tasks: only these.

    Raises:
        PredictionError, ScoreError, UnknownTask, DataMissing, EvalDataError: with files and ids.
    """
    present = tasks_of(folder)
    for name in tasks or ():
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0)
            raise ScoreError(
                f"{folder} has no answers of {name!r}; nearest is {near[0]!r} of {', '.join(present)}"
            )
    results = (score_task(folder, find_task(name), data) for name in tasks or present)
    return [result for result in results if result is not None]


def score_task(folder: Path, task: Task, data: Path | None = None) -> TaskResult | None:
    """Score one task; None if no question of it is answered yet."""
    predictions = read_task(folder, task.name)
    if predictions is None or not predictions.by_id:
        return None
    grades = read_grades(folder, task, predictions)
    answers, num_items = join_answers(task, predictions, data, grades)
    errors = {row.id: row.error for row in predictions.by_id.values() if row.error}
    unparsed = [a.item.id for a in answers if a.parsed is None and a.item.id not in errors]
    scores = task.score(answers)
    return TaskResult(
        task,
        predictions.config,
        with_intervals(task, answers, scores),
        answers,
        num_items,
        unparsed,
        errors,
        grades,
        sum(row.seconds for row in predictions.by_id.values()),
        failures_of(answers, scores),
    )


def join_answers(
    task: Task, predictions: Predictions, data: Path | None, grades: Grades | None = None
) -> tuple[list[Answer], int]:
    """Answers in the order of their items, and how many items there are.

    Raises:
        DataMissing, EvalDataError: the task's files are not there or damaged.
        ScoreError: answers to items that the data does not have.
    """
    place = data or Path(predictions.config.data)
    try:
        items = task.load(place).items
    except DataMissing as error:
        raise ScoreError(f"{error} below {place}; give the folder of the benchmarks with --data") from None
    ids = {item.id for item in items}
    strays = [name for name in predictions.by_id if name not in ids]
    if strays:
        near = difflib.get_close_matches(strays[0], list(ids)[:5000], n=1, cutoff=0)
        raise ScoreError(
            f"{predictions.files[0]}: {len(strays):,} of {len(predictions.by_id):,} answers are to questions "
            f"that {task.name} does not have below {place}, such as {strays[0]!r} (nearest: "
            f"{near[0] if near else 'none'!r}): the data is of another split or version"
        )
    answered = ((item, predictions.by_id[item.id]) for item in items if item.id in predictions.by_id)
    graded = grades.by_id if grades else {}
    return [
        Answer(
            item,
            row.output,
            None if row.error else task.parse_answer(predictions.config.template, item, row.output),
            graded.get(item.id),
        )
        for item, row in answered
    ], len(items)


def with_intervals(task: Task, answers: Sequence[Answer], scores: Sequence[Score]) -> list[Figure]:
    """Give each score its interval; those that are no means share one resampling."""
    rescored: dict[tuple[str, str], Interval] = {}
    if any(not score.values for score in scores):
        rescored = rescored_intervals(answers, task.score)
    return [
        Figure(score, interval_of(score) if score.values else rescored.get((score.metric, score.group)))
        for score in scores
    ]


def failures_of(answers: Sequence[Answer], scores: Sequence[Score]) -> list[Answer]:
    """Answers that are not fully right, the worst first by the task's first score; none without a score."""
    if not scores:
        return []
    shares: list[float] = [0.0] * len(answers)
    if len(scores[0].values) == len(answers):
        shares = list(scores[0].values)
    best = max(shares, default=0.0)
    wrong = [
        (share, number)
        for number, (answer, share) in enumerate(zip(answers, shares, strict=True))
        if answer.parsed not in answer.item.references and (share < best or best == 0.0)
    ]
    return [answers[number] for _, number in sorted(wrong)]


def result_to_dict(result: TaskResult) -> dict[str, Any]:
    """A result as JSON, without the answers."""
    return {
        "task": result.task.name,
        "title": result.task.title,
        "template": result.config.template,
        "template_source": result.task.template(result.config.template).source,
        "mode": result.config.mode,
        "decoding": dict(result.config.decoding),
        "config_hash": result.config.hash,
        "source": result.config.source,
        "engine": dict(result.config.engine),
        "n": len(result.answers),
        "num_items": result.num_items,
        "expected_n": list(result.task.expected),
        "unparsed": result.unparsed,
        "errors": dict(result.errors),
        "judge": None if result.judge is None else result.judge.summary(),
        "seconds": round(result.seconds, 3),
        "scores": [figure_to_dict(figure) for figure in result.figures],
    }


def figure_to_dict(figure: Figure) -> dict[str, Any]:
    """A figure as JSON, without its items' shares."""
    score, interval = figure.score, figure.interval
    return {
        "metric": score.metric,
        "group": score.group,
        "value": score.value,
        "n": score.n,
        "paper_id": score.paper_id,
        "interval": None if interval is None else asdict(interval),
    }


def write_scores(folder: Path, results: Sequence[TaskResult]) -> Path:
    """Write `scores.json` into the run folder."""
    path = folder / SCORES_FILE
    rows = [result_to_dict(result) for result in results]
    write_file(path, (json.dumps({"tasks": rows}, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def main_figures(results: Sequence[TaskResult]) -> list[tuple[TaskResult, Figure]]:
    """The first figure of each task, which is the one the paper prints."""
    return [(result, result.figures[0]) for result in results if result.figures]


def restricted(result: TaskResult, ids: set[str]) -> TaskResult:
    """The same task over some of its items only."""
    answers = [answer for answer in result.answers if answer.item.id in ids]
    scores = result.task.score(answers)
    return dataclasses.replace(result, answers=answers, figures=[Figure(score, None) for score in scores])
