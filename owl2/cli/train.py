"""`owl2 train`: run or continue a training stage; the same command continues it.

Exit codes: 0 finished, 1 an error that the message explains, 75 stopped on request, to be started again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from owl2.cli.parser import Parser
from owl2.cli.settings import Settings, stage_config
from owl2.cli.values import Count, UsageError
from owl2.errors import Faults

if TYPE_CHECKING:
    from owl2.train.config import TrainConfig


def train(
    stage: Path | None = None,
    *,
    settings: Settings,
    dry_run: bool = False,
    print_config: bool = False,
    overfit: Count | None = None,
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
    from owl2.train.ranks import is_first_started, started

    config.find_faults(faults, started())
    if dry_run:
        from rich.console import Console

        from owl2.train.dry_run import dry_run as check_stage

        if is_first_started():
            check_stage(config, faults, Console())
        return
    faults.raise_all()
    from owl2.train.loop import train as run_stage

    checkpoint = run_stage(config)
    if is_first_started():
        _report(config.run)
        print(checkpoint)


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
