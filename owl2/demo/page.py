"""The look of the demo's report: one HTML page without scripts or outside files, for light and dark screens.

Everything that is shown is built from a few pieces here: sections, tables, cards with a picture, bars on a
scale of 0 to 100. All text is escaped on its way in; pictures travel inside the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from owl2.page import document
from owl2.page import image as embedded

MIME = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}

STYLE = """
:root { --line: #e5e3dd; --track: #efede8; --grey: #b9b5ab; --pale: #d6d3cb; }
@media (prefers-color-scheme: dark) { :root { --line: #2f333b; --track: #262a31; --grey: #6f747e;
  --pale: #474c55; } }
main { max-width: 1040px; margin: 0 auto; padding: 56px 24px 96px; }
header p { font-size: 19px; max-width: 46em; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 12px; }
h2 { font-size: 22px; letter-spacing: -0.01em; margin: 64px 0 6px; }
section > p { color: var(--soft); margin: 0 0 20px; max-width: 46em; }
.facts { display: flex; flex-wrap: wrap; gap: 14px 44px; margin: 28px 0 0; }
.facts div { line-height: 1.3; } .facts b { display: block; font-size: 24px; letter-spacing: -0.01em; }
.facts span, small, .note { color: var(--soft); font-size: 14px; font-weight: 400; }
small { display: block; line-height: 1.45; }
.card { padding: 20px 24px; }
.grid { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.shot { padding: 0; overflow: hidden; } .shot img { display: block; width: 100%; aspect-ratio: 1; }
.shot div { padding: 10px 14px 12px; font-size: 14.5px; line-height: 1.45; }
.shot p { margin: 0; } .big div { padding: 16px 20px 18px; font-size: 17px; }
.said { font-weight: 650; } .big .said { font-size: 24px; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { font-weight: 500; color: var(--soft); text-align: left; font-size: 14px; vertical-align: bottom; }
th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); } tr:last-child td { border: 0; }
th.n, td.n { text-align: right; padding-right: 18px; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; } td.n:last-child, th.n:last-child { padding-right: 0; }
.group { display: grid; grid-template-columns: 116px 1fr; gap: 6px 16px; padding: 14px 0; }
.group + .group { border-top: 1px solid var(--line); } .group h3 { margin: 0; font-size: 16px; }
.bar { display: grid; grid-template-columns: 130px 1fr 44px; gap: 12px; align-items: center;
  font-size: 13.5px; line-height: 1.5; color: var(--soft); }
.bar b { color: var(--ink); text-align: right; font-weight: 500; font-variant-numeric: tabular-nums; }
.bar:first-child { color: var(--ink); } .bar:first-child b { font-weight: 700; }
.track { position: relative; height: 9px; border-radius: 5px; background: var(--track); }
.track i { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--pale); }
.bar:first-child .track { height: 13px; } .bar:first-child i { background: var(--accent); }
.track u { position: absolute; top: -4px; bottom: -4px; width: 2px; background: var(--ink); }
.track s { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--ink); opacity: .45; }
.stack { display: flex; gap: 2px; height: 22px; border-radius: 6px; overflow: hidden; margin-bottom: 14px; }
.stack i { display: block; } .dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 9px; }
.curve h3 { margin: 0 0 2px; font-size: 16px; }
.curve svg { display: block; width: 100%; height: auto; margin-top: auto; }
.curve text { font-family: inherit !important; } .curve { padding: 16px 18px 10px;
  display: flex; flex-direction: column; gap: 10px; }
dl { margin: 0; font-size: 14.5px; line-height: 1.5; } dt { color: var(--soft); }
dd { margin: 0 0 6px; font-weight: 600; white-space: pre-line; } dt { white-space: pre-line; }
@media (max-width: 640px) { main { padding-top: 32px; } .group { grid-template-columns: 1fr; }
  .bar { grid-template-columns: 116px 1fr 40px; } }
"""


@dataclass(frozen=True)
class Bar:
    """One bar on a scale of 0 to 1, with an optional goal (a tick) and interval (a thin line)."""

    label: str
    value: float
    goal: float | None = None
    interval: tuple[float, float] | None = None


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document."""
    return document(title, STYLE, "\n".join(parts))


def section(title: str, explanation: str, *content: str) -> str:
    """A heading, one or two sentences, and what they speak of."""
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(explanation)}</p>\n" + "\n".join(
        [*content, "</section>"]
    )


def card(*content: str, kind: str = "") -> str:
    """A box; `kind` adds CSS classes."""
    return f'<div class="card {kind}">' + "\n".join(content) + "</div>"


def grid(cards: Sequence[str], least: int) -> str:
    """Cards side by side, each at least `least` pixels wide."""
    return f'<div class="grid" style="--least: {least}px">' + "\n".join(cards) + "</div>"


def image(data: bytes, name: str, alt: str) -> str:
    """A picture inside the page; `name` tells its format by its suffix."""
    return embedded(data, alt, MIME[PurePath(name).suffix.lower()])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ("" if column < left else ' class="n"' for column in range(len(cells)))
        inner = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = [line("th", head), *(line("td", row) for row in rows)]
    return f'<div class="wide"><table>{"".join(body)}</table></div>'


def bars(name: str, note: str, group: Sequence[Bar]) -> str:
    """A named group of bars; the first is the one that counts."""
    drawn = []
    for bar in group:
        marks = f'<i style="width: {100 * bar.value:.2f}%"></i>'
        if bar.interval is not None:
            low, high = (100 * end for end in bar.interval)
            marks += f'<s style="left: {low:.2f}%; width: {high - low:.2f}%"></s>'
        if bar.goal is not None:
            marks += f'<u style="left: {100 * bar.goal:.2f}%" title="goal {100 * bar.goal:.0f}"></u>'
        drawn.append(
            f'<div class="bar"><span>{escape(bar.label)}</span><span class="track">{marks}</span>'
            f"<b>{100 * bar.value:.1f}</b></div>"
        )
    heading = f"<h3>{escape(name)}<small>{escape(note)}</small></h3>"
    return f'<div class="group">{heading}<div>{"".join(drawn)}</div></div>'


def stack(parts: Sequence[tuple[str, float, str]]) -> str:
    """Shares of a whole as one bar with a legend; each part is (name, share of 1, what to say of it)."""
    tints = [100 - 78 * place // max(1, len(parts) - 1) for place in range(len(parts))]
    colours = [f"color-mix(in srgb, var(--accent) {tint}%, var(--track))" for tint in tints]
    whole = "".join(
        f'<i style="width: {100 * share:.2f}%; background: {colour}"></i>'
        for (_, share, _), colour in zip(parts, colours, strict=True)
    )
    rows = "".join(
        f'<tr><td><span class="dot" style="background: {colour}"></span>{escape(name)}</td>'
        f'<td class="n">{escape(said)}</td></tr>'
        for (name, _, said), colour in zip(parts, colours, strict=True)
    )
    return f'<div class="stack">{whole}</div><table>{rows}</table>'
