"""What a run says of itself: metrics.jsonl, two tables at the start, a bar or a line while it runs."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from owl2.data.loader import Batch
from owl2.data.order import BLOCK
from owl2.data.sources import Source
from owl2.files import write_file
from owl2.model import Owl2Model
from owl2.train.objectives import sample_of_targets
from owl2.train.ranks import Ranks
from owl2.train.rules import Assignment, Rule


class Tally:
    """What one step has seen on this rank, micro-batch by micro-batch."""

    def __init__(self, sources: Sequence[str]):
        self.began = time.perf_counter()
        self.waited = 0.0
        self.sources = list(sources)
        self.by_sample: list[tuple[tuple[str, ...], Tensor]] = []
        self.counts = {"tokens": 0, "targets": 0, "images": 0, "squares": 0}
        self.keys: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here is waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, batch: Batch) -> None:
        """Count what a micro-batch holds."""
        self.counts["tokens"] += batch.layout.num_tokens
        self.counts["targets"] += batch.targets.count
        self.counts["images"] += len(batch.pixel_values)
        self.counts["squares"] += sum(n * n for n in batch.layout.lengths)
        self.keys += batch.keys

    def add_losses(self, batch: Batch, losses: Tensor) -> None:
        """Add the losses (L,) of a micro-batch; they stay on their device until the step's end."""
        sample = sample_of_targets(batch)
        sums = losses.new_zeros(2, len(batch.layout.lengths), dtype=torch.float64)
        sums[0].index_add_(0, sample, losses.double())
        sums[1].index_add_(0, sample, torch.ones_like(losses, dtype=torch.float64))
        self.by_sample.append((batch.keys, sums))

    def total(self, ranks: Ranks) -> dict[str, float]:
        """The loss a target token, in all and of each source that has one, and the counts; over all ranks."""
        losses, targets = ({name: 0.0 for name in self.sources} for _ in range(2))
        for keys, sums in self.by_sample:
            for key, loss, count in zip(keys, *sums.tolist(), strict=False):  # a blank picture has no key
                source = key.partition(":")[0]
                losses[source] += loss
                targets[source] += count
        values = [*losses.values(), *targets.values(), *self.counts.values()]
        values = ranks.sum_samples(values)
        n = len(self.sources)
        row = {"loss": sum(values[:n]) / max(1, sum(values[n : 2 * n]))}
        row |= {name: int(count) for name, count in zip(self.counts, values[2 * n :], strict=True)}
        for name, loss, count in zip(self.sources, values, values[n:], strict=False):
            if count:
                row[f"loss/{name}"] = loss / count
        return row

    def times(self) -> dict[str, float]:
        """Seconds since the step began, and of them those that waited for data."""
        return {"seconds": time.perf_counter() - self.began, "data_wait": self.waited}


class Meters:
    """Writes one object a step and shows the last one. Use as a context manager.

    `writes` is False on all ranks but the first: they keep silent.
    """

    def __init__(
        self, run: Path, start: int, steps: int, log_every: int, console: Console, *, writes: bool = True
    ):
        stage = run.name
        self.writes = writes
        self.path = run / "metrics.jsonl"
        self.console = console
        self.log_every = log_every
        self.steps = steps
        self.stage = stage
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(stage, total=steps, completed=start, line="")
        self.began = time.perf_counter()
        self.first_step = start
        if writes:
            drop_steps_from(self.path, start)

    def __enter__(self) -> "Meters":
        self.file = (self.path if self.writes else Path(os.devnull)).open("a", encoding="utf-8")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.file.close()

    def update(self, row: dict[str, float]) -> None:
        """Record a finished step; `row` has at least step, loss, lr, grad_norm, tokens, images, seconds."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        line = (
            f"loss {row['loss']:.3f}  lr {row['lr']:.1e}  norm {row['grad_norm']:.2f}  "
            f"{row['images'] / row['seconds']:.0f} img/s  {row['tokens'] / row['seconds']:,.0f} tok/s"
        )
        step = int(row["step"])
        self.bar.update(self.task, completed=step, line=line)
        if not self.console.is_terminal and (step % self.log_every == 0 or step == self.steps):
            done = step - self.first_step
            minutes, seconds = divmod((time.perf_counter() - self.began) / done * (self.steps - step), 60)
            self.console.print(
                f"{self.stage}  step {step:>5}/{self.steps}  {line}  eta {minutes:.0f}m{int(seconds):02d}s",
                highlight=False,
                soft_wrap=True,
            )


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`; a torn last line is left out."""
    return _read_rows(run / "metrics.jsonl")


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def rules_table(
    model: Owl2Model, rules: Sequence[Rule], assignments: Sequence[Assignment], lr: float
) -> Table:
    """One row a rule, in the order in which they decide: how many parameters, how fast they learn."""
    table = Table(title="parameters", title_justify="left")
    for column in ("rule", "tensors", "parameters", "learning rate", "weight decay"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule in rules:
        members = [a for a in assignments if a.rule is rule]
        count = sum(model.get_parameter(a.name).numel() for a in members)
        rates = sorted({a.lr * lr for a in members})
        decays = sorted({a.weight_decay for a in members})
        table.add_row(
            rule.match,
            f"{len(members):,}",
            f"{count:,}",
            "frozen" if rule.frozen else _span(rates),
            "" if rule.frozen else _span(decays),
        )
    return table


def sources_table(sources: Sequence[Source], quotas: Sequence[int]) -> Table:
    """One row a corpus: how large it is, how much of it is drawn, how much is there but can never be."""
    table = Table(title="data", title_justify="left")
    for column in ("source", "samples", "share of draws", "incomplete"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source, quota in zip(sources, quotas, strict=True):
        share = f"{quota / BLOCK:.1%}"
        table.add_row(source.name, f"{len(source):,}", share, f"{source.num_incomplete:,}")
    return table


def _span(values: Sequence[float]) -> str:
    low, high = values[0], values[-1]
    return f"{high:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def drop_steps_from(path: Path, start: int) -> None:
    """Forget what was measured after the state that a run resumes from."""
    if not path.exists():
        return
    kept = [row for row in _read_rows(path) if row["step"] <= start]
    write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
