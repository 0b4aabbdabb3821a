"""A radar chart of runs against the paper, in the manner of the paper's own overview and Figure 6.

Each axis is a benchmark's figure as a share of the paper's, so that all fit one scale and the paper is the
ring at 100. Drawn by matplotlib in stand-in colours that become the page's, as inline SVG; no pyplot, so
nothing global is touched.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--soft)",
    "#000003": "var(--line)",
    "#000004": "var(--accent)",
    "#000005": "var(--second)",
    "#000006": "var(--third)",
}
"""Stand-in in the drawing -> the page's colour."""
INK, SOFT, LINE, ACCENT, SECOND, THIRD = COLOURS
FEWEST_AXES = 3


def radar(axes: Sequence[str], runs: Mapping[str, Sequence[float]], top: float | None = None) -> str:
    """Draw percents of the paper as inline SVG.

    Args:
        axes: names of the benchmarks.
        runs: name -> percent of the paper on each axis.
        top: the outer ring; default: a little beyond the largest value and the paper.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.projections.polar import PolarAxes
    except ImportError as error:
        raise ImportError("the radar chart needs matplotlib: pip install 'owl2[eval]'") from error
    angles = [2 * math.pi * number / len(axes) for number in range(len(axes))]
    closed = [*angles, angles[0]]
    largest = max([100.0, *(value for values in runs.values() for value in values)])
    limit = top or 20 * math.ceil(largest * 1.04 / 20)
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "radar", "font.size": 9}
    settings |= {"text.color": INK, "xtick.color": INK, "ytick.color": SOFT}
    stream = io.StringIO()
    with rc_context(settings):
        figure = Figure(figsize=(7.6, 7.0))
        drawing = figure.add_axes((0.21, 0.2, 0.58, 0.6), projection="polar")
        assert isinstance(drawing, PolarAxes)
        drawing.set_theta_offset(math.pi / 2)
        drawing.set_theta_direction(-1)
        drawing.plot(closed, [100.0] * len(closed), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        for (name, values), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
            drawing.plot(closed, [*values, values[0]], color=colour, linewidth=1.8, label=name)
            drawing.fill(closed, [*values, values[0]], color=colour, alpha=0.14)
        drawing.set_ylim(0, limit)
        step = 20 if limit <= 140 else 20 * math.ceil(limit / 140)
        drawing.set_yticks(range(step, int(limit), step))
        drawing.set_rlabel_position(180 / len(axes))
        drawing.grid(color=LINE, linewidth=0.7)
        drawing.spines["polar"].set_color(LINE)
        drawing.set_xticks(angles, [""] * len(axes))
        for name, angle in zip(axes, angles, strict=True):
            _label(drawing, name, angle, limit)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn[drawn.index("<svg") :])
    return re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], svg)


def _label(drawing: Any, name: str, angle: float, limit: float) -> None:
    """Write an axis' name outwards along it, so that thirty names do not run into each other."""
    is_right = math.sin(angle) >= -1e-9
    drawing.text(
        angle,
        limit * 1.04,
        name,
        rotation=90 - math.degrees(angle) + (0 if is_right else 180),
        rotation_mode="anchor",
        horizontalalignment="left" if is_right else "right",
        verticalalignment="center",
    )


def _cycle(count: int) -> list[str]:
    return [(ACCENT, SECOND, THIRD)[number % 3] for number in range(count)]


def colour_of(number: int) -> str:
    """The page's colour of a run by its number, for the legend."""
    return COLOURS[_cycle(number + 1)[number]]
