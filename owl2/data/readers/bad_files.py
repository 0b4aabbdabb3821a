"""Files of a source that are left out whole: few of them are told of and passed over, more are an error.

A corpus of a thousand shards or tables has one that was cut in transit, and a run should not wait for it;
one of which a tenth is gone is another corpus. What is left out stands in `bad_samples.jsonl` (loader.py).
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from owl2.data.readers.storage import THREADS, Stored, is_url
from owl2.data.sample import DataError

MAX_DAMAGED = 0.01
"""Share of a source's files that may be damaged and left out; one of several always may."""


class Opened(Protocol):
    """A shard or table that was opened."""

    @property
    def name(self) -> str: ...

    @property
    def damage(self) -> str | None:
        """Why it cannot be used."""


T = TypeVar("T", bound=Opened)


def open_whole(
    source: str, stored: Sequence[Stored], open_one: Callable[[Stored], T]
) -> tuple[list[T], dict[str, str]]:
    """Open the files of a source, those at URLs eight at a time.

    Returns those that are whole, and the reason of each that is not, by its name.

    Raises:
        DataError: more than one of them and more than MAX_DAMAGED are damaged.
    """
    whole: list[T] = []
    damaged: dict[str, str] = {}
    for opened in _open_all(stored, open_one):
        if opened.damage is None:
            whole.append(opened)
            continue
        damaged[opened.name] = f"{source}: {opened.damage}"
        if len(damaged) > max(len(stored) > 1, MAX_DAMAGED * len(stored)):
            raise DataError(damaged[opened.name])
    return whole, damaged


def _open_all(stored: Sequence[Stored], open_one: Callable[[Stored], T]) -> Iterable[T]:
    if not is_url(stored[0].path):
        return map(open_one, stored)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(open_one, stored))
