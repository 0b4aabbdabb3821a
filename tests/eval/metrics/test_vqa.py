"""VQA accuracy: where its four variants part, and that none of them falls into the released traps."""

import pytest

from owl2.eval.metrics.vqa import Variant, normalise, vqa_accuracy

VARIANTS: tuple[Variant, ...] = ("official", "lavis", "lmms", "evalai")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_mean_over_subsets_of_nine_gives_a_third_for_each_who_agrees(
    variant: Variant, agreeing: int, expected: float
) -> None:
    answers = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert vqa_accuracy("cat", answers, variant) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Yes", ["yes"] * 10, (0, 1, 1, 1)),
        ("two", ["2"] * 10, (0, 1, 1, 1)),
        ("the dog", ["dog"] * 3 + ["a dog"] * 7, (1, 0.9, 1, 1)),
        ("yes", ["yes"] * 10, (1, 1, 1, 1)),
        ("Yes", ["yes"] * 9 + ["no"], (1, 1, 1, 1)),
        ("dog's", ["dog 's"] * 5 + ["cat"] * 5, (0, 0, 0, 1)),
    ],
)
def test_the_variants_differ_where_the_released_evaluators_do(
    prediction: str, answers: list[str], expected: tuple[float, ...]
) -> None:
    found = [vqa_accuracy(prediction, answers, variant) for variant in VARIANTS]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("dont", "don't"),
        ("wouldnt've", "wouldn't've"),
        ("wouldntve", "wouldntve"),
        ("somebody'd", "somebodyd"),
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("1,000", "1000"),
        ("yes, sir", "yes sir"),
        ("3.5", "3.5"),
        ("no.\n", "no"),
    ],
)
def test_words_are_normalised_as_in_the_release(text: str, expected: str) -> None:
    assert normalise(text, "official") == expected


def test_only_the_first_thirty_two_periods_go() -> None:
    assert normalise("a" + "." * 40, "lavis") == "a" + "." * 8


def test_evalai_cuts_off_the_genitive_and_drops_commas_first() -> None:
    assert normalise("What's up, doc?", "evalai") == "what 's up doc"
    assert normalise("What's up, doc?", "lmms") == "what's up doc"


def test_equal_answers_without_ids_are_left_out_one_at_a_time() -> None:
    # Comparing records {"answer": "cat"} would leave out all four at once, and give 0.6.
    assert vqa_accuracy("cat", ["cat"] * 4 + ["dog"] * 6, "lavis") == 1.0


def test_secret_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one human answer"):
        vqa_accuracy("cat", [], "official")


def test_an_unknown_variant_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="official, lavis, lmms, evalai"):
        vqa_accuracy("cat", ["cat"], "vqav2")  # type: ignore[arg-type]
