"""The report of a training run, `RUN/report.html`: losses, speed, parameters and data.

It reads only the files in the run's folder, so it works at any time and on any machine, for running, finished
and stopped runs. What the folder lacks is left out. Speeds are those of training steps, without validation
and saving.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from owl2.errors import Owl2Error
from owl2.jsonl import read_jsonl
from owl2.pages.curves import Curve, Panel, lr_panel, render_panels
from owl2.pages.drawing import SECOND
from owl2.pages.page import embedded, render, write_page
from owl2.provenance import ATTEMPT_HEAD, attempt_rows, read_record
from owl2.train.answers import SAMPLES
from owl2.train.metrics import duration, rates, read_metrics
from owl2.train.state.config_diff import read_settings
from owl2.train.state.state import saved_states
from owl2.train.summary import CORPUS_HEAD, GROUP_HEAD, LOST_HEAD, Cells, Summary

Row = Mapping[str, float]

SLACK_S = 120
"""A run without a new step for this long, and for 20 of its usual steps, is shown as stopped."""


class ReportError(Owl2Error, ValueError):
    """The folder is not a training run's."""


@dataclass(frozen=True)
class RunFiles:
    """What a run has written to its folder so far."""

    folder: Path
    config: str
    settings: dict[str, Any]
    """`config`, parsed."""
    rows: list[dict[str, float]]
    validation: list[dict[str, float]]
    summary: Summary | None
    record: dict[str, Any] | None
    """`run.json`."""
    samples: list[dict[str, Any]]
    """Sample answers, in the order in which they were given."""
    bad_samples: list[dict[str, Any]]
    """Samples that could not be used, with their reasons, from every rank."""
    silent_s: float
    """Seconds since the last step was written."""

    @classmethod
    def read(cls, run: Path) -> "RunFiles":
        """Read a run's folder.

        Raises:
            ReportError: it is no run's folder; the message names runs inside it or next to it.
        """
        config, metrics = run / "config.yaml", run / "metrics.jsonl"
        if not config.exists():
            found = [*sorted(run.glob("*/config.yaml")), *sorted(run.absolute().parent.glob("*/config.yaml"))]
            near = ", ".join(str(path.parent) for path in found[:3])
            hint = f"; did you mean {near}?" if near else ""
            raise ReportError(f"{run} is not the folder of a run: it has no config.yaml{hint}")
        settings = read_settings(config)
        if missing := {"model", "data", "steps", "global_batch_size"} - settings.keys():
            raise ReportError(
                f"{config} is not that of a training run: it has no {', '.join(sorted(missing))}"
            )
        return cls(
            folder=run,
            config=config.read_text(encoding="utf-8"),
            settings=settings,
            rows=read_metrics(run),
            validation=read_metrics(run, "validation.jsonl"),
            samples=read_metrics(run, SAMPLES),
            summary=Summary.read(run),
            record=read_record(run),
            bad_samples=[
                row
                for file in sorted(run.glob("bad_samples*.jsonl"))
                for _, row in read_jsonl(file, ours=True)
            ],
            silent_s=time.time() - (metrics if metrics.exists() else config).stat().st_mtime,
        )

    @property
    def steps(self) -> int:
        """Steps of the whole run; 0 if they follow from epochs and the data is not opened yet."""
        return int(self.settings["steps"]) or (self.summary.steps if self.summary is not None else 0)

    @property
    def done(self) -> int:
        """Finished steps."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def total(self, what: str) -> float:
        """The sum of a metric over all steps."""
        return sum(row[what] for row in self.rows)

    def mean(self, what: str) -> float | None:
        """The mean of a metric, weighted by step time, over the steps that have it."""
        rows = [row for row in self.rows if what in row]
        seconds = sum(row["seconds"] for row in rows)
        return sum(row[what] * row["seconds"] for row in rows) / seconds if seconds else None

    def state(self) -> str:
        """One sentence: finished, running or stopped, and how far."""
        if (self.folder / "checkpoint").exists():
            return f"Finished: {self.folder / 'checkpoint'}"
        step_s = median(row["seconds"] for row in self.rows[-100:]) if self.rows else 0.0
        if self.silent_s < max(SLACK_S, 20 * step_s):
            left = f", about {duration(step_s * (self.steps - self.done))} left" if self.rows else ""
            return f"Running: step {self.done:,} of {self.steps:,}{left}."
        saved = [state.name.removeprefix("step-").lstrip("0") for state in saved_states(self.folder)]
        rest = f"the same command continues it after step {int(saved[-1]):,}" if saved else "nothing is saved"
        return (
            f"Stopped: {self.done:,} of {self.steps:,} steps, silent for {duration(self.silent_s)}; {rest}."
        )


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write a run's report, by default to `report.html` in its folder, and return its path.

    Raises:
        ReportError: the folder is not a run's.
        DrawingError: matplotlib is missing; the message says how to install it.
    """
    files = RunFiles.read(run)
    out = out or run / "report.html"
    write_page(out, page(files))
    return out


