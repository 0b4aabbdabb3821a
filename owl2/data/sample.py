"""One training sample: a conversation whose images are still closed.

Every corpus, whatever its files look like, becomes this; opening images and tokenising happen later, in
the loader's workers, so that drawing a sample costs nothing.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from owl2.errors import Owl2Error
from owl2.processor.images import ImageError, load_image
from owl2.processor.video import VideoError, sample_frames

IMAGE_MARKS = ("<|image|>", "<image>")
"""The released code's mark and LLaVA's; both stand for the next image of the sample."""
VIDEO_MARKS = ("<|video|>", "<video>")
"""The next clip, in a row that has any: elsewhere these are words of HTML. In a row of clips alone image
marks mean them too, as in LLaVA-Video's files."""


class DataError(Owl2Error, ValueError):
    """A sample or file that cannot be used; the message names it and says why.

    `kind` is a short phrase without names or numbers: what bad samples are counted by.
    """

    def __init__(self, message: str, kind: str = "unusable"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class StoredImage:
    """An image that is read when it is needed."""

    name: str
    read: Callable[[], bytes]

    def open(self) -> Image.Image:
        """Decode to RGB; raises `owl2.processor.images.ImageError` with the image's name."""
        try:
            return load_image(self.read())
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Clip:
    """A video or GIF that is read when it is needed."""

    name: str
    read: Callable[[], bytes]

    def sample(self, num_frames: int) -> list[Image.Image]:
        """Decode so many frames, evenly spaced, to RGB; raises `VideoError` with the clip's name."""
        try:
            return sample_frames(self.read(), num_frames)
        except VideoError as error:
            raise VideoError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Sample:
    """A conversation in the processor's message form, with `StoredImage`s in place of images.

    A part may also be `{"type": "video", "video": Clip}`, which becomes several images.
    """

    source: str
    key: str
    messages: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """All that is said, by both sides."""
        contents = [message["content"] for message in self.messages]
        parts = [[{"text": content}] if isinstance(content, str) else content for content in contents]
        return "\n".join(part.get("text", "") for content in parts for part in content)


def sample_from_llava(source: str, row: dict[str, Any], stored: Callable[[Any], StoredImage]) -> Sample:
    """Turn a row of the LLaVA format into a sample.

    Args:
        stored: the file for what stands in the row's `image` or `video`, a name in JSON.

    Raises:
        DataError: wrong roles, or marks and images or clips that do not match in number.
    """
    key = str(row.get("id", row.get("question_id", "?")))
    images, videos = _names(row, "image"), _names(row, "video")
    media = Media.of(images, videos, stored)
    marks = [mark for turn in row["conversations"] for mark in media.pattern.findall(turn["value"])]
    num_videos = sum(mark in VIDEO_MARKS or not images for mark in marks) if videos else 0
    num_images = len(marks) - num_videos
    if num_images != len(images) or num_videos != len(videos):
        message = f"{source}: sample {key} has {num_images} image mark(s) and {len(images)} image(s)"
        message += f", {num_videos} video mark(s) and {len(videos)} video(s)" if videos else ""
        raise DataError(message, "image marks and images differ")
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
        messages.append({"role": roles[expected], "content": _parts(turn["value"], media)})
    return Sample(source, key, messages)


def not_a_llava_row(place: str, error: Exception) -> DataError:
    """What a row becomes in which `sample_from_llava`, or reading it, met something unforeseen."""
    kind = "text is not UTF-8" if isinstance(error, UnicodeError) else "not a LLaVA row"
    return DataError(f"{place} is not a LLaVA row: {error!r}", kind)


def sample_from_caption(source: str, key: str, caption: str, image: StoredImage) -> Sample:
    """Turn an image and its caption into a sample: the image alone as the turn, the caption as answer.

    Raises:
        DataError: the caption is blank.
    """
    caption = caption.strip()
    if not caption:
        raise DataError(f"{source}: the caption of {key} is blank", "caption is blank")
    question = {"role": "user", "content": [{"type": "image", "image": image}]}
    return Sample(source, key, [question, {"role": "assistant", "content": caption}])


@dataclass(frozen=True)
class Media:
    """The images and clips of a row, in the order of their marks."""

    images: Iterator[Any]
    videos: Iterator[Any]
    stored: Callable[[Any], StoredImage]
    pattern: re.Pattern[str]
    """What marks one of them."""

    @classmethod
    def of(
        cls, images: Sequence[Any], videos: Sequence[Any], stored: Callable[[Any], StoredImage]
    ) -> "Media":
        """The media of a row's `image` and `video`."""
        marks = IMAGE_MARKS + (VIDEO_MARKS if videos else ())
        return cls(iter(images), iter(videos), stored, re.compile("|".join(map(re.escape, marks))))

    def part(self, mark: str) -> dict[str, Any]:
        """What stands at the next mark."""
        image = None if mark in VIDEO_MARKS else next(self.images, None)
        if image is not None:
            return {"type": "image", "image": self.stored(image)}
        file = self.stored(next(self.videos))
        return {"type": "video", "video": Clip(file.name, file.read)}


def _names(row: dict[str, Any], field: str) -> list[Any]:
    names = row.get(field) or []  # null in exported corpora
    return [names] if isinstance(names, str) else list(names)


def _parts(text: str, media: Media) -> list[dict[str, Any]]:
    text.encode()  # half a surrogate pair, which JSON can spell, fails here instead of in the tokenizer
    parts: list[dict[str, Any]] = []
    begin = 0
    for mark in media.pattern.finditer(text):
        parts += [{"type": "text", "text": text[begin : mark.start()]}, media.part(mark.group())]
        begin = mark.end()
    parts.append({"type": "text", "text": text[begin:]})
    return [part for part in parts if part.get("text", True)]
