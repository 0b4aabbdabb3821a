"""GQA: what each way of matching forgives."""

import pytest

from owl2.eval.metrics.gqa import GqaVariant, gqa_match

VARIANTS: tuple[GqaVariant, ...] = ("llava", "exact", "qwen", "lavis")


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("bedroom", "bedroom", "llava exact qwen lavis"),
        ("Bedroom.", "bedroom", "llava qwen lavis"),
        ("the bedroom", "bedroom", "qwen lavis"),
        ("It is a bedroom, I think", "bedroom", "qwen"),
        ("bedroom of Tom", "bedroom", "qwen"),
        ("two", "two", "llava exact qwen"),
        ("a banana split", "banana split", "lavis"),
        ("kitchen", "bedroom", ""),
        ("", "bedroom", ""),
    ],
)
def test_each_variant_forgives_what_its_project_does(prediction: str, answer: str, right: str) -> None:
    found = [variant for variant in VARIANTS if gqa_match(prediction, answer, variant)]
    assert found == right.split()


def test_the_default_is_the_one_whose_prompt_the_paper_shares() -> None:
    assert gqa_match("Bedroom.", "bedroom")
    assert not gqa_match("the bedroom", "bedroom")


def test_an_unknown_variant_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="llava, exact, qwen, lavis"):
        gqa_match("cat", "cat", "em")  # type: ignore[arg-type]
