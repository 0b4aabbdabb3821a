"""One owner a folder: `RUN/.lock`, with host, process and a heartbeat.

A second process is refused with the owner's name. The operating system's lock (`fcntl`) ends with its
process, but not every network file system passes it on to other hosts; so the owner also rewrites the file
every few seconds. A file of another host that does not change for `STALE_S` is taken over, and that is said.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from owl2.train.config import TrainConfigError
from owl2.train.metrics import duration

NAME = ".lock"
HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A file of another host that is not rewritten for this long is left over."""
LENGTH = 512
"""Bytes of the file, always, so that rewriting it never leaves a part of it."""


@dataclass(frozen=True)
class Owner:
    """The process that trains in a folder."""

    host: str
    process: int
    started: float
    """Seconds since the epoch."""

    @classmethod
    def here(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), time.time())

    def __str__(self) -> str:
        age = duration(max(0.0, time.time() - self.started))
        return f"process {self.process} on {self.host}, started {age} ago"


@contextmanager
def open_run_folder(run: Path, console: Console | None = None) -> Iterator[None]:
    """Make the run's folder and keep other processes from training in it.

    Raises:
        TrainConfigError: it cannot be made or written to, or another process trains in it.
    """
    console = console or Console(stderr=True)
    lock = run / NAME
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _take(run, lock, console)
    except OSError as error:
        raise TrainConfigError(
            f"run {run} cannot be a folder that this run writes to ({error.strerror}); choose another `run`"
        ) from None
    is_over, me = threading.Event(), Owner.here()
    _write(file, me)

    def beat() -> None:
        while not is_over.wait(HEARTBEAT_S):
            with suppress(OSError):
                _write(file, me)

    beating = threading.Thread(target=beat, name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        is_over.set()
        beating.join()
        lock.unlink(missing_ok=True)
        os.close(file)
        with suppress(OSError):
            run.rmdir()  # only if nothing was written


def _take(run: Path, lock: Path, console: Console) -> int:
    """Open and lock the file, which may be left over.

    Raises:
        TrainConfigError: its owner lives.
        OSError: it cannot be opened.
    """
    while True:
        owner = _read(lock)
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        is_free = _lock(file, owner)
        if is_free and owner is not None and owner.host != socket.gethostname():
            is_free = not _has_heartbeat(lock, owner, console) and _lock(file, owner)  # reading gave it up
        if not is_free:
            os.close(file)
            raise TrainConfigError(
                f"{run}: another process is training in this folder: {owner or 'it has just started'}; wait "
                f"for it, or choose another `run`"
            )
        with suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(file).st_ino:
                if owner is not None:
                    console.print(f"{run}: the lock of {owner}, which is gone, is taken over", soft_wrap=True)
                return file
        os.close(file)  # its owner removed it meanwhile


def _lock(file: int, owner: Owner | None) -> bool:
    """Lock the file; without locks in the file system, say whether its owner on this host is gone.

    Loader's workers do not inherit the lock, so they may live on for a moment after a killed run.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return owner is None or owner.host != socket.gethostname() or not _lives(owner.process)
    return True


def _has_heartbeat(lock: Path, owner: Owner, console: Console) -> bool:
    """Whether the owner on another host rewrites the file; the clocks of two hosts are not compared."""
    console.print(f"{lock.parent}: {owner}, may still train here; waiting {STALE_S:.0f} s", soft_wrap=True)
    before, end = lock.read_bytes(), time.monotonic() + STALE_S
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE_S / 10))
        try:
            if lock.read_bytes() != before:
                return True
        except FileNotFoundError:  # it has just ended
            return False
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _write(file: int, owner: Owner) -> None:
    """One write of a fixed length that differs from the one before."""
    text = json.dumps({**asdict(owner), "heartbeat": time.time()})
    os.pwrite(file, text.encode().ljust(LENGTH - 1) + b"\n", 0)


def _read(lock: Path) -> Owner | None:
    """The owner that the file names; None of an empty file or one of an earlier version."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads(lock.read_bytes())
        return Owner(found["host"], int(found["process"]), float(found["started"]))
    return None
