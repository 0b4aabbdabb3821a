"""Trackers: copies of a run's metrics for TensorBoard, Weights & Biases and trackio; each is optional.

`metrics.jsonl` is the record. A tracker that fails is switched off and the run goes on. A run keeps its id
with each service over all interruptions (`trackers.json` in its folder). Steps repeated after a resume have
the same values again: TensorBoard drops its first copy; the other services cannot, so they are not sent the
second.
"""

import contextlib
import importlib
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from owl2.files import write_file
from owl2.train.config import TrainConfig, TrainConfigError, config_to_dict

Values = Mapping[str, float]
Row = Mapping[str, Any]
SHOWN = ("key", "question", "expected", "answer")
"""Of a sample answer's row, what trackers get."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know about its run."""

    folder: Path
    id: str
    """The run's unique id with the services."""
    start: int
    """Finished steps."""
    settings: dict[str, Any]


class Tracker(Protocol):
    """A service that gets a copy of the metrics."""

    overwrites: bool
    """Whether a step that is sent again replaces the first copy."""

    def __init__(self, run: TrackedRun): ...

    def log(self, step: int, values: Values) -> None: ...

    def log_answers(self, step: int, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    overwrites = True

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start + 1)

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def log_answers(self, step: int, rows: Sequence[Row]) -> None:
        cells = [SHOWN, ["---"] * len(SHOWN), *(_cells(row) for row in rows)]
        self.writer.add_text("samples", "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run in the project WANDB_PROJECT, by default `owl2`; with WANDB_MODE=offline in `RUN/wandb`."""

    overwrites = False

    def __init__(self, run: TrackedRun):
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "owl2"),
                id=run.id,
                name=run.folder.name,
                resume="allow",
                dir=run.folder,
                config=run.settings,
                settings=wandb.Settings(console="off"),  # do not record the progress bar
            )
        except wandb.Error as error:
            raise TrainConfigError(
                f"trackers: wandb does not start: {error}; log in (wandb login), or set WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def log_answers(self, step: int, rows: Sequence[Row]) -> None:
        import wandb

        self.run.log({"samples": wandb.Table([*SHOWN], [_cells(row) for row in rows])}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run in the project `owl2` of trackio's database, or of the space TRACKIO_SPACE_ID."""

    overwrites = False

    def __init__(self, run: TrackedRun):
        import trackio

        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the checkpoint's path
            self.run = trackio.init(
                project="owl2", name=run.id, resume="allow", config=run.settings, embed=False
            )

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def log_answers(self, step: int, rows: Sequence[Row]) -> None:
        import pandas
        import trackio

        table = pandas.DataFrame([_cells(row) for row in rows], columns=[*SHOWN])
        self.run.log({"samples": trackio.Table(dataframe=table)}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


def _cells(row: Row) -> list[str]:
    """What is shown of a sample answer, each in one line."""
    return [" ".join(str(row[name]).replace("|", "\\|").split()) for name in SHOWN]


KINDS: dict[str, tuple[type[Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "train"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
    "trackio": (Trackio, "trackio", "trackio"),
}
"""By name: the class, the package it needs, and the extra that installs it."""


def check_installed(names: Sequence[str]) -> None:
    """Raise TrainConfigError where the package of a tracker cannot be imported."""
    for name in names:
        _, package, extra = KINDS[name]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise TrainConfigError(
                f"trackers: {name} needs the package {package} ({error}): pip install 'owl2[{extra}]', or "
                f"remove it from `trackers`"
            ) from error


class Trackers:
    """All trackers of a run, on the first rank.

    Args:
        config: names the trackers.
        start: finished steps.
        last_step: the last step measured before this start, repeated ones included; 0 for a new run.
        console: where the failure of a tracker is reported.

    Raises:
        TrainConfigError: a service does not start.
    """

    def __init__(self, config: TrainConfig, start: int, last_step: int, console: Console):
        self.console = console
        self.trackers: dict[str, Tracker] = {}
        self.sent: dict[str, int] = {}
        """By name: the last step that the tracker already has."""
        path = config.run / "trackers.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name in config.trackers:
            record = known.get(name)
            if record is None:
                known[name] = {"id": f"{config.run.name}-{uuid.uuid4().hex[:8]}", "last_step": start}
            else:
                record["last_step"] = max(record["last_step"], last_step)
        if config.trackers:  # before anything is sent, so that a run never gets a second id
            write_file(path, json.dumps(known, indent=1).encode())
        for name in config.trackers:
            kind = KINDS[name][0]
            run = TrackedRun(config.run.absolute(), known[name]["id"], start, config_to_dict(config))
            self.trackers[name] = kind(run)
            self.sent[name] = 0 if kind.overwrites else known[name]["last_step"]

    def log(self, step: int, values: Values) -> None:
        """Send the metrics of a step to every tracker that does not have them yet."""
        for name in [name for name, last in self.sent.items() if step > last and name in self.trackers]:
            with self._switched_off_if_it_fails(name, f"after step {step}"):
                self.trackers[name].log(step, values)

    def log_answers(self, step: int, rows: Sequence[Row]) -> None:
        """Send sample answers after a step to every tracker that does not have them yet."""
        for name in [name for name, last in self.sent.items() if step > last and name in self.trackers]:
            with self._switched_off_if_it_fails(name, f"with the sample answers of step {step}"):
                self.trackers[name].log_answers(step, rows)

    def close(self) -> None:
        """Let every tracker write what it has buffered."""
        for name in list(self.trackers):
            with self._switched_off_if_it_fails(name, "at the end"):
                self.trackers[name].close()

    @contextlib.contextmanager
    def _switched_off_if_it_fails(self, name: str, when: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            del self.trackers[name]
            self.console.print(
                f"[bold red]{name} failed {when} ({type(error).__name__}: {error})[/]; the run goes on "
                f"without it, and metrics.jsonl is complete",
                soft_wrap=True,
            )
