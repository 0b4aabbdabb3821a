"""Each instruction corpus: records in the official format become the conversations of appendix B.1."""

import itertools
from typing import Any

import pytest

from owl2.data.recipes import wording
from owl2.data.recipes.wording import most_confident, region_text
from owl2.eval.tasks import prompts
from tests.data.recipes.conftest import Rows

SHORT = "\nAnswer the question using a single word or phrase."
CAPTION = "<image>Provide a one-sentence caption for the provided image."


def values(row: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def test_vqav2_has_one_conversation_an_image_with_the_most_confident_answers(rows: Rows) -> None:
    first, second = rows("vqav2")
    assert first["image"] == "coco/train2014/COCO_train2014_000000000009.jpg"
    assert values(first) == [f"<image>What is on the plate?{SHORT}", "broccoli", f"Is it  raw?{SHORT}", "no"]
    assert values(second) == [f"<image>What colour is it?{SHORT}", "white"], (
        "six unsure votes against four sure"
    )


def test_training_asks_in_the_words_of_the_evaluation() -> None:
    for name in ("SHORT", "LETTER", "CAPTION"):
        assert getattr(wording, name) == getattr(prompts, name)


def test_the_answer_of_highest_confidence_is_the_sum_then_the_votes_then_the_first() -> None:
    def given(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"answer": text, "answer_confidence": confidence} for text, confidence in pairs]

    assert most_confident(given(("a", "maybe"), ("a", "maybe"), ("a", "maybe"), ("b", "yes"))) == "a"
    assert most_confident(given(("b", "yes"), ("a", "maybe"), ("a", "maybe"))) == "a"
    assert most_confident(given(("b", "yes"), ("a", "yes"))) == "b"


def test_okvqa_learns_the_standard_form_that_its_metric_compares(rows: Rows) -> None:
    (row,) = rows("okvqa")
    assert values(row) == [f"<image>What sport is this?{SHORT}", "race"]


def test_gqa_merges_the_questions_of_an_image_with_short_answers(rows: Rows) -> None:
    sky, wall = rows("gqa")
    assert values(sky) == [
        f"<image>Is the sky dark?{SHORT}",
        "yes",
        f"What colour is the sky?{SHORT}",
        "blue",
    ]
    assert wall["image"] == "gqa/images/n375319.jpg"


def test_ocrvqa_takes_the_training_covers_under_either_name(rows: Rows) -> None:
    covers = by_id(rows("ocrvqa"))
    assert {key: row["image"].rpartition("/")[2] for key, row in covers.items()} == {
        "761183272": "761183272.jpg",
        "B0000": "B0000.gif",
        "B0001": "B0001.jpg",
    }
    questions = [
        f"<image>Who wrote this book?{SHORT}",
        "Sandra Boynton",
        f"Is this a fitness book?{SHORT}",
        "No",
    ]
    assert values(covers["B0000"]) == questions


def test_aokvqa_asks_each_question_with_three_orders_of_its_options(rows: Rows) -> None:
    asked = rows("aokvqa")
    assert len(asked) == 6
    choices = {"skateboarder", "train", "delivery", "cab"}
    for _, group in itertools.groupby(asked, key=lambda row: row["image"]):
        orders = set()
        for row in group:
            question, answer = values(row)
            lines = question.removeprefix("<image>").splitlines()
            assert lines[0] == "What is the man by the bags awaiting?"
            assert lines[-1] == "Answer with the option’s letter from the given choices directly."
            options = dict(line.split(". ") for line in lines[1:-1])
            assert list(options) == ["A", "B", "C", "D"]
            assert set(options.values()) == choices
            assert options[answer] == "cab"
            orders.add(tuple(options.values()))
        assert len(orders) == 3
        assert ("skateboarder", "train", "delivery", "cab") in orders


@pytest.mark.parametrize(("name", "count"), [("coco", 3), ("textcaps", 2)])
def test_captions_are_one_an_image_drawn_by_lot(rows: Rows, name: str, count: int) -> None:
    captioned = rows(name)
    assert len(captioned) == count
    for row in captioned:
        question, caption = values(row)
        assert question == CAPTION
        assert caption.startswith("Caption ")
    chosen = {values(row)[1].split()[1] for row in captioned}
    assert len(chosen) > 1, "not the same caption of every image"


def test_refcoco_asks_for_expressions_and_regions_of_all_three_training_sets(rows: Rows) -> None:
    referents = by_id(rows("refcoco"))
    assert set(referents) == {"9", "25"}, "the validation set stays out"
    words = values(referents["9"])
    assert len(words) == 6
    for question, answer in zip(words[::2], words[1::2], strict=True):
        described = {question, answer} & {answer} if answer.startswith("[") else {question}
        assert "[0.25, 0.50, 0.75, 0.75]" in "".join(described)
        assert "cup" in question + answer
    said = " ".join(words)
    assert {name for name in ("refcoco ", "refcoco+ ", "refcocog ") if name in said} == {
        "refcoco ",
        "refcoco+ ",
        "refcocog ",
    }


def test_visual_genome_asks_for_ten_regions_in_both_directions(rows: Rows) -> None:
    first, second = rows("visual_genome")
    assert first["image"] == "visual_genome/VG_100K_2/1.jpg"
    assert second["image"] == "visual_genome/VG_100K/2.jpg"
    words = values(first)
    assert len(words) == 20
    assert "part 11" not in " ".join(words), "a region outside the image"
    found = [answer for answer in words[1::2] if answer.startswith("[")]
    assert 0 < len(found) < 10, "regions of phrases, and phrases of regions"
    assert "<image>" in words[0]
    assert "<image>" not in "".join(words[1:])


def test_a_region_is_shares_of_the_sides_and_cut_at_the_edge() -> None:
    assert region_text((10, 15, 20, 7.5), 40, 30) == "[0.25, 0.50, 0.75, 0.75]"
    assert region_text((-5, 0, 50, 30), 40, 30) == "[0.00, 0.00, 1.00, 1.00]"
    with pytest.raises(ValueError, match="empty in an image of 40 x 30"):
        region_text((50, 0, 10, 10), 40, 30)


def test_llava_keeps_its_text_and_puts_the_image_before_the_question(rows: Rows) -> None:
    first, second, third = rows("llava_158k")
    assert values(first) == [
        "<image>What colours are there?",
        "White and red.",
        "Anything else?",
        "A bus stop.",
    ]
    assert values(second)[0] == "<image>Describe the image in detail."
    assert len({row["id"] for row in (first, second, third)}) == 3, "records of one image have their own keys"


def test_sharegpt_starts_at_a_question_and_ends_with_an_answer(rows: Rows) -> None:
    first, second = rows("sharegpt")
    assert values(first) == ["Hello?", "Hello! 你好 🦙"]
    assert values(second) == ["Why?", "So."]
    assert "image" not in first


def test_slimorca_puts_the_system_text_before_the_question(rows: Rows) -> None:
    first, second = rows("slimorca")
    assert values(first) == ["You are an AI assistant.\nWrite a sentence.", "Midsummer House is modern."]
    assert values(second) == ["Is it?", "It is."]
