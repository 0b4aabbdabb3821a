"""A progress bar in bytes, on standard error so that a command's output stays clean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def bytes_bar(title: str, total_bytes: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs, if standard error is a terminal; yields `advance(num_bytes)`.

    The bar disappears when the block ends.
    """
    console = Console(stderr=True)
    disable = not (enabled and console.is_terminal)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)
