"""The questions that `--limit` keeps: a seeded sample, stratified by group and whole by cluster.

The first rows of most official files are of one category or one image, so they say little about the whole.
Here the clusters (questions on one image, rotations of one question) are put into one fixed random order in
which every group advances at the same pace, and the sample is the beginning of that order. A larger limit
therefore contains every smaller one, so a run can be continued with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from owl2.eval.hashing import short_hash
from owl2.eval.task import Item

SEED = 0


def sample_items(task: str, items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items in their order, whole clusters only; one cluster at least."""
    clusters: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        clusters.setdefault(item.cluster or item.id, []).append(number)
    chosen: list[int] = []
    for name in _order(task, {name: items[members[0]] for name, members in clusters.items()}):
        if chosen and len(chosen) + len(clusters[name]) > limit:
            break
        chosen += clusters[name]
    return [items[number] for number in sorted(chosen)]


def describe_sample(limit: int | None) -> dict[str, Any]:
    """What a run's identity records of the sample; nothing for all questions."""
    return {} if limit is None else {"limit": limit, "seed": SEED, "by": "group, whole clusters"}


def _order(task: str, firsts: Mapping[str, Item]) -> list[str]:
    """Clusters in the order of sampling: the r-th of the n of a group is at (r + offset) / n."""
    strata: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, item in firsts.items():
        strata.setdefault(tuple(sorted(item.category.items())), []).append(name)
    places: dict[str, tuple[float, str]] = {}
    for group, names in strata.items():
        offset = int(short_hash(f"{SEED}/{task}/{group}"), 16) / 16**16
        shuffled = sorted(names, key=lambda name: short_hash(f"{SEED}/{task}/{name}"))
        for rank, name in enumerate(shuffled):
            places[name] = ((rank + offset) / len(names), name)
    return sorted(places, key=places.__getitem__)
