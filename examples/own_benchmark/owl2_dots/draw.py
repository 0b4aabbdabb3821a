"""Draws the images and writes the questions: `python -m owl2_dots.draw FOLDER`."""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

NUM_IMAGES = 12


def draw(folder: Path) -> None:
    """Write `dots/test.json`, `dots/train.json` and `dots/images` below a folder."""
    images = folder / "dots" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for split, first in (("test", 0), ("train", NUM_IMAGES)):
        records = []
        for number in range(first, first + NUM_IMAGES):
            count = 1 + number % 4
            image = Image.new("RGB", (112, 112), "white")
            for dot in range(count):
                x, y = 16 + 48 * (dot % 2) + number, 16 + 48 * (dot // 2) + number
                ImageDraw.Draw(image).ellipse((x, y, x + 20, y + 20), fill="black")
            name = f"{number:02}.png"
            image.save(images / name)
            records.append({"id": number, "image": name, "question": "How many dots?", "answer": str(count)})
        (folder / "dots" / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
