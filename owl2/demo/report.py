"""The demo's report: an HTML page about the training, the figures, and right and wrong answers.

It reads only the files of a finished run and can be written again at any time. Examples are chosen by rule:
the first right answer of three kinds, then evenly spaced answers, right or wrong, then the first mistakes.
"""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from owl2.checkpoint import read_config
from owl2.demo.assets import licences
from owl2.demo.presets import PRESETS, packages
from owl2.demo.world.writers import IMAGE_MARK
from owl2.eval.scoring.intervals import wilson
from owl2.jsonl import read_jsonl
from owl2.model import build
from owl2.pages.curves import loss_curve
from owl2.pages.page import embedded, render, write_page
from owl2.train.metrics import read_metrics

TITLE = "mPLUG-Owl2, trained on this computer"
GOALS = {"yes_no": 0.85, "naming": 0.60, "colour": 0.70, "counting": 0.60}
"""Accuracies that the demo should reach, each at least `MARGIN` above the blank image. Text alone may lose
`TEXT_LOSS` against the language model."""
MARGIN = 0.20
TEXT_LOSS = 0.02
NAMES = {
    "yes_no": "Yes or no",
    "naming": "Naming",
    "colour": "Colour",
    "counting": "Counting",
    "text": "Text alone",
}
SHOWN = ("naming", "colour", "counting")
BASELINES = {
    "blank_image": "blank image",
    "majority": "majority answer",
    "language_model": "language model",
}
STAGES = {
    "language": ("Language", "The decoder alone learns language: the stand-in for LLaMA-2."),
    "warm": ("Warm start", "The abstractor alone learns the words of captions; not in the paper."),
    "pretrain": ("Stage 1", "Captions. The text weights of the decoder are frozen."),
    "instruct": ("Stage 2", "Conversations and text together, at the higher resolution."),
}
PURPOSES = {
    "smoke": "The preset smoke shows in minutes that every part works; it is far too short to learn to see, "
    "so its figures mean nothing.",
    "tiny": "The preset tiny trains a very small model from scratch in 20 minutes on two cores.",
    "small": "The preset small adds vision to a pretrained language model, SmolLM2-135M-Instruct.",
}
PRESET_FILE = "preset.json"

Row = dict[str, Any]
T = TypeVar("T")
VISUAL_WEIGHTS = "visual weights of MAM"


@dataclass(frozen=True)
class DemoRun:
    """Everything that a finished demo left in its folder."""

    folder: Path
    preset: str
    results: dict[str, Row]
    answers: list[Row]
    seconds: dict[str, float]
    metrics: dict[str, list[dict[str, float]]]
    """By stage, one row a step."""
    parameters: dict[str, int]
    """By part of the model."""

    @classmethod
    def read(cls, folder: Path) -> "DemoRun":
        return cls(
            folder=folder,
            results=json.loads((folder / "results.json").read_text(encoding="utf-8")),
            preset=json.loads((folder / PRESET_FILE).read_text(encoding="utf-8"))["preset"],
            answers=read_rows(folder / "answers.jsonl"),
            seconds=json.loads((folder / "seconds.json").read_text(encoding="utf-8")),
            metrics={stage: rows for stage in STAGES if (rows := read_metrics(folder / stage))},
            parameters=count_parameters(folder / "checkpoint"),
        )

    def goal(self, kind: str) -> float | None:
        """The accuracy that a kind of question should reach; the preset smoke has none."""
        if self.preset == "smoke":
            return None
        return GOALS.get(kind, self.results[kind]["language_model"] - TEXT_LOSS)

    def is_reached(self, kind: str) -> bool:
        """Whether a kind reaches its goal, and is well above the blank image."""
        row, goal = self.results[kind], self.goal(kind)
        margin = MARGIN if kind in GOALS else -1.0
        return goal is not None and row["accuracy"] >= goal and row["accuracy"] >= row["blank_image"] + margin

    def interval(self, kind: str) -> tuple[float, float]:
        """The 95 % interval of a kind's accuracy."""
        row = self.results[kind]
        return wilson(round(row["accuracy"] * row["n"]), row["n"])

    def verdict(self, kind: str) -> str:
        """Whether the goal is reached, and whether the interval leaves that open."""
        goal, (low, high) = self.goal(kind), self.interval(kind)
        if goal is None:
            return "–"
        word = "reached" if self.is_reached(kind) else "missed"
        return f"{word}, within the interval" if low < goal <= high else word

    def total(self, stage: str, what: str) -> int:
        """Sum of a metric over a stage."""
        return int(sum(row[what] for row in self.metrics[stage]))


def write_report(out: Path) -> None:
    """Write `report.html` into the folder `out` of a finished demo.

    Raises:
        DrawingError: matplotlib is missing; the message says how to install it.
        FileNotFoundError: the demo has not finished; the message names the file that is not there yet.
    """
    write_page(out / "report.html", page(DemoRun.read(out)))