def page(files: RunFiles) -> str:
    """The whole document."""
    config = files.settings
    where = "" if files.summary is None else f"{files.summary.ranks} x {files.summary.device}, "
    where += f"{files.summary.dtype}, " if files.summary is not None and files.summary.dtype else ""
    name = files.folder.absolute().name
    return render(
        "training.html",
        title=f"{name}: training",
        name=name,
        state=files.state(),
        origin=f"{where}from {config['model']}, {config['global_batch_size']:,} samples per step",
        share=files.done / max(1, files.steps),
        facts=_facts(files),
        losses=_losses(files),
        sources=_sources(files),
        samples=_samples(files),
        bad=_bad(files),
        speed=_speed(files),
        tables=_tables(files),
        provenance=provenance(files),
        config=files.config,
    )


def provenance(files: RunFiles) -> dict[str, Any]:
    """Attempts, and what identifies model and data."""
    record = files.record or {}
    marks = record.get("fingerprints", {})
    named = [("starting model", marks.get("model")), *marks.get("data", {}).items()]
    lines = [f"{name}: {mark}" for name, mark in named if mark]
    return {"head": ATTEMPT_HEAD, "rows": attempt_rows(record), "lines": lines}


def _facts(files: RunFiles) -> list[tuple[str, str]]:
    """(figure, what it is of)."""
    shown = [(f"{files.done:,} of {files.steps:,}", "steps")]
    if files.rows:
        shown += [
            (f"{last_mean(files.rows, 'loss'):.3f}", "loss, last tenth"),
            (duration(files.total("seconds")), "training time"),
            (short(files.total("tokens")), "tokens"),
            (short(files.total("images")), "images"),
        ]
    if files.summary is not None:
        trainable = f"{files.summary.trainable / files.summary.parameters:.0%}"
        shown.append((short(files.summary.parameters), f"parameters, {trainable} trainable"))
    if files.rows and (bad := int(files.rows[-1].get("bad_samples", 0))):
        shown.append(
            (f"{bad:,} of {files.done * int(files.settings['global_batch_size']):,}", "unusable samples")
        )
    mfu, tflops = files.mean("mfu"), files.mean("tflops")
    if mfu is not None:
        shown.append((f"{mfu:.1%}", "utilisation (MFU)"))
    elif tflops is not None:
        shown.append((f"{tflops:.3g}", "TFLOP/s per device"))
    return shown


def _losses(files: RunFiles) -> list[str]:
    """All steps in a wide drawing and in one for phones; none if no step is finished."""
    if not files.rows:
        return []
    loss = Panel("loss", [_curve(files.rows, "loss")], height=4, from_zero=False)
    sizes = {"loss": (9.0, 3.8), "loss-narrow": (3.5, 2.8)}
    return [render_panels(name, [loss, lr_panel(files.rows)], *size) for name, size in sizes.items()]


def _sources(files: RunFiles) -> list[tuple[str, list[str], Markup]]:
    """(source, lines, drawing); a held-out source of the same name shares the drawing."""
    found = {key for row in [*files.rows, *files.validation] for key in row if key.startswith("loss/")}
    mixture = [f"loss/{source['name']}" for source in files.settings["data"]["sources"]]
    keys = [*(key for key in mixture if key in found), *sorted(found - set(mixture))]
    shown = []
    for number, key in enumerate(keys):
        curves, lines = [], []
        if trained := [row for row in files.rows if key in row]:
            curves.append(_curve(trained, key))
            lines.append(f"{last_mean(trained, key):.3f} in the last tenth")
        if held_out := [row for row in files.validation if key in row]:
            curves.append(_curve(held_out, key, colour=SECOND, is_noisy=False, has_marks=True))
            lines.append(f"held out: {held_out[-1][key]:.3f}")
        drawing = render_panels(f"source-{number}", [Panel("loss", curves, from_zero=False)], height=2.3)
        shown.append((key.removeprefix("loss/"), lines, drawing))
    return shown


