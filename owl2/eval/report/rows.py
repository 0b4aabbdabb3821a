"""Rows of the report: one figure next to the paper's, with what a reader must know to trust it.

A row is a view of a `TaskResult` and one of its scores; every format shows the same rows and notes. N is the
number of values that the figure itself is over, which may be a part of the task's questions, and it is marked
where it is partial or small. Rows of the paper that no task of the run covers are named in one line, so that
nothing looks complete that is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.eval.report.paper import PaperRow, missing_rows, paper_rows
from owl2.eval.runner import MISSING
from owl2.eval.scoring.score import TaskResult
from owl2.eval.task import Score, Task, ending_note
from owl2.processor.template import TEMPLATES
from owl2.provenance import lines as made

COLUMNS = (
    "benchmark",
    "figure",
    "ours",
    "paper",
    "difference",
    "95 % interval",
    "N",
    "questions",
    "unparsed",
    "template",
    "judge",
)
NUMBERS = ("ours", "paper", "difference", "95 % interval", "N", "questions", "unparsed")
"""Columns that are aligned to the right."""
SMALL = 100
"""A figure over fewer values is marked: the interval of a share is then up to 10 points wide to each side."""
MARKS = {
    "!": "not all questions of the official files are answered or graded",
    "~": f"fewer than {SMALL} values: a share is uncertain by up to 10 points or more",
}
"""Marks next to N -> their meaning."""


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    run: str
    result: TaskResult
    score: Score
    is_main: bool
    """Whether it is the figure that the paper prints for the benchmark."""

    @property
    def task(self) -> str:
        return self.result.task.name

    @property
    def title(self) -> str:
        return self.result.task.title

    @property
    def figure(self) -> str:
        """The metric, and the group if it is over one."""
        return self.score.metric + (f": {self.score.group}" if self.score.group else "")

    @property
    def paper(self) -> PaperRow | None:
        return paper_rows().get(self.score.paper_id)

    @property
    def difference(self) -> float | None:
        return None if self.paper is None else self.score.value - self.paper.value

    @property
    def marks(self) -> str:
        """The keys of `MARKS` that hold for this figure."""
        judge = self.result.judge
        ungraded = judge is not None and len(judge.by_id) < judge.num_answers
        is_partial = not self.result.is_complete or (ungraded and self.score.n < len(self.result.answers))
        return ("!" if is_partial else "") + ("~" if self.score.n < SMALL else "")

    @property
    def num_values(self) -> str:
        """N with its marks."""
        return f"{self.score.n:,}" + (f" ({self.marks})" if self.marks else "")

    @property
    def questions(self) -> str:
        """The task's answered questions, and how many records the official files have if some are left
        out."""
        expected = " or ".join(f"{n:,}" for n in self.result.task.expected)
        answered, skipped = len(self.result.answers), len(self.result.skipped)
        shown = f"{answered:,}" + (f" + {skipped:,} skipped" if skipped else "")
        return shown if self.result.is_complete else f"{shown} of {expected}"

    @property
    def unparsed(self) -> str:
        """Unread answers, and questions without any."""
        errors = len(self.result.errors)
        return f"{len(self.result.unparsed)}" + (f" + {errors} not asked" if errors else "")

    @property
    def judge(self) -> str:
        """Who graded how many answers; "" for a task without a judge."""
        judge = self.result.judge
        if judge is None:
            return "not graded" if self.result.task.judge else ""
        return (
            f"{', '.join(name for name in judge.models if name) or judge.judge}, {len(judge.by_id):,} graded"
        )

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        paper, interval = self.paper, self.score.interval
        places = 4 if paper is not None and abs(paper.value) < 1 else 2
        return [
            self.title,
            self.figure,
            f"{self.score.value:.{places}f}",
            "–" if paper is None else f"{paper.value:.{places}f}",
            "–" if self.difference is None else f"{self.difference:+.{places}f}",
            "–" if interval is None else f"{interval.low:.{places}f} – {interval.high:.{places}f}",
            self.num_values,
            self.questions,
            self.unparsed,
            self.result.config.template,
            self.judge or "–",
        ]

    def values(self) -> dict[str, Any]:
        """For CSV and JSON, unrounded."""
        paper, interval = self.paper, self.score.interval
        return {
            "run": self.run,
            "task": self.task,
            "title": self.title,
            "metric": self.score.metric,
            "group": self.score.group,
            "ours": self.score.value,
            "paper": None if paper is None else paper.value,
            "difference": self.difference,
            "paper_id": self.score.paper_id,
            "paper_place": "" if paper is None else paper.place,
            "low": None if interval is None else interval.low,
            "high": None if interval is None else interval.high,
            "interval": "" if interval is None else interval.method,
            "n": self.score.n,
            "marks": self.marks,
            "num_answers": len(self.result.answers),
            "expected": list(self.result.task.expected),
            "skipped": len(self.result.skipped),
            "unparsed": len(self.result.unparsed),
            "errors": len(self.result.errors),
            "template": self.result.config.template,
            "judge": self.judge,
            "is_main": self.is_main,
        }


@dataclass(frozen=True)
class Run:
    """A scored run folder."""

    name: str
    folder: Path
    results: list[TaskResult]
    not_run: dict[str, str]
    """Benchmarks that were wanted and could not run -> why."""

    def rows(self) -> list[Row]:
        """All figures, task by task."""
        return [
            Row(self.name, result, score, number == 0)
            for result in self.results
            for number, score in enumerate(result.scores)
        ]


def notes(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, list[str]]:
    """What a reader must know besides the tables: title -> lines."""
    results = [result for run in runs for result in run.results]
    several = len(runs) > 1
    shown = {row.score.paper_id for row in rows}
    is_of_paper = any(shown) or not rows
    absent = dict.fromkeys(row.benchmark for row in missing_rows(shown).values() if is_of_paper)
    found = {
        "Not run": [line for run in runs for line in _not_run(run, several)],
        "Not scored": [f"{r.task.title}: {r.problem}" for r in results if r.problem],
        "Not as many questions as the official files have": [
            f"{r.task.title}: {len(r.answers):,} answered of {r.num_items:,} in the data{_sampled(r)}; "
            f"{'rows' if r.task.shows_all else 'official'}: {' or '.join(f'{n:,}' for n in r.task.expected)}"
            for r in results
            if not r.is_complete and not r.problem
        ],
        "Records that no question can be made of (skipped)": [
            f"{r.task.title}: {len(r.skipped):,}: "
            + "; ".join(f"{s.where}: {s.reason}" for s in r.skipped[:5])
            for r in results
            if r.skipped
        ],
        "Without a figure": [
            f"{r.task.title}: {_why_no_figure(r)}" for r in results if not r.scores and not r.problem
        ],
        "Answers that could not be read (wrong; POPE's official rule takes them for a yes)": [
            f"{r.task.title}: {len(r.unparsed):,}, such as {', '.join(r.unparsed[:10])}"
            for r in results
            if r.unparsed
        ],
        "Questions without an answer (scored as empty answers)": [
            f"{r.task.title}: {len(r.errors):,}; the first, {name}: {why}"
            for r in results
            for name, why in list(r.errors.items())[:1]
        ],
        "Not graded": [
            f"{r.task.title}: the judge gave no readable grade to {', '.join(r.judge.unread[:10])}"
            for r in results
            if r.judge is not None and r.judge.unread
        ],
        "Grades that do not count": [
            f"{r.task.title}: {r.judge.num_other:,} are of other answers than this run's"
            for r in results
            if r.judge is not None and r.judge.num_other
        ],
        "Prompts that end differently from training": [
            f"{r.task.title}: {note}"
            for r in results
            if (note := ending_of(r.task, r.config.template, r.config.engine))
        ],
        "How it was made": [line for run in runs for line in made(run.folder)],
        "How it is scored": [f"{r.task.title}: {remark}" for r in results for remark in r.task.remarks],
        "In the paper, not in this run": [f"{len(absent)} benchmarks: {', '.join(absent)}"] if absent else [],
    }
    return {title: lines for title, lines in found.items() if lines}


def ending_of(task: Task, template: str, engine: Mapping[str, Any]) -> str:
    """A note on prompts that end differently from the checkpoint's training; "" if they end alike."""
    known = task.old_names.get(template, template)
    conversation = engine.get("conversation")
    if task.mode == "rank" or known not in task.templates or conversation not in TEMPLATES:
        return ""
    return ending_note(template, task.template(template), str(conversation))


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Short names that tell run folders apart."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]


