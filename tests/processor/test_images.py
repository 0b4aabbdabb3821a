"""Images: every mode and format made RGB, and bad files refused by name."""

import base64
import contextlib
import functools
import http.server
import io
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import owl2
from owl2.processor import ImageError, images, load_image
from tests.processor.small import noise


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_warned", set())


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format_, **options)
    return data.getvalue()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "PA", "RGBA", "RGBX", "LA", "CMYK", "YCbCr", "HSV"])
def test_any_mode_becomes_the_rgb_that_pillow_converts_to(mode: str) -> None:
    image = noise(6, 4).convert("P").convert("PA") if mode == "PA" else noise(6, 4).convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_a_mode_that_has_no_rgb_is_an_error_that_names_it() -> None:
    with pytest.raises(ImageError, match="cannot make RGB of the mode La"):
        load_image(noise(6, 4).convert("LA").convert("La"))


def ink(colour: tuple[int, int, int], mode: str = "RGBA") -> Image.Image:
    """A square of one colour, the left half of it transparent."""
    image = Image.new("RGBA", (8, 8), (*colour, 255))
    image.paste((*colour, 0), (0, 0, 4, 8))
    return image.convert(mode)


def test_transparency_is_shown_on_white_or_dropped_as_the_release_does() -> None:
    half = Image.new("RGBA", (2, 2), (200, 100, 50, 128))
    data = encoded(half, "PNG")
    assert load_image(data).getpixel((0, 0)) == (227, 177, 152)
    assert load_image(data, "drop").getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize(
    ("mode", "format_"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "GIF")]
)
def test_black_ink_on_transparency_is_black_on_white(mode: str, format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    loaded = load_image(encoded(ink((0, 0, 0), mode), format_, **options))
    assert (loaded.mode, loaded.getpixel((1, 1)), loaded.getpixel((6, 1))) == ("RGB", (255,) * 3, (0,) * 3)


def test_one_colour_of_a_png_can_be_the_transparent_one() -> None:
    grey = Image.new("L", (8, 8), 10)
    grey.paste(20, (0, 0, 4, 8))
    for image, transparent in ((grey, 20), (grey.convert("RGB"), (20, 20, 20))):
        loaded = load_image(encoded(image, "PNG", transparency=transparent))
        assert (loaded.getpixel((1, 1)), loaded.getpixel((6, 1))) == ((255,) * 3, (10,) * 3)
        dropped = load_image(encoded(image, "PNG", transparency=transparent), "drop")
        assert dropped.getpixel((1, 1)) == (20,) * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_dropping_transparency_gives_the_pixels_that_pillow_converts_to_bit_for_bit(mode: str) -> None:
    image = noise(30, 20)
    image.putalpha(noise(30, 20).getchannel("R"))
    data = encoded(image if mode == "RGBA" else image.convert(mode), "PNG" if mode != "PA" else "TIFF")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(data, "drop")), expected)


def test_an_image_whose_contrast_is_all_in_its_transparency_is_said_once() -> None:
    data = encoded(ink((0, 0, 0)), "PNG")
    with pytest.warns(owl2.Owl2Warning, match=r'one plain colour: "owl2": {"alpha": "white"} in') as said:
        assert [load_image(data, "drop").getpixel((1, 1)) for _ in range(3)] == [(0, 0, 0)] * 3
    assert len(said) == 1
    with pytest.warns(owl2.Owl2Warning, match="on white, the image is one plain colour"):
        load_image(encoded(ink((255, 255, 255)), "PNG"))


def test_an_image_that_keeps_contrast_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    two_colours = ink((0, 0, 0))
    two_colours.paste((255, 0, 0, 255), (6, 0, 8, 8))
    for alpha in ("white", "drop"):
        load_image(two_colours, alpha)
        load_image(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), alpha)  # nothing to lose
        load_image(Image.new("RGB", (4, 4)), alpha)
    assert not recwarn.list


