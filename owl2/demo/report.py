"""The demo's report: one HTML page that shows what was trained, how well it answers, and where it errs.

It reads only the files of a finished run and can be written again at any time. What is shown is chosen by
rule, never by taste: the first right answer of three kinds, then evenly spaced answers, right or wrong, then
the first mistakes.
"""

import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath
from typing import Any, TypeVar

from owl2.checkpoint import read_config
from owl2.curves import loss_curve
from owl2.demo.assets import licences
from owl2.demo.page import Bar, bars, image, page, stack
from owl2.demo.presets import PRESETS, packages
from owl2.demo.world.writers import IMAGE_MARK, write_atomically
from owl2.model import build
from owl2.page import card, facts, grid, section, table
from owl2.train.metrics import read_metrics

TITLE = "mPLUG-Owl2, trained on this computer"
GOALS = {"yes_no": 0.85, "naming": 0.60, "colour": 0.70, "counting": 0.60}
"""Accuracies that the demo is meant to reach, each `MARGIN` above the blank image. Text alone may lose
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
    "language": ("Language", "The decoder alone learns to talk: the stand-in for LLaMA-2."),
    "warm": ("Warm start", "The abstractor alone learns the words of captions; not in the paper."),
    "pretrain": ("Stage 1", "Captions. Vision, abstractor and visual ways learn; the rest is frozen."),
    "instruct": ("Stage 2", "Conversations and text together, at the higher resolution."),
}
PURPOSES = {
    "smoke": "The preset smoke shows in minutes that every part works; it is far too short to learn to see, "
    "so its figures mean nothing.",
    "tiny": "The preset tiny fits the whole life of a small model into half an hour on two cores.",
    "small": "The preset small gives eyes to a pretrained language model, SmolLM2-135M-Instruct.",
}

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
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
    def read(cls, folder: Path, preset: str) -> "Run":
        return cls(
            folder=folder,
            preset=preset,
            results=json.loads((folder / "results.json").read_text(encoding="utf-8")),
            answers=read_jsonl(folder / "answers.jsonl"),
            seconds=json.loads((folder / "seconds.json").read_text(encoding="utf-8")),
            metrics={stage: rows for stage in STAGES if (rows := read_metrics(folder / stage))},
            parameters=count_parameters(folder / "checkpoint"),
        )

    def goal(self, kind: str) -> float | None:
        """The accuracy that a kind of question is meant to reach; the preset smoke has none."""
        if self.preset == "smoke":
            return None
        return GOALS.get(kind, self.results[kind]["language_model"] - TEXT_LOSS)

    def is_reached(self, kind: str) -> bool:
        """Whether a kind reaches its goal, and not by answering without looking."""
        row, goal = self.results[kind], self.goal(kind)
        margin = MARGIN if kind in GOALS else -1.0
        return goal is not None and row["accuracy"] >= goal and row["accuracy"] >= row["blank_image"] + margin

    def total(self, stage: str, what: str) -> int:
        """Sum of a metric over a stage."""
        return int(sum(row[what] for row in self.metrics[stage]))


def write_report(out: Path, preset: str) -> None:
    """Write `report.html` into the folder `out` of a finished demo.

    Raises:
        ImportError: matplotlib is missing; says how to install it.
        FileNotFoundError: the demo has not finished; names the file that is not there yet.
    """
    run = Run.read(out, preset)
    parts = [
        _header(run),
        _three_answers(run),
        _results(run),
        _curves(run),
        _seconds(run),
        _more_answers(run),
        _training_data(run),
        _licences(run),
    ]
    html = page(TITLE, parts)
    write_atomically(out / "report.html", lambda scratch: scratch.write_text(html, encoding="utf-8"))


def count_parameters(checkpoint: Path) -> dict[str, int]:
    """Number of parameters by part of the model; reads only the configuration."""
    counts = dict.fromkeys(("vision encoder", "visual abstractor", "decoder", "visual ways of MAM"), 0)
    for name, parameter in build(read_config(checkpoint), device="meta").named_parameters():
        if name.startswith("model.vision_model."):
            part = "vision encoder"
        elif name.startswith("model.visual_abstractor."):
            part = "visual abstractor"
        else:
            part = "visual ways of MAM" if ".multiway.1." in name else "decoder"
        counts[part] += parameter.numel()
    return counts


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items in even steps from the first; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def read_jsonl(path: Path) -> list[Row]:
    """One object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _header(run: Run) -> str:
    captioned = sum(run.total(stage, "images") for stage in ("warm", "pretrain"))
    told = (
        f"A decoder of {_millions(run.parameters['decoder'])} parameters that could only talk was given "
        f"eyes: it saw {captioned:,} images with captions, then "
        f"{run.total('instruct', 'images'):,} with conversations, mixed with text. Below it answers "
        "questions about images whose things never met, and never wore these colours, in training."
    )
    reached = sum(run.is_reached(kind) for kind in run.results)
    verdict = "" if run.preset == "smoke" else f" It reaches {reached} of its {len(run.results)} goals."
    shown = {
        "in all, on this computer": f"{sum(run.seconds.values()) / 60:.0f} min",
        "parameters": _millions(sum(run.parameters.values())),
        "tokens seen": _millions(sum(run.total(stage, "tokens") for stage in run.metrics)),
        "held-out questions": f"{sum(row['n'] for row in run.results.values()):,}",
    }
    return (
        f"<header><h1>{escape(TITLE)}</h1>\n<p>{escape(told + verdict)}</p>\n"
        f'<p class="note">{escape(PURPOSES[run.preset])}</p>\n{facts(shown)}</header>'
    )


