"""Comparison of training runs: curves over each other, what differs in their settings, losses and speed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl2.pages.curves import STYLES, Curve, Panel, render_panels
from owl2.pages.drawing import ACCENT, COLOURS, SECOND, THIRD
from owl2.pages.page import render, write_page
from owl2.train.metrics import duration, rates
from owl2.train.report import ReportError, RunFiles, last_mean, short
from owl2.train.state.config_diff import flat

RUN_COLOURS = (ACCENT, SECOND, THIRD)
MOST = len(RUN_COLOURS) * len(STYLES)
"""Runs whose curves can be told apart; the tables have all."""

HEAD = ("run", "steps", "loss, last tenth", "held out", "tokens/s", "images/s", "training time")


def compare_runs(runs: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write a page that compares runs, and return the figures of each; see `figures`.

    Raises:
        ReportError: a folder is not a run's, or there are fewer than two.
        DrawingError: matplotlib is missing.
    """
    if len(set(runs)) < 2:
        raise ReportError("a comparison needs two different runs")
    files = [RunFiles.read(run) for run in dict.fromkeys(runs)]
    names = _names([each.folder for each in files])
    drawn = list(zip(names, files, strict=True))[:MOST]
    loss = Panel("loss", [_curve(each, "loss", n) for n, (_, each) in enumerate(drawn)], from_zero=False)
    speed = [_curve(each, "tokens_per_second", n) for n, (_, each) in enumerate(drawn)]
    sizes = {"wide": (9.0, 3.8), "narrow": (3.5, 2.8)}
    html = render(
        "comparison.html",
        title=f"{len(files)} runs: {', '.join(names[:3])}{', …' * (len(names) > 3)}",
        left_out=names[MOST:],
        legend=[(COLOURS[_colour(n)], n // len(RUN_COLOURS) > 0, name) for n, (name, _) in enumerate(drawn)],
        losses=[render_panels(f"loss-{size}", [loss], *inches) for size, inches in sizes.items()],
        speed=render_panels("speed", [Panel("tokens/s", speed, form=short)], 9.0, 2.4),
        head=HEAD,
        rows=[_row(name, each) for name, each in zip(names, files, strict=True)],
        differences=_differences(files),
        names=names,
    )
    write_page(out, html)
    return [figures(each) for each in files]


def figures(files: RunFiles) -> dict[str, Any]:
    """What a run has reached; a loss is None without a finished step."""
    rows = [{**row, **rates(row)} for row in files.rows]
    seconds = files.total("seconds")
    held_out = files.validation[-1] if files.validation else {}
    return {
        "run": str(files.folder),
        "steps": files.done,
        "of": files.steps,
        "is_finished": (files.folder / "checkpoint").exists(),
        "loss": last_mean(rows, "loss") if rows else None,
        "held_out": {key.removeprefix("loss/"): v for key, v in held_out.items() if key.startswith("loss/")},
        "tokens_per_second": files.total("tokens") / seconds if rows else None,
        "images_per_second": files.total("images") / seconds if rows else None,
        "seconds": seconds,
    }


def _row(name: str, files: RunFiles) -> tuple[str, ...]:
    found = figures(files)
    if found["loss"] is None:
        return (name, f"0 of {files.steps:,}", *[""] * (len(HEAD) - 2))
    held_out = ", ".join(f"{source} {loss:.3f}" for source, loss in found["held_out"].items())
    speeds = (short(found["tokens_per_second"]), short(found["images_per_second"]))
    steps = f"{files.done:,} of {files.steps:,}"
    return (name, steps, f"{found['loss']:.4f}", held_out, *speeds, duration(found["seconds"]))


def _differences(files: Sequence[RunFiles]) -> list[tuple[str, ...]]:
    """Settings, and fingerprints of model and data, that are not the same in all runs."""
    settings = [dict(flat(each.settings)) for each in files]
    for found, each in zip(settings, files, strict=True):
        found |= {f"fingerprint: {key}": v for key, v in flat((each.record or {}).get("fingerprints", {}))}
    keys = [key for key in dict.fromkeys(key for found in settings for key in found) if key != "run"]
    rows = [(key, *(str(found.get(key, "")) for found in settings)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _names(folders: Sequence[Path]) -> list[str]:
    names = [folder.absolute().name for folder in folders]
    return [n if names.count(n) == 1 else str(folder) for n, folder in zip(names, folders, strict=True)]


def _curve(files: RunFiles, key: str, number: int) -> Curve:
    rows = [{**row, **rates(row)} for row in files.rows]
    steps, values = [row["step"] for row in rows], [row.get(key, math.nan) for row in rows]
    return Curve(steps, values, colour=_colour(number), style=STYLES[number // len(RUN_COLOURS)])


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]
