"""`owl2 report`: curves and facts of a training run as one HTML page, at any time."""

from pathlib import Path


def report(run: Path, *, out: Path | None = None) -> None:
    """Write a page about a training run, whether it is running, finished or stopped.

    Args:
        run: folder of the run, as `owl2 train` made it.
        out: file to write; default: report.html in that folder.
    """
    from owl2.train.report import write_report

    print(write_report(run, out))