def test_a_cmyk_jpeg_and_a_palette_png_keep_their_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    for data in (encoded(red.convert("CMYK"), "JPEG", quality=100), encoded(red.quantize(), "PNG")):
        np.testing.assert_allclose(np.asarray(load_image(data))[8, 8], (220, 30, 40), atol=3)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format_: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), format_))
    assert [loaded.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("white", [255, 4095, 65_535])
def test_8_12_and_16_bit_values_in_a_wider_type_keep_their_brightness(dtype: str, white: int) -> None:
    values = np.array([[0, white // 2, white]], dtype=dtype)
    levels = [load_image(Image.fromarray(values)).getpixel((x, 0)) for x in range(3)]
    assert levels == [(v, v, v) for v in (0, 127, 255)]


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_12_bit_values_in_a_file_of_16_bits_keep_their_brightness(format_: str) -> None:
    loaded = load_image(encoded(Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)), format_))
    assert loaded.getpixel((1, 0)) == (255, 255, 255)


def test_the_number_of_bits_that_a_file_declares_decides_for_dark_images_too() -> None:
    dark = np.array([[0, 255]], dtype=np.uint16)  # of a camera of 12 bits, 255 is nearly black
    tiff = bytearray(encoded(Image.fromarray(dark), "TIFF"))
    tiff_12 = Image.open(io.BytesIO(bytes(tiff)))
    tiff_12.load()
    tiff_12.tag_v2[258] = (12,)
    assert load_image(tiff_12).getpixel((1, 0)) == (16, 16, 16)
    assert load_image(bytes(tiff)).getpixel((1, 0)) == (255, 255, 255)


def test_floating_point_values_from_0_to_1_are_shares_of_white() -> None:
    values = np.array([[0, 0.25, 1]], dtype=np.float32)
    assert [load_image(Image.fromarray(values)).getpixel((x, 0))[0] for x in range(3)] == [0, 64, 255]


def test_grey_values_without_a_known_range_are_errors_with_the_numbers() -> None:
    def grey(*values: float, dtype: str = "int32") -> Image.Image:
        return Image.fromarray(np.array([values], dtype=dtype))

    for top in (65_536, -1):
        with pytest.raises(ImageError, match=r"integer pixels from .*expected 0 to 65,535"):
            load_image(grey(0, top))
    for odd in (-0.5, 1e6, float("nan"), float("inf")):
        with pytest.raises(ImageError, match=r"floating-point pixels from .*expected 0 to 65,535"):
            load_image(grey(0, odd, dtype="float32"))


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


def test_arrays_data_uris_urls_and_open_files_load_alike(tmp_path: Path) -> None:
    image = noise(7, 5)
    data = encoded(image, "PNG")
    (tmp_path / "a b.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[i : i + 20] for i in range(0, len(text), 20)).rstrip("=")
    with served(tmp_path) as address, (tmp_path / "a b.png").open("rb") as file:
        for source in (
            np.asarray(image),
            np.asarray(image)[:, ::-1][:, ::-1],
            f"data:image/png;base64,{text}",
            f"DATA:;base64,{wrapped}",
            "data:image/png," + quote_from_bytes(data),
            f"{address}/a%20b.png",
            io.BytesIO(data),
            file,
        ):
            np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(image))
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(np.asarray(load_image(grey))[..., 0], grey)
    clear = np.zeros((3, 4, 4), np.uint8)
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255), "transparency is shown on white"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 4)), "an array of shape (3, 4) and type float64: expected uint8"),
        (np.zeros((3, 4, 2), np.uint8), "expected uint8 of shape (H, W)"),
        (np.zeros((1, 3, 4, 3), np.uint8), "expected uint8 of shape (H, W)"),
        (np.zeros((0, 4, 3), np.uint8), "there is nothing to see"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,a*b", "data:image/png;base64,a*b"),
        ("data:image/png;base64,", "not an image"),
        (io.BytesIO(b""), "BytesIO: not an image"),
        ("http://127.0.0.1:9/a.png", "http://127.0.0.1:9/a.png: cannot be read"),
    ],
)
def test_a_source_that_holds_no_image_is_an_error_that_shows_it(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=re.escape(message)):
        load_image(source)


def test_a_page_that_is_missing_or_too_long_is_an_error_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl2.processor.images.MAX_DOWNLOAD", 100)
    (tmp_path / "long.png").write_bytes(encoded(noise(70, 50), "PNG"))
    with served(tmp_path) as address:
        with pytest.raises(ImageError, match=r"none\.png: cannot be read \(.*404"):
            load_image(f"{address}/none.png")
        with pytest.raises(ImageError, match=r"long\.png: more than 100 bytes"):
            load_image(f"{address}/long.png")


def test_a_source_of_another_type_is_a_type_error_that_lists_the_types() -> None:
    for source in (3, None, ["a.png"], io.StringIO("a")):
        with pytest.raises(TypeError, match=r"path, URL, data URI"):
            load_image(source)  # type: ignore[arg-type]


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


def long_text(kind: str) -> dict[str, object]:
    """What makes Pillow refuse a PNG: three million characters, compressed to a few thousand bytes."""
    if kind == "profile":
        return {"icc_profile": bytes(3_000_000)}
    info = PngImagePlugin.PngInfo()
    (info.add_text if kind == "zTXt" else info.add_itxt)("comment", "x" * 3_000_000, zip=True)
    return {"pnginfo": info}


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "profile"])
@pytest.mark.parametrize("mode", ["RGB", "LA", "P"])
def test_a_png_with_a_long_text_or_profile_has_its_pixels(kind: str, mode: str) -> None:
    image = noise(40, 30).convert(mode)
    data = encoded(image, "PNG", **long_text(kind))
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(image.convert("RGB")))


def test_a_png_with_a_long_text_is_still_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(noise(5, 3), "PNG", exif=exif, **long_text("zTXt"))).size == (3, 5)


def test_a_png_with_a_wrong_checksum_is_read_if_it_is_not_that_of_the_pixels() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "hello")
    data = encoded(noise(40, 30), "PNG", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(load_image(data.replace(b"hello", b"jello"))), noise(40, 30))
    for kind in (b"IHDR", b"IDAT"):
        begin = data.index(kind)
        with pytest.raises(ImageError):
            load_image(data[: begin + 5] + bytes([data[begin + 5] ^ 1]) + data[begin + 6 :])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format_", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif",
    [b"nonsense", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff"],
)
def test_an_image_with_malformed_exif_has_its_pixels(format_: str, exif: bytes) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    loaded = load_image(encoded(noise(40, 30), format_, exif=exif, **options))
    expected = Image.open(io.BytesIO(encoded(noise(40, 30), format_, **options)))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff"])
def test_a_jpeg_without_its_end_mark_is_read_and_said_once(progressive: bool, end: bytes) -> None:
    data = encoded(noise(80, 60), "JPEG", quality=90, progressive=progressive)
    with pytest.warns(owl2.Owl2Warning, match="has no end mark; it is read, because all its pixels") as said:
        loaded = [load_image(data[:-2] + end) for _ in range(3)]
    assert len(said) == 1
    for image in loaded:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(data)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [3, 10, 100, 1000])
def test_a_jpeg_without_its_last_pixels_is_an_error(progressive: bool, missing: int) -> None:
    data = encoded(noise(80, 60), "JPEG", quality=90, progressive=progressive)
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[:-missing])


@pytest.mark.parametrize("path", ["a\0b.png", "\ud800.png", "x" * 5000])
def test_a_path_that_no_file_can_have_is_an_error(path: str) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(path)
