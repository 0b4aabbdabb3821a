"""A training sample: a conversation whose images and clips are still closed.

Every corpus becomes this, whatever its files look like. Images are decoded and text is tokenised later, in
the loader's workers, so reading a sample is cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.errors import Owl2Error
from owl2.processor.images import ImageError, load_image
from owl2.processor.video import VideoError, sample_frames


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
            raise error if isinstance(self.source, Path) else VideoError(f"{self.name}: {error}") from error
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
        contents = [message["content"] for message in self.messages]
        parts = [[{"text": content}] if isinstance(content, str) else content for content in contents]
        return "\n".join(part.get("text", "") for content in parts for part in content)


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: half a surrogate pair, as in a Latin-1 file name, is
    escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
