"""Means of groups: figures from answers, each with its items' shares."""

import pytest

from owl2.eval.metrics.averages import mean, mean_by_group, mean_of_groups
from owl2.eval.task import Answer, Item


def asked(*groups: str) -> list[Answer]:
    return [
        Answer(Item(str(n), "?", category={"kind": group} if group else {}), "", None)
        for n, group in enumerate(groups)
    ]


def test_the_mean_of_groups_weighs_groups_and_its_shares_average_to_it() -> None:
    answers = asked("a", "b", "b", "b")
    values = [1.0, 0.0, 0.0, 1.0]
    score = mean_of_groups("kind", "m", answers, values)
    assert score.value == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert score.scale * sum(score.values) / 4 == pytest.approx(score.value)
    assert mean("m", answers, values).value == 50.0


def test_groups_keep_the_order_of_the_items_and_items_without_one_are_in_none() -> None:
    scores = mean_by_group("kind", "m", asked("b", "", "a", "b"), [1, 1, 0, 0], paper_ids={"a": "1/0"})
    assert [(s.group, s.value, s.n, s.paper_id) for s in scores] == [("b", 50.0, 2, ""), ("a", 0.0, 1, "1/0")]


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="m: 0 values for 0 answers"):
        mean("m", [], [])
