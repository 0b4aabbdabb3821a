"""The report of a training run, `RUN/report.html`: losses, speed, parameters and data.

It reads only the files in the run's folder, so it works at any time and on any machine, for running, finished
and stopped runs. What the folder lacks is left out. Speeds are those of training steps, without validation
and saving.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from owl2.curves import Curve, Panel, draw, lr_panel
from owl2.errors import Owl2Error
from owl2.files import write_file
from owl2.jsonl import read_jsonl
from owl2.page import PIECES_STYLE, SECOND, card, document, facts, grid, section, table
from owl2.train.metrics import duration, rates, read_metrics
from owl2.train.state.state import saved_states
from owl2.train.summary import CORPUS_HEAD, GROUP_HEAD, LOST_HEAD, Cells, Summary

Row = Mapping[str, float]

STYLE = """
h1 { margin-bottom: 6px; } header p { font-size: 17px; color: var(--soft); margin: 0; }
header .state { color: var(--ink); font-size: 19px; }
.progress { height: 9px; border-radius: 5px; background: var(--track); margin: 22px 0 0; overflow: hidden; }
.progress i { display: block; height: 100%; border-radius: 5px; background: var(--accent); }
details { margin-top: 28px; } summary { cursor: pointer; font-size: 22px; font-weight: 700;
  letter-spacing: -0.01em; }
