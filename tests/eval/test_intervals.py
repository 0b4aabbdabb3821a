"""Intervals: textbook values, coverage, clusters, and differences of paired runs."""

import dataclasses
import itertools

import numpy as np
import pytest

from owl2.eval.report.compare import MIN_CLUSTERS
from owl2.eval.scoring.intervals import (
    NUM_SWAPS,
    bootstrap_means,
    holm,
    interval_of,
    paired_difference,
    percentiles,
    rescored_intervals,
    swap_test,
    wilson,
)
from owl2.eval.task import Answer, Item, Score


def share(values: list[float], clusters: list[str] | None = None, scale: float = 100.0) -> Score:
    mean = scale * sum(values) / len(values)
    return Score("accuracy", mean, len(values), tuple(values), tuple(clusters or ()), scale)


def test_wilsons_interval_has_the_textbook_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_a_plain_share_has_wilsons_interval_in_the_papers_unit() -> None:
    interval = interval_of(share([1.0] * 8 + [0.0] * 2))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((49.02, 94.33), abs=0.01)
    assert interval.method == "Wilson"


def test_the_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    low, high = percentiles(bootstrap_means(values, [str(i) for i in range(1000)]))
    half = 1.96 * values.std() / np.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_values_of_one_cluster_count_as_one() -> None:
    values = np.random.default_rng(1).random(100).tolist()
    clusters = [str(number) for number in range(100)]
    alone = interval_of(share(values, clusters))
    fourfold = interval_of(share(values * 4, clusters * 4))
    apart = interval_of(share(values * 4))
    assert alone is not None
    assert fourfold is not None
    assert apart is not None
    assert (fourfold.low, fourfold.high) == pytest.approx((alone.low, alone.high))
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)


def test_all_wrong_is_not_certain_to_stay_so() -> None:
    interval = interval_of(share([0.0] * 6, ["a", "a", "b", "b", "c", "c"]))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((0.0, 56.15), abs=0.01)


def test_a_figure_that_is_no_share_has_no_interval_where_nothing_varies() -> None:
    for value in (0.0, 1.0):
        score = dataclasses.replace(share([value] * 6), is_share=False)
        assert interval_of(score) is None


def test_one_cluster_has_no_interval() -> None:
    assert interval_of(share([1.0, 0.0], ["a", "a"])) is None


def test_a_seed_gives_the_same_interval_again() -> None:
    score = share(np.random.default_rng(2).random(50).tolist())
    assert interval_of(score) == interval_of(score)
    assert interval_of(score, seed=1) != interval_of(score)


def test_a_figure_that_is_no_mean_is_scored_anew_on_drawn_clusters() -> None:
    rng = np.random.default_rng(3)
    answers = [
        Answer(Item(str(i), "?", cluster=str(i // 2)), "", "yes" if rng.random() < 0.7 else "no")
        for i in range(200)
    ]

    def worst_pairs(resampled: object) -> list[Score]:
        pairs: dict[str, list[Answer]] = {}
        for answer in resampled:  # type: ignore[attr-defined]
            pairs.setdefault(answer.item.cluster, []).append(answer)
        assert len(pairs) == 100
        assert all(len(pair) == 2 for pair in pairs.values()), "a cluster chosen twice is two clusters"
        both = sum(all(answer.parsed == "yes" for answer in pair) for pair in pairs.values())
        return [Score("both", float(both), 100)]

    (interval,) = rescored_intervals(answers, worst_pairs).values()
    value = worst_pairs(answers)[0].value
    half = 1.96 * np.sqrt(value * (1 - value / 100))
    assert (interval.low, interval.high) == pytest.approx((value - half, value + half), abs=0.35 * half)


def test_a_small_paired_difference_is_certain_where_the_runs_agree() -> None:
    rng = np.random.default_rng(4)
    a = (rng.random(400) < 0.5).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:15]] = 1.0
    found = paired_difference(share(a.tolist()), share(b.tolist()))
    assert found.value == pytest.approx(3.75)
    assert 1.5 < found.low < 3.75 < found.high < 6.0
    assert found.p < 0.01
    none = paired_difference(share(a.tolist()), share(a.tolist()))
    assert (none.low, none.high, none.p) == (0.0, 0.0, 1.0)


def test_scores_over_different_items_are_not_paired() -> None:
    with pytest.raises(ValueError, match="3 and 2 items"):
        paired_difference(share([1.0, 0.0, 1.0]), share([1.0, 0.0]))


def test_the_swap_test_is_mcnemars_exact_test_where_answers_are_right_or_wrong() -> None:
    # 15 questions that only B has right and 5 that only A has: twice the binomial tail P(X <= 5 | 20, 1/2).
    differences = np.array([1.0] * 15 + [-1.0] * 5 + [0.0] * 80)
    assert swap_test(differences) == pytest.approx(2 * 21_700 / 2**20)
    assert swap_test(100 * differences) == swap_test(differences)


def test_few_clusters_are_tested_by_every_swap() -> None:
    differences = np.array([3.0, 2.0, 1.5, -0.5])
    totals = [
        abs(sum(d * s for d, s in zip(differences, signs, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert swap_test(differences) == sum(total >= 6.0 for total in totals) / 16
    assert swap_test(np.array([7.0])) == 1.0
    assert swap_test(np.zeros(5)) == 1.0


def test_random_swaps_agree_with_the_exact_test_and_are_never_zero() -> None:
    exact = np.array([1.0] * 30 + [-1.0] * 14)
    almost = exact * (1 + 1e-6 * np.arange(44))  # sizes differ, so that swaps are random
    assert swap_test(almost) == pytest.approx(swap_test(exact), abs=0.004)
    assert 0 < swap_test(np.arange(1.0, 300.0)) < 2 / NUM_SWAPS
    many = np.concatenate([np.linspace(1, 2, 1600), -np.linspace(1, 2, 1500)])
    swaps = np.random.default_rng(0).choice([-1, 1], size=(4000, len(many))) @ np.abs(many)
    assert swap_test(many) == pytest.approx(float((np.abs(swaps) >= many.sum()).mean()), abs=0.02)


def test_equal_runs_are_called_different_as_often_as_promised() -> None:
    rng = np.random.default_rng(5)
    trials = [swap_test(rng.normal(size=25) * rng.integers(1, 4, 25), seed=i) for i in range(200)]
    assert np.mean([p < 0.05 for p in trials]) == pytest.approx(0.05, abs=0.04)


def test_holms_correction_has_the_textbook_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("num_clusters", "low", "high"), [(5, 0.6, 0.85), (20, 0.92, 0.98)])
def test_intervals_cover_from_as_many_clusters_on_as_are_tested(
    num_clusters: int, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        difference = (rng.random(num_clusters) < 0.6) - 1.0 * (rng.random(num_clusters) < 0.5)
        names = [str(i) for i in range(num_clusters)]
        lower, upper = percentiles(bootstrap_means(difference, names, resamples=500))
        covered.append(lower <= 0.1 <= upper)
    assert low < np.mean(covered) < high
    assert MIN_CLUSTERS == 20
