"""ScienceQA-IMG: which questions belong to it, how they are asked, how answers are read."""

from pathlib import Path

import pytest

from owl2.eval.task import EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, edit, figures, prompt, skipped

PROBLEMS, SPLITS = "scienceqa/problems.json", "scienceqa/pid_splits.json"


def test_items_are_the_test_questions_with_an_image() -> None:
    items = by_id(find_task("scienceqa").items(DATA))
    assert list(items) == ["4", "5", "11"]  # 1 is of train, 7 has no image
    assert items["4"].choices == {"A": "circle", "B": "square", "C": "triangle"}
    assert items["4"].references == ("B",)
    assert items["11"].category == {"subject": "natural science", "grades": "7-12"}
    assert items["5"].images[0].open().size == (96, 64)


def test_the_five_templates() -> None:
    task = find_task("scienceqa")
    items = by_id(task.items(DATA))
    choices = "A. circle\nB. square\nC. triangle\n"
    with_typographic = "Answer with the option’s letter from the given choices directly."
    with_straight = "Answer with the option's letter from the given choices directly."
    authors = f"USER: <|image|>N/A\nWhich shape is shown?\n{choices}{with_typographic} ASSISTANT:"
    assert (prompt(task, items["4"]), prompt(task, items["4"], "owl2-2024")) == (authors, f"{authors} ")
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
def test_llavas_reading_is_reported_next_to_ours(output: str, is_read: bool) -> None:
    task = find_task("scienceqa")
    items = task.items(DATA)[:1]
    scores = figures(task.score(answers(task, items, {"4": output})))
    assert scores["accuracy"] == 100.0
    assert scores["accuracy (LLaVA's reading)"] == 100.0 * is_read


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (SPLITS, lambda value: value["test"].append("99"), "problems.json: problem 99: not in it"),
        (PROBLEMS, lambda value: value["5"].update(answer=2), "problem 5: answer is 2 of 2 choices"),
        (PROBLEMS, lambda value: value["5"].update(grade="high"), "problem 5: grade is 'high'"),
        (PROBLEMS, lambda value: value["4"].pop("choices"), "problem 4: no field 'choices'"),
        (PROBLEMS, lambda value: value["4"].pop("image"), "problem 4: no field 'image'"),
    ],
)
def test_a_record_out_of_format_costs_itself_and_is_named(
    tmp_path: Path, file: str, change: object, said: str
) -> None:
    data = copy(tmp_path, "scienceqa")
    edit(data / file, change)  # type: ignore[arg-type]
    (reason,) = skipped("scienceqa", data)
    assert said in reason


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (SPLITS, lambda value: value.pop("test"), "pid_splits.json: no test in it, only"),
        (SPLITS, lambda value: value.update(test=4), "pid_splits.json: test is int, expected a list"),
        (PROBLEMS, lambda value: value["4"].update(image="choice_0.png"), "1 of 3 .*choice_0.png"),
    ],
)
def test_a_file_out_of_format_and_too_many_missing_images_are_errors(
    tmp_path: Path, file: str, change: object, said: str
) -> None:
    data = copy(tmp_path, "scienceqa")
    edit(data / file, change)  # type: ignore[arg-type]
    with pytest.raises(EvalDataError, match=said):
        find_task("scienceqa").items(data)
