"""Sample answers: what a model in training answers to questions whose answers are known.

Questions come from the samples as training reads them (source, template's turns, images), answers from the
path that `owl2 chat` takes, so that the two together show what losses do not: labels, templates or images
that differ between training and use. Every rank asks the same questions at the same time, because the ranks
gather each layer together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.data.dataset import SampleDataset
from owl2.data.split_turns import Messages, parts_of
from owl2.errors import Owl2Error
from owl2.generate import ChatSession, GenerationConfig
from owl2.processor import Processor
from owl2.processor.template import images_of
from owl2.train.parallel import Objective, inference

MORE_TOKENS = 16
"""An answer may be this much longer than the expected one, so that one that does not end is seen."""

THUMBNAIL = 224
"""Longest side in pixels of the images that are kept for the report."""

SAMPLES = "samples.jsonl"
"""In a run's folder: a row for each question and measurement."""


@dataclass(frozen=True)
class Question:
    """A question, with the conversation before it and the expected answer."""

    key: str
    """`source:key` of its sample, and its number if the sample has several."""
    messages: Messages
    expected: str

    @property
    def text(self) -> str:
        """The text of the question itself; empty if an image alone is the question."""
        return _text(self.messages[-1])

    @property
    def images(self) -> list[Image.Image]:
        """Of the whole conversation."""
        return images_of(self.messages)


@dataclass(frozen=True)
class Answer:
    """What a model said to a question."""

    question: Question
    text: str
    note: str = ""
    """Why it cannot be the expected one, if that is known."""

    @property
    def is_expected(self) -> bool:
        """Whether it is the expected one word for word."""
        return self.text == self.question.expected

    def row(self, step: int) -> dict[str, Any]:
        """A row of `samples.jsonl`."""
        question = self.question
        return {
            "step": step,
            "key": question.key,
            "question": question.text,
            "expected": question.expected,
            "answer": self.text,
            **({"note": self.note} if self.note else {}),
        }


def questions_of(dataset: SampleDataset, n: int, *, is_last: bool) -> Iterator[Question]:
    """The questions of draw `n`, each after the turns before it and their true answers.

    Args:
        dataset: as it is trained on; not augmented.
        n: the number of the draw.
        is_last: only the last question of each conversation.

    Raises:
        Owl2Error, OSError: the sample cannot be used.
    """
    key, conversations = dataset.open(n)
    asked = [
        (conversation[:place], _text(conversation[place]))
        for conversation in conversations
        for place in range(len(conversation))
        if conversation[place]["role"] == "assistant" and (place == len(conversation) - 1 or not is_last)
    ]
    for number, (messages, expected) in enumerate(asked, start=1):
        name = f"{key}, question {number}" if len(asked) > 1 else key
        yield Question(name, messages, expected.strip())


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in parts_of(message) if part["type"] == "text").strip()


def answer(objective: Objective, processor: Processor, questions: list[Question]) -> list[Answer]:
    """Answer greedily, as `owl2 chat` would with the model as it is now; called by every rank."""
    with inference(objective):
        return [_answer(objective, processor, question) for question in questions]


def _answer(objective: Objective, processor: Processor, question: Question) -> Answer:
    tokens = processor.tokenizer.encode(question.expected, space=True)
    length = GenerationConfig(max_new_tokens=len(tokens) + MORE_TOKENS)
    note = ""
    if (written := processor.decode(tokens).strip()) != question.expected:
        note = f"the tokenizer can only write {written!r}"
    session = ChatSession(objective.model, processor, length)
    try:
        text = "".join(session.answer(question.messages))
    except Owl2Error as error:  # too long for the context
        return Answer(question, "", str(error))
    return Answer(question, f"{text} ..." if session.is_cut else text, note)


def keep_images(questions: list[Question], folder: Path) -> None:
    """Write the questions' images for the report, as `NUMBER-IMAGE.jpg`."""
    folder.mkdir(exist_ok=True)
    for number, question in enumerate(questions):
        for place, image in enumerate(question.images):
            small = image.copy()
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            small.save(folder / f"{number}-{place}.jpg", quality=85)
