"""Scenes: what is where in an image, before it is rendered.

`scene(seed, split)` is a pure function: a corpus is a range of seeds, and the scene is the ground truth of
every question about its image. A scene of a split shows only what `vocabulary.py` allows there:
* (thing, colour) pairs of the split: a test image shows only pairs that training never shows;
* things that may appear together in the split: no two that training ever shows together;
* a thing of `ONE_STYLE` in that style in training, and in the others in validation and test.
The split is part of the random seed, so equal numbers of two splits have nothing in common.
"""

from dataclasses import dataclass
from random import Random

from owl2.demo.world.vocabulary import (
    MAX_COUNT,
    NAMES,
    WORDS,
    Split,
    colours_of,
    companies,
    companions,
    styles_of,
)

Box = tuple[float, float, float, float]
KINDS: dict[str, float] = {"one": 0.3, "several": 0.32, "group": 0.28, "word": 0.1}
BACKGROUNDS: dict[str, float] = {"light": 0.35, "dark": 0.2, "gradient": 0.2, "photo": 0.25}

# Places are (x, y) of a centre as fractions of the side. They keep clear of 0.4 and 0.6, so the word for a
# place is never in doubt: between these it is the centre, outside left or right, top or bottom.
GRID = tuple((x, y) for y in (1 / 6, 1 / 2, 5 / 6) for x in (1 / 6, 1 / 2, 5 / 6))
WIDE = tuple((x, y) for y in (0.27, 0.5, 0.73) for x in (0.27, 0.5, 0.73))
PAIRS = (
    ((0.26, 0.5), (0.74, 0.5)),
    ((0.5, 0.26), (0.5, 0.74)),
    ((0.26, 0.26), (0.74, 0.74)),
    ((0.26, 0.74), (0.74, 0.26)),
)
CORNERS = ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))


@dataclass(frozen=True)
class Item:
    """A thing in the image. All lengths are fractions of the image's side."""

    name: str
    colour: str
    style: str
    x: float
    y: float
    """Its centre."""
    size: float
    """Its longer side."""
    angle: float
    """In degrees."""
    box: Box
    """(x0, y0, x1, y1): the square of the layout, and after rendering the tight box."""


@dataclass(frozen=True)
class Sign:
    """A word on a plate: dark letters on a light plate, or light on dark."""

    text: str
    x: float
    y: float
    height: float
    is_dark: bool
    box: Box


@dataclass(frozen=True)
class Background:
    """What is behind the things."""

    kind: str
    """A key of `BACKGROUNDS`."""
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    """Colours: of a plain background the first, of a gradient both."""
    seed: int
    """Chooses a photograph and its part, or a gradient's direction."""


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one image."""

    split: Split
    seed: int
    kind: str
    items: tuple[Item, ...]
    sign: Sign | None
    background: Background

    def count(self, name: str | None = None, colour: str | None = None) -> int:
        """How many items have this name and this colour; None means any."""
        return sum((name in (None, item.name)) and (colour in (None, item.colour)) for item in self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """Different names, in the order in which they were placed."""
        return tuple(dict.fromkeys(item.name for item in self.items))


def scene(seed: int, split: Split, kind: str | None = None, count: int | None = None) -> Scene:
    """The scene number `seed` of a split.

    `kind` (one | several | group | word) and, for groups, `count` (1..5) are random unless given.
    """
    rng = Random(f"owl2 scene {split} {seed} {kind} {count}")
    kind = kind or rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    background = _background(rng)
    sign: Sign | None = None
    if kind == "one":
        size = rng.uniform(0.36, 0.6)
        items = [_item(rng, split, rng.choice(NAMES), rng.choice(WIDE), size, 0.05)]
    elif kind == "several":
        items = _several(rng, split)
    elif kind == "group":
        items = _group(rng, split, count or rng.randint(1, MAX_COUNT))
    elif kind == "word":
        sign, items = _with_word(rng, split)
    else:
        raise ValueError(f"scene kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    return Scene(split, seed, kind, tuple(items), sign, background)


def _several(rng: Random, split: Split) -> list[Item]:
    number = rng.choice((2, 2, 3))
    names = list(rng.choice(companies(number, split)))
    rng.shuffle(names)
    places = list(rng.choice(PAIRS) if number == 2 else rng.sample(CORNERS, 3))
    rng.shuffle(places)
    sizes = [rng.uniform(0.3, 0.48) for _ in names]
    return [
        _item(rng, split, name, place, size, 0.03)
        for name, place, size in zip(names, places, sizes, strict=True)
    ]


def _group(rng: Random, split: Split, count: int) -> list[Item]:
    name = rng.choice(NAMES)
    colour = rng.choice(colours_of(name, split))
    style = rng.choice(styles_of(name, split))
    size = rng.uniform(0.27, 0.32)
    places = rng.sample(GRID, count + 1)
    items = [_item(rng, split, name, place, size, 0.015, colour, style) for place in places[:count]]
    if rng.random() < 0.4:
        other = rng.choice(companions(name, split))
        items.append(_item(rng, split, other, places[count], size, 0.015))
    return items


def _with_word(rng: Random, split: Split) -> tuple[Sign, list[Item]]:
    height = rng.uniform(0.2, 0.28)
    text = rng.choice(WORDS)
    is_dark = rng.random() < 0.5
    y = rng.choice((0.18, 0.82)) + rng.uniform(-0.03, 0.03)
    x = 0.5 + rng.uniform(-0.08, 0.08)
    items: list[Item] = []
    if rng.random() < 0.6:
        place = (rng.choice((0.27, 0.5, 0.73)), 0.64 if y < 0.5 else 0.36)
        items.append(_item(rng, split, rng.choice(NAMES), place, rng.uniform(0.36, 0.5), 0.02))
    half = 0.3 * height * len(text)
    box = (x - half, y - height / 2, x + half, y + height / 2)
    return Sign(text, x, y, height, is_dark, box), items


def _item(
    rng: Random,
    split: Split,
    name: str,
    place: tuple[float, float],
    size: float,
    jitter: float,
    colour: str | None = None,
    style: str | None = None,
) -> Item:
    half = size / 2
    x, y = (min(max(at + rng.uniform(-jitter, jitter), half), 1 - half) for at in place)
    return Item(
        name=name,
        colour=colour or rng.choice(colours_of(name, split)),
        style=style or rng.choice(styles_of(name, split)),
        x=x,
        y=y,
        size=size,
        angle=rng.uniform(-14, 14),
        box=(x - half, y - half, x + half, y + half),
    )


def _background(rng: Random) -> Background:
    """Plain and gradient backgrounds stay pale or dark, so that all eight colours contrast with them."""
    kind = rng.choices(tuple(BACKGROUNDS), tuple(BACKGROUNDS.values()))[0]
    is_pale = kind == "light" or (kind != "dark" and rng.random() < 0.6)
    first, second = (_faint(rng, (212, 246) if is_pale else (8, 52)) for _ in range(2))
    return Background(kind, first, second, rng.getrandbits(31))


def _faint(rng: Random, levels: tuple[int, int]) -> tuple[int, int, int]:
    level = rng.randint(*levels)
    red, green, blue = (level + rng.randint(-8, 8) for _ in range(3))
    return red, green, blue
