"""A run beside the paper: ours, theirs, the difference, and how much it means.

One row a figure, in Markdown, CSV and JSON, and as a page with images of what went wrong. What a reader
must know to trust a number stands in its row: how many questions it is over and how many there should be,
how many answers could not be read, the template, the judge. Rows of the paper that no task of the run is
about are listed, so that nothing looks complete that is not.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from owl2.eval.report.page import report_page
from owl2.eval.report.paper import missing_rows, paper_rows
from owl2.eval.scoring.score import Figure, TaskResult, result_to_dict
from owl2.files import write_file

COLUMNS = (
    "benchmark",
    "figure",
    "ours",
    "paper",
    "difference",
    "95 % interval",
    "N",
    "expected N",
    "unparsed",
    "template",
    "judge",
)


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    run: str
    task: str
    title: str
    metric: str
    group: str
    ours: float
    paper: float | None
    paper_id: str
    paper_place: str
    low: float | None
    high: float | None
    interval: str
    n: int
    """Values the figure is over."""
    num_answers: int
    expected: tuple[int, ...]
    unparsed: int
    errors: int
    template: str
    judge: str
    is_main: bool
    """Whether it is the figure the paper prints for the benchmark."""

    @property
    def difference(self) -> float | None:
        return None if self.paper is None else self.ours - self.paper

    @property
    def is_expected(self) -> bool:
        return self.num_answers in self.expected

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        places = 4 if self.paper is not None and abs(self.paper) < 1 else 2
        shown = [
            None if v is None else f"{v:.{places}f}" for v in (self.ours, self.paper, self.low, self.high)
        ]
        ours, paper, low, high = shown
        expected = " or ".join(f"{n:,}" for n in self.expected)
        unread = f"{self.unparsed}" + (f" + {self.errors} not asked" if self.errors else "")
        return [
            self.title,
            self.metric + (f": {self.group}" if self.group else ""),
            ours or "",
            paper or "–",
            "–" if self.difference is None else f"{self.difference:+.{places}f}",
            "–" if low is None else f"{low} – {high}",
            f"{self.num_answers:,}" + ("" if self.is_expected else " (!)"),
            expected,
            unread,
            self.template,
            self.judge or "–",
        ]


@dataclass(frozen=True)
class Run:
    """A scored run folder."""

    name: str
    folder: Path
    results: list[TaskResult]

    def rows(self) -> list[Row]:
        """All figures, task by task."""
        return [
            _row(self.name, result, figure, number == 0)
            for result in self.results
            for number, figure in enumerate(result.figures)
        ]


def _row(run: str, result: TaskResult, figure: Figure, is_main: bool) -> Row:
    score, interval = figure.score, figure.interval
    paper = paper_rows().get(score.paper_id)
    judge = result.judge
    graded = "" if judge is None else f"{', '.join(judge.models) or judge.judge}, {len(judge.by_id):,} graded"
    return Row(
        run,
        result.task.name,
        result.task.title,
        score.metric,
        score.group,
        score.value,
        None if paper is None else paper.value,
        score.paper_id,
        "" if paper is None else paper.place,
        None if interval is None else interval.low,
        None if interval is None else interval.high,
        "" if interval is None else interval.method,
        score.n,
        len(result.answers),
        result.task.expected,
        len(result.unparsed),
        len(result.errors),
        result.config.template,
        graded or ("not graded" if result.task.judge else ""),
        is_main,
    )


def write_report(runs: Sequence[Run], out: Path, num_failures: int = 24) -> dict[str, Path]:
    """Write `report.md`, `.csv`, `.json` and `.html` into a folder; return the paths by suffix."""
    rows = [row for run in runs for row in run.rows()]
    contents = {
        "md": markdown(runs, rows),
        "csv": as_csv(rows),
        "json": json.dumps(as_json(runs, rows), indent=1, ensure_ascii=False) + "\n",
        "html": report_page(runs, rows, num_failures, columns=COLUMNS, notes=notes(runs, rows)),
    }
    out.mkdir(parents=True, exist_ok=True)
    for suffix, text in contents.items():
        write_file(out / f"report.{suffix}", text.encode())
    return {suffix: out / f"report.{suffix}" for suffix in contents}


def markdown(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """The whole report as Markdown."""
    parts = ["# Evaluation\n", *(f"- `{run.name}`: {_source(run)}" for run in runs), ""]
    parts += [_table(rows, [row for row in rows if row.is_main])]
    if details := [row for row in rows if not row.is_main]:
        parts += ["## In detail\n", _table(rows, details)]
    for title, lines in notes(runs, rows).items():
        parts += [f"## {title}\n", *(f"- {line}" for line in lines), ""]
    return "\n".join(parts)


def notes(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, list[str]]:
    """What a reader must know besides the tables: title -> lines."""
    found: dict[str, list[str]] = {}
    results = [result for run in runs for result in run.results]
    found["Not as many questions as the official files have"] = [
        f"{r.task.title}: {len(r.answers):,} answered of {r.num_items:,} in the data; official: "
        f"{' or '.join(f'{n:,}' for n in r.task.expected)}"
        for r in results
        if not r.is_expected
    ]
    found["Without a figure"] = [f"{r.task.title}: {_why_no_figure(r)}" for r in results if not r.figures]
    found["Answers that could not be read (wrong; POPE's official rule takes them for a yes)"] = [
        f"{r.task.title}: {len(r.unparsed):,}, such as {', '.join(r.unparsed[:10])}"
        for r in results
        if r.unparsed
    ]
    found["Questions that could not be asked (scored as empty answers)"] = [
        f"{r.task.title}: {len(r.errors):,}; the first, {name}: {why}"
        for r in results
        for name, why in list(r.errors.items())[:1]
    ]
    found["Graded by no one"] = [
        f"{r.task.title}: the judge gave no readable grade to {', '.join(r.judge.unread[:10])}"
        for r in results
        if r.judge is not None and r.judge.unread
    ]
    shown = {f.score.paper_id for r in results for f in r.figures}
    found["In the paper, not in this run"] = [
        f"{row.benchmark} ({row.split}), {row.metric}: {row.value:g} ({row.place})"
        for row in missing_rows(shown).values()
    ]
    return {title: lines for title, lines in found.items() if lines}


def as_csv(rows: Sequence[Row]) -> str:
    """All figures, unrounded."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["difference", *asdict(rows[0])] if rows else ["difference"])
    writer.writeheader()
    for row in rows:
        expected = " ".join(map(str, row.expected))
        writer.writerow({**asdict(row), "expected": expected, "difference": row.difference})
    return stream.getvalue()


