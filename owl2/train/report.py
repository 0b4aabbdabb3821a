"""`RUN/report.html`: what a run learnt, how fast, and from what, for running, finished and broken runs alike.

It reads only the files of the run's folder, so it can be written at any time and anywhere. What is missing
there is left out. Rates are those of steps; measuring held-out sources and saving take their time besides.
"""

import math
import time
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
from owl2.page import PIECES_STYLE, SECOND, card, document, facts, grid, section, table
from owl2.train.metrics import duration, rates, read_metrics, read_rows
from owl2.train.state.state import saved_states
from owl2.train.summary import CORPUS_HEAD, GROUP_HEAD, Summary

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
"""A run that has been silent for longer, and for many of its steps, is taken for stopped."""


class ReportError(Owl2Error, ValueError):
    """A folder that is not one of a run."""


@dataclass(frozen=True)
class Record:
    """Everything that a run has left in its folder so far."""

    folder: Path
    config: str
    rows: list[dict[str, float]]
    validation: list[dict[str, float]]
    facts: Summary | None
    silent_s: float
    """Since the last step was written."""

    @classmethod
    def read(cls, run: Path) -> "Record":
        """Read a run's folder.

        Raises:
            ReportError: it is not one; names what looks like one beside or below it.
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
            validation=read_rows(run / "validation.jsonl"),
            facts=Summary.read(run),
            silent_s=time.time() - (metrics if metrics.exists() else config).stat().st_mtime,
        )

    @property
    def steps(self) -> int:
        """How many the run is to have."""
        return int(yaml.safe_load(self.config)["steps"])

    @property
    def done(self) -> int:
        """Finished steps."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def total(self, what: str) -> float:
        """Sum of a figure over all steps."""
        return sum(row[what] for row in self.rows)

    def mean(self, what: str) -> float | None:
        """Mean of a figure over the time of all steps that have it."""
        having = [row for row in self.rows if what in row]
        seconds = sum(row["seconds"] for row in having)
        return sum(row[what] * row["seconds"] for row in having) / seconds if seconds else None

    def state(self) -> str:
        """One sentence on where the run stands."""
        if (self.folder / "checkpoint").exists():
            return f"Finished: {self.folder / 'checkpoint'}"
        step = median(row["seconds"] for row in self.rows[-100:]) if self.rows else 0.0
        if self.silent_s < max(SLACK_S, 20 * step):
            left = f", about {duration(step * (self.steps - self.done))} left" if self.rows else ""
            return f"Running: step {self.done:,} of {self.steps:,}{left}."
        saved = [state.name.removeprefix("step-").lstrip("0") for state in saved_states(self.folder)]
        rest = f"the same command continues it after step {int(saved[-1]):,}" if saved else "nothing is saved"
        return (
            f"Stopped: {self.done:,} of {self.steps:,} steps, silent for {duration(self.silent_s)}; {rest}."
        )


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run, by default as `report.html` into its folder, and return its path.

    Raises:
        ReportError: the folder is not one of a run.
        ImportError: matplotlib is missing; says how to install it.
    """
    record = Record.read(run)
    parts = [_header(record), _loss(record), _sources(record), _speed(record), _parts(record)]
    settings = f"<summary>Configuration</summary><pre>{escape(record.config)}</pre>"
    parts.append(f'<details class="card">{settings}</details>')
    out = out or run / "report.html"
    html = document(f"{run.absolute().name}: training", PIECES_STYLE + STYLE, "\n".join(filter(None, parts)))
    write_file(out, html.encode())
    return out


def _header(record: Record) -> str:
    shown = {"steps": f"{record.done:,} of {record.steps:,}"}
    if record.rows:
        shown["loss, last tenth"] = f"{_last_mean(record.rows, 'loss'):.3f}"
        shown["in steps"] = duration(record.total("seconds"))
        shown["tokens"] = short(record.total("tokens"))
        shown["images"] = short(record.total("images"))
    if record.facts is not None:
        learning = f"{record.facts.learning / record.facts.parameters:.0%}"
        shown[f"parameters, {learning} learn"] = short(record.facts.parameters)
    mfu, tflops = record.mean("mfu"), record.mean("tflops")
    if mfu is not None:
        shown["utilisation (MFU)"] = f"{mfu:.1%}"
    elif tflops is not None:
        shown["TFLOP/s a device"] = f"{tflops:.3g}"
    where = "" if record.facts is None else f"{record.facts.ranks} x {record.facts.device}, "
    config = yaml.safe_load(record.config)
    origin = f"from {config['model']}, {config['global_batch_size']:,} samples a step"
    share = record.done / record.steps
    return (
        f"<header><h1>{escape(record.folder.absolute().name)}</h1>\n"
        f'<p class="state">{escape(record.state())}</p>\n'
        f"<p>{escape(where + origin)}</p>\n"
        f'<div class="progress"><i style="width: {100 * share:.2f}%"></i></div>\n'
        f"{facts(shown)}</header>"
    )


def _loss(record: Record) -> str:
    if not record.rows:
        return section("Learning", "No step is finished yet.")
    loss = Panel("loss", [_curve(record.rows, "loss")], height=4, from_zero=False)
    drawing = draw("loss", [loss, lr_panel(record.rows)], width=11, height=4.6)
    return section(
        "Learning",
        "Cross-entropy a target token: every step, and the mean around it. Below, the learning rate that "
        "rules multiply.",
        card(drawing, kind="curve"),
    )


def _sources(record: Record) -> str:
    """One drawing a source; a held-out source of the same name stands in the same one."""
    found = {key for row in [*record.rows, *record.validation] for key in row if key.startswith("loss/")}
    mixture = [f"loss/{source['name']}" for source in yaml.safe_load(record.config)["data"]["sources"]]
    keys = [*(key for key in mixture if key in found), *sorted(found - set(mixture))]
    cards = []
    for number, key in enumerate(keys):
        curves, said = [], []
        if trained := [row for row in record.rows if key in row]:
            curves.append(_curve(trained, key))
            said.append(f"{_last_mean(trained, key):.3f} in the last tenth")
        if held_out := [row for row in record.validation if key in row]:
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
        "The loss a target token of each source, in the steps that drew it; dots are samples that are never "
        "trained on. A source of short answers compares only with itself.",
        grid(cards, least=300),
    )


def _speed(record: Record) -> str:
    """One drawing a figure, each over the same steps."""
    if not record.rows:
        return ""
    rows = [{**row, **rates(row)} for row in record.rows]
    has_mfu = any("mfu" in row for row in rows)
    use = ("mfu", "Utilisation", "of the device's bfloat16 peak, by counted operations", percent)
    rate = ("tflops", "TFLOP/s", "a device, by counted operations", short)
    shown: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("tokens_per_second", "Tokens a second", "over all devices", short),
        ("images_per_second", "Images a second", "over all devices", short),
        use if has_mfu else rate,
        ("data_wait_share", "Waiting for data", "share of a step", percent),
        ("peak_memory", "Memory", "most that the first process has held, in GB", lambda n: f"{n / 1e9:.3g}"),
        ("grad_norm", "Gradient norm", "before clipping", short),
    ]
    cards = []
    for key, title, what, form in shown:
        if not (having := [row for row in rows if key in row]):
            continue
        is_noisy = key != "peak_memory"
        panel = Panel("", [_curve(having, key, is_noisy=is_noisy)], form=form)
        text = f"<div><h3>{title}</h3><small>{escape(what)}</small></div>"
        cards.append(card(text, draw(key, [panel], height=1.9), kind="curve"))
    return section("Step by step", "Every step, and the mean around it.", grid(cards, least=300))


def _parts(record: Record) -> str:
    if record.facts is None:
        return ""
    return section(
        "What learns, and from what",
        "For each parameter the first rule that fits its name decides; rates are peaks of the schedule.",
        card(table(GROUP_HEAD, record.facts.group_rows())),
        "<br>",
        card(table(CORPUS_HEAD, record.facts.corpus_rows())),
    )


def _curve(rows: Sequence[Row], key: str, **how: Any) -> Curve:
    return Curve([row["step"] for row in rows], [row[key] for row in rows], **how)


def _last_mean(rows: Sequence[Row], key: str) -> float:
    """Mean of the finite values of the last tenth of the rows, one at least."""
    last = [row[key] for row in rows[-max(1, len(rows) // 10) :] if math.isfinite(row[key])]
    return sum(last) / len(last) if last else math.nan


def short(value: float) -> str:
    """Three digits and a letter for thousands, millions and more."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.3g} %"
