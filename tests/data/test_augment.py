"""Augmentation: decided by the seed alone, within BLIP-2's ranges, and off unless asked for."""

import numpy as np
import pytest
from PIL import Image

from owl2.data.sample import CROP_SCALE, augment, augmentation_for

SIZE = (80, 60)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Every pixel says where it is: red is the column, green the row."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_none_changes_nothing(image: Image.Image) -> None:
    assert augment(image, "none", seed=1) is image


@pytest.mark.parametrize("kind", ["none", "crop", "flip", "crop_flip"])
def test_the_seed_alone_decides(image: Image.Image, kind: str) -> None:
    for seed in range(20):
        assert np.array_equal(pixels(augment(image, kind, seed)), pixels(augment(image, kind, seed)))
    results = {augment(image, kind, seed).tobytes() for seed in range(50)}
    assert len(results) == {"none": 1, "flip": 2}.get(kind, len(results))
    assert len(results) > 45 or "crop" not in kind


@pytest.mark.parametrize(
    ("text", "kind", "allowed"),
    [
        ("a dog left of a cat", "crop_flip", "crop"),
        ("a dog left of a cat", "flip", "none"),
        ("The RIGHTMOST cup", "crop_flip", "crop"),
        ("a right-handed player", "flip", "none"),
        ("a bright copyright sign", "crop_flip", "crop_flip"),
        ("a dog on a cat", "flip", "flip"),
        ("a dog left of a cat", "crop", "crop"),
        ("a dog left of a cat", "none", "none"),
    ],
)
def test_nothing_is_flipped_whose_text_says_left_or_right(text: str, kind: str, allowed: str) -> None:
    assert augmentation_for(text, kind) == allowed


def test_a_flip_mirrors_half_of_the_images(image: Image.Image) -> None:
    flipped = [
        np.array_equal(pixels(augment(image, "flip", seed)), pixels(image)[:, ::-1]) for seed in range(400)
    ]
    assert 160 < sum(flipped) < 240


def test_a_crop_is_a_window_of_the_image_with_the_share_and_ratio_it_should_have(
    image: Image.Image,
) -> None:
    shares, corners = [], set()
    for seed in range(400):
        crop = augment(image, "crop", seed)
        left, top = pixels(crop)[0, 0, :2]
        assert np.array_equal(pixels(crop), pixels(image)[top : top + crop.height, left : left + crop.width])
        shares.append(crop.width * crop.height / (SIZE[0] * SIZE[1]))
        assert 0.7 < crop.width / crop.height < 1.4
        corners.add((left, top))
    assert CROP_SCALE[0] - 0.02 < min(shares) < 0.55
    assert 0.9 < max(shares) <= 1
    assert len(corners) > 100


def test_both_crop_and_flip(image: Image.Image) -> None:
    mirrored = 0
    for seed in range(100):
        red = pixels(augment(image, "crop_flip", seed))[0, :, 0]
        assert abs(int(red[-1]) - int(red[0])) == len(red) - 1 < SIZE[0]
        mirrored += red[0] > red[-1]
    assert 30 < mirrored < 70


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_images_of_a_pixel_or_a_line_survive(size: tuple[int, int]) -> None:
    for seed in range(50):
        crop = augment(Image.new("RGB", size), "crop_flip", seed)
        assert 1 <= crop.width <= size[0]
        assert 1 <= crop.height <= size[1]
