"""Curves over the steps of a run, in panels one below the other.

Long runs are thinned to the extremes of each stretch, so that a page stays small and no spike is lost. A
scale may end below the highest values, such as the first ones of a run; the panel then says how many values
are above it, and up to which value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from owl2.pages.drawing import ACCENT, LINE, SECOND, SOFT, render_svg

STRETCHES_PER_INCH = 60
"""Of a raw curve, each shown by two points."""
STYLES = ("-", "--", ":", "-.")
"""Of lines, where there are more of them than colours."""
SHOWN_SHARE = 0.97
"""Share of a curve's values that a scale covers which does not begin at 0."""


@dataclass(frozen=True)
class Curve:
    """A value over steps; values that are not finite are left out."""

    steps: Sequence[float]
    values: Sequence[float]
    colour: str = ACCENT
    is_noisy: bool = True
    """Every step is a pale line and the mean around it a strong one; otherwise there is one line."""
    has_marks: bool = False
    """For few values: a dot each."""
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """Curves on one scale."""

    label: str
    """What the scale shows, with its unit."""
    curves: Sequence[Curve]
    height: float = 1.0
    """Relative to the other panels of a drawing."""
    from_zero: bool = True
    """The scale begins at 0 and ends above the largest value; otherwise it fits most values of the noisy
    curves, or all values if there are none."""
    only_top: bool = False
    """For low panels: no marks on the scale but 0 and the largest value."""
    form: Callable[[float], str] = "{:.3g}".format


def loss_curve(rows: Sequence[dict[str, float]], name: str) -> Markup:
    """Draw the rows of a `metrics.jsonl`: loss above, learning rate below."""
    loss = Curve([row["step"] for row in rows], [row["loss"] for row in rows])
    return render_panels(name, [Panel("loss", [loss], height=4, from_zero=False), lr_panel(rows)])


def lr_panel(rows: Sequence[dict[str, float]]) -> Panel:
    """The learning rate of the rows of a `metrics.jsonl`."""
    lr = Curve([row["step"] for row in rows], [row["lr"] for row in rows], SECOND, is_noisy=False)
    return Panel("lr", [lr], only_top=True, form=lambda value: f"{value:.1e}" if value else "0")


def render_panels(name: str, panels: Sequence[Panel], width: float = 3.5, height: float = 2.8) -> Markup:
    """Draw panels one below the other, over the same steps, as inline SVG.

    Args:
        name: makes the drawing's inner ids differ from those of other drawings on the page.
        width: in inches, at 9 points a letter; the page scales the drawing to its own width.

    Raises:
        DrawingError: matplotlib is missing.
    """

    def paint(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        heights = [panel.height for panel in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _paint_panel(axes, panel, round(width * STRETCHES_PER_INCH))
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].locator_params(axis="x", nbins=min(9, round(1.7 * width)))
        grid[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value % 1 == 0 else "")
        figure.align_ylabels()

    return render_svg(name, (width, height), paint)


def _paint_panel(axes: Any, panel: Panel, stretches: int) -> None:
    for curve in panel.curves:
        _paint_curve(axes, curve, stretches)
    lowest, highest = _scale(panel)
    axes.set_ylim(lowest, highest)
    if panel.only_top:
        axes.set_yticks([0, highest / 1.15])
    else:
        axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: panel.form(value))
    axes.set_ylabel(panel.label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    values = _all_values(panel)
    if len(above := values[values > highest]):
        said = f"{len(above):,} above, up to {panel.form(float(above.max()))}"
        axes.text(0.99, 0.98, said, transform=axes.transAxes, ha="right", va="top", color=SOFT)


def _paint_curve(axes: Any, curve: Curve, stretches: int) -> None:
    steps, values = _finite(curve)
    if curve.is_noisy:
        axes.plot(*thin(steps, values, stretches), color=curve.colour, alpha=0.3, linewidth=0.8)
        values = np.array(smooth(values, len(values) // 40))
        every = len(steps) // stretches + 1
        steps, values = steps[::every], values[::every]
    marks = {"marker": "o", "markersize": 3.5} if curve.has_marks else {}
    axes.plot(steps, values, color=curve.colour, linestyle=curve.style, linewidth=1.6, **marks)


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _all_values(panel: Panel) -> np.ndarray:
    return np.concatenate([_finite(curve)[1] for curve in panel.curves])


def _scale(panel: Panel) -> tuple[float, float]:
    """Both ends of a panel's scale."""
    values = _all_values(panel)
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if panel.from_zero:
        return 1.15 * min(low, 0.0), 1.15 * max(high, 0.0) or 1.0
    noisy = [_finite(curve)[1] for curve in panel.curves if curve.is_noisy]
    high = max((float(np.quantile(found, SHOWN_SHARE)) for found in noisy if len(found)), default=high)
    margin = 0.05 * max(high - low, abs(high), 1e-9)
    return low - margin, high + margin


def thin(steps: np.ndarray, values: np.ndarray, stretches: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each of `stretches` stretches; all values if there are few."""
    length = math.ceil(len(steps) / stretches)
    if length <= 2:
        return steps, values
    kept: set[int] = set()
    for begin in range(0, len(steps), length):
        stretch = values[begin : begin + length]
        kept |= {begin + int(stretch.argmin()), begin + int(stretch.argmax())}
    places = sorted(kept)
    return steps[places], values[places]


def smooth(values: Sequence[float] | np.ndarray, reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on both sides, fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    begin, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return list((sums[end] - sums[begin]) / (end - begin))
