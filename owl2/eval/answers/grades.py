"""Grades on disk, append-only, so that scoring needs no judge.

A grade belongs to the exact answer it was given for, by the answer's hash: grades of other answers, such as
those of an earlier run, do not count and are reported. If several judges have graded a task, the last one
asked counts.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.eval.answers.predictions import PredictionError, Predictions
from owl2.eval.hashing import short_hash
from owl2.eval.task import Task
from owl2.jsonl import read_jsonl

FOLDER = "judge"


@dataclass(frozen=True)
class Grades:
    """The grades of one judge for one task."""

    judge: str
    """The model that was asked for, or the file that the grades were imported from."""
    models: Mapping[str, int]
    """The model's name as the server gave it -> number of replies."""
    by_id: Mapping[str, Mapping[str, float]]
    """Item -> figures, means over the gradings."""
    num_answers: int
    unread: tuple[str, ...]
    """Items whose judge never gave a readable grade."""
    num_other: int = 0
    """Grades of this judge that are of other answers and do not count."""

    def summary(self) -> dict[str, Any]:
        """As JSON, without the grades."""
        return {
            "judge": self.judge,
            "models": dict(self.models),
            "graded": len(self.by_id),
            "answers": self.num_answers,
            "unread": list(self.unread),
            "of_other_answers": self.num_other,
        }


def grades_path(folder: Path, task: str) -> Path:
    """Where a task's grades are."""
    return folder / FOLDER / f"{task}.jsonl"


def read_grades(folder: Path, task: Task, predictions: Predictions) -> Grades | None:
    """The grades of a judged task that belong to these answers; None without any.

    Raises:
        PredictionError, JsonlError: a line that is no grade.
    """
    path = grades_path(folder, task.name)
    if task.judge is None or not path.exists():
        return None
    rows = [checked_row(path, number, row) for number, row in read_jsonl(path, ours=True)]
    if not rows:
        return None
    judge = rows[-1]["judge"]
    rows = [row for row in rows if row["judge"] == judge]
    hashes = {row.id: short_hash(row.output) for row in predictions.by_id.values()}
    own = [row for row in rows if hashes.get(row["id"]) == row["output_hash"]]
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for row in own:
        if row["grade"] is not None:
            found.setdefault(row["id"], {})[row["run"]] = row["grade"]
    return Grades(
        judge=judge,
        models=Counter(row["model"] for row in own),
        by_id={name: _mean(list(runs.values())) for name, runs in found.items()},
        num_answers=len(hashes),
        unread=tuple(sorted({row["id"] for row in own} - found.keys())),
        num_other=len(rows) - len(own),
    )


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