def _speed(files: RunFiles) -> list[tuple[str, list[str], Markup]]:
    """(title, lines, drawing) of each metric of a step."""
    rows = [{**row, **rates(row)} for row in files.rows]
    mfu = ("mfu", "Utilisation", "MFU", "of the device's bfloat16 peak, by counted operations", percent)
    tflops = ("tflops", "TFLOP/s", "TFLOP/s", "per device, by counted operations", short)
    metrics: list[tuple[str, str, str, str, Callable[[float], str]]] = [
        ("tokens_per_second", "Tokens per second", "tokens/s", "over all devices", short),
        ("images_per_second", "Images per second", "images/s", "over all devices", short),
        mfu if any("mfu" in row for row in rows) else tflops,
        ("data_wait_share", "Waiting for data", "share", "of a step's time", percent),
        ("peak_memory", "Memory", "GB", "peak of the first process", lambda n: f"{n / 1e9:.3g}"),
        ("grad_norm", "Gradient norm", "norm", "before clipping", short),
    ]
    shown = []
    for key, title, label, line, form in metrics:
        if having := [row for row in rows if key in row]:
            curve = _curve(having, key, is_noisy=key != "peak_memory")
            shown.append((title, [line], render_panels(key, [Panel(label, [curve], form=form)], height=1.9)))
    return shown


def _tables(files: RunFiles) -> list[tuple[Cells, list[Cells], list[int]]]:
    """(head, rows, places of the text columns)."""
    if files.summary is None:
        return []
    tables = [
        (GROUP_HEAD, files.summary.group_rows(), [0]),
        (CORPUS_HEAD, files.summary.corpus_rows(), [0]),
        (LOST_HEAD, files.summary.lost_rows(), [0, 1, 2]),
    ]
    return [table for table in tables if table[1]]


def _bad(files: RunFiles) -> list[Cells]:
    """(source, kind of fault, different samples, one of them with its reason); the most frequent first."""
    kinds: dict[tuple[str, str], dict[str, str]] = {}
    for row in files.bad_samples:
        kinds.setdefault((row["source"], row["kind"]), {}).setdefault(row["key"], row["reason"])
    ordered = sorted(kinds.items(), key=lambda item: len(item[1]), reverse=True)
    return [(*kind, f"{len(found):,}", ": ".join(next(iter(found.items())))) for kind, found in ordered]


@dataclass(frozen=True)
class AskedSample:
    """A held-out sample and what was answered over the run."""

    key: str
    question: str
    expected: str
    images: list[str]
    """As addresses of `<img>`."""
    answers: list[tuple[str, str, bool]]
    """(steps, answer, whether it is the expected one); equal answers in a row are one."""


def _samples(files: RunFiles) -> list[AskedSample]:
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in files.samples:
        by_key.setdefault(row["key"], []).append(row)
    shown = []
    for number, (key, rows) in enumerate(by_key.items()):
        answers = []
        for answer, alike in groupby(rows, key=lambda row: row["answer"]):
            steps = [int(row["step"]) for row in alike]
            span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
            answers.append((span, answer, answer == rows[0]["expected"]))
        images = sorted(
            (files.folder / "samples").glob(f"{number}-*.jpg"), key=lambda path: (len(path.name), path)
        )
        addresses = [embedded(path.read_bytes(), path.name) for path in images]
        shown.append(AskedSample(key, rows[0]["question"], rows[0]["expected"], addresses, answers))
    return shown


def _curve(rows: Sequence[Row], key: str, **how: Any) -> Curve:
    return Curve([row["step"] for row in rows], [row[key] for row in rows], **how)


def last_mean(rows: Sequence[Row], key: str) -> float:
    """The mean of the finite values in the last tenth of the rows (at least one row)."""
    last = [row[key] for row in rows[-max(1, len(rows) // 10) :] if math.isfinite(row[key])]
    return sum(last) / len(last) if last else math.nan


def short(value: float) -> str:
    """A number with three digits and k, M, B or T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g} %"
