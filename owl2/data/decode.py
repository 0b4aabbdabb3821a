"""Opening a sample: its images and clips decoded and augmented, or blank where only lengths matter.

A clip becomes as many images as it has frames. Augmentation is the random resized crop and horizontal flip of
stage 1, as in BLIP-2; it is chosen by source and off by default, since a flip mirrors writing and a crop may
cut what the caption names. Everything random comes from the draw's seed, so a resumed run, or one on another
number of ranks, sees the same images. Each image of a sample is augmented in its own way, the frames of a
clip all in the same way: a scene that jumps is another scene.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from owl2.data.sample import Clip, Sample, StoredImage

Part = dict[str, Any]
"""A part of a message: `{"type": "text", "text": str}`, or `"image"` or `"video"` in place of `"text"`."""

BLANK = Image.new("RGB", (1, 1))
"""Takes the place of an image where only its number of tokens matters, which is the same for all images."""

AUGMENTATIONS = ("none", "crop", "flip", "crop_flip")
CROP_SCALE = (0.5, 1.0)
"""Share of the area that a crop keeps, BLIP-2's range; of a very long image it may keep less."""
CROP_RATIO = (3 / 4, 4 / 3)
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
"""Also matches leftmost, right-hand, and a few words too many (rights): one flip less costs nothing."""


def open_media(sample: Sample, augmentation: str, seed: int, num_frames: int) -> list[dict[str, Any]]:
    """Return the sample's messages with every image and clip decoded and augmented.

    Raises:
        ImageError, VideoError: one cannot be decoded.
        OSError, StorageError: one cannot be reached.
    """
    kind = augmentation_for(sample.text, augmentation)

    def images(media: StoredImage | Clip, number: int) -> list[Image.Image]:
        decoded = [media.open()] if isinstance(media, StoredImage) else media.frames(num_frames)
        return [augment(image, kind, seed + number) for image in decoded]

    return _with_images(sample, images)


def blank_media(sample: Sample, num_frames: int) -> list[dict[str, Any]]:
    """Return the sample's messages with as many images as `open_media` gives, all blank."""
    return _with_images(sample, lambda media, _: [BLANK] * (num_frames if isinstance(media, Clip) else 1))


def augmentation_for(text: str, kind: str) -> str:
    """Return the part of `kind` that keeps `text` true: no flip if it tells left from right."""
    if "flip" in kind and SIDES.search(text):
        return "crop" if "crop" in kind else "none"
    return kind


def augment(image: Image.Image, kind: str, seed: int) -> Image.Image:
    """Return the image as one pass of training sees it; `kind` is one of AUGMENTATIONS."""
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


def _with_images(
    sample: Sample, images: Callable[[StoredImage | Clip, int], list[Image.Image]]
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
    for message in sample.messages:
        content = message["content"]
        messages.append({**message, "content": content if isinstance(content, str) else [*parts(content)]})
    return messages
