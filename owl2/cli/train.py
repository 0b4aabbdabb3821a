"""`owl2 train CONFIG.yaml [--key.path value ...]`: run or continue a stage; the same command continues it.

Exit codes: 0 finished, 1 an error that the message explains, 75 stopped on request with the state saved.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, ArgumentParser

from owl2.train.signals import EXIT_STOPPED, Interrupted

if TYPE_CHECKING:
    from owl2.train.config import TrainConfig


def main(arguments: Sequence[str]) -> None:
    """Parse the configuration and train."""
    from owl2.checkpoint import CheckpointError
    from owl2.data.readers.storage import StorageError
    from owl2.data.sample import DataError
    from owl2.model import ConfigError
    from owl2.processor import ImageError, TokenizerError
    from owl2.train.config import TrainConfigError
    from owl2.train.loop import NotFiniteError, train
    from owl2.train.ranks import RankError, is_first_started
    from owl2.train.rules import RuleError

    try:
        config = read_config(arguments)
        checkpoint = train(config)
        if is_first_started():
            _report(config.run)
            print(checkpoint)
    except Interrupted as stop:
        if is_first_started():
            print(f"owl2 train: {stop}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None
    except (
        CheckpointError,
        ConfigError,
        DataError,
        ImageError,
        NotFiniteError,
        RankError,
        RuleError,
        StorageError,
        TokenizerError,
        TrainConfigError,
    ) as error:
        print(f"owl2 train: {error}", file=sys.stderr)
        raise SystemExit(1) from None


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


def read_config(arguments: Sequence[str]) -> TrainConfig:
    """Read `CONFIG.yaml` and the overrides behind it.

    Raises:
        TrainConfigError: an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    from owl2.train.config import TrainConfig, TrainConfigError

    parser = make_parser()
    words = list(arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--config")
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise TrainConfigError(f"{error}{_nearest_key(str(error))}") from None
    values.pop("config")
    return TrainConfig(**vars(values))


def make_parser() -> ArgumentParser:
    """The parser of a stage configuration."""
    from owl2.train.config import TrainConfig

    parser = ArgumentParser(
        prog="owl2 train",
        usage="owl2 train CONFIG.yaml [--key.path value ...]",
        description="Run or continue a training stage.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="the stage's YAML file (or the first argument)")
    parser.add_class_arguments(TrainConfig, None)
    return parser


def _nearest_key(message: str) -> str:
    """Name the valid key nearest to the one that the parser refused."""
    refused = re.search(r"Option '(\S+)' is not accepted|unrecognized arguments: --(\S+)", message)
    if refused is None:
        return ""
    key = (refused[1] or refused[2]).split("=")[0]
    keys = list(_keys())
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0) or keys[:1]
    return f"; the nearest valid key is {near[0]!r}"


def _keys() -> Iterator[str]:
    """Every key of a stage configuration, dotted as on the command line, and alone as in lists."""
    from owl2.train.config import (
        DataConfig,
        EmaConfig,
        LoraConfig,
        OptimConfig,
        ParallelConfig,
        SourceConfig,
        TrainConfig,
        ValidationConfig,
    )
    from owl2.train.rules import Rule

    dotted: dict[str, type] = {
        "": TrainConfig,
        "data.": DataConfig,
        "ema.": EmaConfig,
        "lora.": LoraConfig,
        "optim.": OptimConfig,
        "parallel.": ParallelConfig,
        "validation.": ValidationConfig,
    }
    for prefix, kind in dotted.items():
        yield from (prefix + f.name for f in dataclasses.fields(kind))
    for kind in (SourceConfig, Rule, *list(dotted.values())[1:]):
        yield from (f.name for f in dataclasses.fields(kind))
