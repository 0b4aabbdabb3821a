"""`owl2 report`: curves and facts of training runs as one HTML page, at any time."""

from pathlib import Path


def report(runs: list[Path], *, out: Path | None = None, json: bool = False) -> None:
    """Write a page about a training run, running, finished or stopped, or a comparison of several.

    Args:
        runs: folders of the runs, as `owl2 train` made them.
        out: file to write; default: report.html in the folder, for several comparison.html next to the first.
        json: print steps, losses and speed of each run as JSON, in place of the page's path.
    """
    from json import dumps

    from owl2.train.comparison import compare_runs, figures
    from owl2.train.report import RunFiles, write_report

    if len(runs) == 1:
        page = write_report(runs[0], out)
        found = [figures(RunFiles.read(runs[0]))]
    else:
        page = out or runs[0].absolute().parent / "comparison.html"
        found = compare_runs(runs, page)
    print(dumps(found, indent=1) if json else page)
