"""Multiple choice: from what a model wrote to a letter, or to nothing; never to a guess.

Reference scripts pick a random option where they cannot read an answer (ScienceQA, MMBench, SEED), which adds
points that nobody earned. `parse_choice` takes a letter that is plainly claimed, or the text of an option if
no other is mentioned; a letter or text that is denied ("not B"), asked ("is it B?") or part of a name ("Plan
B") is no answer. `first_option` and `first_capital` are OpenCompass's readings of late 2023, from which the
paper's text scores come, oddities included.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
"""A letter and nothing else but marks: `A`, `(a)`, `**A.**`."""
_LABEL = re.compile(r"[\s*_]*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])\s*[.:)\]])")
"""How an option is written at the start of a line: `A. red`, `(A) red`, `a: red`."""
_ANSWER = re.compile(
    r"(?:\banswer(?P<verb>\s+(?:is|should be|would be|must be))?|(?P<chinese>答案(?:是|为|应该是|应为)?))"
    r"[\s*_\"'“‘$]*(?P<colon>:?)[\s*_\"'“‘(\[$]*(?:(?:option|choice|选项)\s*)?([A-Za-z])(?![A-Za-z0-9'’])",
    re.IGNORECASE,
)
"""`The answer is B`, `Answer: b`, `答案是B`; a small letter needs the verb or the colon."""
_LONE_CAPITAL = re.compile(r"(?<![A-Za-z0-9_'’.&/-])[A-Z](?![A-Za-z0-9_'’&/-]|\.\w)")
_CLAIMING = re.compile(
    r"(?:^|[\n.,;:!?。，；！？—–(\[]|\b(?:is|be|was|option|choice|choose|chose|pick|select|say|think|believe|guess|with"
    r"|therefore|thus|hence|so|probably|likely|clearly|definitely)|[是为选]|选项|选择)[\s*_\"'“‘(\[]*$",
    re.IGNORECASE,
)
"""What comes before a letter that is an answer: nothing, a mark, `it is`, `I choose`, `option`."""
_CLAIMED = re.compile(
    r"[\s*_\"'”’)\]]*(?:$|[\n.,;:!。，；！]|because\b|since\b|as\b|选项|项|是?(?:正确|对)"
    r"|(?:is|was|seems|appears)\s+(?:to be\s+)?(?:(?:the|also|most|clearly|definitely)\s+)*"
    r"(?:right|correct|true|best|answer|one)\b)",
    re.IGNORECASE,
)
"""What comes behind it: nothing, a mark, `because`, `is right`."""
_DENYING = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|except|excluding|without|if|whether|unless|rather than|instead of"
    r"|other than|(?:all|anything|everything) but)\b|n['’]t\b|[不非没]|除了",
    re.IGNORECASE,
)
"""Words earlier in the clause that make a letter or text no answer."""
_DENIED = re.compile(
    r"[\s*_\"'”’)\]]*(?:"
    r"(?:is|was|are|seems|appears|looks|can|could|would|must|do|does)\s*(?:not\b|n['’]t\b)"
    r"|(?:(?:is|was|are|seems|appears|looks|must be|would be)\s+(?:\w+ly\s+)?)?"
    r"(?:wrong|incorrect|false|impossible|excluded|not (?:right|correct|true|it))\b"
    r"|(?:选项|项)?是?(?:错|不|非|有误))",
    re.IGNORECASE,
)
"""What comes behind a letter or text that is called wrong."""
_NO_DENIAL = re.compile(r"\b(?:no|without(?: a| any)?|not?(?: a)?) (?:doubt|question)\b", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"[.,;!?\n。，；！？但所因]|\b(?:so|therefore|thus|hence|because|since)\b"
    r"|(?<!anything )(?<!everything )(?<!all )\bbut\b",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"[\s*)\]]*(?:,|/|&|or\b|and\b|或|和|、)[\s*(\[]*[A-Z](?![A-Za-z0-9'’])")
"""A second letter right behind the first: `A or B`."""
_ARTICLE_OR_PRONOUN = re.compile(r"[ \t]+(?!(?:is|was|because|since|as|which|or|and|but)\b)[a-z]")
"""What follows an A or I that is an English word, not a letter: `A dog`, `I think`, but not `A is right`."""


def parse_choice(output: str, choices: Mapping[str, str]) -> str | None:
    """Letter that the output claims, else the letter of the only option whose text it has, else None.

    `choices` has the text by capital letter. In turn: a letter alone; an option's exact text; the label of an
    option it begins with; "the answer is A"; letters claimed in other words; the only text anywhere. Two
    different letters or texts with nothing to tell them apart are None.
    """
    text = _one_width(output)
    choices = {letter: _one_width(option) for letter, option in choices.items()}
    alone = _ALONE.fullmatch(text)
    if alone:
        letter = alone[1].upper()
        return letter if letter in choices else _only_text(text, choices)
    whole = [
        letter for letter, option in choices.items() if _plain(option) and _plain(option) == _plain(text)
    ]
    if len(whole) == 1:
        return whole[0]
    labels = [_label(line, choices) for line in text.splitlines() if line.strip()]
    labelled = {letter for letter in labels if letter}
    if labels and labels[0] and len(labelled) == 1:
        return labelled.pop()
    for letters in (_answers(text), _claims(text, choices)):
        claimed = set(letters)
        if claimed:
            letter = claimed.pop()
            return letter if not claimed and letter in choices else None
    return _only_text(text, choices)


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


def _label(line: str, choices: Mapping[str, str]) -> str | None:
    """The option that a line begins with. If no blank follows the mark, its text must (`B.blue`)."""
    found = _LABEL.match(line)
    if not found:
        return None
    letter, at = found[found.lastindex or 0].upper(), found.end()
    if letter not in choices:
        return None
    end = _end_of_option(line, at, choices[letter])
    is_word = end is None and line[at : at + 1].isalnum()
    return None if is_word or _DENIED.match(line, end or at) else letter


def _answers(text: str) -> Iterator[str]:
    """Letters that the output calls its answer; two for `the answer is A or B`."""
    for found in _ANSWER.finditer(text):
        letter, at = found[4], found.end()
        is_explicit = letter.isupper() or found["verb"] or found["chinese"] or found["colon"]
        is_word = letter in "AaIi" and _ARTICLE_OR_PRONOUN.match(text, at)
        if (
            is_explicit
            and not is_word
            and not _is_denied(text, found.start(4), at)
            and text[at : at + 1] != "?"
        ):
            yield letter.upper()
            second = _ANOTHER.match(text, at)
            if second:
                yield second[0][-1]


def _claims(text: str, choices: Mapping[str, str]) -> Iterator[str]:
    """Capital letters that are claimed in other words than "answer"."""
    for found in _LONE_CAPITAL.finditer(text):
        letter, (start, end) = found[0], found.span()
        if letter in choices and _CLAIMING.search(text[:start]):
            after_option = _end_of_option(text, end, choices[letter])
            is_claimed = after_option is not None or _CLAIMED.match(text, end)
            if is_claimed and not _is_denied(text, start, after_option or end):
                yield letter


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether the clause before a letter or text denies or doubts it, or the words behind call it wrong."""
    clause = _CLAUSE_END.split(text[:start])[-1]
    return bool(_DENYING.search(_NO_DENIAL.sub("", clause)) or _DENIED.match(text, end))


