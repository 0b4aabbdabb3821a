"""A radar chart of runs against the paper, in the manner of the paper's own overview and Figure 6.

Each axis is a benchmark's figure in percent of the paper's, so all fit one scale and the paper is the ring at
100 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from owl2.pages.drawing import ACCENT, COLOURS, INK, LINE, SECOND, SOFT, THIRD, render_svg

FEWEST_AXES = 3
RUN_COLOURS = (ACCENT, SECOND, THIRD)
"""Of the first, second and third run; the fourth has the first's again."""


def radar(axes: Sequence[str], runs: Mapping[str, Sequence[float]], width: float = 7.6) -> Markup:
    """Draw percents of the paper as inline SVG.

    Args:
        axes: names of the benchmarks.
        runs: name -> percent of the paper on each axis.
        width: in inches, at 9 points a letter.

    Raises:
        DrawingError: matplotlib is missing.
    """
    angles = [2 * math.pi * number / len(axes) for number in range(len(axes))]
    largest = max([100.0, *(value for values in runs.values() for value in values)])
    limit = 20 * math.ceil(largest * 1.04 / 20)

    def paint(figure: Any) -> None:
        axis = figure.add_axes((0.21, 0.2, 0.58, 0.6), projection="polar")
        axis.set_theta_offset(math.pi / 2)
        axis.set_theta_direction(-1)
        closed = [*angles, angles[0]]
        axis.plot(closed, [100.0] * len(closed), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        for number, values in enumerate(runs.values()):
            colour = RUN_COLOURS[number % len(RUN_COLOURS)]
            axis.plot(closed, [*values, values[0]], color=colour, linewidth=1.8)
            axis.fill(closed, [*values, values[0]], color=colour, alpha=0.14)
        axis.set_ylim(0, limit)
        step = 20 if limit <= 140 else 20 * math.ceil(limit / 140)
        marks = range(step, int(limit), step)
        axis.set_yticks(marks, [f"{mark} %" for mark in marks], color=SOFT)
        axis.set_rlabel_position(180 / len(axes))
        axis.grid(color=LINE, linewidth=0.7)
        axis.spines["polar"].set_color(LINE)
        axis.set_xticks(angles, [""] * len(axes))
        for name, angle in zip(axes, angles, strict=True):
            _label(axis, name, angle, limit)

    return render_svg(f"radar-{width:g}", (width, 0.92 * width), paint, extra="eval")


def _label(axis: Any, name: str, angle: float, limit: float) -> None:
    """Write an axis' name outwards along it, so that thirty names do not overlap."""
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


def colour_of(number: int) -> str:
    """The page's colour of a run, for the legend."""
    return COLOURS[RUN_COLOURS[number % len(RUN_COLOURS)]]
