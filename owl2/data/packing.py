"""The samples of a step in packs of limited length, spread evenly over packs and ranks.

A step has the samples of the plain order (order.py), whatever the packs and ranks: packing decides only which
rank computes which samples together, so it changes neither the loss, which is divided by the targets of the
whole step, nor where a run resumes. Packs are a pure function of the step. The length of a sample, visual
tokens included, follows from its text and its number of images, before any image is opened.

Samples are placed largest first into the emptiest pack (Graham, 1969), in two dimensions: the decoder's work
is proportional to tokens, the vision encoder's to images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """What a sample costs."""

    tokens: int
    """Visual ones included."""
    images: int


NOTHING = Size(0, 0)
"""The size of a sample that cannot be used: it leaves a hole in its pack."""


@dataclass(frozen=True)
class PackSampler:
    """The draws of each pack of one rank.

    Every rank works out the packs of the whole step by itself, which costs tokenising the step's text.
    """

    size_of: Callable[[int], Size]
    """Draw number to the sample's size."""
    global_batch_size: int
    pack_tokens: int
    """Most tokens of a pack."""
    ranks: int
    rank: int
    start_step: int
    steps: int

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the draws of each pack of this rank; every rank has the same number of packs."""
        first = step * self.global_batch_size
        sizes = [self.size_of(n) for n in range(first, first + self.global_batch_size)]
        packs = deal(sizes, pack(sizes, self.pack_tokens, self.ranks), self.ranks)[self.rank]
        return [[first + position for position in sorted(members)] for members in packs]


def pack(sizes: Sequence[Size], capacity: int, multiple: int = 1) -> list[list[int]]:
    """Put samples into the fewest packs that are found to hold them, a multiple of `multiple`; some may be
    empty.

    A sample of more than `capacity` tokens (questions apart have many rows) gets a pack of its own.

    Returns:
        The positions in `sizes` of each pack's members.
    """
    least = sum(min(size.tokens, capacity) for size in sizes) / capacity
    rounds = max(1, math.ceil(least / multiple))
    while (packs := _spread(sizes, rounds * multiple, capacity)) is None:
        rounds += 1
    return packs


def deal(sizes: Sequence[Size], packs: Sequence[list[int]], ranks: int) -> list[list[list[int]]]:
    """Give each rank its packs so that packs computed at the same time have about the same number of images.

    Packs are ordered by images and dealt to the ranks back and forth: 0 1 2 3, then 3 2 1 0.
    """

    def load(members: list[int]) -> Size:
        return Size(sum(sizes[i].tokens for i in members), sum(sizes[i].images for i in members))

    ordered = sorted(packs, key=lambda members: load(members)[::-1], reverse=True)
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    for begin in range(0, len(ordered), ranks):
        row = ordered[begin : begin + ranks]
        for rank, members in enumerate(row if begin // ranks % 2 == 0 else reversed(row)):
            dealt[rank].append(members)
    return dealt


def _spread(sizes: Sequence[Size], num_packs: int, capacity: int) -> list[list[int]] | None:
    """Put each sample into the pack whose larger load stays the least; None if a sample fits into no pack.

    Both loads, tokens and images, are measured in shares of their means over the packs, so that neither
    counts more than the other; a sample's own larger share decides when it is placed.
    """
    means = np.maximum(np.sum(sizes, axis=0), 1) / num_packs
    shares = np.asarray(sizes) / means  # (samples, 2)
    loads = np.zeros((num_packs, 2))
    free = np.full(num_packs, capacity)
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    for sample in np.argsort(-shares.max(axis=1), kind="stable").tolist():
        tokens = sizes[sample].tokens
        needed = min(tokens, capacity)
        after = np.where(free >= needed, (loads + shares[sample]).max(axis=1), np.inf)
        chosen = int(after.argmin())
        if free[chosen] < needed:
            return None
        packs[chosen].append(sample)
        loads[chosen] += shares[sample]
        free[chosen] -= tokens
    return packs
