"""How far a figure could be off by the choice of questions: 95 % intervals and paired differences.

Items of one cluster (questions on one image, rotations of one question) are right or wrong together, so whole
clusters are resampled (percentile bootstrap, seeded). A plain share of independent items has Wilson's
interval, which is right near 0 and 1, where the bootstrap is not. Figures that are no mean are scored again
on resampled items. Whether two runs differ is a randomisation test: if they are equally good, the two
results of a cluster might as well be swapped.

Shapes: C clusters, R resamples.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from owl2.eval.task import Answer, Interval, Score

NUM_RESAMPLES = 2000
NUM_RESCORINGS = 200
"""Resamples where each one is scored again."""
NUM_SWAPS = 10_000
MAX_EXACT = 12
"""Clusters up to which all 2 ** C swaps are tried."""
MAX_RANDOM = 2000
LEVEL = 0.95
Z = 1.959963984540054
"""The normal distribution's quantile at (1 + LEVEL) / 2."""
CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Difference:
    """B - A over the same questions."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided probability of a difference this large if A and B were equally good."""
    n: int
    num_clusters: int


def interval_of(score: Score, seed: int = 0) -> Interval | None:
    """The interval of a score that is a mean; None if it is not, or if nothing in it varies."""
    if not score.values:
        return None
    values, clusters = np.asarray(score.values, dtype=np.float64), clusters_of(score)
    num_clusters = len(set(clusters))
    if num_clusters < 2:
        return None
    is_uniform = len(set(score.values)) == 1
    is_count = score.is_share and set(score.values) <= {0.0, 1.0}
    if is_count and (num_clusters == len(clusters) or (is_uniform and score.scale == 100.0)):
        low, high = wilson(round(values.mean() * num_clusters), num_clusters)
        return Interval(score.scale * low, score.scale * high, "Wilson")
    if is_uniform:
        return None  # any resample of equal values is equal: the bootstrap would claim certainty
    means = score.scale * bootstrap_means(values, clusters, seed=seed)
    low, high = percentiles(means)
    return Interval(low, high, f"bootstrap, {NUM_RESAMPLES} resamples of {num_clusters} clusters")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share = successes / n
    spread = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / spread
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / spread
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_means(
    values: NDArray[np.float64], clusters: Sequence[str], *, resamples: int = NUM_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `values` over resamples of whole clusters -> (R,)."""
    sums, counts = _cluster_sums(values, clusters)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, CHUNK_ELEMENTS // len(sums))
    for begin in range(0, resamples, step):
        chosen = rng.integers(0, len(sums), size=(min(step, resamples - begin), len(sums)))
        means.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    return np.concatenate(means)


def rescored_intervals(
    answers: Sequence[Answer],
    score: Callable[[Sequence[Answer]], Sequence[Score]],
    *,
    count: int = NUM_RESCORINGS,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """Intervals by (metric, group) of figures that are no means, by scoring resampled items again."""
    values: dict[tuple[str, str], list[float]] = {}
    num_clusters = len({cluster_of(answer) for answer in answers})
    for resampled in resamples(answers, count, seed):
        for figure in score(resampled):
            if not figure.values:
                values.setdefault((figure.metric, figure.group), []).append(figure.value)
    method = f"bootstrap, {count} resamples of {num_clusters} clusters"
    return {
        key: Interval(*percentiles(np.asarray(found)), method)
        for key, found in values.items()
        if num_clusters > 1 and len(found) >= count // 2
    }


def resamples(answers: Sequence[Answer], count: int, seed: int) -> Iterator[list[Answer]]:
    """Resamples of whole clusters of answers.

    A cluster that is chosen twice becomes two clusters with new names, as its items must not be taken for one
    larger group.
    """
    by_cluster: dict[str, list[Answer]] = {}
    for answer in answers:
        by_cluster.setdefault(cluster_of(answer), []).append(answer)
    copies = [[group] for group in by_cluster.values()]
    rng = np.random.default_rng(seed)
    for _ in range(count):
        resampled: list[Answer] = []
        for number, times in enumerate(rng.multinomial(len(copies), [1 / len(copies)] * len(copies))):
            known = copies[number]
            while len(known) < times:
                known.append([_renamed(answer, len(known)) for answer in known[0]])
            for group in known[:times]:
                resampled += group
        yield resampled


def paired_difference(first: Score, second: Score, seed: int = 0) -> Difference:
    """Interval and test of `second - first`, scores over the same items in the same order.

    Raises:
        ValueError: the scores are not over the same number of items.
    """
    if len(first.values) != len(second.values):
        raise ValueError(f"{first.metric}: {len(first.values)} and {len(second.values)} items are not paired")
    differences = second.scale * np.asarray(second.values) - first.scale * np.asarray(first.values)
    clusters = clusters_of(first)
    sums, _ = _cluster_sums(differences, clusters)
    low, high = percentiles(bootstrap_means(differences, clusters, seed=seed))
    return Difference(
        value=second.value - first.value,
        low=low,
        high=high,
        p=swap_test(sums, seed),
        n=len(differences),
        num_clusters=len(sums),
    )


def swap_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p of a sum of differences (C,), each of which might as well have the other sign.

    Exact where all differences are of one size (a sign test, as McNemar's) or few enough to try every
    combination. Up to `MAX_RANDOM` differences, `NUM_SWAPS` random combinations are tried, so p is never
    below 1 / (NUM_SWAPS + 1); the sum of more has the normal distribution.
    """
    sizes = np.abs(differences[differences != 0])
    count = len(sizes)
    total = abs(float(differences.sum()))
    tolerance = 1e-9 * max(1.0, float(sizes.sum()))
    if total <= tolerance:
        return 1.0
    if np.ptp(sizes) <= tolerance / count:
        rarer = round((count - total / float(sizes[0])) / 2)  # of `count` signs, those against the difference
        return min(1.0, 2 * sum(_binomial(count, k) for k in range(rarer + 1)))
    if count <= MAX_EXACT:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(signs @ sizes) >= total - tolerance).mean())
    if count > MAX_RANDOM:
        return normal_p(total, float(np.sqrt((sizes**2).sum())))
    rng = np.random.default_rng(seed)
    found = 0
    step = max(1, CHUNK_ELEMENTS // count)
    for begin in range(0, NUM_SWAPS, step):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(step, NUM_SWAPS - begin), count), dtype=np.int8)
        found += int((np.abs(signs @ sizes) >= total - tolerance).sum())
    return (found + 1) / (NUM_SWAPS + 1)


def _binomial(count: int, k: int) -> float:
    """Probability of k heads in `count` throws of a coin; through logarithms, as `count` may be large."""
    logarithm = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(logarithm - count * math.log(2))


def normal_p(value: float, spread: float) -> float:
    """Two-sided p of a difference with this standard error; 1 where nothing varies."""
    return math.erfc(abs(value) / spread / math.sqrt(2)) if spread else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values for which 5 % holds for all comparisons together."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _cluster_sums(
    values: NDArray[np.float64], clusters: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster -> (C,), (C,)."""
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(numbers, weights=values).astype(np.float64)
    return sums, np.bincount(numbers).astype(np.float64)


def clusters_of(score: Score) -> tuple[str, ...]:
    """A score's clusters; each item its own where it names none."""
    return score.clusters or tuple(str(number) for number in range(len(score.values)))


def cluster_of(answer: Answer) -> str:
    """An item's cluster; its id where it names none."""
    return answer.item.cluster or answer.item.id


def _renamed(answer: Answer, number: int) -> Answer:
    item = dataclasses.replace(
        answer.item, id=f"{answer.item.id}~{number}", cluster=f"{cluster_of(answer)}~{number}"
    )
    return dataclasses.replace(answer, item=item)
