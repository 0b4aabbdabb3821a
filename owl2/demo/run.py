"""The whole paper on a laptop: parts, world, language, stage 1, stage 2, examination, report.

Each part leaves a finished file or folder and is skipped when it stands, so the same command continues after
any interruption; the training stages continue within themselves.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import owl2
from owl2.demo.assets import WORLD_ASSETS, fetch_all, licences
from owl2.demo.base import write_base
from owl2.demo.evaluate import ask, read_questions, results
from owl2.demo.presets import (
    PRESETS,
    instruct_stage,
    language_stage,
    packages,
    pretrain_stage,
    warm_stage,
)
from owl2.demo.report import write_report
from owl2.demo.world.corpus import write_world
from owl2.files import write_file
from owl2.train.loop import train


def run_demo(preset_name: str, out: Path, console: Console | None = None) -> None:
    """Run or continue the demo `preset_name` in the folder `out`."""
    console = console or Console()
    preset = PRESETS[preset_name]
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / "seconds.json", console)
    with clock("assets"):
        console.print(_licence_table(packages(preset)))
        assets = fetch_all(packages(preset), say=console.print)
    world = out / "world"
    with clock("world"):
        write_world(world, preset.world, assets={name: assets[name] for name in WORLD_ASSETS})
    base = out / "base"
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
        if not (out / "checkpoint").exists():
            shutil.copytree(instructed, out / "checkpoint.partial", dirs_exist_ok=True)
            (out / "checkpoint.partial").rename(out / "checkpoint")
    with clock("examination"):
        examine(out, language, world / "test/questions.jsonl", console)
    write_report(out, preset_name)
    console.print(f"report: {out / 'report.html'}\ntry:    owl2 chat {out / 'checkpoint'} --image IMAGE")


def examine(out: Path, language: Path, questions_path: Path, console: Console) -> None:
    """Ask the held-out questions and write `results.json` and every answer to `answers.jsonl`."""
    if (out / "results.json").exists():
        return
    questions = read_questions(questions_path)
    owl = owl2.load(out / "checkpoint", progress=False)
    shown = ask(owl, questions, image="shown", title="with its image")
    blank = ask(owl, questions, image="blank", title="with a blank image")
    alone = ask(owl2.load(language, progress=False), questions, image="none", title="language model alone")
    table = results(questions, shown, blank, alone)
    answers: list[dict[str, Any]] = [
        {"kind": a.question.kind, "question": a.question.text, "answer": a.question.answer, "said": a.said}
        | {"image": str(a.question.image) if a.question.image else None, "right": a.is_right}
        for a in shown
    ]
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    write_file(out / "results.json", json.dumps(table, indent=1).encode())
    console.print(_results_table(table))


class Clock:
    """Adds up the seconds of each part over all sessions of a demo, and says what begins."""

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
            self.path.write_text(json.dumps(seconds, indent=1))


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
