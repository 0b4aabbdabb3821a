"""Where a run's figures go beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio; each is optional.

`metrics.jsonl` is the record and these are copies of it, so a tracker that fails is left behind and the run
goes on. A run keeps its name with each service over all its interruptions (`trackers.json` in its folder).
Steps that are computed again after a resume are the same again: TensorBoard is told to forget the first
copy; the others, which cannot forget, are not sent the second.
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


@dataclass(frozen=True)
class Place:
    """What a tracker must know of the run it follows."""

    run: Path
    id: str
    """Under which the services know the run, whatever other runs are called."""
    start: int
    """Finished steps."""
    settings: dict[str, Any]


class Tracker(Protocol):
    """One copy of the figures."""

    forgets: bool
    """Whether it takes a step again and forgets what it had of it."""

    def __init__(self, place: Place): ...

    def log(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    forgets = True

    def __init__(self, place: Place):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(place.run / "tensorboard"), purge_step=place.start + 1)

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project that WANDB_PROJECT names, else `owl2`; with WANDB_MODE=offline in `RUN/wandb`."""

    forgets = False

    def __init__(self, place: Place):
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "owl2"),
                id=place.id,
                name=place.run.name,
                resume="allow",
                dir=place.run,
                config=place.settings,
                settings=wandb.Settings(console="off"),  # the progress bar is no log
            )
        except wandb.Error as error:
            raise TrainConfigError(
                f"trackers: wandb does not start: {error}; log in (wandb login), or set WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the project `owl2` in trackio's own database, or of the space that TRACKIO_SPACE_ID names."""

    forgets = False

    def __init__(self, place: Place):
        import trackio

        with contextlib.redirect_stdout(sys.stderr):  # it prints, and our output is the checkpoint's path
            self.run = trackio.init(
                project="owl2", name=place.id, resume="allow", config=place.settings, embed=False
            )

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


KINDS: dict[str, tuple[type[Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "train"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
    "trackio": (Trackio, "trackio", "trackio"),
}
"""By the name in `trackers`: the class, the package it needs, and the extra that brings it."""


def check_installed(names: Sequence[str]) -> None:
    """Raise TrainConfigError where the package of a tracker cannot be imported."""
    for name in names:
        _, package, extra = KINDS[name]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise TrainConfigError(
                f"trackers: {name} needs the package {package} ({error}): pip install 'owl2[{extra}]', or "
                f"leave it out of `trackers`"
            ) from error


class Trackers:
    """All trackers of a run; only the first rank has any.

    Args:
        config: names them.
        start: finished steps.
        last_step: the last step that was measured before now, finished or lost; 0 for a new run.
        console: where a tracker that fails is reported.

    Raises:
        TrainConfigError: a service refuses to start.
    """

    def __init__(self, config: TrainConfig, start: int, last_step: int, console: Console):
        self.console = console
        self.trackers: dict[str, Tracker] = {}
        self.sent: dict[str, int] = {}
        """By name: the last step that a tracker has from before."""
        path = config.run / "trackers.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        for name in config.trackers:
            record = known.get(name)
            if record is None:
                known[name] = {"id": f"{config.run.name}-{uuid.uuid4().hex[:8]}", "last_step": start}
            else:
                record["last_step"] = max(record["last_step"], last_step)
        if config.trackers:  # before anything is sent, so that no second name can ever be given
            write_file(path, json.dumps(known, indent=1).encode())
        for name in config.trackers:
            kind = KINDS[name][0]
            place = Place(config.run.absolute(), known[name]["id"], start, config_to_dict(config))
            self.trackers[name] = kind(place)
            self.sent[name] = 0 if kind.forgets else known[name]["last_step"]

    def log(self, step: int, values: Values) -> None:
        """Hand the figures of a step to every tracker that does not have them yet."""
        for name in [name for name, last in self.sent.items() if step > last and name in self.trackers]:
            with self._left_behind_if_it_fails(name, f"after step {step}"):
                self.trackers[name].log(step, values)

    def close(self) -> None:
        """Let every tracker write what it still holds."""
        for name in list(self.trackers):
            with self._left_behind_if_it_fails(name, "at the end"):
                self.trackers[name].close()

    @contextlib.contextmanager
    def _left_behind_if_it_fails(self, name: str, when: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            del self.trackers[name]
            self.console.print(
                f"[bold red]{name} failed {when} ({type(error).__name__}: {error})[/]; the run goes on "
                f"without it, and metrics.jsonl has everything",
                soft_wrap=True,
            )
