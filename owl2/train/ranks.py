"""The ranks (processes) of a run: their numbers, small exchanges between them, and which one is missing.

`torchrun` starts them and gives each its number (elastic launch, PyTorch). A single process in float32 needs
no process group: `ALONE` answers every call directly. Exchanged here are a few numbers per step, on the CPU;
parallel.py exchanges weights and gradients. Each rank records its progress in a shared store, so a rank that
times out can report which rank it was waiting for.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from owl2.errors import Owl2Error

LOST = re.compile(r"gloo|nccl|timed? ?out|closed by peer|reset by peer|broken pipe", re.IGNORECASE)
"""In the messages of failed exchanges; the libraries raise plain RuntimeError for all of them."""


class RankError(Owl2Error, RuntimeError):
    """An exchange between ranks failed; the message says what each rank was last doing."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1
    tensor: int = 1
    """Neighbouring ranks that compute one sample together."""
    store: dist.Store | None = None
    """None: there is one process and no process group."""
    group: dist.ProcessGroup | None = None
    """The process group of the exchanges; None: the default one."""

    def with_own_group(self, timeout_s: int) -> "Ranks":
        """The same ranks with a process group of their own, for use in another thread than the training's."""
        if self.store is None:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return replace(self, group=group)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints for all."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the samples this rank reads, from 0; there are `data_size` shares."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        return self.size // self.tensor

    def sum(self, values: list[float]) -> list[float]:
        """Add up the values of all ranks, in float64."""
        if self.store is None:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def sum_samples(self, values: list[float]) -> list[float]:
        """Add up values that come from samples; ranks that computed the same samples count once."""
        return self.sum([value * (self.rank % self.tensor == 0) for value in values])

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; the same answer on all."""
        is_true = torch.tensor(int(flag))
        if self.store is not None:
            dist.all_reduce(is_true, dist.ReduceOp.MAX, group=self.group)
        return bool(is_true)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        values = [value]
        if self.store is not None:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, action: Callable[[], object]) -> None:
        """Run `action` on the first rank only; its exception is raised on every rank."""
        failure: Exception | None = None
        if self.is_first:
            try:
                action()
            except Exception as error:
                failure = error
        failure = self.gather(failure)[0]
        if failure is not None:
            raise failure

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        if self.store is not None:
            dist.barrier(group=self.group)

    def report(self, place: str) -> None:
        """Record what this rank is doing, for the error message of the others."""
        if self.store is not None:
            self.store.set(f"place/{self.rank}", f"{time.time():.3f} {place}")

    def last_seen(self) -> str:
        """What every other rank last reported; the one silent for longest comes first."""
        if self.store is None:
            return ""
        now, seen = time.time(), []
        for rank in [rank for rank in range(self.size) if rank != self.rank]:
            at, _, place = self.store.get(f"place/{rank}").decode().partition(" ")
            seen.append((float(at), f"rank {rank} {place}, {now - float(at):.0f} s ago"))
        return "; ".join(text for _, text in sorted(seen))


ALONE = Ranks()


def started() -> int:
    """Number of processes of this run, as `torchrun` gives it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_started() -> bool:
    """Whether this is the first process of the run; works before and after `start_ranks`."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: str) -> str:
    """This rank's own device: `cuda` becomes the GPU of its number on the node."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


@contextmanager
def start_ranks(device: str, tensor: int, timeout_s: int, *, alone: bool) -> Iterator[Ranks]:
    """Join the other processes of the run, and leave them at the end.

    Args:
        device: where the weights will be; the exchanges of `Ranks` are on the CPU.
        tensor: see `Ranks`.
        timeout_s: longest wait for another rank.
        alone: make no process group; for a single process.

    Raises:
        RankError: a rank has ended or did not answer in time; the message has what each was last doing.
    """
    if alone:
        yield ALONE
        return
    timeout = timedelta(seconds=timeout_s)
    if started() > 1:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    else:
        store, rank, size = dist.HashStore(), 0, 1
    store.set_timeout(timeout)
    # After a restart by torchrun the store may still have the reports of the processes before.
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("ranks", store), rank=rank, world_size=size, timeout=timeout
    )
    ranks = Ranks(rank, size, tensor, dist.PrefixStore("seen", store))
    try:
        ranks.report("starting")
        ranks.wait_for_all()
        yield ranks
    except Exception as error:
        explained = _explained(error, ranks)
        if explained is error:
            raise
        raise explained from error
    finally:
        dist.destroy_process_group()


def _explained(error: Exception, ranks: Ranks) -> Exception:
    """A RankError for a failed exchange; any other error as it is, after reporting it to the other ranks."""
    if not (isinstance(error, RuntimeError) and LOST.search(str(error))):
        ranks.report(f"failed: {type(error).__name__}: {str(error)[:200]}")
        return error
    reason = str(error).strip().splitlines()[0]
    try:
        seen = ranks.last_seen()
    except (RuntimeError, dist.DistError):
        seen = "the first rank, which has the reports of all others, is gone"
    return RankError(
        f"rank {ranks.rank} of {ranks.size} lost another one: {seen} ({reason}). The newest state is kept; "
        f"look at the first error among the ranks, then run the same command again"
    )
