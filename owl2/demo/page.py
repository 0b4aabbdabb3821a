"""The look of the demo's report: one HTML page without scripts or outside files, for light and dark screens.

What is shown is built from the pieces of `owl2/page.py` and a few more: cards with an image, bars on a
scale of 0 to 100. All text is escaped on its way in; images travel inside the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from owl2.page import PIECES_STYLE, document
from owl2.page import embedded_image as embedded

MIME = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}

STYLE = """
:root { --grey: #b9b5ab; --pale: #d6d3cb; }
@media (prefers-color-scheme: dark) { :root { --grey: #6f747e; --pale: #474c55; } }
.shot { padding: 0; overflow: hidden; } .shot img { display: block; width: 100%; aspect-ratio: 1; }
.shot div { padding: 10px 14px 12px; font-size: 14.5px; line-height: 1.45; }
.shot p { margin: 0; } .big div { padding: 16px 20px 18px; font-size: 17px; }
.said { font-weight: 650; } .big .said { font-size: 24px; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
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
dl { margin: 0; font-size: 14.5px; line-height: 1.5; } dt { color: var(--soft); }
dd { margin: 0 0 6px; font-weight: 600; white-space: pre-line; } dt { white-space: pre-line; }
@media (max-width: 640px) { .group { grid-template-columns: 1fr; }
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
    return document(title, PIECES_STYLE + STYLE, "\n".join(parts))


def image(data: bytes, name: str, alt: str) -> str:
    """An image inside the page; `name` tells its format by its suffix."""
    return embedded(data, alt, MIME[PurePath(name).suffix.lower()])


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
