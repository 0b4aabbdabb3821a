"""Saving in the background: the loop waits for a copy in memory, not for the disk.

The copy is taken between two steps, so all ranks copy the same step. A thread then writes it like any state
(state.py), over a process group of its own, so that its exchanges do not mix with those of the training.
Errors in the writer thread are raised on every rank at the next step. There is one save at a time: the next
one reuses the memory of the copy.
"""

from collections.abc import Mapping
from threading import Thread
from types import TracebackType

from rich.console import Console
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from owl2.train.config import TrainConfig
from owl2.train.ranks import Ranks
from owl2.train.state.state import StateRecord, save_state


class Saver:
    """Saves states of a run. Use as a context manager: its end waits for a save in progress."""

    def __init__(self, config: TrainConfig, ranks: Ranks, console: Console):
        self.config = config
        self.ranks = ranks
        self.console = console
        self.thread: Thread | None = None
        self.failure: BaseException | None = None
        if config.save_in_background:
            self.writers = ranks.with_own_group(config.parallel.timeout_s)
            is_cuda = config.device.startswith("cuda")
            self.stager = DefaultStager(StagingOptions(is_cuda, False, False, is_cuda))

    def save(self, record: StateRecord, tensors: Mapping[str, Tensor]) -> None:
        """Save the state after `record.step` steps; called by every rank.

        Raises:
            CheckpointError: this save, or the one in progress, could not be written.
        """
        self.wait()
        self.ranks.report(f"saving after step {record.step}")
        if not self.config.save_in_background:
            self._write(record, tensors, self.ranks)
            return
        copy = self.stager.stage(dict(tensors))
        assert isinstance(copy, dict)

        def write() -> None:
            try:
                self._write(record, copy, self.writers)
            except (Exception, CheckpointException) as failure:
                self.failure = failure

        self.thread = Thread(target=write, name=f"save-{record.step}", daemon=True)
        self.thread.start()

    def _write(self, record: StateRecord, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
        config = self.config
        save_state(
            config.run,
            record,
            tensors,
            keep_last=config.keep_last,
            keep_every=config.keep_every,
            ranks=ranks,
        )

    def check(self) -> None:
        """Raise the error of a failed background save, after the same step on all ranks; never wait."""
        if self.thread is not None and not self.ranks.any(self.thread.is_alive()):
            self.wait()

    def wait(self) -> None:
        """Return when no save is in progress; raise its error if it failed."""
        if self.thread is not None:
            self.ranks.report(f"waiting until {self.thread.name} is written")
            self.thread.join()
            self.thread = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except (Exception, CheckpointException) as failure:
            if error is None:
                raise
            self.console.print(f"[bold red]{failure}[/]", soft_wrap=True)
        finally:
            if self.config.save_in_background:
                self.stager.close()
