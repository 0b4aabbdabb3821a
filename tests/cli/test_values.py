"""Values are read by the type of their field: text arrives as it was typed, as an option and in YAML."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl2.cli.parser import Parser
from owl2.cli.values import ELSEWHERE, Count, Range, UsageError, names_of, nearest, parse_yaml, read
from owl2.train.config import TrainConfig

TEXTS = [
    "# of cats?",
    "#1.png",
    "null",
    "~",
    "~/x",
    "&x",
    "*x",
    "!x",
    "%x",
    "@x",
    "`x`",
    "1e3",
    "123",
    "1_000",
    "0x10",
    "007",
    ".inf",
    "NaN",
    "yes",
    "True",
    "2024-01-01",
    "12:30",
    "[a]",
    "[a",
    "{a: b}",
    "{",
    "a: b",
    "a #b",
    "- x",
    "-",
    "---",
    "...",
    "? x",
    "| x",
    "> x",
    "'quoted'",
    '"quoted"',
    "trailing  ",
    "  leading",
    "tab\tnew\nline",
    "%s %(prog)s",
    "{}",
    "==SUPPRESS==",
    "猫 \N{OWL}",
]


def command(
    word: str,
    *,
    text: str,
    may_be_text: str | None = None,
    path: Path = Path("x"),
    may_be_path: Path | None = None,
    either: str | Path | None = None,
    texts: list[str] | None = None,
    paths: list[Path] | None = None,
) -> None:
    """A command with every kind of text."""


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_typed_whatever_kind_of_text_it_is(text: str) -> None:
    options = ["text", "may_be_text", "path", "may_be_path", "either", "texts", "paths", "texts", "paths"]
    words = [f"--{name}={text}" for name in options]
    values = Parser(prog="owl2 test", function=command).parse([*words, "--", text])
    assert values == {
        "word": text,
        "text": text,
        "may_be_text": text,
        "path": Path(text),
        "may_be_path": Path(text),
        "either": text,
        "texts": [text, text],
        "paths": [Path(text), Path(text)],
    }


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith("-") or " " in text])
def test_text_arrives_as_it_was_typed_in_a_word_of_its_own(text: str) -> None:
    values = Parser(prog="owl2 test", function=command).parse([text, "--text", text, "--paths", text])
    assert values == {"word": text, "text": text, "paths": [Path(text)]}


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_arrives_as_it_was_typed(text: str) -> None:
    values = Parser(prog="owl2 test", function=command).parse([f"--text={text}", "--", text])
    assert values == {"word": text, "text": text}


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 1
    note: str | None = None


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    rate: float = 0.1
    pair: tuple[float, float] = (0.0, 1.0)
    weight: float | Literal["size"] = 1.0
    is_on: bool = False
    part: Part | None = None


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1e3", "1e3"),
        ("123", "123"),
        ("0x10", "0x10"),
        ("yes", "yes"),
        ("2024-01-01", "2024-01-01"),
        ('"null"', "null"),
        ('"#pics"', "#pics"),
        ("'~'", "~"),
        ("x # a comment", "x"),
    ],
)
def test_text_in_yaml_is_text_whatever_it_looks_like(written: str, text: str) -> None:
    tree = parse_yaml(f"parts: [{{name: {written}\n, note: {written}\n}}]", "a.yaml")
    assert read(tree, Whole, "").parts == [Part(text, note=text)]


def test_numbers_switches_and_empty_fields_of_yaml_are_what_their_fields_say() -> None:
    tree = parse_yaml(
        "parts: []\nrate: 1e-4\npair: [.5, 1]\nweight: size\nis_on: yes\n"
        "part: {name: a, size: 0x10, note: ~}",
        "a.yaml",
    )
    assert read(tree, Whole, "") == Whole([], 1e-4, (0.5, 1.0), "size", True, Part("a", 16))
    tree = parse_yaml("base: &b {name: a}\nwhole: {parts: [*b, {<<: *b, size: 2}]}", "a.yaml")
    assert read(tree["whole"], Whole, "").parts == [Part("a"), Part("a", 2)]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "1_000", 1000),
        (int, "0x10", 16),
        (int | None, "null", None),
        (int | None, "7", 7),
        (float, "1e-3", 0.001),
        (float, ".inf", float("inf")),
        (bool, "No", False),
        (list[str], "[a, 'null', 1e3]", ["a", "null", "1e3"]),
        (list[Part], '[{"name": "a", "size": 2}]', [Part("a", 2)]),
        (Part | None, "{name: a}", Part("a")),
        (float | Literal["size"], "3", 3.0),
    ],
)
def test_a_value_is_read_by_its_type(kind: Any, text: str, value: Any) -> None:
    assert read(text, kind, "--x") == value


def test_utf_8_is_text_in_an_ascii_locale_too() -> None:
    assert read("猫".encode().decode("ascii", "surrogateescape"), str, "--x") == "猫"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, "1e3", "--x must be a whole number, not '1e3'"),
        (int, "", "--x must be a whole number, not ''"),
        (int, None, "--x must be a whole number, not empty"),
        (int, ["1"], r"--x must be a whole number, not \['1'\]"),
        (int, "9" * 5000, "--x must be a whole number, not '999.*…"),
        (float, "nan", "--x must be a number, not 'nan'"),
        (bool, "maybe", "--x must be true or false, not 'maybe'"),
        (str, None, "--x must be text, not empty"),
        (str, "caf\udce9", "--x is not UTF-8 text"),
        (Path, "", "--x is empty; name a file or a folder"),
        (Path, "a\0b", "--x has a NUL character"),
        (Literal["tiny", "small"], "tny", "--x: 'tny' is not one of tiny, small; the nearest is 'tiny'"),
        (Count, "0", "--x 0 must be at least 1"),
        (Count, str(2**63), "--x 9223372036854775808 must be at most"),
        (Annotated[float, Range(0, open=True)], "0", "--x 0.0 must be above 0"),
        (list[int], "3", "--x must be a list, such as .*, not '3'"),
        (list[int], "[3, a]", r"--x\[1\] must be a whole number, not 'a'"),
        (list[int], "[3", "--x, line 1 is not YAML"),
        (tuple[float, float], "[1]", r"--x must be a list of 2, such as \[a, b\]"),
        (list[Part], "[{size: 2}]", r"missing: --x\[0\].name"),
        (list[Part], "[{name: a, sise: 2}]", r"there is no setting --x\[0\].sise; .* 'size'"),
        (list[Part], "[a]", r"--x\[0\] must be settings, such as"),
        (Part, "{name: a, name: b}", "the key 'name' comes twice"),
        (float | Literal["size"], "many", "--x must be a number or size, not 'many'"),
        (list[Any], "[" * 100_000, "--x is nested too deep"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_that_names_the_field(
    kind: Any, value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read(value, kind, "--x")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_names_of_other_frameworks_lead_to_keys_that_exist() -> None:
    assert set(ELSEWHERE.values()) <= set(names_of(TrainConfig))
    assert not set(ELSEWHERE) & set(names_of(TrainConfig))


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("learning_rate", ["min_lr", "lr", "warmup_steps"], "lr"),
        ("optim.learning_rate", ["lr", "optim.min_lr", "optim.lr", "learning"], "optim.lr"),
        ("--optim.learning_rate", ["--optim.min_lr", "--optim.lr"], "--optim.lr"),
        ("lr", ["lora", "optim.lr", "optim.min_lr"], "optim.lr"),
        ("--weight_decay", ["--ema.decay", "--weight", "--optim.weight_decay"], "--optim.weight_decay"),
        ("stepz", ["steps", "optim.warmup_steps"], "steps"),
        ("data.max_token", ["max_tokens", "data.max_tokens", "data.seed"], "data.max_tokens"),
        ("vqa2", ["vqav2", "gqa"], "vqav2"),
        ("--gradient_accumulation_steps", ["--optim.warmup_steps", "--accumulation"], "--accumulation"),
        ("output_dir", ["objective", "run"], "run"),
    ],
)
def test_the_nearest_key_has_the_same_name_or_its_initials_or_is_of_its_own_level(
    word: str, known: list[str], near: str
) -> None:
    assert nearest(word, known) == near
