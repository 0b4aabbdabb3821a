"""VQA accuracy in the four variants that are in use: an answer is right as far as people agree with it.

Each of the (mostly ten) human answers is left out once; the prediction scores min(1, matches / 3) against the
others, and the result is the mean (Antol et al. 2015). The variants differ in what is normalised and when,
which moves scores by whole points, so every result names its variant. Answers are left out by index here; the
released evaluators compare records, and without an `answer_id` they leave out all equal answers together.
"""

import re
from collections.abc import Sequence
from typing import Literal, get_args

Variant = Literal["official", "lavis", "lmms", "evalai"]
"""official: GT-Vision-Lab/VQA, normalises nothing where the answers are unanimous. lavis: LAVIS, Qwen-VL and
mPLUG-Owl2, always normalises the prediction, and of the answers only the punctuation unless they are
unanimous. lmms: lmms-eval's vqav2, always both. evalai: EvalAI's server and m4c (TextVQA, VizWiz), always
both, after a step of its own on words."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,+\d")
_COMMA_IN_NUMBER_ONCE = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""The evaluators pass `re.UNICODE`, which is 32, where `sub` expects the number of replacements."""

_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(digit) for digit, word in enumerate(_DIGITS)}

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _one_apostrophe_missing() -> dict[str, str]:
    """The released table of contractions: each is recognised if any one of its apostrophes is missing."""
    found = {
        full[:at] + full[at + 1 :]: full
        for full in _CONTRACTED.split()
        for at, character in enumerate(full)
        if character == "'"
    }
    found["somebody'd"] = "somebodyd"  # the wrong way round in the release
    return found


_CONTRACTIONS = _one_apostrophe_missing()


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: Variant) -> float:
    """Share of agreement with the human answers, 0 to 1.

    Raises:
        ValueError: no answers, or no such variant.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one human answer; this split may keep them secret")
    prediction, answers = _normalise_both(prediction, answers, variant)
    matches = sum(answer == prediction for answer in answers)
    return sum(min(1.0, (matches - (answer == prediction)) / 3) for answer in answers) / len(answers)


def normalise(text: str, variant: Variant) -> str:
    """A prediction as a variant compares it where people disagree.

    `evalai` is the form to submit: the official evaluator normalises nothing where all ten answers agree, so
    "Yes" against ten times "yes" is wrong, and the authors and LLaVA normalise before they submit.

    Raises:
        ValueError: no such variant.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"no variant {variant!r} of VQA accuracy; there are {', '.join(get_args(Variant))}")
    if variant == "evalai":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    comma = _COMMA_IN_NUMBER if variant in ("evalai", "lmms") else _COMMA_IN_NUMBER_ONCE
    return _words(_strip_punctuation(_one_line(text), comma))


def _normalise_both(prediction: str, answers: Sequence[str], variant: Variant) -> tuple[str, list[str]]:
    normalised = normalise(prediction, variant)
    match variant:
        case "official":
            answers = [_one_line(answer) for answer in answers]
            if len(set(answers)) == 1:
                return _one_line(prediction), answers
            return normalised, [normalise(answer, variant) for answer in answers]
        case "lavis":
            if len(set(answers)) == 1:
                return normalised, list(answers)
            return normalised, [_strip_punctuation(answer, _COMMA_IN_NUMBER_ONCE) for answer in answers]
        case "lmms" | "evalai":
            return normalised, [normalise(answer, variant) for answer in answers]


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str, comma_in_number: re.Pattern[str]) -> str:
    """Remove a mark if it is next to a blank anywhere, or if any number has a comma; else make it a blank."""
    has_comma = comma_in_number.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        goes = has_comma or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", stripped, count=_MAX_PERIODS)


def _words(text: str) -> str:
    """Lower case, numbers as digits, no articles, contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
