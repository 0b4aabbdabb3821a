"""Multiple choice: letters are found where they are claimed, and nothing is ever guessed."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "output",
    [
        "Answer: c",
        "ANSWER: C",
        "answer is (c)",
        "The answer is c.",
        "Final answer: **C**",
        'The answer is "C".',
        "The answer is option C",
        "The answer would be C",
        "The answer is C which shows blue",
        "the correct choice is C",
        "Choice C",
        "I choose C",
        "I would go with C.",
        "C is the best answer",
        "C is the correct answer because",
        "So it must be C.",
        "Therefore, C",
        "Probably C",
        "C - blue",
        "C: because",
        "[C] blue",
        "$C$",
        "<C>",
    ],
)
def test_a_claim_in_other_words_is_read(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    "output",
    [
        "C.blue",
        "C)blue",
        "c. blue",
        "c) blue",
        "(c) blue",
        "(c)blue",
        " C",
        "  C.",
        "\n C\n",
        "\tc. blue",
        " blue",
    ],
)
def test_blanks_around_marks_make_no_difference(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    "output", ["Ｃ", "ｃ", "（Ｃ）", "Ｃ．", "Answer：C", "Ｂｌｕｅ", "\ufeffC", "\u200bC", "\u3000Ｃ"]
)
def test_full_width_letters_and_marks_are_letters_and_marks(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    "output",
    [
        "答案是C",
        "答案为C",
        "答案：C",
        "正确答案是C。",
        "答案应该是 C",
        "选C",
        "我选C",
        "故选C",
        "应选C。",
        "选C，因为天空是蓝色",
        "选项C",
        "C选项",
        "C选项是正确的",
        "C。",
    ],
)
def test_a_chinese_claim_is_read(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    "output",
    [
        "The answer is not B",
        "The answer isn't B.",
        "The answer cannot be B.",
        "Answer: not B",
        "Option B is wrong",
        "Option B is incorrect.",
        "B is wrong",
        "B isn't right.",
        "B is not correct",
        "B is clearly wrong",
        "not B",
        "never B",
        "It is not B.",
        "I don't think it is B",
        "Neither A nor B",
        "all but B",
        "everything except B",
        "any option other than B",
        "I cannot say whether it is B",
        "If the answer is B, then I do not know",
        "答案不是B",
        "不是B",
        "不选B",
        "选项B错误",
        "选项B不正确",
        "B选项错误",
        "B不对",
    ],
)
def test_a_denied_letter_is_no_answer(output: str) -> None:
    assert parse_choice(output, CHOICES) is None


@pytest.mark.parametrize(
    "output",
    [
        "It is not blue",
        "The colour is not blue at all",
        "I don't think it is blue",
        "It is anything but blue",
        "everything except blue",
        "another colour instead of blue",
        "Blue is wrong",
        "Option C (blue) is incorrect",
        "blue is not what it shows",
    ],
)
def test_a_denied_text_is_no_answer(output: str) -> None:
    assert parse_choice(output, CHOICES) is None


@pytest.mark.parametrize(
    "output",
    [
        "Plan B",
        "It is plan B.",
        "Vitamin B",
        "B vitamins are good",
        "Hepatitis B",
        "Group A is shown",
        "Team B wins",
        "Type A",
        "Grade C",
        "Class A drugs",
        "Mr. B left",
        "the letter B",
        "There is a B on the sign",
        "Section C. describes",
        "U.S. army",
        "D.C.",
        "E-mail",
        "e.g. this",
        "The image shows A, B and C",
        "Choose from A, B, C",
        "Is it B?",
        "Is the answer B?",
        "Could it be B? Not sure",
    ],
)
def test_a_letter_that_is_only_mentioned_is_no_answer(output: str) -> None:
    assert parse_choice(output, CHOICES) is None


@pytest.mark.parametrize(
    "output",
    [
        "It is not A. The answer is C.",
        "The answer is C, not A.",
        "The answer is C not A",
        "A is wrong. C is right.",
        "B is wrong, so the answer is C",
        "There is no doubt that it is C",
        "I am not sure, but the answer is C",
        "I am not sure, but it is blue",
    ],
)
def test_a_claim_is_read_although_something_else_is_denied(output: str) -> None:
    assert parse_choice(output, CHOICES) == "C"


@pytest.mark.parametrize(
    "output",
    [
        "The answer is A or B",
        "The answer is A, B",
        "答案是A或B",
        "Both A and C",
        "either A or C",
        "A/B",
        "A. red\nB. b",
    ],
)
def test_two_letters_are_no_answer(output: str) -> None:
    assert parse_choice(output, CHOICES) is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Yes, it is not clear", "A"),
        ("No, it is not", "B"),
        ("There is no noise", "B"),
    ],
)
def test_an_option_may_be_a_word_of_denial(output: str, expected: str) -> None:
    assert parse_choice(output, {"A": "Yes", "B": "No"}) == expected


@pytest.mark.parametrize("output", ["A. Not visible", "Not visible", "It is not visible"])
def test_an_option_may_hold_a_word_of_denial(output: str) -> None:
    assert parse_choice(output, {"A": "Not visible", "B": "Visible"}) == "A"


FRAMES = (
    "{}",
    " {}",
    "{}.",
    "It is {}.",
    "I think that it is {}.",
    "It looks like {} to me",
    "The picture shows {}, I believe.",
    "Surely {}!",
)
WORDS = ("cat", "dark red", "two dogs", "3.5 m", "left side", "quickly", "the river", "Paris", "blurry", "O2")


@given(
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique_by=str.lower),
    st.sampled_from(FRAMES),
    st.data(),
)
def test_an_answer_with_exactly_one_options_text_reads_to_it(
    texts: list[str], frame: str, data: st.DataObject
) -> None:
    choices = dict(zip(string.ascii_uppercase, texts, strict=False))
    letter = data.draw(st.sampled_from(sorted(choices)))
    assert parse_choice(frame.format(choices[letter]), choices) == letter


@given(
    st.sampled_from("ABCD"),
    st.sampled_from(("{}", "({})", "{}.", "Answer: {}", "The answer is {}", "选{}", "{}. ")),
)
def test_a_letter_in_a_clear_frame_reads_to_it_whatever_the_options(letter: str, frame: str) -> None:
    choices = {"A": "the answer", "B": "not A", "C": "none of these", "D": "B"}
    said = frame.format(letter)
    assert parse_choice(said, choices) == letter


@given(st.text(max_size=60), st.dictionaries(st.sampled_from("ABCDE"), st.text(max_size=12), max_size=5))
def test_whatever_is_written_reads_to_an_option_or_to_nothing(output: str, choices: dict[str, str]) -> None:
    assert parse_choice(output, choices) in {None, *choices}


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
