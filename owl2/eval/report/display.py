"""What a person sees of an evaluation in the terminal: progress, what is missing, results beside the paper.

Progress goes to standard error and only where a person watches; results go to standard output, one line a
benchmark.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from owl2.eval.engines.local import Engine
from owl2.eval.report.report import COLUMNS, Run, notes
from owl2.eval.runner import Batching, Outcome, Plan, Shard, run_plan
from owl2.eval.task import DataFile, DataMissing, Task, find_task


def run_with_bar(
    engine: Engine, plans: Sequence[Plan], data: Path, out: Path, batching: Batching, shard: Shard
) -> list[Outcome]:
    """Run all plans under one bar with the time left, and say a line for each that is done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    disable = shard.rank != 0 or not console.is_terminal
    outcomes = []
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        total = bar.add_task("", total=sum(len(plan.items) for plan in plans))
        for plan in plans:
            bar.update(total, description=plan.task.name)
            outcome = run_plan(
                engine,
                plan,
                data,
                out,
                batching=batching,
                shard=shard,
                advance=lambda count: bar.advance(total, count),
            )
            outcomes.append(outcome)
            console.print(_outcome_line(outcome, plan, shard), highlight=False, soft_wrap=True)
    return outcomes


def _outcome_line(outcome: Outcome, plan: Plan, shard: Shard) -> str:
    rate = outcome.num_asked / outcome.seconds if outcome.seconds else 0.0
    parts = [f"{outcome.num_asked:,} answers in {outcome.seconds:.1f} s ({rate:.1f}/s)"]
    if outcome.num_kept:
        parts.append(f"{outcome.num_kept:,} kept")
    if plan.num_items not in plan.task.expected:
        parts.append(f"{plan.num_items:,} of {' or '.join(f'{n:,}' for n in plan.task.expected)} questions")
    if outcome.errors:
        parts.append(f"{len(outcome.errors):,} could not be asked")
    rank = f"rank {shard.rank}  " if shard.world_size > 1 else ""
    return f"{rank}{outcome.task:18} {plan.template:14} {', '.join(parts)}"


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Say which questions could not be asked, the first of each task."""
    for outcome in outcomes:
        for name, why in list(outcome.errors.items())[:1]:
            count = len(outcome.errors)
            print(f"{outcome.task}: {count:,} could not be asked; the first, {name}: {why}", file=sys.stderr)


def print_missing(missing: Sequence[DataMissing], data: Path) -> None:
    """A table of the benchmarks that cannot run, and where their files are to be had."""
    if not missing:
        return
    table = Table("benchmark", "missing", "get it from", "licence", title=f"Not below {data}")
    table.title_justify = "left"
    for error in missing:
        files = {file.path: file for file in find_task(error.task).files}
        for path in error.paths:
            file = files.get(path)
            table.add_row(error.task, path, file.source if file else "", file.licence if file else "")
    _console().print(table)


def print_files(tasks: Sequence[Task], data: Path) -> None:
    """Every file of every benchmark, and whether it is there."""
    table = Table("benchmark", "file", "", "get it from", "licence", title=f"Files below {data}")
    table.title_justify = "left"
    table.columns[3].overflow = "fold"
    for task in tasks:
        for number, file in enumerate(task.files):
            there = _presence(task, file, data)
            name = task.name if number == 0 else ""
            table.add_row(
                name, file.path, there, file.source, file.licence, end_section=file is task.files[-1]
            )
    _console().print(table)


def _presence(task: Task, file: DataFile, data: Path) -> str:
    """Whether a file is there, or another in its place."""
    if file.locate(data):
        return "present"
    if any(other.instead_of == file.path and other.locate(data) for other in task.files):
        return "replaced"
    return "missing" if file.is_required else "optional"


def print_results(runs: Sequence[Run]) -> None:
    """The figure of each benchmark beside the paper's, and what a reader must know."""
    several = len(runs) > 1
    table = Table(*(["run"] if several else []), *COLUMNS)
    rows = [row for run in runs for row in run.rows()]
    for row in rows:
        if row.is_main:
            table.add_row(*([row.run] if several else []), *row.cells())
    console = _console()
    console.print(table)
    for title, lines in notes(runs, rows).items():
        console.print(f"\n{title}:", highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)


def _console() -> Console:
    """As wide as the terminal; in a file, as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=240)
