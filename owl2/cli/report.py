"""`owl2 report RUN [--out FILE]`: the curves and facts of a training run as one HTML page, at any time."""

import sys
from collections.abc import Sequence
from pathlib import Path

from owl2.cli.arguments import run_function


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 report`."""
    run_function(report, arguments, command="report")


def report(run: Path, out: Path | None = None) -> None:
    """Write a page on a run that is going on, finished or broken off.

    Args:
        run: the folder of `owl2 train`.
        out: the page; default: report.html in that folder.
    """
    from owl2.train.report import ReportError, write_report

    try:
        print(write_report(run, out))
    except (ImportError, ReportError) as error:
        print(f"owl2 report: {error}", file=sys.stderr)
        raise SystemExit(1) from None
