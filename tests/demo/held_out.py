"""Which (thing, colour) pairs training must not show or name, and which ones a text names."""

from collections.abc import Iterable

from owl2.demo.world.vocabulary import COLOURS, NAMES, colour_split, plural

HELD_OUT = {(name, colour) for name in NAMES for colour in COLOURS if colour_split(name, colour) != "train"}


def uttered(lines: Iterable[str]) -> set[tuple[str, str]]:
    """The pairs that are spoken of: "red cat", "two red cats", "Is the cat red?"."""
    text = "\n".join(lines)
    return {
        (name, colour)
        for name in NAMES
        for colour in COLOURS
        for word in (name, plural(name, 2))
        if f"{colour} {word}" in text or f"the {word} {colour}?" in text
    }
