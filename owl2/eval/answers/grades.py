"""Grades on disk: what a judge said of which answer, append-only, so that scoring needs no judge.

A grade belongs to the exact answer it was given for; after a new run of the model it does not count any more.
If several judges have graded a task, the last one asked counts.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.eval.answers.predictions import PredictionError, Predictions, read_lines, sha256
from owl2.eval.task import Task

FOLDER = "judge"


@dataclass(frozen=True)
class Grades:
    """The grades of one judge for one task."""

    judge: str
    """The model that was asked for, or the file the grades were imported from."""
    models: Mapping[str, int]
    """What the server called itself -> number of replies."""
    by_id: Mapping[str, Mapping[str, float]]
    """Item -> figures, means over the gradings."""
    num_answers: int
    unread: tuple[str, ...]
    """Items whose judge never gave a readable grade."""

    def summary(self) -> dict[str, Any]:
        """As JSON, without the grades."""
        return {
            "judge": self.judge,
            "models": dict(self.models),
            "graded": len(self.by_id),
            "answers": self.num_answers,
            "unread": list(self.unread),
        }


def grades_path(folder: Path, task: str) -> Path:
    """Where a task's grades are."""
    return folder / FOLDER / f"{task}.jsonl"


def read_grades(folder: Path, task: Task, predictions: Predictions) -> Grades | None:
    """The grades of a judged task that belong to these answers; None without any.

    Raises:
        PredictionError: a line that is no grade.
    """
    path = grades_path(folder, task.name)
    if task.judge is None or not path.exists():
        return None
    rows = [checked_row(path, number, row) for number, row in read_lines(path)]
    if not rows:
        return None
    judge = rows[-1]["judge"]
    hashes = {row.id: sha256(row.output) for row in predictions.by_id.values()}
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    asked: set[str] = set()
    models: Counter[str] = Counter()
    for row in rows:
        if row["judge"] == judge and hashes.get(row["id"]) == row["output_hash"]:
            asked.add(row["id"])
            models[row["model"]] += 1
            if row["grade"] is not None:
                found.setdefault(row["id"], {})[row["run"]] = row["grade"]
    by_id = {name: _mean(list(runs.values())) for name, runs in found.items()}
    return Grades(judge, dict(models), by_id, len(hashes), tuple(sorted(asked - by_id.keys())))


def checked_row(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A line of a grades file.

    Raises:
        PredictionError: it lacks a field.
    """
    missing = [name for name in ("id", "output_hash", "judge", "model", "run", "grade") if name not in row]
    if missing:
        raise PredictionError(f"{path}:{number}: no grade, {', '.join(missing)} not in it")
    return row


def _mean(grades: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(grade[name] for grade in grades) / len(grades) for name in grades[0]}
