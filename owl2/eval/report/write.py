"""Report files: Markdown, CSV, JSON and an HTML page with images of what went wrong."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl2.eval.report.page import report_page
from owl2.eval.report.rows import COLUMNS, MARKS, NUMBERS, Row, Run, describe_source, notes
from owl2.eval.scoring.score import result_to_dict
from owl2.files import write_file


def write_report(runs: Sequence[Run], out: Path, num_failures: int = 24) -> dict[str, Path]:
    """Write `report.md`, `.csv`, `.json` and `.html` into a folder; return the paths by suffix."""
    rows = [row for run in runs for row in run.rows()]
    contents = {
        "md": markdown(runs, rows),
        "csv": as_csv(rows),
        "json": json.dumps(as_json(runs, rows), indent=1, ensure_ascii=False) + "\n",
        "html": report_page(runs, rows, num_failures),
    }
    out.mkdir(parents=True, exist_ok=True)
    for suffix, text in contents.items():
        # Half a surrogate pair, which a question may hold, becomes its escape.
        write_file(out / f"report.{suffix}", text.encode("utf-8", "backslashreplace"))
    return {suffix: out / f"report.{suffix}" for suffix in contents}


def markdown(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """The whole report as Markdown."""
    parts = ["# Evaluation\n", *(f"- `{run.name}`: {describe_source(run)}" for run in runs), ""]
    parts += [_table(rows, [row for row in rows if row.is_main])]
    if details := [row for row in rows if not row.is_main]:
        parts += ["## In detail\n", _table(rows, details)]
    if marked := marks_of(rows):
        parts += [*(f"- N ({mark}): {meaning}" for mark, meaning in marked.items()), ""]
    for title, lines in notes(runs, rows).items():
        parts += [f"## {title}\n", *(f"- {line}" for line in lines), ""]
    return "\n".join(parts)


def marks_of(rows: Sequence[Row]) -> dict[str, str]:
    """The marks that these rows have, with their meaning."""
    return {mark: meaning for mark, meaning in MARKS.items() if any(mark in row.marks for row in rows)}


def as_csv(rows: Sequence[Row]) -> str:
    """All figures, unrounded."""
    stream = io.StringIO()
    values = [{**row.values(), "expected": " ".join(map(str, row.result.task.expected))} for row in rows]
    writer = csv.DictWriter(stream, list(values[0]) if values else ["ours"])
    writer.writeheader()
    writer.writerows(values)
    return stream.getvalue()


def as_json(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, with ids of unparsed answers and errors."""
    return {
        "runs": [
            {
                "run": run.name,
                "folder": str(run.folder),
                "tasks": [result_to_dict(result) for result in run.results],
                "not_run": run.not_run,
            }
            for run in runs
        ],
        "rows": [row.values() for row in rows],
        "notes": notes(runs, rows),
    }


def _table(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    several = len({row.run for row in rows}) > 1
    head = ["run", *COLUMNS] if several else list(COLUMNS)
    lines = [[row.run, *row.cells()] if several else row.cells() for row in shown]
    marks = ["---:" if name in NUMBERS else "---" for name in head]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in [head, marks, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"
