"""Metrics of a run: one object per step in `metrics.jsonl`, and one line on the console.

Counts and seconds are recorded; rates are computed from them. Losses stay on their device until the end of
the step, so measuring never waits for the device.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from owl2.data.loader import Batch
from owl2.files import write_file
from owl2.jsonl import read_jsonl, to_line
from owl2.train.answers import Answer
from owl2.train.config import TrainConfig
from owl2.train.objectives import sample_of_targets
from owl2.train.ranks import Ranks
from owl2.train.trackers import Trackers


class Tally:
    """Counts and losses of one step on this rank, added up over its micro-batches."""

    def __init__(self, sources: Sequence[str]):
        self.began = time.perf_counter()
        self.waited = 0.0
        self.sources = list(sources)
        self.sample_losses: list[tuple[tuple[str, ...], Tensor]] = []
        """Of each micro-batch: the keys of its samples, and (2, samples) sums of losses and of targets."""
        self.counts = {"tokens": 0, "targets": 0, "images": 0, "squares": 0}
        self.keys: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, batch: Batch) -> None:
        """Count the contents of a micro-batch."""
        self.counts["tokens"] += batch.layout.num_tokens
        self.counts["targets"] += batch.targets.count
        self.counts["images"] += len(batch.pixel_values)
        self.counts["squares"] += sum(n * n for n in batch.layout.lengths)
        self.keys += batch.keys

    def add_losses(self, batch: Batch, losses: Tensor) -> None:
        """Add the losses (L,) of a micro-batch; they stay on their device until `total`."""
        sample = sample_of_targets(batch)
        sums = losses.new_zeros(2, len(batch.layout.lengths), dtype=torch.float64)
        sums[0].index_add_(0, sample, losses.double())
        sums[1].index_add_(0, sample, torch.ones_like(losses, dtype=torch.float64))
        self.sample_losses.append((batch.keys, sums))

    def total(self, ranks: Ranks) -> dict[str, float]:
        """Loss per target token, overall and by source, and the counts; over all ranks."""
        losses, targets = ({name: 0.0 for name in self.sources} for _ in range(2))
        for keys, sums in self.sample_losses:
            for key, loss, count in zip(keys, *sums.tolist(), strict=False):  # a blank image has no key
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
        """Seconds since the step began, and the part of them spent waiting for data."""
        return {"seconds": time.perf_counter() - self.began, "data_wait": self.waited}


class Metrics:
    """Records every step and shows the last one. Use as a context manager, on every rank.

    Only the first rank writes and prints; `console` is silent on the others.

    Raises:
        TrainConfigError: on every rank, if a tracker does not start.
    """

    def __init__(self, config: TrainConfig, start: int, console: Console, ranks: Ranks):
        self.config = config
        self.console = console
        self.ranks = ranks
        self.path = config.run / "metrics.jsonl"
        self.trackers: Trackers | None = None
        """On the first rank, from `__enter__` on."""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TextColumn("{task.fields[eta]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(config.run.name, total=config.steps, completed=start, line="", eta="")
        self.began = time.perf_counter()
        self.start = start

    def __enter__(self) -> "Metrics":
        self.ranks.on_first(self._open)
        self.bar.start()
        return self

    def _open(self) -> None:
        before = read_metrics(self.config.run)
        last_step = int(before[-1]["step"]) if before else 0
        drop_steps_from(self.path, self.start)
        self.trackers = Trackers(self.config, self.start, last_step, self.console)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.trackers is not None:
            self.trackers.close()

    def update(self, row: dict[str, float]) -> None:
        """Record a finished step; `row` has at least step, loss, lr, grad_norm, tokens, images, seconds."""
        if self.trackers is None:
            return
        append_row(self.path, row)
        step = int(row["step"])
        self.trackers.log(step, {**{key: row[key] for key in row if key != "step"}, **rates(row)})
        seconds = (time.perf_counter() - self.began) / (step - self.start) * (self.config.steps - step)
        line, eta = console_line(row), f"eta {duration(seconds)}"
        self.bar.update(self.task, completed=step, line=line, eta=eta)
        is_shown = step % self.config.log_every == 0 or step == self.config.steps
        if not self.console.is_terminal and is_shown:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            place = f"{now}  {self.config.run.name}  step {step:>5}/{self.config.steps}"
            self.console.print(f"{place}  {line}  {eta}", highlight=False, soft_wrap=True)

    def update_validation(self, row: dict[str, float], answers: Sequence[Answer] = ()) -> None:
        """Send the losses of held-out sources to the trackers, and sample answers as text.

        Args:
            row: that of `validation.jsonl`.
            answers: after the same step.
        """
        if self.trackers is not None:
            losses = {key.replace("loss/", "validation/"): row[key] for key in row if key != "step"}
            self.trackers.log(int(row["step"]), losses)
            if answers:
                self.trackers.log_answers(int(row["step"]), [said.row(int(row["step"])) for said in answers])


def rates(row: Mapping[str, float]) -> dict[str, float]:
    """The speed of a step: tokens and images per second, and the share of its time spent waiting for data."""
    seconds = row["seconds"]
    return {
        "tokens_per_second": row["tokens"] / seconds,
        "images_per_second": row["images"] / seconds,
        "data_wait_share": row["data_wait"] / seconds,
    }


def console_line(row: Mapping[str, float]) -> str:
    """A step in one line; utilisation only if the device's peak is known, unusable samples only if any."""
    rate = rates(row)
    parts = [
        f"loss {row['loss']:.3f}",
        f"lr {row['lr']:.1e}",
        f"norm {row['grad_norm']:.2f}",
        f"{rate['images_per_second']:.3g} img/s",
        f"{rate['tokens_per_second']:,.0f} tok/s",
        *([f"mfu {row['mfu']:.0%}"] if "mfu" in row else []),
        f"wait {rate['data_wait_share']:.0%}",
        f"{row['peak_memory'] / 1e9:.2f} GB",
        *([f"unusable {row['bad_samples']:,}"] if "bad_samples" in row else []),
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A duration in its two largest units: 42s, 3m05s, 7h12m, 2d04h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def read_metrics(run: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    """The rows of a run's metrics or, by `name`, of its `validation.jsonl`.

    Null becomes NaN; a last line that a killed run left unfinished is skipped.

    Raises:
        JsonlError: a line that is no JSON object.
    """
    if not (run / name).exists():
        return []
    return [
        {key: math.nan if value is None else value for key, value in row.items()}
        for _, row in read_jsonl(run / name, ours=True)
    ]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line to a JSONL file, which is created if it does not exist."""
    with path.open("ab") as file:
        file.write(_line(row))


def _line(row: Mapping[str, Any]) -> bytes:
    """A line in which NaN and infinity are null, because JSON has no word for them."""
    return to_line({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})


def drop_steps_from(path: Path, start: int) -> None:
    """Remove the rows of steps after `start`, the step of the state that a run resumes from."""
    if path.exists():
        kept = [row for row in read_metrics(path.parent, path.name) if row.get("step", 0) <= start]
        write_file(path, b"".join(map(_line, kept)))
