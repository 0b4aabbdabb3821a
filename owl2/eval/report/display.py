"""Console output of an evaluation: progress, what cannot run, results next to the paper's.

Progress goes to standard error, a bar only in a terminal; results go to standard output, one line for each
benchmark. Nothing here drives a run: `Bar` receives its progress.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

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

from owl2.eval.engines.engine import Engine
from owl2.eval.judge.grading import Grading
from owl2.eval.report.rows import COLUMNS, Run, ending_of, notes
from owl2.eval.report.write import marks_of
from owl2.eval.runner import SKIPPED_FILE, NotRun, Outcome, Plan, Shard, Watch
from owl2.eval.task import DataFile, Task, find_task


class Bar(Watch):
    """One bar for a whole run with the time left, and a line for each task that is done. A context
    manager."""

    def __init__(self, plans: Sequence[Plan], shard: Shard):
        self.shard = shard
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        is_hidden = shard.rank != 0 or not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, transient=True, disable=is_hidden)
        self.total = self.progress.add_task("", total=sum(len(plan.items) for plan in plans))

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, plan: Plan, engine: Engine) -> None:
        self.progress.update(self.total, description=plan.task.name)
        note = ending_of(plan.task, plan.template, engine.identity)
        if note and self.shard.rank == 0:
            said = f"{plan.task.name}: {note}"
            self.console.print(said, highlight=False, soft_wrap=True, markup=False)

    def advance(self, count: int) -> None:
        self.progress.advance(self.total, count)

    def end(self, plan: Plan, outcome: Outcome) -> None:
        line = _outcome_line(outcome, plan, self.shard)
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _outcome_line(outcome: Outcome, plan: Plan, shard: Shard) -> str:
    rate = outcome.num_asked / outcome.seconds if outcome.seconds else 0.0
    parts = [f"{outcome.num_asked:,} answers in {outcome.seconds:.1f} s ({rate:.1f}/s)"]
    if outcome.num_kept:
        parts.append(f"{outcome.num_kept:,} kept")
    if plan.sample or plan.loaded.num_records not in plan.task.expected:
        parts.append(f"{plan.num_items:,} of {' or '.join(f'{n:,}' for n in plan.task.expected)} questions")
    if plan.loaded.skipped:
        parts.append(f"{len(plan.loaded.skipped):,} records skipped")
    if outcome.errors:
        parts.append(f"{len(outcome.errors):,} without an answer")
    rank = f"rank {shard.rank}  " if shard.world_size > 1 else ""
    return f"{rank}{outcome.task:18} {plan.template:14} {', '.join(parts)}"


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Say which questions have no answer, the first of each task."""
    for outcome in outcomes:
        for name, why in list(outcome.errors.items())[:1]:
            count = len(outcome.errors)
            print(f"{outcome.task}: {count:,} without an answer; the first, {name}: {why}", file=sys.stderr)


def print_not_run(not_run: Sequence[NotRun], data: Path) -> None:
    """A table of the benchmarks that cannot run: why, and where missing files come from."""
    if not not_run:
        return
    table = Table("benchmark", "why", "get it from", "licence", title=f"Not run, of the files below {data}")
    table.title_justify = "left"
    table.columns[1].overflow = "fold"
    for one in not_run:
        files = {file.path: file for file in find_task(one.task).files} if one.missing else {}
        for path in one.missing:
            file = files.get(path)
            shown = (file.source, file.licence) if file else ("", "")
            table.add_row(one.task, f"missing: {path}", *shown)
        if not one.missing:
            table.add_row(one.task, one.reason, "", "")
    _console().print(table)


def print_skipped(plans: Sequence[Plan], out: Path) -> None:
    """Say which records of the official files were skipped, the first of each task."""
    for plan in plans:
        if skipped := plan.loaded.skipped:
            first = f"the first, {skipped[0].where}: {skipped[0].reason}"
            name = out / SKIPPED_FILE
            print(
                f"{plan.task.name}: {len(skipped):,} records skipped; {first} (all in {name})",
                file=sys.stderr,
            )


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
    """Whether a file is there, or another one in its place."""
    if file.locate(data):
        return "present"
    if any(other.instead_of == file.path and other.locate(data) for other in task.files):
        return "replaced"
    return "missing" if file.is_required else "optional"


def print_results(runs: Sequence[Run]) -> None:
    """The figure of each benchmark next to the paper's, and what a reader must know."""
    several = len(runs) > 1
    table = Table(*(["run"] if several else []), *COLUMNS)
    rows = [row for run in runs for row in run.rows()]
    for row in rows:
        if row.is_main:
            table.add_row(*([row.run] if several else []), *row.cells())
    console = _console()
    console.print(table)
    for mark, meaning in marks_of([row for row in rows if row.is_main]).items():
        console.print(f"N ({mark}): {meaning}")
    for title, lines in notes(runs, rows).items():
        console.print(f"\n{title}:")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


def print_estimates(gradings: Sequence[Grading], price_in: float, price_out: float) -> None:
    """The cost of the missing grades, a line for each task; prices are per million tokens."""
    for grading in gradings:
        estimate = grading.estimate()
        cost = f", about {estimate.cost(price_in, price_out):.2f}" if price_in or price_out else ""
        print(
            f"{grading.task.name}: {estimate.calls:,} requests to {grading.model} ({estimate.cached:,} "
            f"graded already), about {estimate.prompt_tokens:,} tokens in and {estimate.new_tokens:,} "
            f"out{cost}"
        )


@contextmanager
def grading_bar(gradings: Sequence[Grading]) -> Iterator[Callable[[], None]]:
    """Yield what advances one bar for all requests by one."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        total = bar.add_task("grading", total=sum(len(grading.calls) for grading in gradings))
        yield partial(bar.advance, total)


def _console() -> Console:
    """As wide as the terminal; in a file, as wide as the tables. Text from files is never markup."""
    console = Console(markup=False, emoji=False, highlight=False)
    return console if console.is_terminal else Console(width=240, markup=False, emoji=False, highlight=False)
