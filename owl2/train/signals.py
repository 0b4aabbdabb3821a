"""Requests to stop a run: after a signal the loop finishes its step, saves and ends.

While a run starts there is nothing to save, so it ends at once; `stop_at_start` sees to that also where
Python cannot interrupt the main thread, as in a library that waits for other ranks.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""A preempted job, Ctrl-C, and Slurm's warning before the time is up."""

EXIT_STOPPED = 75
"""Exit code of a run that saved its state and can go on (EX_TEMPFAIL)."""


STOPPED = "stopped; the same command continues it"
GRACE_S = 20.0
"""Longest time from a request during the start to the end of the process; `torchrun` kills after 30 s."""
AGAIN_S = 3.0
"""Time after which a request during the start that had no effect is repeated."""


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
    watched = signal.set_wakeup_fd(-1)  # of `stop_at_start`
    try:
        yield lambda: bool(received)
    finally:
        signal.set_wakeup_fd(watched)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stop_at_start() -> Iterator[None]:
    """End a run that is asked to stop while it starts as one that can go on.

    Any error after the request is its consequence: a package whose import was interrupted is half there. Only
    for the main thread.
    """
    ends = (signal.SIGTERM, signal.SIGUSR1)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    is_over, is_asked = threading.Event(), threading.Event()

    def stop(number: int, _: object) -> NoReturn:
        is_asked.set()
        raise Interrupted(STOPPED)

    def watch() -> None:
        while (number := os.read(reading, 1)[0]) not in ends:
            if number == 0:
                return
        end = time.monotonic() + GRACE_S
        while not is_over.wait(AGAIN_S):
            if signal.getsignal(number) is stop and time.monotonic() > end:
                with suppress(OSError):
                    os.write(2, f"{STOPPED}\n".encode())
                os._exit(EXIT_STOPPED)
            os.kill(os.getpid(), number)  # something caught the exception
            if signal.getsignal(number) is not stop:
                return  # the loop has begun meanwhile, and has it now

    def leave_to_parent() -> None:
        with suppress(ValueError):  # not in the main thread
            if not is_over.is_set():
                signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=leave_to_parent)  # a signal to a child is none to this process
    previous = {number: signal.signal(number, stop) for number in ends}
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="stop", daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if is_asked.is_set():
            raise Interrupted(STOPPED) from error
        raise
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")  # ends the watcher
        watcher.join()
        os.close(reading)
        os.close(writing)
        for number, handler in previous.items():
            signal.signal(number, handler)
