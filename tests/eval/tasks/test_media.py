"""What is committed is what the script draws, all of it can be opened, and it stays small."""

from pathlib import Path

import pytest
from PIL import Image

from owl2.processor.video import sample_frames
from tests.eval.tasks.miniature import DATA

pytest.importorskip("av")
from tests.eval.tasks.media import CLIPS, IMAGES, SIZE, draw, write_media

MAX_BYTES = 1_000_000


def test_the_miniature_is_small() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < MAX_BYTES


def test_every_image_is_there_and_shows_its_shape() -> None:
    for name, shape in IMAGES.items():
        with Image.open(DATA / name) as image:
            red, green, blue = image.convert("RGB").getpixel((48, 40))  # type: ignore[misc]
            expected = draw(shape).getpixel((48, 40))
        assert all(abs(a - b) < 40 for a, b in zip((red, green, blue), expected, strict=True)), name  # type: ignore[arg-type]


def test_the_script_writes_every_file_and_the_clips_move(tmp_path: Path) -> None:
    write_media(tmp_path)
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert written == {*IMAGES, *CLIPS}
    for name in CLIPS:
        first, *_, last = sample_frames(DATA / name, 4)
        assert first.size == SIZE
        assert first.getpixel((10, 40)) != last.getpixel((10, 40)), name
