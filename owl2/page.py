"""What all our HTML pages share: one document without scripts or outside files, for light and dark screens.

A page brings its own style and body. Pictures travel inside it, and so do matplotlib's drawings, whose
stand-in colours become the page's variables. All text is escaped by whoever makes the body.
"""

import base64
import io
import re
from collections.abc import Mapping
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


def document(title: str, style: str, body: str) -> str:
    """The whole document; `style` is the page's own, behind `BASE_STYLE`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{BASE_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def image(data: bytes, alt: str, mime: str = "image/jpeg") -> str:
    """A picture file as an element."""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:{mime};base64,{encoded}">'


def drawing(figure: Any, colours: Mapping[str, str]) -> str:
    """A matplotlib figure as inline SVG; `colours` maps stand-in colours to the page's."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    # matplotlib gives the groups of every drawing the same ids, which a page may have once only.
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn[drawn.index("<svg") :])
    return re.sub("|".join(colours), lambda found: colours[found[0]], svg)
