"""A conversation split into its questions: what `turns: apart` does to a sample.

Questions about one image can answer each other ("Is there a red cat?" names what "What is in the image?" asks
for), so a model may learn to read them instead of looking. Apart, no question sees another and all see the
image, which is encoded once. Off by default: the paper joins the pairs of an image into one conversation
(appendix B.1).
"""

from collections.abc import Sequence
from typing import Any

from owl2.data.sample import DataError, Part
from owl2.processor import Encoding

Messages = list[dict[str, Any]]


def split(messages: Messages) -> list[Messages]:
    """Return one conversation for each question, all with the system prompt and the images of the first turn.

    Raises:
        DataError: a later turn has an image of its own.
    """
    first = int(messages[0]["role"] == "system")
    system = messages[:first]
    rounds = [messages[: first + 2]]
    images = _images(parts_of(messages[first]))
    for begin in range(first + 2, len(messages), 2):
        question, *answer = messages[begin : begin + 2]
        parts = parts_of(question)
        if _images(parts):
            raise DataError(
                f"turn {begin + 1} has an image of its own; with `turns: apart` only the first turn may",
                "image in a later turn",
            )
        rounds.append([*system, {**question, "content": [*images, *parts]}, *answer])
    return rounds


def join(encodings: Sequence[Encoding]) -> Encoding:
    """Join encodings that show the same images into one sample of several rows.

    Raises:
        DataError: one has lost an image to the limit of tokens.
    """
    if len(encodings) == 1:
        return encodings[0]
    if len({len(encoding.images) for encoding in encodings}) > 1:
        raise DataError("a question's images do not fit into the limit of tokens", "no room for images")
    return Encoding(
        ids=[id_ for encoding in encodings for id_ in encoding.ids],
        is_target=[flag for encoding in encodings for flag in encoding.is_target],
        images=encodings[0].images,
        rows=tuple(len(encoding.ids) for encoding in encodings),
    )


def parts_of(message: dict[str, Any]) -> list[Part]:
    """The content of a message as parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _images(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part["type"] != "text"]
