"""A sample's images and clips decoded, or something in their place where only lengths matter.

A clip becomes as many images as it has frames. All images of a draw are augmented by its seed, each in its
own way; frames of a clip in the same way, for a scene that jumps is another scene.
"""

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from owl2.data.augment import augment, augmentation_for
from owl2.data.sample import Clip, Sample, StoredImage

Part = dict[str, Any]
"""`{"type": "text", "text": str}`, or `"image"` or `"video"` in place of `"text"`."""

BLANK = Image.new("RGB", (1, 1))


def open_media(sample: Sample, augmentation: str, seed: int, num_frames: int) -> list[dict[str, Any]]:
    """The sample's messages with every image and clip decoded and augmented.

    Raises:
        OSError, ImageError, VideoError: one cannot be read.
    """
    kind = augmentation_for(sample.text, augmentation)

    def images(media: StoredImage | Clip, number: int) -> list[Image.Image]:
        decoded = [media.open()] if isinstance(media, StoredImage) else media.sample(num_frames)
        return [augment(image, kind, seed + number) for image in decoded]

    return _with_images(sample, images)


def stand_in(sample: Sample, num_frames: int) -> list[dict[str, Any]]:
    """The sample's messages with as many images as `open_media` gives, all blank."""
    return _with_images(sample, lambda media, _: [BLANK] * (num_frames if isinstance(media, Clip) else 1))


def _with_images(
    sample: Sample, images: Callable[[StoredImage | Clip, int], list[Image.Image]]
) -> list[dict[str, Any]]:
    number = -1  # of the image or clip in the sample

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
    for message in sample.messages:
        content = message["content"]
        messages.append({**message, "content": content if isinstance(content, str) else [*parts(content)]})
    return messages
