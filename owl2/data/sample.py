"""One training sample: a conversation whose pictures are still closed.

Every corpus, whatever its files look like, becomes this; opening pictures and tokenising happen later, in
the loader's workers, so that drawing a sample costs nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.processor.images import ImageError, load_image

IMAGE_MARKS = ("<|image|>", "<image>")
"""The released code's mark and LLaVA's; both stand for the next picture of the sample."""


class DataError(ValueError):
    """A sample or file that cannot be used; the message names it and says why.

    `kind` is a short phrase without names or numbers: what bad samples are counted by.
    """

    def __init__(self, message: str, kind: str = "unusable"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Picture:
    """A picture that is read when it is needed."""

    name: str
    read: Callable[[], bytes]

    def open(self) -> Image.Image:
        """Decode to RGB; raises `owl2.processor.images.ImageError` with the picture's name."""
        try:
            return load_image(self.read())
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Sample:
    """A conversation in the processor's message form, with `Picture`s in place of images."""

    source: str
    key: str
    messages: list[dict[str, Any]]


def sample_from_llava(source: str, row: dict[str, Any], picture: Callable[[str], Picture]) -> Sample:
    """Turn a row of the LLaVA format into a sample.

    Raises:
        DataError: wrong roles, or marks and images that do not match in number.
    """
    key = str(row.get("id", row.get("question_id", "?")))
    images = row.get("image") or []  # null in exported corpora
    names = [images] if isinstance(images, str) else list(images)
    marks = sum(turn["value"].count(mark) for turn in row["conversations"] for mark in IMAGE_MARKS)
    if marks != len(names):
        message = f"{source}: sample {key} has {marks} image mark(s) and {len(names)} image(s)"
        raise DataError(message, "image marks and pictures differ")
    pictures = iter([picture(name) for name in names])
    roles = {"human": "user", "gpt": "assistant"}
    messages = []
    for number, turn in enumerate(row["conversations"]):
        expected = ("human", "gpt")[number % 2]
        if turn.get("from") != expected:
            raise DataError(
                f"{source}: turn {number + 1} of sample {key} is from {turn.get('from')!r}, "
                f"expected {expected!r}",
                "turns do not alternate",
            )
        messages.append({"role": roles[expected], "content": _parts(turn["value"], pictures)})
    return Sample(source, key, messages)


def sample_from_caption(source: str, key: str, caption: str, picture: Picture) -> Sample:
    """Turn an image and its caption into a sample: the picture alone as the turn, the caption as answer.

    Raises:
        DataError: the caption is blank.
    """
    caption = caption.strip()
    if not caption:
        raise DataError(f"{source}: the caption of {key} is blank", "caption is blank")
    question = {"role": "user", "content": [{"type": "image", "image": picture}]}
    return Sample(source, key, [question, {"role": "assistant", "content": caption}])


def jsonl_picture(root: Path, name: str) -> Picture:
    """A picture in a file below `root`."""
    return Picture(name, (root / name).read_bytes)


def _parts(text: str, pictures: Iterator[Picture]) -> list[dict[str, Any]]:
    text.encode()  # half a surrogate pair, which JSON can spell, fails here instead of in the tokenizer
    for mark in IMAGE_MARKS[1:]:
        text = text.replace(mark, IMAGE_MARKS[0])
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_MARKS[0])):
        if number:
            parts.append({"type": "image", "image": next(pictures)})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
