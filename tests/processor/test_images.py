"""Images: the released pixels, every mode and format made RGB, and bad files refused by name."""

import contextlib
import io
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from owl2.processor import ImageError, ImageTransform, images, load_image
from owl2.processor.images import Resize

SIZES = [(64, 48), (48, 64), (31, 200), (200, 31), (50, 50), (1, 1), (3, 1), (28, 28), (300, 299)]


def noise(width: int, height: int, low: int = 0, high: int = 256) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format_, **options)
    return data.getvalue()


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
    monkeypatch.setattr(images, "_MAX_EDGE", 2)
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
    levels = (
        pixels * torch.tensor(images.CLIP_STD)[:, None, None] + torch.tensor(images.CLIP_MEAN)[:, None, None]
    )
    expected = torch.tensor([255, 0, 128])[:, None, None].expand(3, 28, 28)
    torch.testing.assert_close(levels * 255, expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "PA", "RGBA", "RGBX", "LA", "CMYK", "YCbCr", "HSV"])
def test_any_mode_becomes_the_rgb_that_pillow_converts_to(mode: str) -> None:
    image = noise(6, 4).convert("P").convert("PA") if mode == "PA" else noise(6, 4).convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_a_mode_that_has_no_rgb_is_an_error_that_names_it() -> None:
    with pytest.raises(ImageError, match="cannot make RGB of the mode La"):
        load_image(noise(6, 4).convert("LA").convert("La"))


def test_alpha_is_dropped_and_not_blended() -> None:
    transparent = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert load_image(encoded(transparent, "PNG")).getpixel((0, 0)) == (200, 100, 50)


def test_a_cmyk_jpeg_and_a_palette_png_keep_their_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    for data in (encoded(red.convert("CMYK"), "JPEG", quality=100), encoded(red.quantize(), "PNG")):
        np.testing.assert_allclose(np.asarray(load_image(data))[8, 8], (220, 30, 40), atol=3)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format_: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), format_))
    assert [loaded.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_32_bit_grey_is_read_as_16_bit_and_refused_beyond() -> None:
    def grey(top: int) -> Image.Image:
        return Image.fromarray(np.array([[0, top]], dtype=np.int32))

    assert load_image(grey(65_535)).getpixel((1, 0)) == (255, 255, 255)
    for top in (65_536, -1):
        with pytest.raises(ImageError, match=r"integer pixels from .*expected 0 to 65,535"):
            load_image(grey(top))
    with pytest.raises(ImageError, match="floating-point pixels have no known range"):
        load_image(Image.new("F", (2, 2)))


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for format_ in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format_ == "WEBP" else {}
        data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
        assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = noise(5, 3)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    loaded = load_image(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))
    assert load_image(loaded).size == upright.size  # not rotated twice


def test_paths_strings_bytes_and_images_load_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = encoded(noise(7, 5), "PNG")
    path.write_bytes(data)
    for source in (path, str(path), data, Image.open(path), noise(7, 5)):
        np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(noise(7, 5)))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_an_error_that_names_the_file(format_: str, tmp_path: Path) -> None:
    data = encoded(noise(200, 200), format_)
    path = tmp_path / f"owl.{format_.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=rf"owl\.{format_.lower()}: (damaged|not an image)"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken TIFF tags
def test_cut_anywhere_a_file_either_loads_whole_or_is_an_image_error() -> None:
    for format_ in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(noise(30, 20), format_)
        for length in range(0, len(data), 37):
            with contextlib.suppress(ImageError):
                assert load_image(data[:length]).size == (30, 20)


@pytest.mark.parametrize("content", [b"", b"not an image", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_an_error_that_names_the_file_and_its_size(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "owl.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ImageError, match=rf"owl\.jpg: not an image that Pillow reads \({len(content)} bytes\)"
    ):
        load_image(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: cannot be read \(No such file or directory\)"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that claims to be large and holds nothing."""
    tiny = encoded(Image.new("RGB", (1, 1)), "PNG")
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + tiny[24:29]
    return tiny[:12] + header + zlib.crc32(header).to_bytes(4, "big") + tiny[33:]


@pytest.mark.parametrize("lifted", [False, True])
def test_a_decompression_bomb_is_refused_from_its_header(
    lifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lifted:  # other libraries switch Pillow's own check off
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"178956970|178,956,970"):
            load_image(header_only_png(20_000, 10_000))
        with pytest.raises(ImageError, match="65,535 on a side"):
            load_image(header_only_png(100_000, 10))


def test_a_config_without_resize_is_a_released_one_and_means_square() -> None:
    released = {
        "crop_size": 448,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(images.CLIP_MEAN),
        "image_std": list(images.CLIP_STD),
        "resample": 3,
        "size": 448,
    }
    assert ImageTransform.from_dict(released) == ImageTransform(448, "square")
    newer = {**released, "size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}}
    assert ImageTransform.from_dict(newer) == ImageTransform(448, "square")


def test_a_transform_survives_its_config() -> None:
    transform = ImageTransform(56, "pad", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert ImageTransform.from_dict(transform.to_dict()) == transform


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"resample": 2}, "resample is 2, expected 3"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1/255"),
        ({"crop_size": 224}, "size 448 and crop_size 224 must be equal"),
        ({"size": {"height": 448, "width": 224}}, "size is .*, expected one side in pixels"),
        ({"size": None}, "size is None, expected one side in pixels"),
        ({"resize": "stretch"}, "resize is 'stretch', expected one of square, pad, crop"),
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
