"""The wording of instruction corpora, and the few operations of appendix B.1 that several of them share.

The sentences are those of the authors' evaluation scripts, typographic apostrophe included, and for regions,
which the authors never published, those of LLaVA-1.5 (its paper, Table 7). They end every question, not only
the first of a conversation: the form of an answer then follows from its own question.
"""

import random
from collections.abc import Sequence
from typing import Any

from owl2.data.recipes.recipe import Row

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option’s letter from the given choices directly."
"""The authors' sentence, with a typographic apostrophe."""
CAPTION = "Provide a one-sentence caption for the provided image."
DESCRIBE_REGION = "Provide a short description for this region."
FIND_REGION = "Provide the bounding box coordinate of the region this sentence describes."
LETTERS = "ABCDEFGHIJ"

IMAGE = "<image>"

Exchange = tuple[str, str]
"""A question and its answer."""


def conversation(key: str, image: str | None, exchanges: Sequence[Exchange]) -> Row:
    """Return a row: the image, if any, directly before the first question, as the release asks."""
    values = [value.strip() for exchange in exchanges for value in exchange]
    if image is not None:
        values[0] = IMAGE + values[0]
    turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
    return {"id": key, **({} if image is None else {"image": image}), "conversations": turns}


def seeded(name: str, key: str) -> random.Random:
    """Return a random generator for one record: the same whenever and wherever it is converted."""
    return random.Random(f"{name}:{key}")


def short_question(question: str) -> str:
    """Question and short-answer sentence, a line each, as the authors' evaluation on the paper's date."""
    return f"{question.strip()}\n{SHORT}"


def choice_question(question: str, choices: Sequence[str]) -> str:
    """Return question, options with letters, and the letter sentence, a line each."""
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question.strip(), *options, LETTER])


_CONFIDENCE = {"yes": 1.0, "maybe": 0.5, "no": 0.0}


def most_confident(answers: Sequence[dict[str, Any]]) -> str:
    """Return the answer that annotators gave with the highest confidence, summed over them.

    The paper only says "the answer with the highest confidence". VQAv2 has ten answers a question, each with
    `answer_confidence` yes, maybe or no: they count 1, 1/2 and 0; ties go to the answer of more annotators,
    then to the first one.
    """
    scores: dict[str, tuple[float, int]] = {}
    for answer in answers:
        confidence, votes = scores.get(answer["answer"], (0.0, 0))
        scores[answer["answer"]] = (confidence + _CONFIDENCE[answer["answer_confidence"]], votes + 1)
    return max(scores, key=lambda text: scores[text])


Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""


def region_text(box: Box, width: int, height: int) -> str:
    """Return `[x1, y1, x2, y2]` as shares of the image's sides with two decimals.

    Raises:
        ValueError: an empty box, or one outside the image.
    """
    left, top, w, h = box
    right, bottom = min(left + w, width), min(top + h, height)
    left, top = max(left, 0), max(top, 0)
    if right <= left or bottom <= top:
        raise ValueError(f"the region {box} is empty in an image of {width} x {height}")
    shares = (left / width, top / height, right / width, bottom / height)
    return f"[{', '.join(f'{share:.2f}' for share in shares)}]"


def region_exchanges(regions: Sequence[tuple[str, str]], rng: random.Random) -> list[Exchange]:
    """Ask for the phrase or for the region of each (region, phrase), at random."""
    return [
        (f"{DESCRIBE_REGION} {region}", phrase) if rng.random() < 0.5 else (f"{FIND_REGION} {phrase}", region)
        for region, phrase in regions
    ]