def describe_source(run: Run) -> str:
    """The checkpoints or addresses of a run, and its cost."""
    sources = dict.fromkeys(result.config.source for result in run.results)
    seconds = sum(result.seconds for result in run.results)
    asked = sum(len(result.answers) for result in run.results)
    return f"{', '.join(sources)}; {asked:,} answers in {seconds / 60:.1f} min of the model's time"


def _not_run(run: Run, several: bool) -> list[str]:
    """A line for each benchmark that could not run, and one for all those without their files."""
    name = f"{run.name}, " if several else ""
    absent = [task for task, reason in run.not_run.items() if reason.startswith(MISSING)]
    lines = [f"{name}{task}: {reason}" for task, reason in run.not_run.items() if task not in absent]
    return lines + ([f"{name}{len(absent)} without their files: {', '.join(absent)}"] if absent else [])


def _sampled(result: TaskResult) -> str:
    limit = result.config.sample.get("limit")
    return "" if limit is None or len(result.answers) == result.num_items else ", a seeded sample (--limit)"


def _why_no_figure(result: TaskResult) -> str:
    if result.task.judge and (result.judge is None or not result.judge.by_id):
        return "a judge must grade it: `owl2 eval judge`"
    if result.task.shows_all:
        return "no question has a reference"
    return "the data keeps the right answers secret: `owl2 eval export` writes what the organisers take"
