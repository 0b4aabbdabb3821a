"""Yes or no: the benchmarks' odd readings, and the paper's Table 9 to the last digit."""

import pytest

from owl2.eval.metrics.yes_no import binary_scores, mme_answer, mme_score, pope_answer

# True yes, false yes, true no, false no; and the row. No whole numbers give the adversarial one.
TABLE_9 = {
    "random": ((1233, 74, 1336, 267), (88.28, 94.34, 82.20, 87.85, 44.91)),
    "popular": ((1231, 145, 1355, 269), (86.20, 89.46, 82.06, 85.60, 45.86)),
}


@pytest.mark.parametrize("split", TABLE_9)
def test_the_papers_figures_come_out_of_whole_questions(split: str) -> None:
    (true_yes, false_yes, true_no, false_no), printed = TABLE_9[split]
    predicted = ["yes"] * (true_yes + false_yes) + ["no"] * (true_no + false_no)
    labels = ["yes"] * true_yes + ["no"] * (false_yes + true_no) + ["yes"] * false_no
    assert len(labels) == (2910 if split == "random" else 3000)
    found = binary_scores(predicted, labels)
    figures = (found.accuracy, found.precision, found.recall, found.f1, found.yes_ratio)
    assert [100 * figure for figure in figures] == pytest.approx(printed, abs=0.007)


def test_who_never_says_yes_gets_zeros_not_a_division_by_zero() -> None:
    found = binary_scores(["no", "no"], ["yes", "no"])
    assert (found.accuracy, found.precision, found.recall, found.f1, found.yes_ratio) == (0.5, 0, 0, 0, 0)


def test_the_share_of_yes_is_of_predictions() -> None:
    assert binary_scores(["yes", "yes", "no", "yes"], ["no"] * 4).yes_ratio == 0.75


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        (["yes"], [], "1 predictions for 0 labels"),
        ([], [], "at least one"),
        (["Yes"], ["yes"], "not 'Yes'"),
    ],
)
def test_what_cannot_be_scored_is_an_error(predicted: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_scores(predicted, labels)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("No", "no"),
        ("no, there is none", "no"),
        ("There is not any. Yes.", "no"),
        ("Yes. No.", "yes"),
        ("NO", "yes"),
        ("None", "yes"),
        ("I see nothing", "yes"),
        ("No\nthere is none", "yes"),
        ("", "yes"),
    ],
)
def test_pope_takes_all_for_yes_but_three_words_in_the_first_sentence(output: str, expected: str) -> None:
    assert pope_answer(output) == expected


@pytest.mark.parametrize(
    ("output", "official", "lmms"),
    [
        ("Yes", "yes", "yes"),
        (" no.\n", "no", "no"),
        ("Yes, it is", "yes", "yes"),
        ("None", "no", "no"),
        ("know", "no", "no"),
        ("The answer is yes", None, None),
        ("...no", None, "no"),
        ("y", None, "yes"),
        ("", None, None),
    ],
)
def test_mme_reads_four_characters(output: str, official: str | None, lmms: str | None) -> None:
    assert mme_answer(output) == official
    assert mme_answer(output, "lmms") == lmms


def test_mme_adds_the_share_of_questions_and_of_images() -> None:
    found = mme_score({"a": [True, True], "b": [True, False], "c": [False, False], "d": [True, True]})
    assert (found.accuracy, found.accuracy_plus, found.score) == (0.625, 0.5, 112.5)


def test_an_image_with_one_question_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"image 0001\.jpg has 1 answers"):
        mme_score({"0001.jpg": [True]})
