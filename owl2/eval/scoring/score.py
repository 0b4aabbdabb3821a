"""From predictions and official files to figures, in seconds and without a model.

Scoring joins each answer to its item by id, never by position. Answers that belong to no item are an error
(data of another split). Questions that could not be asked are scored as empty answers. An unread answer is
wrong, unless the official rule says otherwise (in POPE it is a yes). Both are listed by id. A task that
cannot be scored does not stop the others: its result says why and has no figures.
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
from owl2.eval.questions import questions_again
from owl2.eval.scoring.intervals import interval_of, rescored_intervals
from owl2.eval.task import Answer, DataMissing, Interval, Item, Items, Score, Skipped, Task, find_task
from owl2.files import write_file
from owl2.registry import fault_of

SCORES_FILE = "scores.json"


class ScoreError(Owl2Error, ValueError):
    """Predictions and data that do not belong together; the message names both."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Everything that a report says about a task."""

    task: Task
    config: RunConfig
    scores: list[Score] = field(default_factory=list)
    """With their intervals; the first is the one the paper prints."""
    answers: list[Answer] = field(default_factory=list)
    num_items: int = 0
    """Questions in the data, answered or not."""
    skipped: list[Skipped] = field(default_factory=list)
    """Records of the data that no question can be made of."""
    unparsed: list[str] = field(default_factory=list)
    """Ids of answers that could not be read."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Id -> why the question has no answer."""
    judge: Grades | None = None
    seconds: float = 0.0
    """The model's time, of all ranks."""
    failures: list[Answer] = field(default_factory=list)
    """Wrong answers, the worst first."""
    problem: str = ""
    """Why the task could not be scored."""

    @property
    def is_complete(self) -> bool:
        """Whether all questions of the official files are answered, but for their unusable records."""
        num_unusable = sum(not record.lacks_file for record in self.skipped)
        return len(self.answers) + num_unusable in self.task.expected


def score_run(
    folder: Path,
    data: Path | None = None,
    tasks: Sequence[str] | None = None,
    loaded: Mapping[str, Items] | None = None,
) -> list[TaskResult]:
    """Score all tasks of a run folder.

    Args:
        data: folder of the benchmarks; default: where the run found them.
        tasks: only these.
        loaded: questions by task, where they have been read already.

    Raises:
        PredictionError, ScoreError, UnknownTask, EvalDataError: none of the tasks can be scored; the message
            is that of the first.
    """
    present = tasks_of(folder)
    for name in tasks or ():
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0)
            raise ScoreError(
                f"{folder} has no answers of {name!r}; nearest is {near[0]!r} of {', '.join(present)}"
            )
    results = []
    failures = []
    for name in tasks or present:
        predictions = read_task(folder, name)
        if predictions is not None and predictions.by_id:
            origin = predictions.config.origin
            task = (
                questions_again(folder, origin)
                if "questions" in origin
                else find_task(name, origin, str(folder))
            )
            try:
                results.append(score_task(folder, task, predictions, data, (loaded or {}).get(name)))
            except Exception as error:
                if not isinstance(error, Owl2Error):
                    if "file" not in task.origin:
                        raise
                    file = task.origin["file"]  # a task from outside costs itself
                    error = ScoreError(f"{file}{fault_of(error, file)}")
                failures.append(error)
                results.append(TaskResult(task=task, config=predictions.config, problem=str(error)))
    if failures and len(failures) == len(results):
        raise failures[0]
    return results


