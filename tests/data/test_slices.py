"""The order in slices: every sample once, neighbours soon after one another; nothing but the step decides."""

import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from owl2.data.order import WINDOW, Mixture, Slices, StepSampler
from owl2.data.readers.base import SLICE
from tests.data.small import all_batches


@pytest.mark.parametrize("size", [1, 2, 99, 100, 101, 6_399, 6_400, 6_401, 13_037])
def test_every_sample_comes_once_in_a_pass(size: int) -> None:
    order = list(map(Slices(size, key=3), range(size)))
    assert sorted(order) == list(range(size))
    if size > 50:
        assert order != list(map(Slices(size, key=4), range(size)))


def test_a_window_holds_the_whole_of_its_slices() -> None:
    size = 3 * WINDOW * SLICE
    order = torch.tensor(list(map(Slices(size, key=7), range(size)))).view(3, WINDOW * SLICE)
    slices = [set(window.tolist()) for window in order // SLICE]
    assert [len(window) for window in slices] == [WINDOW] * 3
    assert slices[0] | slices[1] | slices[2] == set(range(3 * WINDOW))


def test_a_short_last_slice_sends_few_samples_out_of_their_window() -> None:
    size = 2 * WINDOW * SLICE + 37
    places = Slices(size, key=1)
    requests = sum(
        len({places(i) // SLICE for i in range(begin, min(size, begin + WINDOW * SLICE))})
        for begin in range(0, size, WINDOW * SLICE)
    )
    assert requests <= -(-size // SLICE) + SLICE


def test_within_a_window_samples_look_drawn_at_random() -> None:
    order = list(map(Slices(100_000, key=5), range(WINDOW * SLICE)))
    together = sum(a // SLICE == b // SLICE for a, b in pairwise(order))
    assert abs(together - len(order) / WINDOW) < 40
    counts = Counter(place // SLICE for place in order[: WINDOW * SLICE // 2])
    assert all(abs(counts[number] - SLICE / 2) < 5 * (SLICE / 4) ** 0.5 for number in counts)
    starts = [order[begin] // SLICE for begin in range(0, len(order), SLICE)]
    assert starts != sorted(starts)


def mixture(**changes: Any) -> Mixture:
    settings = {"sizes": [6_789, 700], "weights": [3, 1], "seed": 2, "in_slices": [True, False]}
    return Mixture(**{**settings, **changes})


def test_a_source_in_slices_changes_no_other_and_not_the_shares() -> None:
    sliced, plain = ([order[n] for n in range(3000)] for order in (mixture(), mixture(in_slices=None)))
    assert [draw.source for draw in sliced] == [draw.source for draw in plain]
    assert [draw for draw in sliced if draw.source] == [draw for draw in plain if draw.source]
    assert [draw for draw in sliced if not draw.source] != [draw for draw in plain if not draw.source]
    assert [mixture()[n] for n in range(2999, -1, -1)] == sliced[::-1]


def test_a_pass_ends_before_the_next_begins_and_has_an_order_of_its_own() -> None:
    drawn = [draw.index for draw in (mixture()[n] for n in range(19_000)) if not draw.source]
    first, second = drawn[:6_789], drawn[6_789 : 2 * 6_789]
    assert sorted(first) == sorted(second) == list(range(6_789))
    assert first != second


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_resumed_at_any_step_on_any_number_of_ranks_draws_the_same(ranks: int) -> None:
    def draws(start: int, ranks: int) -> list[set[tuple[int, int, int]]]:
        order, steps = mixture(), 36
        samplers = [
            StepSampler(
                micro_batch_size=256 // ranks,
                accumulation=1,
                ranks=ranks,
                rank=rank,
                start_step=start,
                steps=steps,
            )
            for rank in range(ranks)
        ]
        batches = zip(*map(all_batches, samplers), strict=True)
        drawn = [[order[n] for batch in together for n in batch] for together in batches]
        return [{(draw.source, draw.index, draw.seed) for draw in step} for step in drawn]

    whole = draws(0, 1)
    assert all(len(step) == 256 for step in whole)
    for start in (0, 1, 33, 35):  # a window ends in between
        assert draws(start, ranks) == whole[start:]


def test_a_billion_samples_in_slices_take_no_memory() -> None:
    tracemalloc.start()
    order = Mixture([10**9], [1], seed=0, in_slices=[True])
    seen = {order[n].index for n in range(10**11, 10**11 + 1000)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 1000
    assert peak < 2_000_000


def test_known_draws_in_slices_stay_what_they_were() -> None:
    """Another order would silently end the exact resume of runs that are under way."""
    order = mixture()
    assert [(order[n].source, order[n].index) for n in (0, 9_999, 123_456_789)] == [
        (0, 1451),
        (0, 5201),
        (0, 6260),
    ]
