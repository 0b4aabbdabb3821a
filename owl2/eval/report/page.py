"""The report as an HTML page: tables, radar chart, and wrong answers with their images to look through.

An image that cannot be opened any more is named in its place and does not stop the report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from owl2.data.sample import StoredImage
from owl2.eval.formats.frames import frames_of
from owl2.eval.report.radar import FEWEST_AXES, colour_of, radar
from owl2.eval.report.rows import COLUMNS, MARKS, NUMBERS, Row, Run, notes
from owl2.eval.scoring.score import TaskResult
from owl2.eval.task import Answer
from owl2.pages.drawing import DrawingError
from owl2.pages.page import jpeg, render

THUMBNAIL_PX = 320
MAX_IMAGES = 4
"""Shown of a question with more, evenly chosen."""
MAX_CHARACTERS = 1200


def report_page(runs: Sequence[Run], rows: Sequence[Row], num_failures: int) -> str:
    """The whole document.

    Args:
        num_failures: wrong answers shown for each task, the worst first.
    """
    results = [(run, result) for run in runs for result in run.results]
    has_several = len(runs) > 1
    head = ["run", *COLUMNS] if has_several else list(COLUMNS)

    def cells(chosen: Sequence[Row]) -> list[list[str]]:
        return [[row.run, *row.cells()] if has_several else row.cells() for row in chosen]

    details = []
    for run, result in results:
        chosen = [row for row in rows if row.run == run.name and row.task == result.task.name]
        if len(chosen) > 1:
            name = f" · {run.name}" if has_several else ""
            details.append((f"{result.task.title} · {len(chosen)} figures{name}", cells(chosen)))
    num_of_paper = sum(row.is_main and row.paper is not None for row in rows)
    return render(
        "evaluation.html",
        title=f"Evaluation of {', '.join(run.name for run in runs)}",
        sources=", ".join(dict.fromkeys(result.config.source for _, result in results)),
        facts=[
            (f"{len({row.task for row in rows})}", "benchmarks"),
            *([(f"{num_of_paper}", "compared with the paper")] if num_of_paper or not rows else []),
            (f"{sum(len(result.answers) for _, result in results):,}", "answers"),
            (f"{sum(len(result.unparsed) for _, result in results):,}", "could not be read"),
        ],
        radar=_radar(rows),
        head=head,
        text=[place for place, name in enumerate(head) if name not in NUMBERS],
        marks=MARKS,
        main=cells([row for row in rows if row.is_main]),
        details=details,
        notes=notes(runs, rows),
        failures=[
            _failures(*pair, num_failures)
            for pair in results
            if pair[1].failures or (pair[1].task.shows_all and pair[1].answers)
        ],
    )


def _radar(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The drawing and its legend; None if too few figures are in every run."""
    by_run: dict[str, dict[str, float]] = {}
    titles: dict[str, str] = {}
    marks: dict[str, str] = {}
    for row in rows:
        if row.is_main and row.paper and row.paper.value:
            # If two tasks have the same figure of the paper, the chart shows the first.
            key = row.score.paper_id
            by_run.setdefault(row.run, {}).setdefault(key, 100 * row.score.value / row.paper.value)
            titles.setdefault(key, row.title)
            marks[key] = marks.get(key, "") + row.marks
    shared = [key for key in next(iter(by_run.values()), {}) if all(key in v for v in by_run.values())]
    if len(shared) < FEWEST_AXES:
        return None
    names = [
        name + "".join(f" ({mark})" for mark in MARKS if mark in marks[key])
        for key, name in zip(shared, _short([titles[key] for key in shared]), strict=True)
    ]
    percents = {run: [values[key] for key in shared] for run, values in by_run.items()}
    try:
        drawing, narrow = radar(names, percents), radar(names, percents, width=4.4)
    except DrawingError as error:
        return {"error": str(error)}
    return {
        "error": "",
        "drawing": drawing,
        "narrow": narrow,
        "runs": [(colour_of(number), name) for number, name in enumerate(by_run)],
    }


def _short(titles: Sequence[str]) -> list[str]:
    """Titles without what follows a comma or a bracket, where they still differ."""
    short = [title.split(",")[0].split(" (")[0] for title in titles]
    return [name if short.count(name) == 1 else title for name, title in zip(short, titles, strict=True)]


def _failures(run: Run, result: TaskResult, num_failures: int) -> dict[str, Any]:
    """A task's wrong answers; of a task that shows all, right ones follow."""
    task, wrong = result.task, {answer.item.id for answer in result.failures}
    others = [a for a in result.answers if a.item.id not in wrong] if task.shows_all else []
    shown = [*result.failures, *others][:num_failures]
    title = f"{task.title}: {len(wrong):,} of {len(result.answers):,} not right"
    cards = []
    for number, answer in enumerate(shown, start=1):
        name, right = answer.item.id, "right answer" if answer.item.references else "its answer"
        label = "answer" if name in wrong else right
        cards.append(_card(answer, label, f"{name} · {number} of {len(shown)}", result.errors.get(name, "")))
    return {
        "title": title if wrong or result.scores else f"{task.title}: {len(result.answers):,} answers",
        "note": f"{run.name}, {'these first' if task.shows_all else 'the worst'} {len(shown)}",
        "is_open": task.shows_all,
        "cards": cards,
    }


def _card(answer: Answer, label: str, place: str, error: str) -> dict[str, Any]:
    item = answer.item
    facts = {"question": item.question}
    if item.choices:
        facts["choices"] = "\n".join(f"{letter}. {text}" for letter, text in item.choices.items())
    facts[label] = error or answer.output or "(empty)"
    if answer.parsed is None and not error:
        facts["read as"] = "could not be read"
    elif answer.parsed is not None and answer.parsed != answer.output.strip():
        facts["read as"] = answer.parsed
    if answer.grade is not None:
        facts["grade"] = ", ".join(f"{name} {value:g}" for name, value in answer.grade.items())
    if item.references:
        facts["reference"] = "\n".join(dict.fromkeys(item.references))
    if answer.prompt:
        facts["prompt"] = answer.prompt
    images = item.images if item.video is None else frames_of(item.video, item.segment)
    shown, image_error = thumbnails(images)
    return {"place": place, "images": shown, "error": image_error, "facts": shortened(facts)}


def thumbnails(images: Sequence[StoredImage]) -> tuple[list[tuple[str, str]], str]:
    """(name with size, address) of the images shown, or why one cannot be shown."""
    shown = []
    try:
        for image in images[:: max(1, -(-len(images) // MAX_IMAGES))]:
            small = image.open()
            name = f"{image.name} ({small.width} x {small.height})"
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            shown.append((name, jpeg(small, quality=80)))
    except Exception as error:  # libraries for images and videos raise what they like
        return [], str(error) or type(error).__name__
    return shown, ""


def shortened(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts whose long texts lack their middle."""
    return {
        name: text
        if len(text) <= MAX_CHARACTERS
        else f"{text[: MAX_CHARACTERS // 2]} […] {text[-MAX_CHARACTERS // 2 :]}"
        for name, text in facts.items()
    }
