"""ScienceQA-IMG: which questions belong to it, how they are asked, how answers are read."""

from pathlib import Path

import pytest

from owl2.eval.task import EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, edit, figures, prompt

PROBLEMS, SPLITS = "scienceqa/problems.json", "scienceqa/pid_splits.json"


def test_items_are_the_test_questions_with_an_image() -> None:
    items = by_id(find_task("scienceqa").items(DATA))
    assert list(items) == ["4", "5", "11"]  # 1 is of train, 7 has no image
    assert items["4"].choices == {"A": "circle", "B": "square", "C": "triangle"}
    assert items["4"].references == ("B",)
    assert items["11"].category == {"subject": "natural science", "grades": "7-12"}
    assert items["5"].images[0].open().size == (96, 64)


def test_the_four_ways_to_ask() -> None:
    task = find_task("scienceqa")
    items = by_id(task.items(DATA))
    choices = "A. circle\nB. square\nC. triangle\n"
    with_typographic = "Answer with the option’s letter from the given choices directly."
    with_straight = "Answer with the option's letter from the given choices directly."
    assert prompt(task, items["4"]) == (
        f"USER: <|image|>N/A\nWhich shape is shown?\n{choices}{with_typographic} ASSISTANT:"
    )
    assert prompt(task, items["4"], "owl2-vlmevalkit") == (
        f"USER: <|image|>Which shape is shown?\n{choices}\n{with_typographic}  ASSISTANT: "
    )
    assert prompt(task, items["4"], "llava15") == (
        "USER: <|image|>Context: N/A\nQuestion: Which shape is shown?\n"
        f"Options: (A) circle (B) square (C) triangle\n{with_straight} ASSISTANT:"
    )
    hint = "Look at the picture.\nThe shape stands on a white ground."
    assert prompt(task, items["5"]).startswith(f"USER: <|image|>{hint}\nWhich color")
    assert prompt(task, items["5"], "owl2-vlmevalkit").startswith(f"USER: <|image|>Hint: {hint}\nWhich")
    assert prompt(task, items["5"], "lmms-eval").startswith(f"USER: <|image|>Context: {hint}\nWhich")
    assert prompt(task, items["4"], "lmms-eval").startswith("USER: <|image|>Which shape")


def test_an_answer_that_cannot_be_read_is_wrong_and_never_a_guess() -> None:
    task = find_task("scienceqa")
    items = task.items(DATA)
    said = {"4": "B", "5": "The color is green", "11": "It depends"}
    given = answers(task, items, said)
    assert [answer.parsed for answer in given] == ["B", "B", None]
    scores = task.score(given)
    shown = figures(scores)
    assert scores[0].paper_id == "1/8"
    assert shown["accuracy"] == pytest.approx(200 / 3)
    assert shown["accuracy (LLaVA's reading)"] == pytest.approx(100 / 3)
    assert shown["accuracy 1-6"] == 100.0
    assert shown["accuracy natural science"] == 50.0
    for _ in range(20):
        assert task.score(answers(task, items, said)) == scores


@pytest.mark.parametrize(
    ("output", "is_read"),
    [("B", True), ("B. square", True), ("The answer is B.", True), ("(B) square", False), ("B.", False)],
)
def test_llavas_reading_is_kept_beside_ours(output: str, is_read: bool) -> None:
    task = find_task("scienceqa")
    items = task.items(DATA)[:1]
    scores = figures(task.score(answers(task, items, {"4": output})))
    assert scores["accuracy"] == 100.0
    assert scores["accuracy (LLaVA's reading)"] == 100.0 * is_read


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (SPLITS, lambda value: value["test"].append("99"), "problems.json: 1 of 5 test problems .* is 99"),
        (SPLITS, lambda value: value.pop("test"), "pid_splits.json: expected an object with the list test"),
        (PROBLEMS, lambda value: value["5"].update(answer=2), "problem 5: answer is 2 of 2 choices"),
        (PROBLEMS, lambda value: value["5"].update(grade="high"), "problem 5: grade is 'high'"),
        (PROBLEMS, lambda value: value["4"].pop("choices"), "problem 4: no field 'choices'"),
        (PROBLEMS, lambda value: value["4"].update(image="choice_0.png"), "1 of 3 .*choice_0.png"),
    ],
)
def test_a_record_out_of_format_is_an_error_that_names_it(
    tmp_path: Path, file: str, change: object, said: str
) -> None:
    data = copy(tmp_path, "scienceqa")
    edit(data / file, change)  # type: ignore[arg-type]
    with pytest.raises(EvalDataError, match=said):
        find_task("scienceqa").items(data)
