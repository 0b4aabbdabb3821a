"""The demo's examination: five kinds of held-out questions, against three ways to cheat.

Exact match after trimming and lower case. Beside the model's accuracy stand the same model shown a blank
image, the constant answer that is most frequent in the test, and the language model alone before it saw any
image. A model that looks beats all three.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from owl2.api import Owl2

KINDS = ("yes_no", "naming", "colour", "counting", "text")
MAX_NEW_TOKENS = 8
BLANK = (124, 116, 104)


@dataclass(frozen=True)
class Question:
    """One question of the test."""

    kind: str
    text: str
    answer: str
    image: Path | None


@dataclass(frozen=True)
class Answered:
    """A question and what the model said."""

    question: Question
    said: str

    @property
    def is_right(self) -> bool:
        return normalise(self.said) == normalise(self.question.answer)


def read_questions(path: Path, kinds: Sequence[str] = KINDS) -> list[Question]:
    """The questions of a `questions.jsonl`; images are named relative to its folder."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            row["kind"],
            row["question"],
            row["answer"],
            path.parent / row["image"] if row.get("image") else None,
        )
        for row in rows
        if row["kind"] in kinds
    ]


def ask(
    owl: Owl2, questions: Sequence[Question], *, image: str = "shown", batch: int = 64, title: str = ""
) -> list[Answered]:
    """Ask all questions; `image` is `shown`, `blank` (a grey one in its place) or `none`."""
    order = sorted(questions, key=lambda q: (q.image is None, len(q.text)))
    answered = []
    for begin in track(range(0, len(order), batch), description=title or f"asking ({image})"):
        asked = order[begin : begin + batch]
        inputs = owl.processor.chat([_messages(question, image) for question in asked])
        said = owl.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        answered += [
            Answered(q, owl.processor.decode(ids).strip()) for q, ids in zip(asked, said, strict=True)
        ]
    return answered


def accuracy(answered: Sequence[Answered]) -> dict[str, float]:
    """Share of right answers by kind."""
    by_kind: dict[str, list[bool]] = {}
    for item in answered:
        by_kind.setdefault(item.question.kind, []).append(item.is_right)
    return {kind: sum(right) / len(right) for kind, right in by_kind.items()}


def majority(questions: Sequence[Question]) -> dict[str, float]:
    """Accuracy of the best constant answer by kind."""
    answers: dict[str, Counter[str]] = {}
    for question in questions:
        answers.setdefault(question.kind, Counter())[normalise(question.answer)] += 1
    return {kind: max(count.values()) / count.total() for kind, count in answers.items()}


def results(
    questions: Sequence[Question],
    shown: Sequence[Answered],
    blank: Sequence[Answered],
    language: Sequence[Answered],
) -> dict[str, dict[str, Any]]:
    """The content of `results.json`: by kind, n and the accuracies of the model and of the three cheats."""
    counts = Counter(question.kind for question in questions)
    constant, right, blind, alone = majority(questions), accuracy(shown), accuracy(blank), accuracy(language)
    return {
        kind: {
            "n": counts[kind],
            "accuracy": right[kind],
            "blank_image": blind[kind],
            "majority": constant[kind],
            "language_model": alone[kind],
        }
        for kind in KINDS
        if counts[kind]
    }


def normalise(answer: str) -> str:
    """Lower case, without the full stop and white space around it."""
    return answer.strip().rstrip(".").strip().lower()


def _messages(question: Question, image: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
    if question.image is not None and image == "shown":
        parts.insert(0, {"type": "image", "image": question.image})
    elif image == "blank":
        parts.insert(0, {"type": "image", "image": Image.new("RGB", (64, 64), BLANK)})
    return [{"role": "user", "content": parts}]
