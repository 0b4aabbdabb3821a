"""The demo's steps: assets, world, language model, warm start, stage 1, stage 2, evaluation, report.

Each step leaves a finished file or folder and is skipped if it is there, so the same command continues after
any interruption; the training stages continue from their last saved state. The folder records its preset.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from owl2.demo.assets import WORLD_ASSETS, fetch_all, licences
from owl2.demo.base import write_base
from owl2.demo.evaluate import BENCHMARKS, evaluate, evaluate_official
from owl2.demo.presets import (
    PRESETS,
    DemoPreset,
    instruct_stage,
    language_stage,
    packages,
    pretrain_stage,
    warm_stage,
)
from owl2.demo.report import PRESET_FILE, write_report
from owl2.demo.world.corpus import write_world
from owl2.errors import Owl2Error
from owl2.files import write_file
from owl2.train.loop import train

STEPS = ("world", "base", "language", "warm", "pretrain", "instruct", "checkpoint", "results.json")
"""What a demo leaves in its folder, in this order."""


class DemoError(Owl2Error, ValueError):
    """The folder holds another demo; the message says which, and how far it is."""


def run_demo(preset_name: str, out: Path, console: Console | None = None) -> None:
    """Run or continue the demo `preset_name` in the folder `out`.

    Raises:
        DemoError, WorldError: the folder holds the demo of another preset, or of another version.
        AssetError: an asset cannot be fetched or is damaged.
    """
    console = console or Console()
    preset = PRESETS[preset_name]
    claim(out, preset_name)
    clock = Clock(out / "seconds.json", console)
    with clock("assets"):
        console.print(_licence_table(packages(preset)))
        assets = fetch_all(packages(preset), say=console.print)
    with clock("world"):
        write_world(out / "world", preset.world, assets={name: assets[name] for name in WORLD_ASSETS})
    if not (out / "checkpoint").exists():
        train_stages(preset, out, clock)
    with clock("evaluation"):
        if not (out / "results.json").exists():
            language = out / "base" if preset.language is None else out / "language/checkpoint"
            console.print(_results_table(evaluate(out, language)))
        if not (out / BENCHMARKS / "report.html").exists():
            evaluate_official(out)
    write_report(out)
    console.print(f"report:          {out / 'report.html'}")
    console.print(f"official tasks:  {out / BENCHMARKS / 'report.html'}")
    console.print(f"try:             owl2 chat {out / 'checkpoint'} --image IMAGE")


def train_stages(preset: DemoPreset, out: Path, clock: "Clock") -> None:
    """Make `out/checkpoint` from the world, stage by stage."""
    base, world, console = out / "base", out / "world", clock.console
    with clock("language model"):
        if not base.exists():
            write_base(base, preset, world / "lm/train.jsonl")
        is_ready = preset.language is None
        language = base if is_ready else train(language_stage(preset, out / "language", base, world), console)
    with clock("warm start"):
        warm = train(warm_stage(preset, out / "warm", language, world), console)
    with clock("stage 1"):
        pretrained = train(pretrain_stage(preset, out / "pretrain", warm, world), console)
    with clock("stage 2"):
        instructed = train(instruct_stage(preset, out / "instruct", pretrained, world), console)
        shutil.copytree(instructed, out / "checkpoint.partial", dirs_exist_ok=True)
        (out / "checkpoint.partial").rename(out / "checkpoint")


def claim(out: Path, preset: str) -> None:
    """Record the preset of a demo's folder.

    Raises:
        DemoError: the folder has another one.
    """
    file = out / PRESET_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["preset"] if file.exists() else None
    except (ValueError, KeyError, TypeError):
        raise DemoError(f"{file}: holds no preset; remove the folder or choose another --out") from None
    present = ", ".join(step for step in STEPS if (out / step).exists())
    if found is None and present:
        raise DemoError(
            f"{out}: holds a demo without a record of its preset ({present}), as older versions wrote it; "
            "remove the folder or choose another --out"
        )
    if found not in (None, preset):
        raise DemoError(
            f"{out}: holds a demo of preset {found} ({present or 'nothing finished'}), wanted {preset}; "
            f"continue it with --preset {found}, remove the folder or choose another --out"
        )
    if found is None:
        out.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({"preset": preset}).encode())


class Clock:
    """Adds up the seconds of each step over all sessions of a demo, and prints which step begins."""

    def __init__(self, path: Path, console: Console):
        self.path = path
        self.console = console

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.console.rule(part, align="left")
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = json.loads(self.path.read_text()) if self.path.exists() else {}
            seconds[part] = round(seconds.get(part, 0.0) + time.perf_counter() - began, 1)
            write_file(self.path, json.dumps(seconds, indent=1).encode())


def _licence_table(names: Sequence[str]) -> Table:
    columns = ("package", "version", "licence", "used for")
    table = Table(*columns, title="fetched from PyPI", title_justify="left")
    for row in licences(names):
        table.add_row(*row)
    return table


def _results_table(results: dict[str, dict[str, float]]) -> Table:
    table = Table(title="held-out questions, % right", title_justify="left")
    for column in ("kind", "n", "the model", "blank image", "majority", "language model"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in results.items():
        shares = (row[key] for key in ("accuracy", "blank_image", "majority", "language_model"))
        table.add_row(kind, str(row["n"]), *(f"{100 * share:.1f}" for share in shares))
    return table
