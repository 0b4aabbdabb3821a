"""`owl2 train`: run or continue a training stage; the same command continues it.

Exit codes: 0 finished, 1 an error that the message explains, 75 stopped on request, to be started again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from owl2.cli.parser import Parser
from owl2.cli.settings import Settings, read_yaml, stage_config
from owl2.cli.values import Count, UsageError, names_of, nearest
from owl2.errors import Faults

if TYPE_CHECKING:
    from rich.console import Console

    from owl2.train.config import TrainConfig


def train(
    stage: Path | None = None,
    *,
    settings: Settings,
    dry_run: bool = False,
    print_config: bool = False,
    overfit: Count | None = None,
    sweep: Path | None = None,
    profile: Count | None = None,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Run or continue a training stage; the same command continues it.

    Any key of the stage's YAML file is an option too, as in --optim.lr 1e-4 or
    --data.sources='[{name: mine, path: mine.jsonl}]'. Later settings win; a list replaces the earlier list.

    Args:
        stage: YAML file of the stage, the name of one that comes with owl2 (`owl2 config list`), or the
            run.json of a run.
        dry_run: check everything that can be known before the first step, name all errors together, show
            samples of each source in RUN/dry_run.html, and exit.
        print_config: print the settings that all of this makes, and exit.
        overfit: train on this many samples alone, in RUN-overfit, until their answers come back word for
            word; exit code 0 only if all do. It proves labels, template, images and generation at once.
        sweep: YAML file of keys with lists of values, as `optim.lr: [1e-4, 3e-4]`. Every combination is run
            in RUN/NAME and compared in RUN/sweep.html; the same command continues.
        profile: trace this many steps, into RUN/profile: time by operation, and memory on a GPU.
        quiet: print nothing but the checkpoint and errors.
        json: print the result as JSON in place of the checkpoint: steps, losses, speed.
    """
    faults = Faults()
    config = stage_config(stage, settings, faults)
    if print_config:
        import yaml

        from owl2.train.config import config_to_dict

        faults.raise_all()
        print(yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True), end="")
        return
    if overfit is not None:
        from owl2.train.overfit import overfit as run_overfit

        faults.raise_all()
        run_overfit(config, overfit)
        return
    from rich.console import Console

    from owl2.train.ranks import is_first_started, started

    if sweep is not None:
        faults.raise_all()
        _sweep(stage, settings, sweep, started(), Console(quiet=quiet))
        return
    config.find_faults(faults, started())
    if dry_run:
        from owl2.train.dry_run import dry_run as check_stage

        if is_first_started():
            check_stage(config, faults, Console(quiet=quiet))
        return
    faults.raise_all()
    from owl2.train.loop import train as run_stage

    checkpoint = run_stage(config, Console(quiet=quiet), profile or 0)
    if is_first_started():
        _report(config.run)
        print(_result(config.run) if json else checkpoint)


def _result(run: Path) -> str:
    """Figures of a finished run as JSON."""
    import json

    from owl2.train.comparison import figures
    from owl2.train.report import RunFiles

    return json.dumps({"checkpoint": str(run / "checkpoint"), **figures(RunFiles.read(run))}, indent=1)


def _sweep(stage: Path | None, settings: Settings, file: Path, ranks: int, console: "Console") -> None:
    """Check every combination of a sweep, all errors together, then run them.

    Raises:
        TrainConfigError: something is wrong with the file or a combination.
    """
    from owl2.registry import included
    from owl2.train.config import TrainConfig, TrainConfigError
    from owl2.train.sweep import points_of, sweep

    if ranks > 1:
        raise TrainConfigError(
            "--sweep starts its runs itself, each in one process; start it without torchrun"
        )
    grid = read_yaml(file)
    known = list(names_of(TrainConfig))
    faults = Faults()
    for key, values in grid.items():
        if key not in known or key == "run":
            near = nearest(str(key), known)
            faults.add(
                TrainConfigError(f"{file}: there is no setting {key} to vary; the nearest is {near!r}")
            )
        elif not isinstance(values, list) or not values:
            faults.add(TrainConfigError(f"{file}: {key} must be a list of values, as [1, 2]"))
    faults.raise_all()
    folder, configs = stage_config(stage, settings).run, []
    for point in points_of(grid):
        found = Faults()
        run = ("run", str(folder / point.name))
        config = stage_config(stage, Settings([*settings, *point.settings, run]), found)
        config.find_faults(found, ranks)
        configs.append(config)
        for error in found.errors:
            faults.add(TrainConfigError(f"{point.name}: {error}"))
    faults.raise_all()
    sweep(configs, folder, ["--quiet", *(f"--include={path}" for path in included)], console)


def _report(run: Path) -> None:
    """Leave `report.html` in the folder of a finished run; without matplotlib, say how to get it."""
    from owl2.train.report import write_report

    page = run / "report.html"
    if page.exists() and page.stat().st_mtime >= (run / "checkpoint").stat().st_mtime:
        return  # the run was finished before
    try:
        write_report(run)
    except ImportError as error:
        print(f"owl2 train: no report.html: {error}, then owl2 report {run}", file=sys.stderr)


def read_config(arguments: Sequence[str]) -> "TrainConfig":
    """Read a stage as `owl2 train` does, from a file or name and `--key.path value`.

    Raises:
        TrainConfigError: an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    from owl2.train.config import TrainConfigError

    try:
        values = Parser(prog="owl2 train", function=train).parse(arguments)
        return stage_config(values.get("stage"), values["settings"])
    except UsageError as error:
        raise TrainConfigError(str(error)) from None
