"""Exact match: video QA, and the text benchmarks as OpenCompass reads them.

The paper's text scores come from OpenCompass of November 2023 (its release 0.1.8). Where its reading changed
later, both are here by name, because the same outputs score differently: TriviaQA changed from equality to
substring, which is worth several points.
"""

import re
from collections.abc import Sequence
from typing import Literal

from owl2.eval.metrics.vqa import normalise

ExactVariant = Literal["lower", "raw", "evalai"]
"""lower: without case and blanks at the ends. raw: the exact string. evalai: both sides normalised as for VQA
accuracy."""


def exact_match(prediction: str, references: Sequence[str], variant: ExactVariant = "lower") -> bool:
    """Whether the prediction is one of the references."""
    match variant:
        case "lower":
            return prediction.strip().lower() in {reference.strip().lower() for reference in references}
        case "raw":
            return prediction in references
        case "evalai":
            right = {normalise(reference, "evalai") for reference in references}
            return normalise(prediction, "evalai") in right
    raise ValueError(f"no variant {variant!r} of exact match; there are lower, raw, evalai")


def trivia_match(output: str, answers: Sequence[str], version: Literal["2023", "substring"] = "2023") -> bool:
    """TriviaQA: whether the first line's words after "answer is" equal an answer (2023), or contain one.

    By the second rule every output contains an answer of marks or articles only, such as "A"; so it does in
    OpenCompass.
    """
    line = output.strip().split("\n")[0].lower()
    if version == "2023":
        said = plain_phrase(line.split("answer is")[-1])
        return said in {plain_phrase(answer).lower() for answer in answers}
    for opening in ("answer is", "a:", "answer:"):
        line = line.split(opening)[-1]
    said = plain_phrase(line.strip())
    return any(plain_phrase(answer).lower() in said for answer in answers)


def plain_phrase(text: str) -> str:
    """OpenCompass's `general_postprocess`: up to the first line break, period or comma, without marks and
    articles."""
    words = re.sub(r"[^\w\s]", "", re.split(r"[\n.,]", text)[0])
    return " ".join(re.sub(r"\b(a|an|the)\b", "", words, flags=re.IGNORECASE).split())


def bbh_choice(output: str) -> str | None:
    """BBH with options: after "answer is ", the first letter in parentheses, else the first capital."""
    said = after_answer_is(output)
    found = re.search(r"\(([A-Z])", said) or re.search(r"([A-Z])", said)
    return found[1] if found else None


def bbh_free_form(output: str) -> str:
    """BBH without options: the line after "answer is " without its period; to be compared with the target."""
    return after_answer_is(output).split("\n")[0].removesuffix(".")


def after_answer_is(output: str) -> str:
    """The text between the first "answer is " and the next; everything if there is none."""
    parts = output.split("answer is ")
    return parts[1].strip() if len(parts) > 1 else output
