"""Multiple choice: from what a model wrote to a letter, or to nothing; never to a guess.

Reference scripts draw a random option where they cannot read an answer (ScienceQA, MMBench, SEED), which adds
points that nobody earned. `parse_choice` takes a letter that is plainly claimed, or an option's text if it is
the only one there. `first_option` and `first_capital` are OpenCompass's readings of late 2023, which the
paper's text scores come from.
"""

import re
from collections.abc import Mapping, Sequence

_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
"""A letter and nothing else but marks: `A`, `(a)`, `**A.**`."""
_LABEL = re.compile(r"[\s*_]*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])\s*[.:)\]](?=\s|$|\*))")
"""How an option is written at the start of a line: `A. red`, `(A) red`, `A: red`."""
_CLAIM = re.compile(
    r"(?i:answer|option|choice)(?i:\s+is|\s+should be|\s+would be)?[\s:*_\"'(\[$]*([A-Z])(?![\w'’])"
)
_LETTER = re.compile(r"(?<![\w'’.&/-])([A-Z])(?![\w'’&/-]|\.\w)")
_ARTICLE_OR_PRONOUN = re.compile(r"[ \t]+(?!(?:is|was|because|since|as|or|and|but)\b)[a-z]")
"""What follows an A or I that is an English word, not a letter: `A dog`, `I think`, but not `A is right`."""


def parse_choice(output: str, choices: Mapping[str, str]) -> str | None:
    """Letter that the output claims, else the letter of the only option whose text it has, else None.

    `choices` has the text by capital letter. In turn: a letter alone; an option's exact text; the label of an
    option it begins with; "the answer is A"; the only letter anywhere; the only text anywhere. Two different
    letters or texts with nothing to tell them apart are None.
    """
    alone = _ALONE.fullmatch(output)
    if alone:
        letter = alone[1].upper()
        return letter if letter in choices else _only_text(output, choices)
    whole = [letter for letter, text in choices.items() if _plain(text) and _plain(text) == _plain(output)]
    if len(whole) == 1:
        return whole[0]
    labels = [_LABEL.match(line) for line in output.strip().splitlines()]
    labelled = {label[label.lastindex or 0] for label in labels if label}
    if labels and labels[0] and len(labelled) == 1 and labelled <= choices.keys():
        return labelled.pop()
    for pattern in (_CLAIM, _LETTER):
        letters = set(_letters(pattern, output, choices))
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return _only_text(output, choices)


def circular_right(rotations: Sequence[bool]) -> bool:
    """MMBench's CircularEval: a question is right if it is under every rotation of its options.

    Raises:
        ValueError: no rotations.
    """
    if not rotations:
        raise ValueError("CircularEval: a question without rotations")
    return all(rotations)


def first_option(output: str, options: str) -> str | None:
    """OpenCompass's `first_option_postprocess` with `options` as `"ABCD"`; None where it has no letter.

    "the answer is X" first, then an X between blanks or marks, then any X, be it the start of a word.
    """
    letters = f"[{re.escape(options)}]"
    patterns = (
        rf"[Tt]he answer is {letters}",
        rf"[Tt]he correct answer is {letters}",
        *(rf"{phrase}.*?{letters}" for phrase in ("答案是", "答案为", "固选", "答案应该是")),
        rf"(?:\s|^){letters}[\s。，,.$]",
        letters,
    )
    for pattern in patterns:
        found = re.search(pattern, output)
        if found:
            return next(letter for letter in options if letter in found[0])
    return None


def first_capital(output: str) -> str | None:
    """OpenCompass's `first_capital_postprocess`: the first capital letter, of whatever word it may be."""
    return next((character for character in output if character.isupper()), None)


def _letters(pattern: re.Pattern[str], text: str, choices: Mapping[str, str]) -> list[str]:
    found = []
    for match in pattern.finditer(text):
        is_word = match[1] in "AI" and _ARTICLE_OR_PRONOUN.match(text, match.end(1))
        if match[1] in choices and not is_word:
            found.append(match[1])
    return found


def _only_text(output: str, choices: Mapping[str, str]) -> str | None:
    """The one option whose words the output has; those within a longer option's words do not count."""
    plain = f" {_plain(output)} "
    for letter, text in sorted(choices.items(), key=lambda choice: -len(choice[1])):
        words = f" {_plain(text)} "
        if words.strip() and words in plain:
            rest = plain.replace(words, "  ")
            others = [
                other for other, text in choices.items() if other != letter and f" {_plain(text)} " in rest
            ]
            return None if any(_plain(choices[other]) for other in others) else letter
    return None


def _plain(text: str) -> str:
    """Lower case words with one blank between."""
    return " ".join(re.findall(r"[^\W_]+(?:[.'’][^\W_]+)*", text.lower()))
