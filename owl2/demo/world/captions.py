"""Scenes in words: places, relations, captions for stage 1 and full descriptions.

A caption is one of several true sentences that name every thing, its colour and number, and any written word.
A description adds places and sizes, so that every question about an image can also be asked about its
description: that is how the decoder learns the questions before it has seen an image.
"""

from collections.abc import Sequence
from random import Random

from owl2.demo.world.scenes import Item, Scene
from owl2.demo.world.vocabulary import NUMBER_WORDS, article, plural

BIGGER = 1.25  # ratio of sizes from which "bigger" is beyond doubt


def place(item: Item) -> str:
    """Where in the image the item's centre is: left, right, top, bottom, top left, ..., or center."""
    row = "top" if item.y < 0.4 else "bottom" if item.y > 0.6 else ""
    column = "left" if item.x < 0.4 else "right" if item.x > 0.6 else ""
    return f"{row} {column}".strip() or "center"


def relation(a: Item, b: Item) -> str | None:
    """Where a is relative to b along the clearer axis, or None if neither is clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 0.25 or abs(abs(dx) - abs(dy)) < 0.15:
        return None
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


def groups(scene: Scene) -> list[tuple[int, Item]]:
    """(count, example) for each different name, in order."""
    return [
        (scene.count(name), next(item for item in scene.items if item.name == name)) for name in scene.names
    ]


def phrase(count: int, item: Item) -> str:
    """`a red cat`, `two blue dogs`."""
    if count == 1:
        return article(f"{item.colour} {item.name}")
    return f"{NUMBER_WORDS[count]} {item.colour} {plural(item.name, count)}"


def listing(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(scene: Scene, rng: Random) -> str:
    """One of several true sentences that name every thing, its colour and its number, and every word."""
    parts = [phrase(count, item) for count, item in groups(scene)]
    items = scene.items
    if scene.sign:
        parts.append(f'the word "{scene.sign.text}"')
    elif len(items) == 1 and rng.random() < 0.3:
        where = place(items[0])
        parts = [f"{parts[0]} {'in' if where == 'center' else 'at'} the {where}"]
    elif len(items) == 2 and len(parts) == 2 and rng.random() < 0.5:
        how = relation(items[0], items[1])
        if how:
            parts = [f"{parts[0]} {how} {parts[1]}"]
    elif len(parts) > 1 and rng.random() < 0.5:
        rng.shuffle(parts)
    words = listing(parts)
    ground = f"{article(scene.background.kind)} background"
    is_many = len(parts) > 1 or (bool(items) and scene.count(items[0].name) > 1)
    styles = {item.style for item in items}
    return rng.choice(
        (
            words,
            words,
            f"there {'are' if is_many else 'is'} {words}",
            f"a picture of {words}",
            f"{words} on {ground}",
            f"an outline of {words}" if styles == {"outline"} and len(items) == 1 else words,
            f"a sticker of {words}" if styles == {"sticker"} and len(items) == 1 else words,
        )
    )


def describe(scene: Scene) -> str:
    """Everything that questions ask for: names, colours, counts, places, relative sizes, the written word."""
    parts = []
    for count, item in groups(scene):
        where = f" at the {place(item)}" if count == 1 else ""
        parts.append(f"{phrase(count, item)}{where}")
    if scene.sign:
        parts.append(f'the word "{scene.sign.text}"')
    verb = "are" if len(parts) > 1 or (scene.items and scene.count(scene.items[0].name) > 1) else "is"
    text = f"There {verb} {listing(parts)}."
    if len(scene.items) == 2 and len(scene.names) == 2:
        small, big = sorted(scene.items, key=lambda item: item.size)
        if big.size >= BIGGER * small.size:
            text += f" The {big.name} is bigger than the {small.name}."
    return text