def as_json(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, with ids of unparsed answers and errors."""
    return {
        "runs": [
            {"run": run.name, "folder": str(run.folder), "tasks": [result_to_dict(r) for r in run.results]}
            for run in runs
        ],
        "rows": [{**asdict(row), "difference": row.difference} for row in rows],
        "notes": notes(runs, rows),
    }


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Short names that tell run folders apart."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]


def _why_no_figure(result: TaskResult) -> str:
    if result.task.judge and result.judge is None:
        return "a judge must grade it: `owl2 eval judge`"
    return "the data keeps the right answers secret: `owl2 eval export` writes what the organisers take"


def _source(run: Run) -> str:
    sources = dict.fromkeys(result.config.source for result in run.results)
    seconds = sum(result.seconds for result in run.results)
    asked = sum(len(result.answers) for result in run.results)
    return f"{', '.join(sources)}; {asked:,} answers in {seconds / 60:.1f} min of the model's time"


def _table(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    several = len({row.run for row in rows}) > 1
    head = ["run", *COLUMNS] if several else list(COLUMNS)
    lines = [[row.run, *row.cells()] if several else row.cells() for row in shown]
    marks = ["---:" if name in ("ours", "paper", "difference", "N", "expected N") else "---" for name in head]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [head, marks, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"
