"""What a source of samples is: random access by index, a fingerprint, and an account of what is lost.

The order of samples (order.py) is a function of the step, so every format must give sample `i` at once. A
source of many files keeps going without the few that are damaged: a corpus of a thousand shards has one that
was cut in transit, and a run should not wait for it. What is left out is listed in `lost`, with its estimated
share in `lost_share`; the loader stops a run that lost too much, and opening fails if more than
MAX_LOST_FILES are damaged.
"""

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from owl2.data.readers.storage import THREADS, StoredFile, is_url
from owl2.data.sample import DataError, Sample

SLICE = 100
"""Neighbouring samples that storage is asked for in one request, if a source is read in slices."""

MAX_LOST_FILES = 0.01
"""Share of a source's files that may be damaged; a single one of several always may."""

Shuffle = Literal["samples", "slices"]
"""Whether a pass visits single samples at random, or slices of neighbours at random, mixed within a
window."""


class LostFile(NamedTuple):
    """A file that is left out, whole or in part."""

    file: str
    """Its name without folders."""
    reason: str


class Source(ABC):
    """A corpus with random access."""

    name: str
    in_slices: bool
    """Whether neighbours should be read soon after one another."""
    lost: Sequence[LostFile] = ()
    num_lost: int = 0
    """Estimated number of samples that are left out with them."""
    num_incomplete: int = 0
    """Images without a caption or captions without an image."""
    num_held_out: int = 0
    """Samples that are kept for validation and not counted by `len`."""

    @property
    def lost_share(self) -> float:
        """Estimated share of the samples that is left out, 0 to 1."""
        return self.num_lost / (len(self) + self.num_lost)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return a sample, its images still closed.

        Raises:
            DataError: it cannot be used.
            StorageError: the storage does not answer.
        """

    def _check(self, index: int) -> None:
        """Raise IndexError if there is no such sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, none is number {index}")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits for the content, the same on every machine and under every path.

        It changes if a row is added, edited or moved. Each source documents what exactly it covers.
        """


class OpenedFile(Protocol):
    """A shard or table that was opened."""

    @property
    def name(self) -> str: ...

    @property
    def damage(self) -> str | None:
        """Why none of it can be used."""

    @property
    def num_rows(self) -> int: ...

    def digest(self) -> str:
        """Return a hash of the content; `Source.fingerprint` is made of those of all files."""


F = TypeVar("F", bound=OpenedFile)


class FilesSource(Source, Generic[F]):
    """A source of files whose rows follow one another."""

    files: list[F]
    """Those that can be used."""
    firsts: list[int]
    """Index of each file's first sample, and the number of all samples."""

    def _open_files(self, stored: Sequence[StoredFile], open_one: Callable[[StoredFile], F]) -> None:
        """Open all files, those at URLs eight at a time, and leave out the damaged ones.

        Raises:
            DataError: more than one of them and more than MAX_LOST_FILES are damaged.
        """
        self.files = []
        lost = []
        for opened in _open_all(stored, open_one):
            if opened.damage is None:
                self.files.append(opened)
                continue
            lost.append(LostFile(opened.name, f"{self.name}: {opened.damage}"))
            if len(lost) > max(len(stored) > 1, MAX_LOST_FILES * len(stored)):
                raise DataError(lost[-1].reason)
        self.firsts = [0, *accumulate(file.num_rows for file in self.files)]
        self.lost = lost
        self.num_lost = round(len(lost) * len(self) / max(1, len(self.files)))

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the file that has a sample, and the row in it.

        Raises:
            IndexError: there is no such sample.
        """
        self._check(index)
        number = bisect_right(self.firsts, index) - 1
        return number, index - self.firsts[number]

    def __len__(self) -> int:
        return self.firsts[-1]

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(file.digest() for file in self.files).encode()).hexdigest()


def _open_all(stored: Sequence[StoredFile], open_one: Callable[[StoredFile], F]) -> Iterable[F]:
    if not is_url(stored[0].path):
        return map(open_one, stored)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(open_one, stored))
