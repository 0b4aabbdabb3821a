"""Multiple choice: letters are found where they are claimed, and nothing is ever guessed."""

import pytest

from owl2.eval.metrics.choice import circular_right, first_capital, first_option, parse_choice

CHOICES = {"A": "red", "B": "dark red", "C": "blue", "D": "a dog's bed", "E": "3.5 m"}


@pytest.mark.parametrize(
    "output",
    [
        "C",
        "c",
        " C.\n",
        "(C)",
        "[c]",
        "C)",
        "**C**",
        "C. blue",
        "(C) blue",
        "C: blue",
        "C blue",
        "The answer is C.",
        "The answer is C. blue",
        "The correct answer is (C) blue.",
        "Answer: C",
        "answer: **C**",
        "Option C is right.",
        "It must be C",
        "C because it is not red.",
        "The sky shows that it is C, not a red one.",
        "blue",
        "Blue.",
        "It is blue!",
        "I think that it is blue.",
        "A blue one.",
    ],
)
def test_a_plain_claim_is_read(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("dark red", "B"),
        ("It is dark red.", "B"),
        ("A dog's bed", "D"),
        ("3.5 m", "E"),
        ("A is right", "A"),
        ("A", "A"),
        ("a", "A"),
        ("A. red\nBecause B is too dark", "A"),
    ],
)
def test_longer_texts_articles_and_labels_are_told_apart(output: str, expected: str) -> None:
    assert parse_choice(output, CHOICES) == expected


@pytest.mark.parametrize(
    "output",
    [
        "",
        "?",
        "F",
        "I do not know",
        "A or B",
        "not A, but C",
        "red or blue",
        "bluebird",
        "A dog",
        "A. red\nB. dark red\nC. blue",
        "The answer is F.",
    ],
)
def test_what_is_no_claim_is_none(output: str) -> None:
    assert parse_choice(output, CHOICES) is None


def test_options_without_words_are_never_found() -> None:
    assert parse_choice("yes", {"A": "", "B": "?"}) is None


def test_an_option_that_is_the_word_none_is_an_option() -> None:
    assert parse_choice("None", {"A": "one", "B": "None"}) == "B"


def test_letters_that_stand_for_letters_are_read_as_options() -> None:
    assert parse_choice("B", {"A": "B", "B": "A"}) == "B"


def test_a_question_is_right_if_all_its_rotations_are() -> None:
    assert circular_right([True, True, True, True])
    assert not circular_right([True, True, False, True])
    with pytest.raises(ValueError, match="without rotations"):
        circular_right([])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", "B"),
        ("The answer is C. Not A.", "C"),
        ("A good question: the correct answer is D", "D"),
        ("I say B. Or A", "B"),
        ("Dogs", "D"),
        ("答案是：B", "B"),
        ("none", None),
    ],
)
def test_first_option_prefers_the_phrase_then_the_lone_letter_then_any(
    output: str, expected: str | None
) -> None:
    assert first_option(output, "ABCD") == expected


def test_first_capital_is_of_whatever_word() -> None:
    assert first_capital("it is B") == "B"
    assert first_capital("The answer is B") == "T"
    assert first_capital("yes") is None