def score_task(
    folder: Path, task: Task, predictions: Predictions, data: Path | None = None, loaded: Items | None = None
) -> TaskResult:
    """Score one task.

    Raises:
        ScoreError: its files are not there, or there are answers to questions that they do not have.
        EvalDataError: a file that is not in the official format.
        PredictionError, JsonlError: a damaged file of grades.
    """
    place = data or Path(predictions.config.data)
    try:
        loaded = loaded or task.load(place)
    except DataMissing as error:
        raise ScoreError(f"{error} below {place}; give the folder of the benchmarks with --data") from None
    grades = read_grades(folder, task, predictions)
    answers = join_answers(task, predictions, loaded.items, place, grades)
    errors = {row.id: row.error for row in predictions.by_id.values() if row.error}
    scores = task.score(answers)
    return TaskResult(
        task=task,
        config=predictions.config,
        scores=with_intervals(task, answers, scores),
        answers=answers,
        num_items=len(loaded.items),
        skipped=loaded.skipped,
        unparsed=[a.item.id for a in answers if a.parsed is None and a.item.id not in errors],
        errors=errors,
        judge=grades,
        seconds=sum(row.seconds for row in predictions.by_id.values()),
        failures=failures_of(answers, scores),
    )


def join_answers(
    task: Task, predictions: Predictions, items: Sequence[Item], place: Path, grades: Grades | None = None
) -> list[Answer]:
    """Answers in the order of their items.

    Raises:
        ScoreError: answers to items that the data does not have.
    """
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
            row.prompt,
        )
        for item, row in answered
    ]


def with_intervals(task: Task, answers: Sequence[Answer], scores: Sequence[Score]) -> list[Score]:
    """Give each score its interval; those that are no means share one resampling."""
    rescored: dict[tuple[str, str], Interval] = {}
    if any(not score.values for score in scores):
        rescored = rescored_intervals(answers, task.score)
    return [
        dataclasses.replace(
            score,
            interval=interval_of(score) if score.values else rescored.get((score.metric, score.group)),
        )
        for score in scores
    ]


def failures_of(answers: Sequence[Answer], scores: Sequence[Score]) -> list[Answer]:
    """Answers that are not fully right, the worst first by the task's first score; none without a score."""
    if not scores:
        return []
    if len(scores[0].values) != len(answers):  # questions without references have no share
        known = [answer for answer in answers if answer.item.references]
        answers = known if len(known) == len(scores[0].values) else answers
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
        "template_source": template_source(result),
        "mode": result.config.mode,
        "decoding": dict(result.config.decoding),
        "config_hash": result.config.hash,
        "source": result.config.source,
        "engine": dict(result.config.engine),
        "sample": {} if len(result.answers) == result.num_items else dict(result.config.sample),
        "n": len(result.answers),
        "num_items": result.num_items,
        "expected_n": list(result.task.expected),
        "num_skipped": len(result.skipped),
        "skipped": [{"where": record.where, "reason": record.reason} for record in result.skipped],
        "unparsed": result.unparsed,
        "errors": dict(result.errors),
        "judge": None if result.judge is None else result.judge.summary(),
        "seconds": round(result.seconds, 3),
        "problem": result.problem,
        "scores": [score_to_dict(score) for score in result.scores],
    }


def template_source(result: TaskResult) -> str:
    """Where the wording of a run comes from; "" for a template that this version no longer has."""
    name = result.task.old_names.get(result.config.template, result.config.template)
    return result.task.templates[name].source if name in result.task.templates else ""


def score_to_dict(score: Score) -> dict[str, Any]:
    """A score as JSON, without its items' shares."""
    return {
        "metric": score.metric,
        "group": score.group,
        "value": score.value,
        "n": score.n,
        "paper_id": score.paper_id,
        "interval": None if score.interval is None else asdict(score.interval),
    }


def write_scores(folder: Path, results: Sequence[TaskResult]) -> Path:
    """Write `scores.json` into the run folder."""
    path = folder / SCORES_FILE
    rows = [result_to_dict(result) for result in results]
    text = json.dumps({"tasks": rows}, indent=1, ensure_ascii=False) + "\n"
    write_file(path, text.encode("utf-8", "backslashreplace"))  # half a surrogate pair as its JSON escape
    return path


def restricted(result: TaskResult, ids: set[str]) -> TaskResult:
    """The same task over some of its items only, without intervals."""
    answers = [answer for answer in result.answers if answer.item.id in ids]
    return dataclasses.replace(result, answers=answers, scores=result.task.score(answers))
