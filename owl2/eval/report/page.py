"""The report as one HTML page without outside files: table, radar chart, and failures to click through.

All text is escaped; images are part of the page, as small JPEGs. An image that is no longer there is named
and does not stop the report.
"""

import dataclasses
import io
from collections.abc import Sequence
from html import escape

from owl2.eval.formats.frames import frames_of
from owl2.eval.report.page_style import STYLE
from owl2.eval.report.radar import FEWEST_AXES, colour_of, radar
from owl2.eval.report.rows import COLUMNS, MARKS, NUMBERS, Row, Run, notes
from owl2.eval.scoring.score import TaskResult
from owl2.eval.task import Answer, Item
from owl2.page import document, embedded_image

THUMBNAIL_PX = 320
MAX_IMAGES = 4
"""Shown of a question with more, evenly taken."""
MAX_CHARACTERS = 1200


def report_page(runs: Sequence[Run], rows: Sequence[Row], num_failures: int) -> str:
    """The whole document.

    Args:
        num_failures: cards for each task, the worst first.
    """
    parts = [_header(runs, rows), _radar_section(rows), _main_table(rows)]
    parts += [_details(runs, rows)]
    parts += [_notes(title, lines) for title, lines in notes(runs, rows).items()]
    parts += [_failures(run, result, num_failures) for run in runs for result in run.results]
    names = ", ".join(run.name for run in runs)
    return document(f"Evaluation of {names}", STYLE, "\n".join(part for part in parts if part))


