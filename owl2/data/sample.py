"""A training sample: a conversation whose images and clips are still closed, and what opening it does.

Every corpus becomes this, whatever its files look like. Images are decoded, and text is tokenised, in the
loader's workers, so reading a sample is cheap. A clip becomes as many images as it has frames.

Augmentation is the random resized crop and horizontal flip of stage 1, as in BLIP-2; it is chosen by source
and off by default, since a flip mirrors writing and a crop may cut what the caption names. Everything random
comes from the draw's seed, so a resumed run, or one on another number of ranks, sees the same images. Each
image of a sample is augmented in its own way, the frames of a clip all in the same way: a scene that jumps is
another scene.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.errors import Owl2Error
from owl2.processor.images import BLANK, ImageError, load_image
from owl2.processor.video import VideoError, sample_frames

Part = dict[str, Any]
"""A part of a message: `{"type": "text", "text": str}`, or `"image"` or `"video"` in place of `"text"`."""

CROP_SCALE = (0.5, 1.0)
"""Share of the area that a crop keeps, BLIP-2's range; of a very long image it may keep less."""
CROP_RATIO = (3 / 4, 4 / 3)
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
"""Also matches leftmost, right-hand, and a few words too many (rights): one flip less costs nothing."""


class DataError(Owl2Error, ValueError):
    """A sample or file that cannot be used; the message names it and says why.

    `kind` is a short phrase without names or numbers, by which bad samples are counted.
    """

    def __init__(self, message: str, kind: str = "unusable"):
        super().__init__(printable(message))
        self.kind = kind


@dataclass(frozen=True)
class StoredImage:
    """An image that is read when it is needed."""

    name: str
    read: Callable[[], bytes]

    def open(self) -> Image.Image:
        """Decode to RGB.

        Raises:
            ImageError: it cannot be read; the message has the image's name.
            OSError, StorageError: the file or the storage behind it cannot be reached.
        """
        try:
            return load_image(self.read())
        except ImageError as error:
            raise ImageError(f"{self.name}: {error}") from error
        except (Owl2Error, OSError):
            raise
        except Exception as error:  # a path with a NUL byte, or an exception of the image library's own
            raise ImageError(f"{self.name}: cannot be read ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Clip:
    """A video or GIF, or a part of one, that is decoded when its frames are needed."""

    name: str
    source: Path | Callable[[], bytes]
    """A local file, or what reads one."""
    segment: tuple[float, float] | None = None
    """Begin and end in seconds."""

    def frames(self, num_frames: int) -> tuple[Image.Image, ...]:
        """Decode evenly spaced frames to RGB.

        Those of the last few local files are kept, so asking for one frame after another decodes a file once.
        Copy a frame before changing it.

        Raises:
            VideoError: it cannot be read; the message has the clip's name.
            OSError, StorageError: the file or the storage behind it cannot be reached.
        """
        try:
            if isinstance(self.source, Path):
                return _frames_of_file(self.source, num_frames, self.segment)
            return tuple(sample_frames(self.source(), num_frames, self.segment))
        except VideoError as error:
            raise error if isinstance(self.source, Path) else type(error)(f"{self.name}: {error}") from error
        except (Owl2Error, OSError):
            raise
        except Exception as error:  # a path with a NUL byte, or an exception of the video library's own
            raise VideoError(f"{self.name}: cannot be read ({type(error).__name__}: {error})") from error


@lru_cache(maxsize=4)  # eight frames of 720p are 22 MB
def _frames_of_file(
    path: Path, num_frames: int, segment: tuple[float, float] | None
) -> tuple[Image.Image, ...]:
    return tuple(sample_frames(path, num_frames, segment))


@dataclass(frozen=True)
class Sample:
    """A conversation in the processor's message form, with a `StoredImage` in place of each image.

    A part may also be `{"type": "video", "video": Clip}`, which becomes several images.
    """

    source: str
    key: str
    messages: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """All text of both sides."""
        return "\n".join(part.get("text", "") for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """The parts of all messages."""
        for content in (message["content"] for message in self.messages):
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content

    def open(self, augmentation: str, seed: int, num_frames: int) -> list[dict[str, Any]]:
        """Return the messages with every image and clip decoded and augmented.

        Args:
            augmentation: `none`, `crop`, `flip` or `crop_flip`.
            seed: of this draw.
            num_frames: that a clip becomes.

        Raises:
            ImageError, VideoError: one cannot be decoded.
            OSError, StorageError: one cannot be reached.
        """
        kind = augmentation_for(self.text, augmentation)

        def images(media: StoredImage | Clip, number: int) -> list[Image.Image]:
            decoded = [media.open()] if isinstance(media, StoredImage) else media.frames(num_frames)
            return [augment(image, kind, seed + number) for image in decoded]

        return self._with_images(images)

    def blank(self, num_frames: int) -> list[dict[str, Any]]:
        """Return the messages with as many images as `open` gives, all blank."""
        return self._with_images(lambda media, _: [BLANK] * (num_frames if isinstance(media, Clip) else 1))

    def _with_images(
        self, images: Callable[[StoredImage | Clip, int], Sequence[Image.Image]]
    ) -> list[dict[str, Any]]:
        """Replace each image or clip by what `images` makes of it and its number in the sample."""
        number = -1

        def parts(content: list[Part]) -> Iterator[Part]:
            nonlocal number
            for part in content:
                media = part.get("image") or part.get("video")
                if isinstance(media, StoredImage | Clip):
                    number += 1
                    yield from ({"type": "image", "image": image} for image in images(media, number))
                else:
                    yield part

        messages = []
        for message in self.messages:
            content = message["content"]
            messages.append(
                {**message, "content": content if isinstance(content, str) else [*parts(content)]}
            )
        return messages


def augmentation_for(text: str, kind: str) -> str:
    """Return the part of `kind` that keeps `text` true: no flip if it tells left from right."""
    if "flip" in kind and SIDES.search(text):
        return "crop" if "crop" in kind else "none"
    return kind


def augment(image: Image.Image, kind: str, seed: int) -> Image.Image:
    """Return the image as one pass of training sees it."""
    if kind == "none":
        return image
    rng = random.Random(seed)
    if "crop" in kind:
        image = image.crop(_random_box(image.size, rng))
    if "flip" in kind and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _random_box(size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    width, height = size
    area = width * height * rng.uniform(*CROP_SCALE)
    ratio = rng.uniform(*CROP_RATIO)
    w = min(width, max(1, round((area * ratio) ** 0.5)))
    h = min(height, max(1, round((area / ratio) ** 0.5)))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return left, top, left + w, top + h


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: half a surrogate pair (a Latin-1 file name) is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
