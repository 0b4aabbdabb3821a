"""A radar chart of runs against the paper, in the manner of the paper's own overview and Figure 6.

Each axis is a benchmark's figure as a share of the paper's, so that all fit one scale and the paper is the
ring at 100. Drawn by matplotlib in stand-in colours that become the page's, as inline SVG; no pyplot, so
nothing global is touched.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from owl2.page import ACCENT, COLOURS, INK, LINE, SECOND, SOFT, THIRD, drawing

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
    with rc_context(settings):
        figure = Figure(figsize=(7.6, 7.0))
        axis = figure.add_axes((0.21, 0.2, 0.58, 0.6), projection="polar")
        assert isinstance(axis, PolarAxes)
        axis.set_theta_offset(math.pi / 2)
        axis.set_theta_direction(-1)
        axis.plot(closed, [100.0] * len(closed), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        for (name, values), colour in zip(runs.items(), _cycle(len(runs)), strict=True):
            axis.plot(closed, [*values, values[0]], color=colour, linewidth=1.8, label=name)
            axis.fill(closed, [*values, values[0]], color=colour, alpha=0.14)
        axis.set_ylim(0, limit)
        step = 20 if limit <= 140 else 20 * math.ceil(limit / 140)
        axis.set_yticks(range(step, int(limit), step))
        axis.set_rlabel_position(180 / len(axes))
        axis.grid(color=LINE, linewidth=0.7)
        axis.spines["polar"].set_color(LINE)
        axis.set_xticks(angles, [""] * len(axes))
        for name, angle in zip(axes, angles, strict=True):
            _label(axis, name, angle, limit)
        return drawing(figure)


def _label(axis: Any, name: str, angle: float, limit: float) -> None:
    """Write an axis' name outwards along it, so that thirty names do not run into each other."""
    is_right = math.sin(angle) >= -1e-9
    axis.text(
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
