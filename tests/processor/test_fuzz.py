"""Fuzz: whatever bytes an image or a clip has, reading it succeeds or is an `ImageError` or `VideoError`."""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from owl2.processor import ImageError, ImageTransform, load_image
from owl2.processor.video import VideoError, sample_frames
from tests.processor.small import noise


def encoded(format_: str, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    noise(20, 14).convert(mode).save(data, format_, **options)
    return data.getvalue()


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


IMAGES = {
    "png": encoded("PNG", "RGBA", exif=oriented()),
    "palette.png": encoded("PNG", "P", transparency=3),
    "jpeg": encoded("JPEG", quality=80, exif=oriented()),
    "progressive.jpeg": encoded("JPEG", quality=80, progressive=True),
    "webp": encoded("WEBP", "RGBA", exif=oriented()),
    "gif": encoded("GIF", save_all=True, append_images=[noise(20, 14)]),
    "tiff": encoded("TIFF", "I;16"),
    "bmp": encoded("BMP"),
}


@st.composite
def changed(draw: Callable[..., Any], data: bytes) -> bytes:
    """`data` with up to four parts replaced by other bytes, one of them perhaps its end."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, max(0, len(changed) - 1)))
        changed[begin : begin + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(changed[: draw(st.integers(len(changed) // 2, len(changed)))])


def read_image(data: bytes) -> None:
    with warnings.catch_warnings(), contextlib.suppress(ImageError):
        warnings.simplefilter("ignore")
        for alpha in ("white", "drop"):
            image = load_image(data, alpha)
            assert image.mode == "RGB"
            assert ImageTransform(28)(image).isfinite().all()


def read_clip(data: bytes) -> None:
    with contextlib.suppress(VideoError):
        assert len(sample_frames(data, 2)) == 2
    with contextlib.suppress(VideoError):
        assert len(sample_frames(data, 2, segment=(0.4, 1.0))) == 2


def examples(count: int) -> Any:
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize("name", IMAGES)
@examples(40)
@given(data=st.data())
def test_an_image_of_any_bytes_is_read_or_an_image_error(name: str, data: st.DataObject) -> None:
    read_image(data.draw(changed(IMAGES[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
@examples(1500)
@given(data=st.data())
def test_many_images_of_any_bytes_are_read_or_an_image_error(name: str, data: st.DataObject) -> None:
    read_image(data.draw(changed(IMAGES[name])))


@examples(100)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_image_are_an_image_error(data: bytes) -> None:
    read_image(data)
    read_image(b"\x89PNG\r\n\x1a\n" + data)
    read_image(b"\xff\xd8\xff" + data)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    pytest.importorskip("av")
    from tests.processor.test_video import write_clip, write_gif

    folder = tmp_path_factory.mktemp("clips")
    files = [write_clip(folder / name, 6) for name in ("a.mp4", "a.avi")]
    files += [write_clip(folder / "a.ts", 6, "mpeg2video"), write_gif(folder / "a.gif", [100] * 6)]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts", "a.gif"])
@examples(15)
@given(data=st.data())
def test_a_clip_of_any_bytes_is_read_or_a_video_error(
    clips: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    read_clip(data.draw(changed(clips[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts", "a.gif"])
@examples(300)
@given(data=st.data())
def test_many_clips_of_any_bytes_are_read_or_a_video_error(
    clips: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    read_clip(data.draw(changed(clips[name])))
