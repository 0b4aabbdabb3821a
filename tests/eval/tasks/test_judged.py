"""MM-Vet and MMHal-Bench on miniatures of their official files: figures come from grades alone."""

import dataclasses
from pathlib import Path

import pytest

from owl2.eval.task import DataMissing, EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, edit, figures, prompt, skipped


def test_mmvet_keeps_ids_answers_and_all_abilities_of_a_question() -> None:
    items = by_id(find_task("mmvet").items(DATA))
    assert list(items) == ["v1_0", "v1_1", "v1_2"]
    assert items["v1_0"].references == ("-1<AND>minus one",)
    assert items["v1_2"].extra["abilities"] == ("rec", "know", "gen", "spat")
    assert items["v1_0"].images[0].open().mode == "RGB"


def test_mmvet_is_asked_as_the_authors_wrapper_asks_it() -> None:
    task = find_task("mmvet")
    item = task.items(DATA)[0]
    question = "What is x in the equation?"
    wrapper = f"USER: <|image|>{question}\nAnswer the question directly.  ASSISTANT:"
    assert (prompt(task, item), prompt(task, item, "owl2-2024")) == (wrapper, f"{wrapper} ")
    assert prompt(task, item, "llava15") == f"USER: <|image|>{question} ASSISTANT:"
    assert "think step by step" in prompt(task, item, "lmms-eval")
    assert task.decoding.max_new_tokens == 512


def test_mmvet_is_the_mean_grade_and_a_question_counts_for_each_of_its_abilities() -> None:
    task = find_task("mmvet")
    read = answers(task, task.items(DATA), {"v1_0": "x is -1", "v1_1": "green", "v1_2": "yield"})
    graded = [
        dataclasses.replace(answer, grade={"score": score})
        for answer, score in zip(read, (0.5, 1.0, 0.1), strict=True)
    ]
    scores = task.score(graded)
    assert (scores[0].paper_id, scores[0].value) == ("2/11", pytest.approx(160 / 3))
    shown = figures(scores)
    assert shown["judge's score rec"] == pytest.approx(55.0)
    assert shown["judge's score math"] == shown["judge's score ocr"] == pytest.approx(50.0)
    assert shown["judge's score spat"] == pytest.approx(10.0)


@pytest.mark.parametrize("name", ["mmvet", "mmhal"])
def test_without_grades_there_are_no_figures_rather_than_zeros(name: str) -> None:
    task = find_task(name)
    assert task.judge == name
    assert task.score(answers(task, task.items(DATA), {})) == []


def test_an_ungraded_answer_is_left_out_of_the_mean_and_the_number_says_so() -> None:
    task = find_task("mmvet")
    read = answers(task, task.items(DATA), {})
    scores = task.score([dataclasses.replace(read[0], grade={"score": 1.0}), *read[1:]])
    assert (scores[0].value, scores[0].n) == (100.0, 1)


def test_mmhal_finds_images_by_their_address_and_asks_the_question_alone() -> None:
    task = find_task("mmhal")
    items = task.items(DATA)
    assert [item.images[0].name for item in items] == [
        "MMHal-Bench/images/47604332_c306b496b5_o.jpg",
        "MMHal-Bench/images/47604332_c306b496b5_o.jpg",
        "MMHal-Bench/images/5117062_2f0e4c0c2a_o.jpg",
    ]
    assert len({item.id for item in items}) == 3
    assert items[2].extra["image_content"] == ("Square", "Wall")
    assert prompt(task, items[2]) == "USER: <|image|>How many blue squares are there? ASSISTANT:"
    assert prompt(task, items[2], "owl2-2024").endswith(" ASSISTANT: ")


def test_mmhal_is_the_mean_rating_the_share_below_three_and_ratings_by_type() -> None:
    task = find_task("mmhal")
    read = answers(task, task.items(DATA), {})
    graded = [
        dataclasses.replace(answer, grade={"rating": rating})
        for answer, rating in zip(read, (6.0, 2.0, 3.0), strict=True)
    ]
    scores = task.score(graded)
    assert [(score.paper_id, score.value) for score in scores] == [
        ("13/154", pytest.approx(11 / 3)),
        ("13/155", pytest.approx(1 / 3)),
        ("13/156", 6.0),
        ("13/157", 2.0),
        ("13/159", 3.0),
    ]


def test_a_type_that_mmhal_does_not_have_costs_its_question_and_missing_images_are_an_error(
    tmp_path: Path,
) -> None:
    data = copy(tmp_path, "MMHal-Bench")
    edit(data / "MMHal-Bench/response_template.json", lambda rows: rows[1].update(question_type="colour"))
    (reason,) = skipped("mmhal", data)
    assert "response_template.json: record 2: question_type is 'colour', not one of" in reason
    (data / "MMHal-Bench/images/5117062_2f0e4c0c2a_o.jpg").unlink()
    with pytest.raises(EvalDataError, match=r"mmhal: 1 of 3 questions lack .*record 3: 5117062_2f0e4c0c2a_o"):
        find_task("mmhal").items(data)
    with pytest.raises(DataMissing, match=r"mmvet: missing mm-vet/mm-vet\.json, mm-vet/images"):
        find_task("mmvet").items(data)