def _words(option: str) -> str:
    """A pattern of an option's words, whatever marks are between them; of nothing for one without words."""
    return r"[\W_]+".join(map(re.escape, _plain(option).split())) or r"(?!)"


def _end_of_option(text: str, at: int, option: str) -> int | None:
    """Where the words of an option end that follow this place; None if others follow."""
    found = re.compile(rf"[\W_]*{_words(option)}(?!\w)", re.IGNORECASE).match(text, at)
    return found.end() if found else None


def _only_text(text: str, choices: Mapping[str, str]) -> str | None:
    """The one option whose words the output has; those within a longer option's words do not count."""
    plain = f" {_plain(text)} "
    for letter, option in sorted(choices.items(), key=lambda choice: -len(choice[1])):
        words = f" {_plain(option)} "
        if words.strip() and words in plain:
            rest = plain.replace(words, "  ")
            others = [
                other for other, found in choices.items() if other != letter and f" {_plain(found)} " in rest
            ]
            is_only = not any(_plain(choices[other]) for other in others)
            return letter if is_only and not _is_text_denied(text, option) else None
    return None


def _is_text_denied(text: str, option: str) -> bool:
    """Whether every mention of an option's words is denied."""
    mentions = list(re.finditer(rf"(?<!\w){_words(option)}(?!\w)", text, re.IGNORECASE))
    return bool(mentions) and all(_is_denied(text, found.start(), found.end()) for found in mentions)


def _one_width(text: str) -> str:
    """Full-width letters and marks as plain ones, without marks that nobody sees."""
    return unicodedata.normalize("NFKC", text).translate({0xFEFF: None, 0x200B: None}).strip()


def _plain(text: str) -> str:
    """Lower case words with one blank between."""
    return " ".join(re.findall(r"[^\W_]+(?:[.'’][^\W_]+)*", text.lower()))
