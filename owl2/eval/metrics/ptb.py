"""PTB tokenizer: words of a caption as Stanford's PTBTokenizer 3.4.1 cuts them for coco-caption; no Java.

CIDEr counts these words, so published numbers depend on every oddity here: "cat.dog" is one word, "!!" is a
word and "!" is none, brackets become "-lrb-" and stay. Written from what the jar does to text, not from its
grammar; `tests/eval/metrics/test_captions_oracle.py` compares the two. As in the jar, the rule that matches
most characters wins, and the first of equals.
"""

import re
from html import unescape

_LETTER = r"[^\W\d_¹²³⁰-₉¼-¾⅐-⅞]"
_ALNUM = rf"(?:{_LETTER}|\d)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_PART = rf"(?:[dDlLnNoO]APOS(?={_LETTER}))?{_ALNUM}+"
_CLITIC = "APOS(?i:[msd]|re|ve|ll)"
_NO_LETTER = "(?:[^A-Za-z]|$)"

_ABBREVIATIONS = """
jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu(?:rs)? fri
ala ariz calif colo conn dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo
inc cos? corp ltd plc rt assoc assn bancorp bhd univ intl sys mfg dept bldg tel est ext etc al seq ph sq
mrs? ms mme drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt pres lieut hon
brig com?dr pfc spc supts? det jr sr bros esq mt ste? ave blvd rd ft ph\\.d ed\\.d
vs alex wm jos cie cf a\\.k\\.a
"""
_CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
"""Abbreviations only with a capital letter: without, they are words."""
_BEGINNINGS = """
A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms.
Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When While
Yet You
"""
"""Words that begin a sentence: a period between a single letter and one of them is a period. The end of a
caption counts as such a word: the jar sees the next caption there, and most begin with "A"."""


def _any_of(words: str, *, with_capital: bool = False) -> str:
    """A pattern of any of these words in any case, or in any but that of the first letter."""
    return "|".join(f"{word[0]}(?i:{word[1:]})" if with_capital else f"(?i:{word})" for word in words.split())


_PATTERNS = (
    # Words that become two, and words that stay one at an apostrophe.
    r"((?i:can(?=not)|[gw]on(?=na)|wan(?=na)|got(?=ta)|lem(?=me)|gim(?=me)))(?i:not|na|ta|me)",
    r"(APOS[Tt])(?i:is|was)",
    rf"({_WORD}){_CLITIC}",
    r"([A-Za-z]*[A-MO-Za-mo-z])(?i:nAPOSt)",
    rf"({_CLITIC}|(?i:nAPOSt)){_NO_LETTER}",
    rf"({_WORD})",
    r"(APOS[Nn](?:APOS|(?=\s|$))|(?i:APOS(?:em|cause|till?)|(?:ol|somethin|dunkin)APOS|cAPOSmon|eAPOSer))",
    r"([jJyY]APOS)[A-Za-z]",
    rf"({_LETTER}+[aeiouyAEIOUY]APOS[aeiouA-Z]{_LETTER}*)",
    r"(APOS[2-9]0s)",
    r"(APOS\d\d)\s",
    # Addresses and markup.
    r"(</?[A-Za-z][\w.-]*(?:\s[^<>]*)?/?>|<[!?][^<>]*>)",
    r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])",
    r"(www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?)",
    r"((?:[^\s\"`'|!(){}$,-_]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?)",
    r"([A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}\[\].,;:]+)",
    rf"(@[A-Za-z_]\w*|#{_LETTER}+)",
    r"(\d+(?:\.\d+)*\.(?i:jpe?g|png|gif|pdf|txt|zip|x))(?:[\s.?!,]|$)",
    # Numbers.
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    r"([-+]?(?:\d*(?:[.:,]\d+)+|\d+))",
    r"((?:\d{1,4}[- ])?\d{1,4}/\d{1,4})",
    r"(\(\d{2,3}\) ?\d{3,4}[- ]?\d{3,5})",
    r"([A-Z]*\$)",
    # Abbreviations, with their period.
    rf"((?:{_any_of(_ABBREVIATIONS)}|{_any_of(_CAPITALISED, with_capital=True)})\.)",
    r"((?i:nos?|figs?|pp|ca|arts?|prop)\.)\s*\d",
    rf"([A-Za-z])\.(?:\s*$|\s+(?:{_any_of(_BEGINNINGS, with_capital=True)})\s)",
    r"([A-Za-z](?:\.[A-Za-z])*\.)",
    rf"({_WORD}\.)[,;:]",
    # Compounds.
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
    r"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+)(?:[^A-Za-z0-9+]|$)",
    rf"({_PART}(?:[-_‐‑]{_PART})*)",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[Cc]\+\+|[CcFf]#)",
    # Marks.
    rf"([<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]]){_NO_LETTER}",
    r"(&(?:amp|lt|gt|quot|apos);)",
    r"(\.{3,5}|[?!]+|\*+|@+|#+|_+|-+|''|``|<<|>>)",
    r"(\S)",
)
"""Group 1 is the token; the rest of a match only has to follow, but counts as matched. APOS is either
apostrophe."""

_RULES = tuple(re.compile(pattern.replace("APOS", "['’]")) for pattern in _PATTERNS)
_PLAIN = re.compile(r"[A-Za-z]+(?= )")
_CUT = {"cannot", "gonna", "wanna", "gotta", "lemme", "gimme"}
_DROPPED = re.compile(r"\.+|-{1,4}|''|``|[?!,:;\"'`´‘’‚‛“”„‟«»‹›…–—―\ufe0e\ufe0f]|[^\u0000-\uffff]")
"""Tokens that coco-caption leaves out, and those that the jar cannot read: emoji."""
_CURLY_CLITIC = re.compile("’(?:[msd]|re|ve|ll)|n’t")
_SPELLED = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"€": "$", "£": "#", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
}


def tokenize(caption: str) -> list[str]:
    """Lower-case words of a caption without punctuation, as the metrics of coco-caption get them."""
    words: list[str] = []
    at = 0
    while at < len(caption):
        plain = _PLAIN.match(caption, at)
        if plain and plain[0].lower() not in _CUT:  # nine words of ten
            words.append(plain[0].lower())
            at = plain.end()
        elif caption[at].isspace():
            at += 1
        else:
            token = _longest(caption, at)
            at += len(token)
            if not _DROPPED.fullmatch(unescape(token)):
                words += _spell(token).split()  # a number and its fraction are one token, with a blank
    return words


def _longest(caption: str, at: int) -> str:
    """The token of the rule that matches most characters from this place."""
    matches = [match for rule in _RULES if (match := rule.match(caption, at))]
    return max(matches, key=re.Match.end)[1]


def _spell(token: str) -> str:
    """A token as the jar writes it: in lower case and ASCII."""
    token = unescape(token).lower()
    if _CURLY_CLITIC.fullmatch(token):
        token = token.replace("’", "'")
    return _SPELLED.get(token, token.replace("(", _SPELLED["("]).replace(")", _SPELLED[")"]))
