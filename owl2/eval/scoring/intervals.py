"""How far a figure could be off by the choice of questions: 95 % intervals and paired differences.

Items of one cluster (questions on one image, rotations of one question) stand or fall together, so whole
clusters are drawn (percentile bootstrap, seeded). A plain share of independent items has Wilson's interval,
which is right near 0 and 1, where the bootstrap is not. Figures that are no mean are computed anew on drawn
items.

Shapes: C clusters, R draws.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from owl2.eval.task import Answer, Score

NUM_DRAWS = 2000
NUM_RESCORINGS = 200
"""Draws where each means scoring anew."""
LEVEL = 0.95
Z = 1.959963984540054
"""The normal distribution's quantile at (1 + LEVEL) / 2."""
CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Interval:
    """Where the figure would lie in 95 of 100 drawings of the questions."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Difference:
    """What a paired bootstrap says of B - A."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided: the share of draws on the other side of no difference, doubled."""
    n: int


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
        return None  # any drawing of equal values is equal: the bootstrap would claim certainty
    means = score.scale * bootstrap_means(values, clusters, seed=seed)
    low, high = percentiles(means)
    return Interval(low, high, f"bootstrap, {NUM_DRAWS} draws of {num_clusters} clusters")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share = successes / n
    spread = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / spread
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / spread
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_means(
    values: NDArray[np.float64], clusters: Sequence[str], *, draws: int = NUM_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `values` over `draws` drawings of whole clusters -> (R,)."""
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(numbers, weights=values)
    counts = np.bincount(numbers).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, CHUNK_ELEMENTS // len(sums))
    for begin in range(0, draws, step):
        drawn = rng.integers(0, len(sums), size=(min(step, draws - begin), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


def rescored_intervals(
    answers: Sequence[Answer],
    score: Callable[[Sequence[Answer]], Sequence[Score]],
    *,
    draws: int = NUM_RESCORINGS,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """Intervals by (metric, group) of figures that are no means, by scoring drawn items anew.

    A cluster drawn twice becomes two clusters, as its items must not be taken for one larger group.
    """
    values: dict[tuple[str, str], list[float]] = {}
    num_clusters = len({cluster_of(answer) for answer in answers})
    for drawn in resamples(answers, draws, seed):
        for figure in score(drawn):
            if not figure.values:
                values.setdefault((figure.metric, figure.group), []).append(figure.value)
    method = f"bootstrap, {draws} draws of {num_clusters} clusters"
    return {
        key: Interval(*percentiles(np.asarray(found)), method)
        for key, found in values.items()
        if num_clusters > 1 and len(found) >= draws // 2
    }


def resamples(answers: Sequence[Answer], draws: int, seed: int) -> Iterator[list[Answer]]:
    """Drawings of whole clusters of answers; of a cluster drawn again, ids and cluster get a new name."""
    by_cluster: dict[str, list[Answer]] = {}
    for answer in answers:
        by_cluster.setdefault(cluster_of(answer), []).append(answer)
    copies = [[group] for group in by_cluster.values()]
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn: list[Answer] = []
        for number, times in enumerate(rng.multinomial(len(copies), [1 / len(copies)] * len(copies))):
            known = copies[number]
            while len(known) < times:
                known.append([_renamed(answer, len(known)) for answer in known[0]])
            for group in known[:times]:
                drawn += group
        yield drawn


def paired_difference(first: Score, second: Score, seed: int = 0) -> Difference:
    """Bootstrap of `second - first`, scores over the same items in the same order.

    Raises:
        ValueError: the scores are not over the same number of items.
    """
    if len(first.values) != len(second.values):
        raise ValueError(f"{first.metric}: {len(first.values)} and {len(second.values)} items are not paired")
    a = first.scale * np.asarray(first.values)
    b = second.scale * np.asarray(second.values)
    drawn = bootstrap_means(b - a, clusters_of(first), seed=seed)
    low, high = percentiles(drawn)
    return Difference(second.value - first.value, low, high, two_sided_p(drawn), len(a))


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Twice the share of draws at or beyond zero on the rarer side, 1 at most."""
    return min(1.0, 2 * min(float((differences <= 0).mean()), float((differences >= 0).mean())))


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
