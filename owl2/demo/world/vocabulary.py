"""The world's vocabulary: things, colours, styles and words, and which combinations each split may show.

Everything is a table, so the splits can be read and checked without running anything:
* each thing has 5 or 6 of the 8 colours in training, 1 or 2 that only the test uses, and 1 that only
  validation uses, so that every colour is held out about equally often and tells nothing about the split;
  training images have eight more colours that nothing else has;
* each pair of things that may appear in one image belongs to one split as well;
* six things have one style in training, and only the other two in validation and test.
Names are CLDR short names where the short name is one word (the column `cldr` has the full one).
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

Split = Literal["train", "val", "test", "any"]
"""`any` is for text alone: as in LLaMA-2's training text, every combination may occur in it."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Thing:
    """One kind of object: its words, its drawing (`code`, the OpenMoji file) and its category."""

    name: str
    plural: str
    code: str
    cldr: str
    category: str


THINGS: tuple[Thing, ...] = (
    Thing("cat", "cats", "1F408", "cat", "animal"),
    Thing("dog", "dogs", "1F415", "dog", "animal"),
    Thing("fish", "fish", "1F41F", "fish", "animal"),
    Thing("butterfly", "butterflies", "1F98B", "butterfly", "animal"),
    Thing("turtle", "turtles", "1F422", "turtle", "animal"),
    Thing("elephant", "elephants", "1F418", "elephant", "animal"),
    Thing("snail", "snails", "1F40C", "snail", "animal"),
    Thing("car", "cars", "1F697", "automobile", "vehicle"),
    Thing("bicycle", "bicycles", "1F6B2", "bicycle", "vehicle"),
    Thing("airplane", "airplanes", "2708", "airplane", "vehicle"),
    Thing("sailboat", "sailboats", "26F5", "sailboat", "vehicle"),
    Thing("rocket", "rockets", "1F680", "rocket", "vehicle"),
    Thing("house", "houses", "1F3E0", "house", "building"),
    Thing("tree", "trees", "1F333", "deciduous tree", "plant"),
    Thing("cactus", "cactuses", "1F335", "cactus", "plant"),
    Thing("mushroom", "mushrooms", "1F344", "mushroom", "food"),
    Thing("apple", "apples", "1F34E", "red apple", "food"),
    Thing("banana", "bananas", "1F34C", "banana", "food"),
    Thing("key", "keys", "1F511", "key", "tool"),
    Thing("umbrella", "umbrellas", "2602", "umbrella", "tool"),
    Thing("hammer", "hammers", "1F528", "hammer", "tool"),
    Thing("anchor", "anchors", "2693", "anchor", "tool"),
    Thing("bell", "bells", "1F514", "bell", "instrument"),
    Thing("guitar", "guitars", "1F3B8", "guitar", "instrument"),
    Thing("chair", "chairs", "1FA91", "chair", "furniture"),
    Thing("crown", "crowns", "1F451", "crown", "jewelry"),
    Thing("star", "stars", "2B50", "star", "shape"),
    Thing("heart", "hearts", "2764", "red heart", "shape"),
)
BY_NAME: dict[str, Thing] = {thing.name: thing for thing in THINGS}
NAMES: tuple[str, ...] = tuple(BY_NAME)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 36),
    "orange": (250, 128, 12),
    "yellow": (252, 222, 20),
    "green": (34, 160, 58),
    "blue": (24, 84, 226),
    "purple": (126, 44, 186),
    "pink": (252, 138, 196),
    "gray": (132, 134, 140),
}

MORE_COLOURS: dict[str, tuple[int, int, int]] = {
    "brown": (120, 72, 36),
    "teal": (0, 140, 140),
    "olive": (128, 128, 20),
    "navy": (20, 34, 96),
    "maroon": (120, 10, 34),
    "lime": (160, 240, 40),
    "beige": (222, 198, 152),
    "magenta": (232, 20, 160),
}
"""Colours of training images only, on every thing. The test asks for none of them; without them a model could
recognise a thing by its five or six training colours."""
ALL_COLOURS = {**COLOURS, **MORE_COLOURS}

