"""Means over answers, the whole and by category, as the report wants them."""

from collections.abc import Sequence

from owl2.eval.task import Answer, Score


def mean_score(
    metric: str,
    answers: Sequence[Answer],
    values: Sequence[float],
    *,
    paper_id: str = "",
    group: str = "",
    scale: float = 100.0,
) -> Score:
    """The mean of one value an answer, times `scale`.

    Raises:
        ValueError: no answers, or not one value each.
    """
    if not answers or len(answers) != len(values):
        raise ValueError(
            f"{metric}: {len(values)} values for {len(answers)} answers; expected one each, at least one"
        )
    return Score(
        metric=metric,
        value=scale * sum(values) / len(values),
        n=len(values),
        values=tuple(values),
        clusters=tuple(answer.item.cluster or answer.item.id for answer in answers),
        scale=scale,
        group=group,
        paper_id=paper_id,
    )


def scores_by_category(
    metric: str, answers: Sequence[Answer], values: Sequence[float], *, scale: float = 100.0
) -> list[Score]:
    """The mean in every group of every kind, called `kind: group`, in the order of their names."""
    groups: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        for kind, name in answer.item.category.items():
            groups.setdefault(f"{kind}: {name}", []).append(index)
    return [
        mean_score(
            metric, [answers[i] for i in indices], [values[i] for i in indices], group=group, scale=scale
        )
        for group, indices in sorted(groups.items())
    ]
