"""Drawings by matplotlib as SVG inside a page, in the colours of the page.

matplotlib gets stand-in colours, which become the page's CSS variables afterwards: one drawing serves light
and dark screens and stays sharp. pyplot is not used, so nothing global is touched.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from owl2.errors import Owl2Error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--soft)",
    "#000003": "var(--line)",
    "#000004": "var(--accent)",
    "#000005": "var(--second)",
    "#000006": "var(--third)",
}
"""Stand-in colour -> variable of the stylesheet."""
INK, SOFT, LINE, ACCENT, SECOND, THIRD = COLOURS


class DrawingError(Owl2Error, ImportError):
    """matplotlib is missing; the message says how to install it."""


def render_svg(
    name: str, size: tuple[float, float], paint: Callable[["Figure"], None], *, extra: str = "train"
) -> Markup:
    """Return what `paint` puts on an empty figure as inline SVG.

    Args:
        name: makes the drawing's inner ids differ from those of other drawings on the page.
        size: width and height in inches, at 9 points a letter; the page scales the drawing to its own width,
            and the drawing grows where a label needs it.
        extra: the extra of `owl2` that brings matplotlib to users of this drawing.

    Raises:
        DrawingError: matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DrawingError(f"drawings need matplotlib: pip install 'owl2[{extra}]'") from error
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    settings |= {"text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": LINE}
    settings |= {"xtick.color": SOFT, "ytick.color": SOFT}
    with rc_context(settings):
        figure = Figure(figsize=size)
        paint(figure)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.05,
            metadata={"Date": None, "Creator": None},
        )
    written = stream.getvalue()
    # matplotlib gives the groups of every drawing the same ids, which a page may have once only.
    svg = re.sub(r'<g id="[^"]*"', "<g", written[written.index("<svg") :])
    return Markup(re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], svg))
