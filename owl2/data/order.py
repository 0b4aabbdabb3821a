"""The order of training samples, as a function of the step.

Nothing is shuffled in memory and no iterator has a state: draw n of a run is (source, index, seed), computed
from n. Each block of draws has every source's exact quota in shuffled places; each pass over a source follows
its own keyed permutation of the indices, so nothing repeats within a pass. A run therefore resumes anywhere
at once, and the batch of a step is the same for any number of ranks and workers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from owl2.data.readers.base import SLICE
from owl2.data.sample import DataError

BLOCK = 10_000
"""Draws in which the quotas are exact; rounding makes Table 14's smallest source 0.24 % off its share."""

WINDOW = 64
"""Slices that are mixed with one another: 6,400 samples, what others hold in a shuffle buffer."""

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """Which sample comes as number n of a run."""

    source: int
    index: int
    seed: int
    """For everything random about this one draw (crop, flip)."""


class Mixture:
    """Sources of given sizes, mixed by weight.

    Raises:
        DataError: an empty source, a negative weight, or one too small for a single draw (0 is off).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        in_slices: Sequence[bool] | None = None,
    ):
        """`in_slices`: which sources are visited in the order of `Slices`; none by default."""
        if len(sizes) != len(weights) or not sizes:
            raise DataError(f"{len(sizes)} sizes and {len(weights)} weights; expected one of each a source")
        if min(sizes) < 1 or min(weights) < 0 or sum(weights) <= 0:
            raise DataError(f"sizes {list(sizes)} and weights {list(weights)} must be positive")
        self.sizes = tuple(sizes)
        self.weights = tuple(weights)
        self.in_slices = tuple(in_slices or [False] * len(sizes))
        self.seed = seed
        self.quotas: list[int] = _quotas(np.asarray(weights, dtype=float)).tolist()
        """Draws of each source in a block."""
        never = [weight for weight, quota in zip(weights, self.quotas, strict=True) if weight and not quota]
        if never:
            raise DataError(
                f"weights {never} of {sum(weights):g} in all are less than one draw in {BLOCK}: their "
                f"sources would never be read; raise the weights or leave the sources out"
            )

    def __getitem__(self, n: int) -> Draw:
        block, place = divmod(n, BLOCK)
        sources, before = _shuffled_block(self.seed, block, tuple(self.quotas))
        source = int(sources[place])
        # Draws of this source before this one: those of full blocks, and those of this block.
        nth = block * self.quotas[source] + int(before[place])
        epoch, i = divmod(nth, self.sizes[source])
        permutation = _permutation(self.sizes[source], self.seed, source, epoch, self.in_slices[source])
        return Draw(source, permutation(i), hash_of(self.seed, n) & 0xFFFFFFFF)

    @property
    def num_samples(self) -> int:
        """Samples of all sources that are drawn from."""
        return sum(size for size, quota in zip(self.sizes, self.quotas, strict=True) if quota)

    def counts(self, num_draws: int) -> list[int]:
        """Return how many of the first draws are of each source."""
        blocks, rest = divmod(num_draws, BLOCK)
        sources, _ = _shuffled_block(self.seed, blocks, tuple(self.quotas))
        begun = np.bincount(sources[:rest], minlength=len(self.sizes))
        counts: list[int] = (blocks * np.asarray(self.quotas) + begun).tolist()
        return counts


class Permutation:
    """A keyed permutation of range(n) in O(1) memory.

    A Feistel network splits a number's bits into two halves and, round by round, swaps them and mixes one
    into the other by a keyed hash. Each round can be undone, whatever the hash, so the network permutes all
    numbers of 2 * half_bits bits, at most 4 n of them. A number that lands beyond n is sent through again
    until it lands within (cycle walking): the cycle it is on leads back to where it came from, so it must,
    and no two numbers meet. That takes at most 4 passes on average.
    """

    ROUNDS = 4

    def __init__(self, n: int, key: int):
        self.n = n
        self.half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self.mask = (1 << self.half_bits) - 1
        self.keys = [hash_of(key, i) for i in range(self.ROUNDS)]

    def __call__(self, i: int) -> int:
        while True:  # cycle walking
            left, right = i >> self.half_bits, i & self.mask
            for key in self.keys:
                left, right = right, left ^ (_mix(right + key) & self.mask)
            i = (left << self.half_bits) | right
            if i < self.n:
                return i


class Slices:
    """A keyed permutation of range(n) in O(1) memory that keeps neighbours near one another.

    Two permutations, one inside the other: slices of SLICE neighbours come in random order, and the samples
    of WINDOW slices at a time are mixed. Storage then sees WINDOW requests for SLICE samples each in place of
    one request a sample.
    """

    def __init__(self, n: int, key: int):
        self.n = n
        self.key = key
        self.num_slices = -(-n // SLICE)
        self.slices = Permutation(self.num_slices, key)

    def __call__(self, i: int) -> int:
        # The last slice may be short, so this permutes the num_slices * SLICE >= n places of whole slices and
        # walks on from places without a sample, as in Permutation.
        while True:
            window, place = divmod(i, WINDOW * SLICE)
            first = window * WINDOW  # in the random order of slices
            num_slices = min(WINDOW, self.num_slices - first)
            number, within = divmod(_window(num_slices, self.key, window)(place), SLICE)
            i = self.slices(first + number) * SLICE + within
            if i < self.n:
                return i


class StepSampler:
    """The draws of each micro-batch of one rank, `micro_batch_size` each."""

    def __init__(
        self, *, micro_batch_size: int, accumulation: int, ranks: int, rank: int, start_step: int, steps: int
    ):
        self.micro_batch_size = micro_batch_size
        self.accumulation = accumulation
        self.ranks = ranks
        self.rank = rank
        self.start_step = start_step
        self.steps = steps

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the draws of each micro-batch of this rank in a step."""
        per_step = self.micro_batch_size * self.accumulation * self.ranks
        mine = range(step * per_step + self.rank, (step + 1) * per_step, self.ranks)
        return [
            list(mine[begin : begin + self.micro_batch_size])
            for begin in range(0, len(mine), self.micro_batch_size)
        ]


@lru_cache(maxsize=4)
def _shuffled_block(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the source of each draw of a block, and how many of its draws come before it in the block."""
    rng = np.random.Generator(np.random.Philox(key=[seed, block]))
    sources = rng.permutation(np.repeat(np.arange(len(quotas)), quotas))
    before = np.empty_like(sources)
    before[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(quota) for quota in quotas])
    return sources, before


@lru_cache(maxsize=256)
def _permutation(size: int, seed: int, source: int, epoch: int, in_slices: bool) -> Permutation | Slices:
    key = hash_of(seed, source, epoch)
    return Slices(size, key) if in_slices else Permutation(size, key)


@lru_cache(maxsize=256)
def _window(num_slices: int, key: int, window: int) -> Permutation:
    return Permutation(num_slices * SLICE, hash_of(key, "window", window))


def _quotas(weights: np.ndarray) -> np.ndarray:
    """Split BLOCK draws by weight; what rounding leaves goes to the largest remainders."""
    exact = weights / weights.sum() * BLOCK
    quotas = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - quotas), kind="stable")
    quotas[largest[: BLOCK - int(quotas.sum())]] += 1
    return quotas


def _mix(x: int) -> int:
    x = (x * 0x9E3779B97F4A7C15) & _MASK64
    x ^= x >> 29
    x = (x * 0xBF58476D1CE4E5B9) & _MASK64
    return x ^ (x >> 32)


def hash_of(*values: int | str) -> int:
    """A number of 64 bits, the same on every machine."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
