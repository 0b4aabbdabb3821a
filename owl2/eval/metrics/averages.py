"""Averages: means over all items and over groups, each with its items' shares.

A share is what an item adds: the mean of the shares times the scale is the figure, and scoring resamples the
shares for intervals, whole clusters at a time. A mean of means (MMLU over subjects, BBH and AGIEval over
tasks) has shares too: each item weighs what it weighs in its group. Resampling those over all items ignores
that groups have fixed sizes, which makes intervals a little too wide, never too narrow.
"""

from collections.abc import Mapping, Sequence

from owl2.eval.task import Answer, Score


def is_right(answer: Answer) -> bool:
    """Whether the answer is one of the references; one that could not be read is wrong."""
    return answer.parsed in answer.item.references


def mean(
    metric: str,
    answers: Sequence[Answer],
    values: Sequence[float],
    *,
    scale: float = 100.0,
    is_share: bool = True,
    group: str = "",
    paper_id: str = "",
) -> Score:
    """The plain mean, in units of `scale`."""
    if len(answers) != len(values) or not answers:
        raise ValueError(
            f"{metric}: {len(values)} values for {len(answers)} answers; give one for each, at least one"
        )
    return Score(
        metric=metric,
        value=scale * sum(values) / len(values),
        n=len(values),
        values=tuple(float(value) for value in values),
        clusters=tuple(answer.item.cluster or answer.item.id for answer in answers),
        scale=scale,
        is_share=is_share,
        group=group,
        paper_id=paper_id,
    )


def mean_by_group(
    kind: str,
    metric: str,
    answers: Sequence[Answer],
    values: Sequence[float],
    *,
    scale: float = 100.0,
    is_share: bool = True,
    paper_ids: Mapping[str, str] | None = None,
) -> list[Score]:
    """The mean of each group of a kind, in the order in which the items name them."""
    scores = []
    for group, chosen in _groups(kind, answers).items():
        scores.append(
            mean(
                metric,
                [answers[index] for index in chosen],
                [values[index] for index in chosen],
                scale=scale,
                is_share=is_share,
                group=group,
                paper_id=(paper_ids or {}).get(group, ""),
            )
        )
    return scores


def mean_of_groups(
    kind: str,
    metric: str,
    answers: Sequence[Answer],
    values: Sequence[float],
    *,
    scale: float = 100.0,
    group: str = "",
    paper_id: str = "",
) -> Score:
    """The mean of the groups' means, however large each is, in units of `scale`."""
    groups = _groups(kind, answers)
    shares = [0.0] * len(values)
    for chosen in groups.values():
        for index in chosen:
            shares[index] = values[index] * len(values) / (len(groups) * len(chosen))
    return mean(metric, answers, shares, scale=scale, group=group, paper_id=paper_id)


def _groups(kind: str, answers: Sequence[Answer]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if kind in answer.item.category:
            groups.setdefault(answer.item.category[kind], []).append(index)
    return groups
