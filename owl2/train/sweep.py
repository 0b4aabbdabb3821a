"""`owl2 train CONFIG --sweep FILE`: a stage with every combination of some settings, one run after the other.

The file names keys and lists of values. Each combination is a run of its own process in `RUN/NAME`, and its
output is in `RUN/NAME.log`. The same command goes on where it was stopped; a run that fails is counted and
does not end the others.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from owl2.errors import Owl2Error
from owl2.files import write_file
from owl2.pages.drawing import DrawingError
from owl2.train.comparison import HEAD, compare_runs, figures
from owl2.train.config import TrainConfig, config_to_dict
from owl2.train.prepare import on_this_machine
from owl2.train.report import ReportError, RunFiles
from owl2.train.signals import EXIT_STOPPED, Interrupted, stop_requests
from owl2.train.state.config_diff import changes, is_finished

MOST_NAME = 100
"""Characters of a run's name."""


class SweepError(Owl2Error, RuntimeError):
    """Runs of a sweep failed; the message names them and their logs."""


@dataclass(frozen=True)
class Point:
    """A combination of settings."""

    name: str
    settings: list[tuple[str, str]]
    """As on the command line: key and text."""


def points_of(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the values, the last key's changing fastest.

    Args:
        grid: dotted key -> values, as text, or lists and mappings of it.
    """
    short = {key: key.rpartition(".")[2] for key in grid}
    labels = {k: name if [*short.values()].count(name) == 1 else k for k, name in short.items()}
    points: list[Point] = []
    for values in itertools.product(*grid.values()):
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        name = ",".join(f"{labels[key]}={text}" for key, text in zip(grid, texts, strict=True))
        plain = re.sub(r"[^\w.,=+-]+", "_", name).strip("_.")
        if len(plain) > MOST_NAME or any(point.name == plain for point in points):
            plain = f"{plain[:MOST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"
        points.append(Point(plain, list(zip(grid, texts, strict=True))))
    return points


def sweep(configs: Sequence[TrainConfig], folder: Path, extra: Sequence[str], console: Console) -> None:
    """Run each stage in a process of its own, then print a table and write `folder/sweep.html`.

    Args:
        configs: the runs, checked, in folders inside of `folder`.
        folder: of the sweep.
        extra: further options of `owl2 train` for each run.
        console: gets a line for each run.

    Raises:
        SweepError: some runs failed; the others are finished.
        Interrupted: on request; the same command goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, int] = {}
    for number, config in enumerate(configs, start=1):
        name, place = config.run.name, f"[{number}/{len(configs)}]"
        try:
            is_done = is_finished(config.run, changes(config.run, on_this_machine(config)))
        except Owl2Error as error:
            console.print(f"{place} {name}: {error}", markup=False, soft_wrap=True)
            failed[name] = 1
            continue
        if is_done:
            console.print(f"{place} {name}: finished before", markup=False, soft_wrap=True)
            continue
        console.print(f"{place} {name}: started", markup=False, soft_wrap=True)
        code = _run(config, folder, extra)
        if code == EXIT_STOPPED:
            raise Interrupted(f"stopped in run {number} of {len(configs)}; the same command continues it")
        if code:
            failed[name] = code
        console.print(f"{place} {name}: {_outcome(config, code)}", markup=False, soft_wrap=True)
    _sum_up(configs, folder, failed, console)
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(configs)} runs failed ("
            + ", ".join(f"{name}: exit code {code}" for name, code in failed.items())
            + f"); {folder}/NAME.log says why. The same command tries them again"
        )


def _run(config: TrainConfig, folder: Path, extra: Sequence[str]) -> int:
    """The exit code of a run; a request to stop is passed on to it, and the code is then that of a stop."""
    stage = folder / f"{config.run.name}.yaml"
    write_file(stage, yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True).encode())
    words = [sys.executable, "-m", "owl2", "train", str(stage), *extra]
    with (
        (folder / f"{config.run.name}.log").open("ab") as log,
        stop_requests(second_kills=False) as is_asked,
        subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        is_told = False
        while (code := process.poll()) is None:
            if is_asked() and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            time.sleep(0.2)
        return EXIT_STOPPED if is_asked() else code


def _outcome(config: TrainConfig, code: int) -> str:
    if code:
        return f"failed with exit code {code}"
    found = figures(RunFiles.read(config.run))
    return f"loss {found['loss']:.4f} after {found['steps']:,} steps"


def _sum_up(
    configs: Sequence[TrainConfig], folder: Path, failed: Mapping[str, int], console: Console
) -> None:
    """A table of all runs, `sweep.json`, and the page that compares those that have begun."""
    table, found, begun = Table(*HEAD[:4], "outcome"), [], []
    for config in configs:
        name, outcome = config.run.name, "failed" if config.run.name in failed else "finished"
        try:
            row = figures(RunFiles.read(config.run))
            begun.append(config.run)
        except ReportError:
            row = {"run": str(config.run), "steps": 0, "of": config.steps, "loss": None, "held_out": {}}
        found.append({**row, "exit_code": failed.get(name, 0)})
        held_out = ", ".join(f"{source} {loss:.3f}" for source, loss in row["held_out"].items())
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        table.add_row(name, f"{row['steps']:,} of {row['of']:,}", loss, held_out, outcome)
    console.print(table)
    write_file(folder / "sweep.json", (json.dumps(found, indent=1) + os.linesep).encode())
    if len(begun) > 1:
        try:
            compare_runs(begun, folder / "sweep.html")
            console.print(f"comparison: {folder / 'sweep.html'}", soft_wrap=True, highlight=False)
        except DrawingError as error:
            console.print(f"no sweep.html: {error}", soft_wrap=True, highlight=False)
