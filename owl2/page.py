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


def document(title: str, style: str, body: str) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
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
