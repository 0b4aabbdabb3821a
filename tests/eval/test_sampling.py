"""`--limit`: a seeded sample of every group, whole clusters, and each sample inside the larger ones."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from owl2.eval.engines.local import OwlEngine
from owl2.eval.sampling import sample_items
from owl2.eval.task import Item
from tests.eval.small import plan, read, run


def items(groups: dict[str, int], per_cluster: int = 1) -> list[Item]:
    """So many clusters of each group, group after group, as official files have them."""
    return [
        Item(f"{group}/{number}/{part}", "?", category={"group": group}, cluster=f"{group}/{number}")
        for group, count in groups.items()
        for number in range(count)
        for part in range(per_cluster)
    ]


def test_every_group_has_its_share_of_the_sample() -> None:
    found = sample_items("t", items({"a": 600, "b": 300, "c": 100}), 100)
    counts = Counter(item.category["group"] for item in found)
    assert sum(counts.values()) == 100
    assert counts["a"] == pytest.approx(60, abs=1)
    assert counts["b"] == pytest.approx(30, abs=1)
    assert counts["c"] == pytest.approx(10, abs=1)


def test_groups_of_one_are_not_favoured() -> None:
    found = sample_items("t", items({str(number): 1 for number in range(400)}), 40)
    places = [int(item.category["group"]) for item in found]
    assert len(places) == 40
    assert places[0] < 100
    assert places[-1] > 300


def test_clusters_are_whole_and_the_limit_is_kept() -> None:
    whole = items({"a": 50, "b": 50}, per_cluster=4)
    for limit in (1, 7, 8, 30, 400, 1000):
        found = sample_items("t", whole, limit)
        assert set(Counter(item.cluster for item in found).values()) == {4}
        assert len(found) <= max(limit, 4)
    assert sample_items("t", whole, 400) == whole


def test_a_larger_sample_contains_a_smaller_one_and_both_keep_the_files_order() -> None:
    whole = items({"a": 40, "b": 7, "c": 1}, per_cluster=3)
    samples = [sample_items("t", whole, limit) for limit in (3, 10, 40, 100)]
    for small, large in itertools.pairwise(samples):
        assert {item.id for item in small} <= {item.id for item in large}
    assert all(found == [item for item in whole if item in found] for found in samples)


def test_the_sample_is_not_the_first_rows_and_is_the_same_again() -> None:
    whole = items({"a": 1000})
    found = sample_items("t", whole, 50)
    assert found != whole[:50]
    assert found == sample_items("t", whole, 50)
    assert found != sample_items("another task", whole, 50)


def test_the_run_records_its_sample(engine: OwlEngine, vqa_data: Path, tmp_path: Path) -> None:
    run(engine, vqa_data, tmp_path, limit=6)
    assert read(tmp_path).config.sample == {"limit": 6, "seed": 0, "by": "group, whole clusters"}
    assert set(read(tmp_path).by_id) == {item.id for item in plan(vqa_data, limit=6).items}
