"""The image transform: the released pixels, and configurations of other steps refused by name."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from owl2.processor import ImageError, ImageTransform
from owl2.processor.transform import CLIP_MEAN, CLIP_STD, Resize
from tests.processor.small import noise

SIZES = [(64, 48), (48, 64), (31, 200), (200, 31), (50, 50), (1, 1), (3, 1), (28, 28), (300, 299)]


def released_pixels(image: Image.Image, resize: str, size: int) -> torch.Tensor:
    """What the release computes, through the CLIP image processor of `transformers`."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    clip = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3
    )
    edge = max(image.size)
    if resize == "square":
        image = image.resize((edge, edge))
    if resize == "pad":
        canvas = Image.new("RGB", (edge, edge), tuple(int(mean * 255) for mean in clip.image_mean))
        canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        image = canvas
    return torch.from_numpy(np.asarray(clip(image, return_tensors="np")["pixel_values"][0]))


@pytest.mark.parametrize("resize", ["square", "pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_released_code(resize: Resize, size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = ImageTransform(28, resize)(image)
    assert ours.shape == (3, 28, 28)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, released_pixels(image, resize, 28), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", ["square", "pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_the_frugal_way_for_long_images_gives_the_same_pixels_up_to_rounding(
    resize: Resize, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(*size, low=80, high=176)  # no overshoot beyond 0 and 255
    transform = ImageTransform(28, resize, mean=(0.4, 0.5, 0.6), std=(1 / 255,) * 3)  # in 8-bit levels
    direct = transform(image)
    monkeypatch.setattr("owl2.processor.transform._MAX_EDGE", 2)
    difference = (transform(image) - direct).abs()
    assert difference.max() < 1.001
    assert difference.mean() < 0.3


MEASURE = """
import resource, sys
from PIL import Image
from owl2.processor import ImageTransform
wide = Image.new("RGB", (20_000, 10), (9, 90, 200))
transforms = [ImageTransform(448, name) for name in ("square", "pad", "crop")]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for transform in transforms:
    assert transform(wide).shape == (3, 448, 448)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_an_image_20000_pixels_wide_needs_little_memory() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 250  # MiB; one square of 20,000 px would be 1,144


@pytest.mark.parametrize("resize", ["square", "pad", "crop"])
def test_one_pixel_becomes_a_plain_square(resize: Resize) -> None:
    pixels = ImageTransform(28, resize)(Image.new("RGB", (1, 1), (255, 0, 128)))
    levels = pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    expected = torch.tensor([255, 0, 128])[:, None, None].expand(3, 28, 28)
    torch.testing.assert_close(levels * 255, expected.float(), atol=1e-3, rtol=0)


def test_a_config_without_resize_is_a_released_one_and_means_square() -> None:
    released = {
        "crop_size": 448,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "size": 448,
    }
    assert ImageTransform.from_dict(released) == ImageTransform(448, "square", alpha="drop")
    newer = {**released, "size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}}
    assert ImageTransform.from_dict(newer) == ImageTransform(448, "square", alpha="drop")
    assert ImageTransform.from_dict({**released, "resize": "crop"}).resize == "crop"  # our older folders


def test_a_transform_survives_its_config() -> None:
    for alpha in ("white", "drop"):
        transform = ImageTransform(56, "pad", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), alpha=alpha)
        assert ImageTransform.from_dict(transform.to_dict(), resize="crop") == transform


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"resample": 2}, "resample is 2, expected 3"),
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1/255"),
        ({"rescale_factor": None}, "rescale_factor is null, expected 1/255"),
        ({"crop_size": 224}, "size 448 and crop_size 224 must be equal"),
        ({"size": {"height": 448, "width": 224}}, "size is .*, expected one side in pixels"),
        ({"size": None}, "size is null, expected one side in pixels"),
        ({"size": 448.0}, "size is 448.0, expected one side in pixels"),
        ({"size": True}, "size is true, expected one side in pixels"),
        ({"size": {"shortest_edge": [448]}}, "size is .*, expected one side in pixels"),
        ({"size": 10**9, "crop_size": 10**9}, "size is 1000000000 px, expected 1 to 65,535"),
        ({"image_mean": None}, "image_mean is null, expected three numbers"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\], expected three numbers"),
        ({"image_mean": ["0", 0, 0]}, "image_mean is .*, expected three numbers"),
        ({"image_std": [0, 0, 0]}, r"image_std is \[0, 0, 0\], expected three numbers above 0"),
        ({"image_std": [1, 1, float("nan")]}, "image_std is .*, expected three numbers above 0"),
        ({"owl2": {"resize": "stretch"}}, "resize is 'stretch', expected one of square, pad, crop"),
        ({"owl2": {"alpha": "black"}}, "alpha is 'black', expected one of white, drop"),
        ({"owl2": {"alpha": 1}}, "alpha is 1, expected text"),
        ({"owl2": {"colour": "white"}}, 'owl2 is {"colour": "white"}, expected an object of alpha, resize'),
        ({"owl2": ["pad"]}, r'owl2 is \["pad"\], expected an object of alpha, resize'),
    ],
)
def test_a_config_that_asks_for_other_steps_is_an_error_that_names_the_field(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ImageError, match=complaint):
        ImageTransform.from_dict({**ImageTransform(448).to_dict(), **change})


def test_an_image_that_is_not_rgb_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ImageError, match="mode L, expected RGB: use load_image"):
        ImageTransform(28)(Image.new("L", (4, 4)))
