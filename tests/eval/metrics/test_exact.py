"""Strings right or wrong: the readings of OpenCompass and their two ages."""

import pytest

from owl2.eval.metrics.exact import bbh_choice, bbh_free_form, exact_match, plain_phrase, trivia_match


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("couch", "lower raw evalai"), (" Couch", "lower evalai"), ("a couch.", "evalai"), ("chair", "")],
)
def test_each_variant_forgives_more(prediction: str, right: str) -> None:
    found = [name for name in ("lower", "raw", "evalai") if exact_match(prediction, ["couch", "sofa"], name)]  # type: ignore[arg-type]
    assert found == right.split()


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="lower, raw, evalai"):
        exact_match("a", ["a"], "em")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "of_2023", "substring"),
    [
        ("The answer is Paris.", True, True),
        ("Paris", True, True),
        ("the Paris, France", True, True),
        ("The answer is Paris France", False, True),
        ("answer: Paris", False, True),
        ("It may be\nParis", False, False),
        ("London", False, False),
    ],
)
def test_substrings_turn_wrong_answers_of_2023_right(output: str, of_2023: bool, substring: bool) -> None:
    assert trivia_match(output, ["The Paris", "City of Light"]) is of_2023
    assert trivia_match(output, ["The Paris", "City of Light"], "substring") is substring


def test_a_phrase_ends_at_its_first_mark_and_loses_articles() -> None:
    assert plain_phrase("The  cat's an owl, or the dog") == "cats owl"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Let us see. So the answer is (C).", "C"),
        ("So the answer is D", "D"),
        ("(B)", "B"),
        ("the answer is (A). Then the answer is (B)", "A"),
        ("none of it", None),
    ],
)
def test_bbh_takes_the_letter_after_the_answer(output: str, expected: str | None) -> None:
    assert bbh_choice(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Let us see. So the answer is No.", "No"),
        ("So the answer is 12.\n\nQ: another", "12"),
        ("] ) >", "] ) >"),
        ("the answer is a. the answer is b", "a. the"),
    ],
)
def test_bbh_takes_the_line_after_the_answer(output: str, expected: str) -> None:
    assert bbh_free_form(output) == expected
