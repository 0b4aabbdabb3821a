"""Curves over the steps of a run as one drawing, in the colours of the page that holds it.

matplotlib draws an SVG with stand-in colours, which then become the page's CSS variables: one drawing serves
light and dark screens and stays sharp. No pyplot, so nothing global is touched. Long runs are thinned to the
extremes of each stretch, so that a page stays small and no spike is lost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from owl2.page import ACCENT, LINE, SECOND, SOFT, drawing

STRETCHES_AN_INCH = 60
"""Of a raw curve; two points of each are drawn."""


@dataclass(frozen=True)
class Curve:
    """A value over steps; values that are not finite are left out."""

    steps: Sequence[float]
    values: Sequence[float]
    colour: str = ACCENT
    is_noisy: bool = True
    """Every step is drawn pale and the mean around it strong; else one line."""
    has_marks: bool = False
    """For few values: a dot each."""


@dataclass(frozen=True)
class Panel:
    """Curves on one scale, beside the name of what they show."""

    label: str
    curves: Sequence[Curve]
    height: float = 1.0
    """Relative to the other panels of a drawing."""
    from_zero: bool = True
    """The scale begins at 0 and ends above the largest value; else it leaves out what stands out above."""
    only_top: bool = False
    """For low panels: no marks on the scale but 0 and the largest value."""
    form: Callable[[float], str] = "{:.3g}".format


def loss_curve(rows: Sequence[dict[str, float]], name: str) -> str:
    """Draw the rows of a `metrics.jsonl`: loss above, learning rate below."""
    steps = [row["step"] for row in rows]
    loss = Curve(steps, [row["loss"] for row in rows])
    return draw(name, [Panel("loss", [loss], height=4, from_zero=False), lr_panel(rows)])


def lr_panel(rows: Sequence[dict[str, float]]) -> Panel:
    """The learning rate of the rows of a `metrics.jsonl`."""
    lr = Curve([row["step"] for row in rows], [row["lr"] for row in rows], SECOND, is_noisy=False)
    return Panel("lr", [lr], only_top=True, form=lambda value: f"{value:.1e}" if value else "0")


def draw(name: str, panels: Sequence[Panel], width: float = 3.5, height: float = 2.8) -> str:
    """Draw panels one below the other, over the same steps, as inline SVG.

    Args:
        name: makes the drawing's inner ids differ from those of other drawings on the page.
        width: in inches, at 9 points a letter; the page scales the drawing to its own width.

    Raises:
        ImportError: matplotlib is missing; says how to install it.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install 'owl2[train]'") from error
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": SOFT,
    }
    settings |= {"axes.edgecolor": LINE, "xtick.color": SOFT, "ytick.color": SOFT, "axes.labelcolor": SOFT}
    with rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        heights = [panel.height for panel in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, panel, round(width * STRETCHES_AN_INCH))
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value % 1 == 0 else "")
        figure.align_ylabels()
        return drawing(figure)


def _draw_panel(axes: Any, panel: Panel, stretches: int) -> None:
    for curve in panel.curves:
        _draw_curve(axes, curve, stretches)
    lowest, highest = _range(panel)
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


def _draw_curve(axes: Any, curve: Curve, stretches: int) -> None:
    steps, values = _finite(curve)
    if curve.is_noisy:
        axes.plot(*thin(steps, values, stretches), color=curve.colour, alpha=0.3, linewidth=0.8)
        values = np.array(smooth(values, len(values) // 40))
        every = len(steps) // stretches + 1
        steps, values = steps[::every], values[::every]
    marks = {"marker": "o", "markersize": 3.5} if curve.has_marks else {}
    axes.plot(steps, values, color=curve.colour, linewidth=1.6, **marks)


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _range(panel: Panel) -> tuple[float, float]:
    values = np.concatenate([_finite(curve)[1] for curve in panel.curves])
    if not len(values):
        return 0.0, 1.0
    if panel.from_zero:
        return 0.0, 1.15 * float(values.max()) or 1.0
    # The first steps fall from the height of chance; they may leave the frame, the rest may not.
    highest = max(float(np.quantile(_finite(curve)[1], 0.97)) for curve in panel.curves if len(curve.values))
    return 0.95 * float(values.min()), 1.05 * highest


def thin(steps: np.ndarray, values: np.ndarray, stretches: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each of so many stretches; all values if there are few."""
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
