"""A warm pool of processes that play the ranks of a run, so that a distributed test costs no start-up.

One server imports the engine once and forks the ranks from it. Each task is run as `torchrun` would: with
the environment that tells a process its number, joining and leaving the others by itself.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

TIMEOUT_S = 900
"""Longest wait for a rank: ample on a machine that does other work as well."""


class Pool:
    """Processes that wait for work; `run` gives the same function to the first few of them."""

    def __init__(self, size: int):
        self.start(size)

    def start(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.train.preload"])
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)

    def run(
        self, size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = TIMEOUT_S
    ) -> list[Any]:
        """Call `function(rank, *arguments)` on `size` ranks and return what each returned or raised."""
        port = free_port()
        for rank, connection in enumerate(self.connections[:size]):
            connection.send((rank, size, port, function, arguments))
        results: list[Any] = [TimeoutError("this rank hung")] * size
        pending = set(range(size))
        while pending:
            ready = wait([self.connections[rank] for rank in pending], timeout_s)
            if not ready:
                self.close()
                self.start(len(self.processes))
                raise TimeoutError(f"ranks {sorted(pending)} hang; the others: {results}")
            for rank in [rank for rank in pending if self.connections[rank] in ready]:
                results[rank] = self.connections[rank].recv()
                pending.remove(rank)
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


class Raised(Exception):
    """What a rank raised, with its traceback."""


def all_returned(results: list[Any]) -> list[Any]:
    """The results, if no rank raised anything."""
    for result in results:
        if isinstance(result, Raised):
            raise result
    return results


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(connection: Connection) -> None:
    torch.set_num_threads(1)
    while (task := connection.recv()) is not None:
        rank, size, port, function, arguments = task
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        try:
            result = function(rank, *arguments)
        except BaseException as error:
            result = Raised(f"{type(error).__name__}: {error}", traceback.format_exc())
        connection.send(result)
