"""Requests to stop a run: after a signal the loop finishes its step, saves and ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""A preempted job, Ctrl-C, and Slurm's warning before the time is up."""

EXIT_STOPPED = 75
"""Exit code of a run that saved its state and can go on (EX_TEMPFAIL)."""


class Interrupted(SystemExit):
    """The run was asked to stop; its state is saved and the same command continues it."""


@contextmanager
def stop_requests(*, second_kills: bool) -> Iterator[Callable[[], bool]]:
    """Remember the first signal; the function returned says whether there was one.

    With `second_kills` the second signal ends the process, as without this. A rank must not do so: it gets
    the same request twice, from the scheduler and from `torchrun`, which kills slow ranks itself.
    """
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)
        if second_kills:
            signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, remember) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