STYLES: tuple[str, ...] = ("painted", "outline", "sticker")
ONE_STYLE: dict[str, str] = {
    "turtle": "painted",
    "banana": "painted",
    "rocket": "outline",
    "chair": "outline",
    "bell": "sticker",
    "cactus": "sticker",
}

NUMBER_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
MAX_COUNT = 5

WORD_LIST = (
    "able also away back bank best blow body book both call city club cold cook cost dark data deal deep "
    "door down east easy edge even exit face fact fall farm fast film fine firm foot free game gate gift "
    "girl give goal gold good hair half hall hand hard help high hill home hope hour idea join jump just "
    "keep kind lake lamp land last life line live long lost love luck main mind moon move name next nice "
    "noon only open park path play race rain road rock room sale salt sand shop stop taxi time town walk"
)
WORDS: tuple[str, ...] = tuple(WORD_LIST.split())


def held_out_colours(name: str) -> dict[str, Split]:
    """The colours that `name` never has in training, each with the split that uses it.

    Three passes over the colours with different strides hold out every colour equally often (to within one).
    """
    row = NAMES.index(name)
    colours = tuple(COLOURS)
    turn = row // len(colours)
    held: dict[str, Split] = {colours[row % 8]: "test", colours[(row + 3 + turn) % 8]: "val"}
    if row % 2:
        held[colours[(row + 6 - turn) % 8]] = "test"
    return held


def colour_split(name: str, colour: str) -> Split:
    """The only split whose images may show `name` in `colour`."""
    return held_out_colours(name).get(colour, "train")


@cache
def colours_of(name: str, split: Split) -> tuple[str, ...]:
    """Colours in which `split` may show `name`."""
    return tuple(colour for colour in palette(split) if split == "any" or colour_split(name, colour) == split)


def palette(split: Split) -> tuple[str, ...]:
    """All colours that images of a split may have."""
    return tuple(ALL_COLOURS) if split in ("train", "any") else tuple(COLOURS)


PAIR_STEPS: dict[int, Split] = {3: "test", 8: "test", 13: "test", 6: "val", 11: "val"}


def pair_split(a: str, b: str) -> Split:
    """The only split whose images may show `a` and `b` together.

    The things form a ring and the number of steps between two of them decides, so each thing has equally many
    companions in a split: 17 in training, 6 in test, 4 in validation. The steps are chosen so that three
    things can appear together as well without any pair from training (3 + 3 = 6, 3 + 8 = 11).
    """
    steps = abs(NAMES.index(a) - NAMES.index(b))
    return PAIR_STEPS.get(min(steps, len(NAMES) - steps), "train")


def may_meet(names: tuple[str, ...], split: Split) -> bool:
    """Whether these things may share an image of `split`.

    Training images have pairs of training only; a held-out image of two things has a pair of its split, and
    one of three things has no pair of training.
    """
    if split == "any":
        return True
    pairs = [pair_split(a, b) for a, b in combinations(names, 2)]
    if split == "train" or len(pairs) == 1:
        return all(pair == split for pair in pairs)
    return "train" not in pairs and split in pairs


@cache
def companies(size: int, split: Split) -> tuple[tuple[str, ...], ...]:
    """All sets of `size` different things that may share an image of `split`.

    Sets from one category are listed twice: animals appear with animals more often, which adversarial
    questions exploit.
    """
    allowed = [names for names in combinations(NAMES, size) if may_meet(names, split)]
    same = [names for names in allowed if len({BY_NAME[name].category for name in names}) == 1]
    return tuple(allowed + same)


@cache
def companions(name: str, split: Split) -> tuple[str, ...]:
    """Things that may appear with `name` in an image of `split`."""
    return tuple(other for other in NAMES if other != name and may_meet((name, other), split))


@cache
def styles_of(name: str, split: Split) -> tuple[str, ...]:
    """Drawing styles in which `split` shows `name`."""
    only = ONE_STYLE.get(name)
    if only is None or split == "any":
        return STYLES
    return (only,) if split == "train" else tuple(style for style in STYLES if style != only)


def article(phrase: str) -> str:
    """The phrase with `a` or `an` before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(name: str, count: int) -> str:
    """The word for `count` of this thing."""
    return name if count == 1 else BY_NAME[name].plural
