"""What all our HTML pages share: one document without scripts or outside files, for light and dark screens.

A page brings its own style and body. Images travel inside it, and so do matplotlib's drawings, whose
stand-in colours become the page's variables. The pieces here escape all text on its way in; `content` is
HTML already.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

BASE_STYLE = """
:root { color-scheme: light dark; --ground: #faf9f6; --card: #ffffff; --ink: #22262e; --soft: #6b7280;
  --accent: #0f766e; --second: #b45309; --right: #15803d; --wrong: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --card: #1c1f25; --ink: #e6e4df;
  --soft: #9aa1ad; --accent: #2dd4bf; --second: #f5a94b; --right: #4ade80; --wrong: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Inter, Roboto, "Helvetica Neue", sans-serif; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
"""
"""Colours, type and boxes of every page; a page's own style follows and says what `--line` is."""

PIECES_STYLE = """
:root { --line: #e5e3dd; --track: #efede8; }
@media (prefers-color-scheme: dark) { :root { --line: #2f333b; --track: #262a31; } }
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
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { font-weight: 500; color: var(--soft); text-align: left; font-size: 14px; vertical-align: bottom; }
th, td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); } tr:last-child td { border: 0; }
th.n, td.n { text-align: right; padding-right: 18px; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; } td.n:last-child, th.n:last-child { padding-right: 0; }
.curve h3 { margin: 0 0 2px; font-size: 16px; }
.curve svg { display: block; width: 100%; height: auto; margin-top: auto; }
.curve text { font-family: inherit !important; } .curve { padding: 16px 18px 10px;
  display: flex; flex-direction: column; gap: 10px; }
@media (max-width: 640px) { main { padding-top: 32px; } }
"""
"""What the pieces below look like."""

COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--soft)",
    "#000003": "var(--line)",
    "#000004": "var(--accent)",
    "#000005": "var(--second)",
    "#000006": "var(--third)",
}
"""Stand-in colour of a drawing -> the page's; `--third` is for pages whose own style says what it is."""
INK, SOFT, LINE, ACCENT, SECOND, THIRD = COLOURS


def document(title: str, style: str, body: str) -> str:
    """The whole document; `style` is the page's own, behind `BASE_STYLE`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{BASE_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def embedded_image(data: bytes, alt: str, mime: str = "image/jpeg") -> str:
    """An image file as an element."""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:{mime};base64,{encoded}">'


def drawing(figure: Any) -> str:
    """A matplotlib figure as inline SVG, its stand-in colours those of the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    # matplotlib gives the groups of every drawing the same ids, which a page may have once only.
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn[drawn.index("<svg") :])
    return re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], svg)


def section(title: str, explanation: str, *content: str) -> str:
    """A heading, one or two sentences, and what they speak of."""
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(explanation)}</p>\n" + "\n".join(
        [*content, "</section>"]
    )


def facts(shown: Mapping[str, str]) -> str:
    """A row of figures, each with what it is of; the key is the figure's name."""
    parts = (f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in shown.items())
    return f'<div class="facts">{"".join(parts)}</div>'


def card(*content: str, kind: str = "") -> str:
    """A box; `kind` adds CSS classes."""
    return f'<div class="card {kind}">' + "\n".join(content) + "</div>"


def grid(cards: Sequence[str], least: int) -> str:
    """Cards side by side, each at least `least` pixels wide."""
    return f'<div class="grid" style="--least: {least}px">' + "\n".join(cards) + "</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ("" if column < left else ' class="n"' for column in range(len(cells)))
        inner = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = [line("th", head), *(line("td", row) for row in rows)]
    return f'<div class="wide"><table>{"".join(body)}</table></div>'
