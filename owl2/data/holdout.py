"""A share of a source that is never trained on, for users without validation data of their own.

The samples are cut into blocks of about 1 / share neighbours, and of each whole block one sample is held out,
at a place that depends on the seed, the source's name and the block's number alone. Any rank therefore knows
after any resume, without a list, which samples these are, and neighbours stay neighbours, as sources that are
read in slices need.
"""

from fractions import Fraction

from owl2.data.order import hash_of
from owl2.data.readers.base import Source
from owl2.data.sample import Sample


class Part(Source):
    """What is left of a source for training, or what is held out of it, in the source's order."""

    def __init__(self, source: Source, share: float, seed: int, *, is_held_out: bool = False):
        """`share`: of the samples that are held out, above 0 and at most a half."""
        self.source = source
        self.name = source.name
        self.in_slices = source.in_slices
        self.lost, self.num_lost, self.num_incomplete = source.lost, source.num_lost, source.num_incomplete
        self.seed = seed
        self.is_held_out = is_held_out
        self.share = Fraction(str(share))
        self.num_held_out = int(len(source) * self.share)

    def __len__(self) -> int:
        return self.num_held_out if self.is_held_out else len(self.source) - self.num_held_out

    def __getitem__(self, index: int) -> Sample:
        self._check(index)
        return self.source[self.number(index)]

    def number(self, index: int) -> int:
        """The number in the whole source of a sample of this part."""
        if self.is_held_out:
            return self._held_out(index)
        # Before each block's own, one sample of every block before it is held out.
        block = int(index / (1 / self.share - 1))
        number = index + block
        return number + (block < self.num_held_out and number >= self._held_out(block))

    def _held_out(self, block: int) -> int:
        begin, end = (-int(-n // self.share) for n in (block, block + 1))
        return begin + hash_of(self.seed, self.name, "held out", block) % (end - begin)

    def fingerprint(self) -> str:
        """That of the whole source."""
        return self.source.fingerprint()