def _header(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    sources = dict.fromkeys(result.config.source for run in runs for result in run.results)
    compared = sum(row.is_main and row.paper is not None for row in rows)
    facts = {
        "benchmarks": len({row.task for row in rows}),
        "compared with the paper": compared,
        "answers": f"{sum(len(r.answers) for run in runs for r in run.results):,}",
        "not read": f"{sum(len(r.unparsed) for run in runs for r in run.results):,}",
    }
    shown = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    return (
        f"<header><h1>Evaluation</h1><p>{escape(', '.join(sources))}</p>"
        f'<div class="facts">{shown}</div></header>'
    )


def _radar_section(rows: Sequence[Row]) -> str:
    by_run: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    marks: dict[str, str] = {}
    for row in rows:
        if row.is_main and row.paper and row.paper.value:
            # If two tasks have the same figure of the paper, the chart shows the first.
            values = by_run.setdefault(row.run, {})
            values.setdefault(row.score.paper_id, 100 * row.score.value / row.paper.value)
            names.setdefault(row.score.paper_id, row.title)
            marks[row.score.paper_id] = marks.get(row.score.paper_id, "") + row.marks
    shared = [key for key in next(iter(by_run.values()), {}) if all(key in v for v in by_run.values())]
    if len(shared) < FEWEST_AXES:
        return ""
    titles = [
        title + "".join(f" ({mark})" for mark in MARKS if mark in marks[key])
        for key, title in zip(shared, _short([names[key] for key in shared]), strict=True)
    ]
    try:
        drawn = radar(titles, {name: [values[key] for key in shared] for name, values in by_run.items()})
    except ImportError as error:
        drawn = f"<p>{escape(str(error))}</p>"
    legend = "".join(
        f'<span><i style="background: {colour_of(number)}"></i>{escape(name)}</span>'
        for number, name in enumerate(by_run)
    )
    dashed = '<span><i class="paper"></i>the paper</span>'
    return (
        "<section><h2>Against the paper</h2><p>Each benchmark's figure in percent of the paper's; the dashed "
        "ring is the paper. A mark after a name is that of its N in the table.</p>"
        f'<div class="card radar">{drawn}<div class="legend">{legend}{dashed}</div></div></section>'
    )


def _short(titles: Sequence[str]) -> list[str]:
    """Titles without what stands behind a comma or in brackets, where they still differ."""
    short = [title.split(",")[0].split(" (")[0] for title in titles]
    return [name if short.count(name) == 1 else title for name, title in zip(short, titles, strict=True)]


def _main_table(rows: Sequence[Row]) -> str:
    return (
        "<section><h2>Benchmarks</h2><p>The figure that the paper prints for each. N is the number of values "
        "that it is over; "
        + escape("; ".join(f"({mark}) {meaning}" for mark, meaning in MARKS.items()))
        + ".</p>"
        + _table([row for row in rows if row.is_main])
        + "</section>"
    )


def _details(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    parts = []
    for run in runs:
        for result in run.results:
            chosen = [row for row in rows if row.run == run.name and row.task == result.task.name]
            if len(chosen) > 1:
                title = f"{result.task.title} · {len(chosen)} figures" + _of(run, runs)
                parts.append(f"<details><summary>{escape(title)}</summary>{_table(chosen)}</details>")
    return f"<section><h2>In detail</h2>{''.join(parts)}</section>" if parts else ""


def _table(rows: Sequence[Row]) -> str:
    several = len({row.run for row in rows}) > 1
    head = ["run", *COLUMNS] if several else list(COLUMNS)

    def line(tag: str, cells: Sequence[str]) -> str:
        numeric = (' class="n"' if name in NUMBERS else "" for name in head)
        inner = (f"<{tag}{kind}>{_flagged(cell)}</{tag}>" for kind, cell in zip(numeric, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = [line("td", [row.run, *row.cells()] if several else row.cells()) for row in rows]
    return f'<div class="wide"><table>{line("th", head)}{"".join(body)}</table></div>'


def _flagged(cell: str) -> str:
    number, opening, marks = cell.partition(" (")
    meanings = [meaning for mark, meaning in MARKS.items() if mark in marks]
    if not cell.endswith(")") or not opening or set(marks[:-1]) - set(MARKS):
        return escape(cell)
    return f'<em title="{escape("; ".join(meanings))}">{escape(number)} {escape(marks[:-1])}</em>'


def _notes(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    summary = f"<summary>{escape(title)} · {len(lines)}</summary>"
    return f"<section><details>{summary}<ul>{items}</ul></details></section>"


def _failures(run: Run, result: TaskResult, num_failures: int) -> str:
    if not result.failures:
        return ""
    shown = result.failures[:num_failures]
    cards = "".join(
        _card(answer, f"{number} of {len(shown)}", result.errors.get(answer.item.id, ""))
        for number, answer in enumerate(shown, start=1)
    )
    title = f"{result.task.title}: {len(result.failures):,} of {len(result.answers):,} not right"
    return (
        f'<section><details class="failures"><summary>{escape(title)} <small>{escape(run.name)}, the worst '
        f'{len(shown)}, scroll sideways</small></summary><div class="strip">{cards}</div></details></section>'
    )


def _card(answer: Answer, place: str, error: str) -> str:
    item = answer.item
    facts = {"question": item.question}
    if item.choices:
        facts["choices"] = "\n".join(f"{letter}. {text}" for letter, text in item.choices.items())
    facts["answer"] = error or answer.output or "(empty)"
    if answer.parsed is None and not error:
        facts["read as"] = "could not be read"
    elif answer.parsed is not None and answer.parsed != answer.output.strip():
        facts["read as"] = answer.parsed
    if answer.grade is not None:
        facts["grade"] = ", ".join(f"{name} {value:g}" for name, value in answer.grade.items())
    facts["reference"] = "\n".join(dict.fromkeys(item.references))
    listed = "".join(
        f'<dt>{name}</dt><dd class="{name.split()[0]}">{escape(_shortened(text))}</dd>'
        for name, text in facts.items()
    )
    return (
        f'<article class="card"><small>{escape(item.id)} · {place}</small>{_images(item)}<dl>{listed}</dl>'
        "</article>"
    )


def _images(item: Item) -> str:
    if item.video is not None:
        item = dataclasses.replace(item, images=frames_of(item.video, item.segment))
    step = max(1, -(-len(item.images) // MAX_IMAGES))
    shown = []
    for image in item.images[::step]:
        try:
            small = image.open()
        except Exception as error:  # libraries for images and videos raise what they like
            return f"<p>{escape(str(error))}</p>"
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        stream = io.BytesIO()
        small.save(stream, format="JPEG", quality=80)
        shown.append(embedded_image(stream.getvalue(), alt=image.name))
    return f'<div class="images n{len(shown)}">{"".join(shown)}</div>' if shown else ""


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[: MAX_CHARACTERS // 2]} […] {text[-MAX_CHARACTERS // 2 :]}"


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f" · {run.name}" if len(runs) > 1 else ""
