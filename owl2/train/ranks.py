"""The processes of a run: who they are, what they agree on, and which of them is missing.

`torchrun` starts them and tells each its number (elastic launch, PyTorch). One process in float32 needs none
of this: `ALONE` answers every question at once. What ranks exchange here are a few numbers a step, on the
CPU; weights and gradients travel in parallel.py. Each rank writes into a common store where it is, so that
one that waits in vain can say for whom.
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
"""What the message of an exchange that failed has; the libraries raise nothing but RuntimeError."""


class RankError(Owl2Error, RuntimeError):
    """An exchange between ranks failed; the message says where each of them was last seen."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run and this one's place among them."""

    rank: int = 0
    size: int = 1
    tensor: int = 1
    """Neighbouring ranks that compute one sample together."""
    store: dist.Store | None = None
    """None: the process is alone and there is no process group."""
    group: dist.ProcessGroup | None = None
    """Through which they speak, if not the default one."""

    def apart(self, timeout_s: int) -> "Ranks":
        """The same ranks with a line of their own, for a thread beside the one that trains."""
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
        """Number of this rank's share of the samples, of `data_size`."""
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
        """Add up what the samples gave; ranks that computed the same ones count once."""
        return self.sum([value * (self.rank % self.tensor == 0) for value in values])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; the same answer everywhere."""
        up = torch.tensor(int(flag))
        if self.store is not None:
            dist.all_reduce(up, dist.ReduceOp.MAX, group=self.group)
        return bool(up)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        values = [value]
        if self.store is not None:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, action: Callable[[], object]) -> None:
        """Run `action` on the first rank only; what it raises is raised on every rank."""
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
        """Return once every rank has come here."""
        if self.store is not None:
            dist.barrier(group=self.group)

    def report(self, place: str) -> None:
        """Tell the others where this rank is."""
        if self.store is not None:
            self.store.set(f"place/{self.rank}", f"{time.time():.3f} {place}")

    def last_seen(self) -> str:
        """Where every other rank was, by its own report; the one longest silent first."""
        if self.store is None:
            return ""
        now, seen = time.time(), []
        for rank in [rank for rank in range(self.size) if rank != self.rank]:
            at, _, place = self.store.get(f"place/{rank}").decode().partition(" ")
            seen.append((float(at), f"rank {rank} {place}, {now - float(at):.0f} s ago"))
        return "; ".join(text for _, text in sorted(seen))


ALONE = Ranks()


def started() -> int:
    """How many processes this run has; `torchrun` says so."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_started() -> bool:
    """Whether this is the process that speaks for the run, before and after it is one of its ranks."""
    return os.environ.get("RANK", "0") == "0"


def local_device(device: str) -> str:
    """This rank's own device: `cuda` becomes the card of its number on the node."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


@contextmanager
def start_ranks(device: str, tensor: int, timeout_s: int, *, alone: bool) -> Iterator[Ranks]:
    """Join the other processes of the run, and leave them at the end.

    Args:
        device: where the weights will be; numbers of the ranks themselves are exchanged on the CPU.
        tensor: see `Ranks`.
        timeout_s: longest wait for another rank.
        alone: the only process needs no process group either.

    Raises:
        RankError: one of them is gone or did not answer in time; it names where each was last seen.
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
    # A restart by torchrun may meet the store of the processes before, and must not read what they left.
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
    """An exchange that failed, with the ranks to blame; any other error as it is, told to the others."""
    if not (isinstance(error, RuntimeError) and LOST.search(str(error))):
        ranks.report(f"failed: {type(error).__name__}: {str(error)[:200]}")
        return error
    reason = str(error).strip().splitlines()[0]
    try:
        seen = ranks.last_seen()
    except (RuntimeError, dist.DistError):
        seen = "the first rank, which knows of all others, is gone"
    return RankError(f"rank {ranks.rank} of {ranks.size} lost another one: {seen} ({reason})")