def _three_answers(run: Run) -> str:
    chosen = []
    for kind in SHOWN:
        asked = [row for row in run.answers if row["kind"] == kind and row["image"]]
        right = [row for row in asked if row["right"]]
        chosen += (right or asked)[:1]
    return section(
        "Three questions",
        "The first right answer of each kind, or the first answer where none is right.",
        grid([_answer(run, row, size="big") for row in chosen], least=280),
    )


def _results(run: Run) -> str:
    groups, rows = [], []
    for kind, row in run.results.items():
        low, high = interval(row["accuracy"], row["n"])
        goal = run.goal(kind)
        groups.append(
            bars(
                NAMES[kind],
                f"{row['n']} questions",
                [
                    Bar("the model", row["accuracy"], goal, (low, high)),
                    *(Bar(label, row[key]) for key, label in BASELINES.items()),
                ],
            )
        )
        shares = (_percent(row["accuracy"]), f"{_percent(low)} to {_percent(high)}")
        others = (_percent(row[key]) for key in BASELINES)
        rows.append(
            (NAMES[kind], str(row["n"]), *shares, *others, "–" if goal is None else f"{100 * goal:.0f}")
        )
    marks = (
        ""
        if run.preset == "smoke"
        else "Upright marks are the goals, which also ask for 20 points above the blank image; "
    )
    return section(
        "Held-out questions",
        "Exact match in percent, beside three ways to answer without looking: the same model before a blank "
        "image, always the most frequent answer, and the language model before it saw any image. "
        f"{marks}thin lines are 95 % intervals.",
        card(*groups),
        "<br>",
        card(table(("", "n", "the model", "95 %", *BASELINES.values(), "goal"), rows)),
    )


def _curves(run: Run) -> str:
    cards = []
    for stage, steps in run.metrics.items():
        name, what = STAGES[stage]
        images = run.total(stage, "images")
        seen = [f"{len(steps)} steps", *([f"{images:,} images"] if images else [])]
        seen.append(f"{_millions(run.total(stage, 'tokens'))} tokens")
        text = (
            f"<div><h3>{escape(name)}</h3><small>{escape(what)}</small><small>{', '.join(seen)}</small></div>"
        )
        cards.append(card(text, loss_curve(steps, stage), kind="curve"))
    return section(
        "Learning",
        "Cross-entropy a target token: every step, and the mean around it. Below, the learning rate.",
        grid(cards, least=300),
    )


