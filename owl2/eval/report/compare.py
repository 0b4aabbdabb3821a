"""Is B better than A? A paired bootstrap over the questions that both answered.

Two runs on the same questions err on the same hard ones, so their difference is far more certain than either
figure. Both are scored on the common questions only, whatever else they answered.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from owl2.errors import Owl2Error
from owl2.eval.scoring.intervals import (
    NUM_RESCORINGS,
    Difference,
    paired_difference,
    percentiles,
    resamples,
    two_sided_p,
)
from owl2.eval.scoring.score import TaskResult, restricted
from owl2.eval.task import Answer, Score


class CompareError(Owl2Error, ValueError):
    """Runs that have nothing to compare."""


@dataclass(frozen=True)
class Comparison:
    """One figure of two runs."""

    task: str
    title: str
    metric: str
    group: str
    a: float
    b: float
    difference: Difference | None
    """None if the two figures are over different questions, as a share of the answers of one kind may be."""

    @property
    def is_significant(self) -> bool:
        """Whether the 95 % interval of the difference leaves out zero."""
        return self.difference is not None and not self.difference.low <= 0 <= self.difference.high


def compare(a: Sequence[TaskResult], b: Sequence[TaskResult]) -> list[Comparison]:
    """Compare all figures of the tasks that both runs have.

    Raises:
        CompareError: no task, or no question of one, is in both.
    """
    others = {result.task.name: result for result in b}
    shared = [(result, others[result.task.name]) for result in a if result.task.name in others]
    if not shared:
        names = [", ".join(result.task.name for result in results) or "none" for results in (a, b)]
        raise CompareError(f"no task is in both runs: the first has {names[0]}, the second {names[1]}")
    return [row for pair in shared for row in _compare_task(*pair)]


def _compare_task(a: TaskResult, b: TaskResult) -> list[Comparison]:
    ids = {answer.item.id for answer in a.answers} & {answer.item.id for answer in b.answers}
    if not ids:
        raise CompareError(f"{a.task.name}: no question is answered in both runs")
    graded = [{answer.item.id for answer in run.answers if answer.grade is not None} for run in (a, b)]
    if all(graded):
        ids &= graded[0] & graded[1]
    first, second = restricted(a, ids), restricted(b, ids)
    others = {_key(figure.score): figure.score for figure in second.figures}
    pairs = [
        (figure.score, others[_key(figure.score)]) for figure in first.figures if _key(figure.score) in others
    ]
    resampled = _resampled(first, second) if any(not x.values for x, _ in pairs) else {}
    rows = []
    for x, y in pairs:
        difference = None
        if x.values and len(x.values) == len(y.values) and x.clusters == y.clusters:
            difference = paired_difference(x, y)
        elif _key(x) in resampled:
            drawn = np.asarray(resampled[_key(x)])
            difference = Difference(y.value - x.value, *percentiles(drawn), two_sided_p(drawn), len(ids))
        rows.append(Comparison(a.task.name, a.task.title, x.metric, x.group, x.value, y.value, difference))
    return rows


def _resampled(a: TaskResult, b: TaskResult) -> dict[tuple[str, str], list[float]]:
    """Differences of figures that are no means, scoring both runs anew on the same drawn questions."""
    found: dict[tuple[str, str], list[float]] = {}
    drawings = zip(
        resamples(a.answers, NUM_RESCORINGS, 0), resamples(b.answers, NUM_RESCORINGS, 0), strict=True
    )
    for drawn_a, drawn_b in drawings:
        others = _values(b, drawn_b)
        for key, value in _values(a, drawn_a).items():
            if key in others:
                found.setdefault(key, []).append(others[key] - value)
    return found


def _values(result: TaskResult, answers: Sequence[Answer]) -> dict[tuple[str, str], float]:
    return {_key(score): score.value for score in result.task.score(answers) if not score.values}


def _key(score: Score) -> tuple[str, str]:
    return score.metric, score.group


def comparison_table(rows: Sequence[Comparison], a: str, b: str) -> str:
    """As Markdown; a star marks differences whose interval leaves out zero."""
    head = ["benchmark", "figure", a, b, "difference", "95 % interval", "p", "questions"]
    lines = [head, ["---", "---", *["---:"] * 6]]
    for row in rows:
        figure = row.metric + (f": {row.group}" if row.group else "")
        lines.append([row.title, figure, f"{row.a:.2f}", f"{row.b:.2f}", *_difference_cells(row)])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def _difference_cells(row: Comparison) -> list[str]:
    d = row.difference
    if d is None:
        return ["not over the same questions", "–", "–", "–"]
    star = " *" if row.is_significant else ""
    return [f"{d.value:+.2f}{star}", f"{d.low:+.2f} – {d.high:+.2f}", f"{d.p:.3f}", f"{d.n:,}"]


def comparison_json(rows: Sequence[Comparison]) -> str:
    """As JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
