"""The order of draws: exact shares, whole passes, and nothing but the step decides."""

import pickle
import time
import tracemalloc
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from owl2.data.order import BLOCK, Mixture, Permutation, StepSampler
from owl2.data.sample import DataError
from tests.data.small import all_batches


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ([1, 1], [5000, 5000]),
        ([1, 2, 4], [1429, 2857, 5714]),
        ([3, 12, 0.6, 100, 100, 100], [95, 380, 19, 3169, 3169, 3168]),
        ([5, 0], [10_000, 0]),
    ],
)
def test_every_block_holds_each_sources_exact_quota(weights: list[float], quotas: list[int]) -> None:
    mixture = Mixture([50] * len(weights), weights, seed=0)
    assert mixture.quotas == quotas
    for block in (0, 123_456):
        drawn = Counter(mixture[n].source for n in range(block * BLOCK, (block + 1) * BLOCK))
        assert [drawn[source] for source in range(len(weights))] == quotas


def test_the_places_of_a_source_differ_from_block_to_block() -> None:
    mixture = Mixture([50, 50], [1, 1], seed=0)
    first, second = ([mixture[n + at].source for n in range(BLOCK)] for at in (0, BLOCK))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 100, 1023, 1025])
def test_a_permutation_is_one_for_every_size_and_key(size: int) -> None:
    for key in range(4):
        permutation = Permutation(size, key)
        assert sorted(map(permutation, range(size))) == list(range(size))
    if size > 50:
        assert list(map(Permutation(size, 0), range(size))) != list(map(Permutation(size, 1), range(size)))


def test_no_sample_comes_again_before_all_others_have_come() -> None:
    """Also at the end of a block in the middle of a pass."""
    sizes = [37, 999]
    mixture = Mixture(sizes, [1, 3], seed=11)
    drawn: list[list[int]] = [[], []]
    for n in range(2 * BLOCK + 500):
        draw = mixture[n]
        drawn[draw.source].append(draw.index)
    for size, indices in zip(sizes, drawn, strict=True):
        for begin in range(0, len(indices) - size, size):
            assert sorted(indices[begin : begin + size]) == list(range(size))


def test_each_pass_is_in_an_order_of_its_own() -> None:
    mixture = Mixture([BLOCK], [1], seed=11)
    passes = [[mixture[n + i * BLOCK].index for n in range(BLOCK)] for i in range(3)]
    assert all(sorted(once) == list(range(BLOCK)) for once in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_permutation_looks_drawn_at_random() -> None:
    permutation = Permutation(10_000, key=5)
    places = torch.tensor([permutation(i) for i in range(10_000)], dtype=torch.float64)
    steps = places.diff().abs()
    assert abs(steps.mean().item() - 10_000 / 3) < 150
    assert abs(torch.corrcoef(torch.stack((places, torch.arange(10_000.0))))[0, 1].item()) < 0.04


def test_each_draw_has_a_seed_of_its_own() -> None:
    mixture = Mixture([2], [1], seed=0)
    assert len({mixture[n].seed for n in range(5000)}) == 5000
    assert {mixture[n].seed for n in range(100)}.isdisjoint(
        Mixture([2], [1], seed=1)[n].seed for n in range(100)
    )


def test_a_draw_is_the_same_whenever_wherever_and_in_whatever_order_it_is_asked_for() -> None:
    one = Mixture([1000, 37], [2, 1], seed=4)
    straight = [one[n] for n in range(3000)]
    other = pickle.loads(pickle.dumps(Mixture([1000, 37], [2, 1], seed=4)))
    assert [other[n] for n in reversed(range(3000))] == straight[::-1]
    assert [Mixture([1000, 37], [2, 1], seed=5)[n] for n in range(100)] != straight[:100]


def test_known_draws_stay_what_they_were() -> None:
    """Another order would silently end the exact resume of runs that are under way."""
    mixture = Mixture([10, 1000, 7], [1, 2.5, 0.3], seed=3)
    drawn = [(d.source, d.index, d.seed) for d in (mixture[0], mixture[999], mixture[123_456_789])]
    assert drawn == [(1, 563, 4188715691), (1, 931, 2424522183), (1, 244, 3960464438)]


def test_a_source_of_a_billion_samples_costs_neither_time_nor_memory() -> None:
    tracemalloc.start()
    began = time.perf_counter()
    mixture = Mixture([10**9, 3 * 10**9], [1, 1], seed=0)
    seen = {(draw.source, draw.index) for draw in (mixture[n] for n in range(10**11, 10**11 + 1000))}
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 1000
    assert all(0 <= index < (10**9, 3 * 10**9)[source] for source, index in seen)
    assert peak < 1_000_000
    assert seconds < 2


def test_weights_and_sizes_that_make_no_mixture_are_errors() -> None:
    with pytest.raises(
        DataError, match=r"weights \[1e-05\] of 1.00001 in all are less than one draw in 10000"
    ):
        Mixture([5, 5], [1, 1e-5], seed=0)
    with pytest.raises(DataError, match=r"sizes \[5, 0\] and weights \[1, 1\] must be positive"):
        Mixture([5, 0], [1, 1], seed=0)
    with pytest.raises(DataError, match="must be positive"):
        Mixture([5, 5], [1, -1], seed=0)
    with pytest.raises(DataError, match="1 sizes and 2 weights"):
        Mixture([5], [1, 1], seed=0)


def batches(
    ranks: int, micro: int, accumulation: int, start: int = 0, steps: int = 5
) -> list[list[list[int]]]:
    """For each rank its micro-batches."""
    return [
        all_batches(
            StepSampler(
                micro_batch_size=micro,
                accumulation=accumulation,
                ranks=ranks,
                rank=rank,
                start_step=start,
                steps=steps,
            )
        )
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(("ranks", "micro", "accumulation"), [(1, 24, 1), (1, 2, 12), (3, 8, 1), (4, 3, 2)])
def test_a_step_has_the_same_draws_however_it_is_split(ranks: int, micro: int, accumulation: int) -> None:
    split = batches(ranks, micro, accumulation)
    assert all(len(batch) == micro for of_rank in split for batch in of_rank)
    for step in range(5):
        here = slice(step * accumulation, (step + 1) * accumulation)
        drawn = [n for of_rank in split for batch in of_rank[here] for n in batch]
        assert sorted(drawn) == list(range(step * 24, (step + 1) * 24))


@pytest.mark.parametrize("start", range(6))
def test_a_sampler_resumed_at_any_step_goes_on_as_the_whole_one(start: int) -> None:
    for rank in range(2):
        assert batches(2, 3, 4, start)[rank] == batches(2, 3, 4)[rank][start * 4 :]


class Numbers(Dataset[int]):
    def __getitem__(self, n: int) -> int:
        return n


def test_a_data_loader_gives_the_samplers_batches_in_order_with_any_number_of_workers() -> None:
    sampler = StepSampler(micro_batch_size=3, accumulation=2, ranks=1, rank=0, start_step=2, steps=6)
    for workers in (0, 2):
        loader = DataLoader(
            Numbers(), batch_sampler=all_batches(sampler), num_workers=workers, collate_fn=list
        )
        assert list(loader) == all_batches(sampler)