pre { margin: 14px 0 0; overflow-x: auto; font: 13.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.facts { gap: 14px 36px; } td:first-child { overflow-wrap: anywhere; }
"""

SLACK_S = 120
"""A run without a new step for this long, and for 20 of its usual steps, is shown as stopped."""


class ReportError(Owl2Error, ValueError):
    """The folder is not a training run's."""


@dataclass(frozen=True)
class RunFiles:
    """What a run has written to its folder so far."""

    folder: Path
    config: str
    rows: list[dict[str, float]]
    validation: list[dict[str, float]]
    summary: Summary | None
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
        return cls(
            folder=run,
            config=config.read_text(encoding="utf-8"),
            rows=read_metrics(run),
            validation=read_metrics(run, "validation.jsonl"),
            summary=Summary.read(run),
            bad_samples=[
                row
                for file in sorted(run.glob("bad_samples*.jsonl"))
                for _, row in read_jsonl(file, ours=True)
            ],
            silent_s=time.time() - (metrics if metrics.exists() else config).stat().st_mtime,
        )

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(yaml.safe_load(self.config)["steps"])

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
        ImportError: matplotlib is missing; the message says how to install it.
    """
    files = RunFiles.read(run)
    parts = [_header(files), _loss(files), _sources(files), _speed(files), _parts(files)]
    settings = f"<summary>Configuration</summary><pre>{escape(files.config)}</pre>"
    parts.append(f'<details class="card">{settings}</details>')
    out = out or run / "report.html"
    html = document(f"{run.absolute().name}: training", PIECES_STYLE + STYLE, "\n".join(filter(None, parts)))
    write_file(out, html.encode())
    return out


def _header(files: RunFiles) -> str:
    shown = {"steps": f"{files.done:,} of {files.steps:,}"}
    if files.rows:
        shown["loss, last tenth"] = f"{_last_mean(files.rows, 'loss'):.3f}"
        shown["training time"] = duration(files.total("seconds"))
        shown["tokens"] = short(files.total("tokens"))
        shown["images"] = short(files.total("images"))
    if files.summary is not None:
        trainable = f"{files.summary.trainable / files.summary.parameters:.0%}"
        shown[f"parameters, {trainable} trainable"] = short(files.summary.parameters)
    mfu, tflops = files.mean("mfu"), files.mean("tflops")
    if mfu is not None:
        shown["utilisation (MFU)"] = f"{mfu:.1%}"
    elif tflops is not None:
        shown["TFLOP/s per device"] = f"{tflops:.3g}"
    where = "" if files.summary is None else f"{files.summary.ranks} x {files.summary.device}, "
    config = yaml.safe_load(files.config)
    origin = f"from {config['model']}, {config['global_batch_size']:,} samples per step"
    share = files.done / files.steps
    return (
        f"<header><h1>{escape(files.folder.absolute().name)}</h1>\n"
        f'<p class="state">{escape(files.state())}</p>\n'
        f"<p>{escape(where + origin)}</p>\n"
        f'<div class="progress"><i style="width: {100 * share:.2f}%"></i></div>\n'
        f"{facts(shown)}</header>"
    )


def _loss(files: RunFiles) -> str:
    if not files.rows:
        return section("Learning", "No step is finished yet.")
    loss = Panel("loss", [_curve(files.rows, "loss")], height=4, from_zero=False)
    drawing = draw("loss", [loss, lr_panel(files.rows)], width=11, height=4.6)
    return section(
        "Learning",
        "Cross-entropy per target token: every step, and a moving mean. Below, the learning rate before the "
        "rules multiply it.",
        card(drawing, kind="curve"),
    )


def _sources(files: RunFiles) -> str:
    """One chart per source; a held-out source of the same name shares its chart."""
    found = {key for row in [*files.rows, *files.validation] for key in row if key.startswith("loss/")}
    mixture = [f"loss/{source['name']}" for source in yaml.safe_load(files.config)["data"]["sources"]]
    keys = [*(key for key in mixture if key in found), *sorted(found - set(mixture))]
    cards = []
    for number, key in enumerate(keys):
        curves, said = [], []
        if trained := [row for row in files.rows if key in row]:
            curves.append(_curve(trained, key))
            said.append(f"{_last_mean(trained, key):.3f} in the last tenth")
        if held_out := [row for row in files.validation if key in row]:
            curves.append(_curve(held_out, key, colour=SECOND, is_noisy=False, has_marks=True))
            said.append(f"held out: {held_out[-1][key]:.3f}")
        drawing = draw(f"source-{number}", [Panel("loss", curves, from_zero=False)], height=2.3)
        name = escape(key.removeprefix("loss/"))
        cards.append(
            card(f"<div><h3>{name}</h3><small>{', '.join(said)}</small></div>", drawing, kind="curve")
        )
    if not cards:
        return ""
    return section(
        "Source by source",
        "Loss per target token of each source, in the steps that used it; dots are held-out samples. Compare "
        "a source with itself only: short answers have other losses than long ones.",
        grid(cards, least=300),
    )


def _speed(files: RunFiles) -> str:
    """One chart per metric."""
    if not files.rows:
        return ""
    rows = [{**row, **rates(row)} for row in files.rows]
    has_mfu = any("mfu" in row for row in rows)
    use = ("mfu", "Utilisation", "of the device's bfloat16 peak, by counted operations", percent)
    rate = ("tflops", "TFLOP/s", "per device, by counted operations", short)
    shown: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("tokens_per_second", "Tokens per second", "over all devices", short),
        ("images_per_second", "Images per second", "over all devices", short),
        use if has_mfu else rate,
        ("data_wait_share", "Waiting for data", "share of a step", percent),
        ("peak_memory", "Memory", "peak of the first process, in GB", lambda n: f"{n / 1e9:.3g}"),
        ("grad_norm", "Gradient norm", "before clipping", short),
    ]
    cards = []
    for key, title, what, form in shown:
        if not (chosen := [row for row in rows if key in row]):
            continue
        is_noisy = key != "peak_memory"
        panel = Panel("", [_curve(chosen, key, is_noisy=is_noisy)], form=form)
        text = f"<div><h3>{title}</h3><small>{escape(what)}</small></div>"
        cards.append(card(text, draw(key, [panel], height=1.9), kind="curve"))
    return section("Step by step", "Every step, and a moving mean.", grid(cards, least=300))


def _parts(files: RunFiles) -> str:
    if files.summary is None:
        return ""
    tables = [(GROUP_HEAD, files.summary.group_rows()), (CORPUS_HEAD, files.summary.corpus_rows())]
    tables += [(LOST_HEAD, files.summary.lost_rows()), (BAD_HEAD, bad_rows(files.bad_samples))]
    return section(
        "Parameters and data",
        "The first rule that matches a parameter's name decides; rates are peaks of the schedule.",
        "<br>".join(card(table(head, rows)) for head, rows in tables if rows),
    )


BAD_HEAD: Cells = ("source", "reason", "unusable samples")


def bad_rows(samples: Sequence[Mapping[str, Any]]) -> list[Cells]:
    """One row per source and kind of fault, with the number of different samples; the most frequent first."""
    keys = {(row["source"], row["kind"], row["key"]) for row in samples}
    counts = Counter((source, kind) for source, kind, _ in keys)
    return [(source, kind, f"{number:,}") for (source, kind), number in counts.most_common()]


def _curve(rows: Sequence[Row], key: str, **how: Any) -> Curve:
    return Curve([row["step"] for row in rows], [row[key] for row in rows], **how)


def _last_mean(rows: Sequence[Row], key: str) -> float:
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