def page(run: DemoRun) -> str:
    """The whole document."""
    parameters = [(part, f"{count:,}") for part, count in run.parameters.items()]
    whole = sum(run.seconds.values()) or 1.0
    with_image = {
        kind: [row for row in run.answers if row["kind"] == kind and row["image"]] for kind in NAMES
    }
    text = spread([row for row in run.answers if not row["image"]], 8)
    return render(
        "demo.html",
        title=TITLE,
        story=_story(run),
        purpose=PURPOSES[run.preset],
        facts=_facts(run),
        examples=[_answer(run, row) for kind in SHOWN for row in _first_right(with_image[kind])],
        has_goals=run.preset != "smoke",
        results=[_result(run, kind) for kind in run.results],
        result_head=("", "n", "the model", "95 %", *BASELINES.values(), "goal", ""),
        result_rows=[_result_row(run, kind) for kind in run.results],
        stages=[_stage(run, stage) for stage in run.metrics],
        seconds=[(part, seconds / whole, _minutes(seconds)) for part, seconds in run.seconds.items()],
        parameters=[*parameters, ("all", f"{sum(run.parameters.values()):,}")],
        sampled=[_answer(run, row) for asked in with_image.values() for row in spread(asked, 4)],
        mistakes=[
            _answer(run, row)
            for asked in with_image.values()
            for row in [row for row in asked if not row["right"]][:2]
        ],
        text_rows=[
            (row["question"], row["said"], "right" if row["right"] else f"wrong: {row['answer']}")
            for row in text
        ],
        captions=_captions(run.folder / "world/pretrain"),
        conversations=_conversations(run.folder / "world/instruct"),
        licences=licences(packages(PRESETS[run.preset])),
    )


def count_parameters(checkpoint: Path) -> dict[str, int]:
    """Number of parameters by part of the model; reads only the configuration."""
    counts = dict.fromkeys(("vision encoder", "visual abstractor", "decoder", VISUAL_WEIGHTS), 0)
    for name, parameter in build(read_config(checkpoint), device="meta").named_parameters():
        if name.startswith("model.vision_model."):
            part = "vision encoder"
        elif name.startswith("model.visual_abstractor."):
            part = "visual abstractor"
        else:
            part = VISUAL_WEIGHTS if ".multiway.1." in name else "decoder"
        counts[part] += parameter.numel()
    return counts


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items, evenly spaced from the first; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _story(run: DemoRun) -> str:
    captioned = sum(run.total(stage, "images") for stage in ("warm", "pretrain"))
    reached = sum(run.is_reached(kind) for kind in run.results)
    verdict = "" if run.preset == "smoke" else f" It reaches {reached} of its {len(run.results)} goals"
    open_ = sum(run.verdict(kind) == "reached, within the interval" for kind in run.results)
    verdict += f", {open_} of them by less than the 95 % interval" if open_ else ""
    return (
        f"A language model of {_millions(run.parameters['decoder'])} parameters was connected to a vision "
        f"encoder: it saw {captioned:,} images with captions, then {run.total('instruct', 'images'):,} with "
        "questions and answers, mixed with text. Below it answers questions about images whose things never "
        f"appeared together, and never had these colours, in training.{verdict}{'.' * bool(verdict)}"
    )


def _facts(run: DemoRun) -> list[tuple[str, str]]:
    return [
        (f"{sum(run.seconds.values()) / 60:.0f} min", "in all, on this computer"),
        (_millions(sum(run.parameters.values())), "parameters"),
        (_millions(sum(run.total(stage, "tokens") for stage in run.metrics)), "tokens seen"),
        (f"{sum(row['n'] for row in run.results.values()):,}", "held-out questions"),
    ]


def _first_right(rows: Sequence[Row]) -> Sequence[Row]:
    return ([row for row in rows if row["right"]] or rows)[:1]


def _answer(run: DemoRun, row: Row) -> Row:
    """A row of `answers.jsonl` with its image as an address."""
    file = run.folder / "world/test/images" / PurePath(row["image"]).name
    return {**row, "image": embedded(file.read_bytes(), file.name)}


def _result(run: DemoRun, kind: str) -> dict[str, Any]:
    """A kind of questions as bars."""
    row = run.results[kind]
    low, high = run.interval(kind)
    shares = [("the model", row["accuracy"]), *((label, row[key]) for key, label in BASELINES.items())]
    return {
        "name": NAMES[kind],
        "n": row["n"],
        "shares": shares,
        "low": low,
        "high": high,
        "goal": run.goal(kind),
    }


def _result_row(run: DemoRun, kind: str) -> tuple[str, ...]:
    """A kind of questions as a row of the table."""
    bars = _result(run, kind)
    (_, accuracy), *others = bars["shares"]
    return (
        bars["name"],
        str(bars["n"]),
        _percent(accuracy),
        f"{_percent(bars['low'])} to {_percent(bars['high'])}",
        *(_percent(share) for _, share in others),
        "–" if bars["goal"] is None else f"{100 * bars['goal']:.0f}",
        run.verdict(kind),
    )


def _stage(run: DemoRun, stage: str) -> tuple[str, list[str], str]:
    """(title, lines, drawing) of a stage of training."""
    name, what = STAGES[stage]
    steps, images = run.metrics[stage], run.total(stage, "images")
    seen = [f"{len(steps)} steps", *([f"{images:,} images"] if images else [])]
    seen.append(f"{_millions(run.total(stage, 'tokens'))} tokens")
    return name, [what, ", ".join(seen)], loss_curve(steps, stage)


def _captions(shards: Path) -> list[tuple[str, str]]:
    """(image, caption) of ten keys of the first shard."""
    with tarfile.open(min(shards.glob("*.tar"))) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")]

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()

        return [
            (embedded(read(name), name), read(str(PurePath(name).with_suffix(".txt"))).decode())
            for name in spread(names, 10)
        ]


def _conversations(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """(image, (question, answer) each) of three conversations."""
    chosen = []
    for row in spread(read_rows(folder / "train.jsonl"), 3):
        said = [turn["value"].replace(IMAGE_MARK, "") for turn in row["conversations"]]
        image = embedded((folder / row["image"]).read_bytes(), row["image"])
        chosen.append((image, list(zip(said[::2], said[1::2], strict=True))))
    return chosen


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSON-lines file."""
    return [row for _, row in read_jsonl(path)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
