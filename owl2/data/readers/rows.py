"""In which file of a source a sample is, and in which row of it: its files follow one another."""

from bisect import bisect_right
from collections.abc import Sequence


def find_row(source: str, firsts: Sequence[int], index: int) -> tuple[int, int]:
    """Return the number of the file and the row in it.

    Args:
        firsts: index of each file's first sample, and of none after the last.

    Raises:
        IndexError: there is no such sample.
    """
    if not 0 <= index < firsts[-1]:
        raise IndexError(f"{source} has {firsts[-1]} samples, none is number {index}")
    number = bisect_right(firsts, index) - 1
    return number, index - firsts[number]
