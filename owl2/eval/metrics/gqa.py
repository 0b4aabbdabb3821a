"""GQA: one right word or phrase for each question, compared as strings.

The official `eval.py` compares exact strings; projects differ in what they do to a model's words before. The
paper does not say; the default is LLaVA's, whose prompt is the paper's.
"""

import re
from typing import Literal, get_args

from owl2.eval.metrics.vqa import normalise

GqaVariant = Literal["llava", "exact", "qwen", "lavis"]
"""llava: lower case, no period at the end. exact: as it is. qwen: the first clause, without the words before
"is", "are" or an article. lavis: normalised as for VQA accuracy."""


def gqa_match(prediction: str, answer: str, variant: GqaVariant = "llava") -> bool:
    """Whether the prediction is the answer.

    Raises:
        ValueError: no such variant.
    """
    match variant:
        case "llava":
            return prediction.rstrip(".").lower() == answer
        case "exact":
            return prediction == answer
        case "qwen":
            return _first_clause(prediction) == answer.strip().lower()
        case "lavis":
            return normalise(prediction, "lavis") == answer
    raise ValueError(f"no variant {variant!r} of GQA matching; there are {', '.join(get_args(GqaVariant))}")


def _first_clause(text: str) -> str:
    """Qwen-VL's reading; it looks for letters, not words, so "banana split" loses its first half."""
    text = re.split("[.,!]", text.strip())[0].lower()
    for opening in ("is ", "are ", "a ", "an ", "the "):
        if opening in text:
            text = text.split(opening)[1]
    return text.split(" of")[0].strip()
