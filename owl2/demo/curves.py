"""Loss and learning rate of a stage as one drawing, in the colours of the page that holds it.

matplotlib draws an SVG with stand-in colours, which then become the page's CSS variables: one drawing serves
light and dark screens and stays sharp. No pyplot, so nothing global is touched.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from owl2.page import drawing

COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--soft)",
    "#000003": "var(--line)",
    "#000004": "var(--accent)",
    "#000005": "var(--second)",
}
"""Stand-in in the drawing -> the page's colour."""
INK, SOFT, LINE, ACCENT, SECOND = COLOURS


def loss_curve(rows: Sequence[dict[str, float]], name: str) -> str:
    """Draw the rows of a `metrics.jsonl` as inline SVG: loss (raw and smoothed) above, learning rate below.

    `name` makes the drawing's inner ids differ from those of other drawings on the page.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's curves need matplotlib: pip install 'owl2[demo]'") from error
    steps = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": SOFT,
    }
    settings |= {"axes.edgecolor": LINE, "xtick.color": SOFT, "ytick.color": SOFT, "axes.labelcolor": SOFT}
    with rc_context(settings):
        figure = Figure(figsize=(3.5, 2.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot(steps, losses, color=ACCENT, alpha=0.3, linewidth=0.8)
        upper.plot(steps, smooth(losses, len(losses) // 40), color=ACCENT, linewidth=1.6)
        # The first steps fall from the height of chance; they may leave the frame, the rest may not.
        upper.set_ylim(0.95 * min(losses), 1.05 * float(np.quantile(losses, 0.97)))
        upper.set_ylabel("loss")
        lower.plot(steps, [row["lr"] for row in rows], color=SECOND, linewidth=1.4)
        lower.set_ylim(0, 1.15 * max(row["lr"] for row in rows))
        lower.set_yticks([0, max(row["lr"] for row in rows)])
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
        lower.set_ylabel("lr")
        lower.set_xlabel("step")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=LINE, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        return drawing(figure, COLOURS)


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on both sides, fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    begin, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return list((sums[end] - sums[begin]) / (end - begin))
