"""Paired comparison of two runs: is B better than A on the questions that both answered?

Two runs fail on the same hard questions, so their difference is far more certain than either figure. Each
difference has a bootstrap interval and the p-value of a randomisation test over whole clusters
(`owl2/eval/scoring/intervals.py`). A table of many rows has differences by chance, so a star needs a p-value
below 5 % after Holm's correction over the rows, and at least `MIN_CLUSTERS` clusters.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from owl2.errors import Owl2Error
from owl2.eval.scoring.intervals import (
    NUM_RESCORINGS,
    Difference,
    cluster_of,
    holm,
    normal_p,
    paired_difference,
    percentiles,
    resamples,
)
from owl2.eval.scoring.score import TaskResult, restricted
from owl2.eval.task import Answer, Score

ALPHA = 0.05
MIN_CLUSTERS = 20
"""Below this many, bootstrap intervals are too narrow: intervals of 95 % for the difference of two shares
covered it in 74 % of 4,000 simulations with 5 clusters, in 92 to 94 % with 10 and 15, and in 95 % from 20
on."""


class CompareError(Owl2Error, ValueError):
    """Runs that have nothing to compare."""


@dataclass(frozen=True, kw_only=True)
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
    p_holm: float | None = None
    """The p-value after Holm's correction over all rows with enough clusters; None for the other rows."""

    @property
    def is_significant(self) -> bool:
        """Whether the difference deserves a star."""
        return self.p_holm is not None and self.p_holm < ALPHA


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
    rows = [row for pair in shared for row in _compare_task(*pair)]
    tested = {
        number: row.difference.p
        for number, row in enumerate(rows)
        if row.difference is not None and row.difference.num_clusters >= MIN_CLUSTERS
    }
    for number, p in zip(tested, holm(list(tested.values())), strict=True):
        rows[number] = dataclasses.replace(rows[number], p_holm=p)
    return rows


def _compare_task(a: TaskResult, b: TaskResult) -> list[Comparison]:
    asked = [run.config.origin.get("fingerprint") for run in (a, b)]
    if asked[0] != asked[1]:
        raise CompareError(
            f"{a.task.title}: the two runs were asked different questions; run both on one file"
        )
    ids = {answer.item.id for answer in a.answers} & {answer.item.id for answer in b.answers}
    if not ids:
        raise CompareError(f"{a.task.name}: no question is answered in both runs")
    graded = [{answer.item.id for answer in run.answers if answer.grade is not None} for run in (a, b)]
    if all(graded):
        ids &= graded[0] & graded[1]
    first, second = restricted(a, ids), restricted(b, ids)
    others = {_key(score): score for score in second.scores}
    pairs = [(score, others[_key(score)]) for score in first.scores if _key(score) in others]
    resampled = _resampled(first, second) if any(not x.values for x, _ in pairs) else {}
    rows = []
    for x, y in pairs:
        difference = None
        if x.values and len(x.values) == len(y.values) and x.clusters == y.clusters:
            difference = paired_difference(x, y)
        elif _key(x) in resampled:
            difference = _from_resamples(x, y, resampled[_key(x)], first.answers)
        rows.append(
            Comparison(
                task=a.task.name,
                title=a.task.title,
                metric=x.metric,
                group=x.group,
                a=x.value,
                b=y.value,
                difference=difference,
            )
        )
    return rows


def _resampled(a: TaskResult, b: TaskResult) -> dict[tuple[str, str], list[float]]:
    """Differences of figures that are no means, scoring both runs on the same resampled questions."""
    found: dict[tuple[str, str], list[float]] = {}
    pairs = zip(resamples(a.answers, NUM_RESCORINGS, 0), resamples(b.answers, NUM_RESCORINGS, 0), strict=True)
    for of_a, of_b in pairs:
        others = _values(b, of_b)
        for key, value in _values(a, of_a).items():
            if key in others:
                found.setdefault(key, []).append(others[key] - value)
    return found


def _from_resamples(
    x: Score, y: Score, differences: Sequence[float], answers: Sequence[Answer]
) -> Difference:
    """Interval from the resamples; p from their standard deviation, as 200 resamples resolve no small p."""
    values = np.asarray(differences)
    low, high = percentiles(values)
    own = [a for a in answers if not x.group or x.group in a.item.category.values()]
    return Difference(
        value=y.value - x.value,
        low=low,
        high=high,
        p=normal_p(y.value - x.value, float(values.std())),
        n=x.n,
        num_clusters=len({cluster_of(answer) for answer in own}),
    )


def _values(result: TaskResult, answers: Sequence[Answer]) -> dict[tuple[str, str], float]:
    return {_key(score): score.value for score in result.task.score(answers) if not score.values}


def _key(score: Score) -> tuple[str, str]:
    return score.metric, score.group


def comparison_table(rows: Sequence[Comparison], a: str, b: str) -> str:
    """As Markdown, with a star at significant differences and a note on its meaning."""
    head = ["benchmark", "figure", a, b, "difference", "95 % interval", "p", "p (Holm)", "N", "clusters"]
    lines = [head, ["---", "---", *["---:"] * 8]]
    for row in rows:
        figure = row.metric + (f": {row.group}" if row.group else "")
        lines.append([row.title, figure, f"{row.a:.2f}", f"{row.b:.2f}", *_difference_cells(row)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return f"{table}\n\n{NOTE}\n"


NOTE = (
    f"* p (Holm) below {ALPHA}: corrected for the number of rows. Figures over fewer than {MIN_CLUSTERS} "
    f"clusters are not tested (questions on one image or video are one cluster)."
)


def _difference_cells(row: Comparison) -> list[str]:
    d = row.difference
    if d is None:
        return ["not over the same questions", *["–"] * 5]
    star = " *" if row.is_significant else ""
    interval = f"{d.low:+.2f} – {d.high:+.2f}"
    return [
        f"{d.value:+.2f}{star}",
        interval,
        shown_p(d.p),
        "–" if row.p_holm is None else shown_p(row.p_holm),
        f"{d.n:,}",
        f"{d.num_clusters:,}",
    ]


def shown_p(p: float) -> str:
    """Three decimals; never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_json(rows: Sequence[Comparison]) -> str:
    """As JSON, unrounded."""
    found = [{**dataclasses.asdict(row), "is_significant": row.is_significant} for row in rows]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