def _seconds(run: Run) -> str:
    whole = sum(run.seconds.values()) or 1.0
    parts = [(part, seconds / whole, _minutes(seconds)) for part, seconds in run.seconds.items()]
    counts = [(part, f"{count:,}") for part, count in run.parameters.items()]
    counts.append(("all", f"{sum(run.parameters.values()):,}"))
    return section(
        "Time and size",
        "Where the time went, added up over interruptions, and what the parameters are for.",
        grid([card(stack(parts)), card(table(("part of the model", "parameters"), counts))], least=380),
    )


def _more_answers(run: Run) -> str:
    sampled, mistakes = [], []
    for kind in NAMES:
        asked = [row for row in run.answers if row["kind"] == kind and row["image"]]
        sampled += spread(asked, 4)
        mistakes += [row for row in asked if not row["right"]][:2]
    text = spread([row for row in run.answers if not row["image"]], 8)
    rows = [
        (row["question"], row["said"], "right" if row["right"] else f"wrong: {row['answer']}") for row in text
    ]
    return section(
        "More answers",
        "Four of each kind in even steps through the test, right or wrong.",
        grid([_answer(run, row) for row in sampled], least=200),
        "<h2>Mistakes</h2><p>The first two of each kind.</p>",
        grid([_answer(run, row) for row in mistakes], least=200),
        "<h2>Without an image</h2><p>Eight text-only questions in even steps through the test.</p>",
        card(table(("question", "the model", ""), rows, left=3)),
    )


def _answer(run: Run, row: Row, size: str = "") -> str:
    name = PurePath(row["image"]).name
    data = (run.folder / "world/test/images" / name).read_bytes()
    verdict = "right" if row["right"] else "wrong"
    mark = "✓" if row["right"] else "✗"
    text = f'<p class="said {verdict}">{mark} {escape(row["said"] or "(nothing)")}</p>'
    if not row["right"]:
        text += f"<p><small>the answer is {escape(row['answer'])}</small></p>"
    question = f"<p>{escape(row['question'])}</p>"
    return card(image(data, name, row["question"]), f"<div>{question}{text}</div>", kind=f"shot {size}")


def _training_data(run: Run) -> str:
    world = run.folder / "world"
    shard = min((world / "pretrain").glob("*.tar"))
    captions = [
        card(image(data, name, text), f"<div><p>{escape(text)}</p></div>", kind="shot")
        for data, name, text in captioned(shard, 10)
    ]
    talks = []
    for row in spread(read_jsonl(world / "instruct/train.jsonl"), 3):
        said = [turn["value"].replace(IMAGE_MARK, "") for turn in row["conversations"]]
        pairs = zip(said[::2], said[1::2], strict=True)
        turns = "".join(f"<dt>{escape(asked)}</dt><dd>{escape(answer)}</dd>" for asked, answer in pairs)
        data = (world / "instruct" / row["image"]).read_bytes()
        talks.append(
            card(image(data, row["image"], "a training image"), f"<div><dl>{turns}</dl></div>", kind="shot")
        )
    return section(
        "What it learned from",
        "Drawn scenes of which everything is known. Stage 1 sees images with captions:",
        grid(captions, least=160),
        "<br><p>Stage 2 sees images with all their questions and answers in one conversation:</p>",
        grid(talks, least=280),
    )


def captioned(shard: Path, count: int) -> list[tuple[bytes, str, str]]:
    """(image, its name, caption) of some keys of a WebDataset shard."""
    with tarfile.open(shard) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")]

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            assert member is not None
            return member.read()

        return [
            (read(name), name, read(str(PurePath(name).with_suffix(".txt"))).decode())
            for name in spread(names, count)
        ]


def _licences(run: Run) -> str:
    head = ("package", "version", "licence", "used for")
    return section(
        "What it is made of",
        "Parts and images that ship in PyPI packages, with their licences. The easy-VQA images and "
        "questions are training data too.",
        card(table(head, licences(packages(PRESETS[run.preset])), left=4)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
