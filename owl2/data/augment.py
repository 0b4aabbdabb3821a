"""Augmentation of stage 1: random resized crop and horizontal flip, as BLIP-2 (DESIGN section 5).

Chosen by source and off by default: a flip mirrors writing, and a crop may cut what the caption names. No
source is flipped where its text says left or right. Everything random comes from the draw's seed, so a
resumed or re-sharded run sees the same images.
"""

import random
import re

from PIL import Image

AUGMENTATIONS = ("none", "crop", "flip", "crop_flip")
CROP_SCALE = (0.5, 1.0)
"""Share of the area that a crop keeps, BLIP-2's range; of a very long image it may keep less."""
CROP_RATIO = (3 / 4, 4 / 3)
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
"""Also leftmost, right-hand, and a few words too many (rights): a flip less costs nothing."""


def augmentation_for(text: str, kind: str) -> str:
    """Return what of `kind` keeps `text` true: no flip where it tells left from right."""
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
