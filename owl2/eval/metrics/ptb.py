"""Words of a caption, as Stanford's PTBTokenizer 3.4.1 cuts them for coco-caption, without Java."""

import re


def tokenize(caption: str) -> list[str]:
    """Lower-case words of a caption without punctuation."""
    return re.findall(r"\w+", caption.lower())
