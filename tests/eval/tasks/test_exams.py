"""MMLU, BBH, AGIEval and ARC on miniatures of their official files, asked and read as OpenCompass does."""

import json
from pathlib import Path

import pytest

from owl2.eval.task import EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, figures, prompt, skipped

MMLU_HINT = "There is a single choice question about {}. Answer the question by replying A, B, C or D.\n"


def test_mmlu_shows_the_first_five_examples_as_rounds_and_never_the_sixth() -> None:
    task = find_task("mmlu")
    item = by_id(task.items(DATA))["virology/0"]
    messages = task.templates["owl2-2023"].messages(item)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 5 + ["user"]
    asked = messages[-1]["content"][0]["text"]
    hint = MMLU_HINT.format("virology")
    options = "Soap is\nA. bad for it\nB. its food\nC. its host\nD. a gene\n"
    assert asked == f"{hint}Q: {options}A: "
    assert messages[0]["content"][0]["text"].startswith(f"{hint}Question: ")
    assert messages[0]["content"][0]["text"].endswith("\nAnswer: ")
    later = task.templates["opencompass-2023-12-27"].messages(item)
    assert later[-1]["content"][0]["text"] == f"{hint}Question: {options}Answer: "
    assert later[:-1] == messages[:-1]
    assert [message["content"] for message in messages[1::2]] == ["B\n", "C\n", "D\n", "A\n", "B\n"]
    assert "sixth row" not in prompt(task, item)


def test_mmlus_likelihoods_are_of_letters_behind_one_text_with_opencompass_two_blanks() -> None:
    task = find_task("mmlu_ppl")
    item = by_id(task.items(DATA))["virology/0"]
    asked = prompt(task, item)
    start = "USER: The following are multiple choice questions (with answers) about  virology.\n\nA cold"
    assert asked.startswith(start)
    assert asked.endswith("Soap is\nA. bad for it\nB. its food\nC. its host\nD. a gene\nAnswer: ASSISTANT:")
    assert asked.count("Answer: ") == 6
    assert item.choices == {letter: letter for letter in "ABCD"}
    assert task.mode == "rank"


def test_mmlu_reads_quotes_and_line_breaks_in_cells() -> None:
    items = by_id(find_task("mmlu").items(DATA))
    assert items["anatomy/0"].question == 'Which, of these "in the chest", beats?'
    assert items["anatomy/1"].question == "Take a hand.\nHow many thumbs?"


def test_mmlu_is_the_mean_over_subjects_however_many_questions_they_have() -> None:
    task = find_task("mmlu")
    said = {"virology/0": "A, the answer is.", "anatomy/0": "B", "anatomy/1": "A"}
    scores = task.score(answers(task, task.items(DATA), said))
    assert (scores[0].value, scores[0].paper_id) == (pytest.approx(50.0), "3/14")
    assert scores[1].value == pytest.approx(100 / 3)
    assert sum(scores[0].values) / 3 == pytest.approx(0.5)


def test_mmlus_reading_changed_from_the_first_capital_to_the_first_option() -> None:
    task = find_task("mmlu")
    item = task.items(DATA)[0]
    said = "The answer is B"
    assert task.parse_answer("owl2-2023", item, said) == "T"
    assert task.parse_answer("opencompass-2023-12-27", item, said) == "T"
    assert task.parse_answer("opencompass-2024-03-04", item, said) == "B"


def test_a_row_too_short_costs_itself_and_a_subject_without_examples_is_an_error(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmlu")
    test = data / "mmlu/data/test/virology_test.csv"
    test.write_text(test.read_text() + "Too short,A,B,A\n")
    (reason,) = skipped("mmlu", data)
    assert "virology_test.csv: row 2: ['Too short'" in reason
    (data / "mmlu/data/dev/virology_dev.csv").unlink()
    with pytest.raises(EvalDataError, match=r"virology_dev\.csv is missing"):
        find_task("mmlu").items(data)


def test_bbh_shows_three_worked_examples_without_the_canary() -> None:
    task = find_task("bbh")
    item = by_id(task.items(DATA))["navigate/0"]
    asked = prompt(task, item)
    assert asked.startswith(
        "USER: Follow the given examples and answer the question.\n"
        "Do these steps lead back to the start?\n\nQ: Take"
    )
    assert "canary" not in asked
    assert asked.count("A: Let's think step by step.") == 4
    assert asked.endswith(
        "So the answer is Yes.\n\nQ: " + item.question + "\nA: Let's think step by step. ASSISTANT:"
    )


def test_bbh_reads_letters_or_text_and_is_the_mean_over_tasks() -> None:
    task = find_task("bbh")
    items = task.items(DATA)
    said = {
        "date_understanding/0": "The day before is 2 March. So the answer is (B).",
        "date_understanding/1": "I do not know",
        "navigate/0": "One step too many. So the answer is No.\n\nQ: And then? So the answer is Yes.",
    }
    read = answers(task, items, said)
    assert [answer.parsed for answer in read] == ["B", "I", "No"]
    scores = task.score(read)
    assert (scores[0].value, scores[0].paper_id) == (pytest.approx(75.0), "3/15")
    assert figures(scores)["accuracy date_understanding"] == 50.0


def test_bbh_without_its_examples_is_an_error_not_another_prompt(tmp_path: Path) -> None:
    data = copy(tmp_path, "BIG-Bench-Hard")
    (data / "BIG-Bench-Hard/cot-prompts/navigate.txt").unlink()
    with pytest.raises(EvalDataError, match=r"navigate\.txt is missing, which has the worked examples"):
        find_task("bbh").items(data)


def test_agieval_has_labels_of_one_letter_of_several_and_expressions() -> None:
    items = by_id(find_task("agieval").items(DATA))
    references = {name: item.references[0] for name, item in items.items()}
    assert references == {
        "gaokao-physics/0": "AB",
        "lsat-ar/0": "A",
        "lsat-ar/1": "E",
        "sat-math/0": "C",
        "jec-qa-kd/0": "ABD",
        "gaokao-mathcloze/0": "2",
        "math/0": r"\frac{3}{4}",
    }
    assert items["lsat-ar/0"].cluster == items["lsat-ar/1"].cluster != ""


def test_agieval_is_asked_with_an_instruction_and_the_opening_of_the_answer() -> None:
    task = find_task("agieval")
    items = by_id(task.items(DATA))
    assert prompt(task, items["sat-math/0"]) == (
        "USER: The following is a SAT Math question. Please select the correct answer.\n"
        "If $2x = 6$, what is $x$?\n(A)1\n(B)2\n(C)3\n(D)4\nThe answer is  ASSISTANT:"
    )
    assert prompt(task, items["gaokao-mathcloze/0"]) == (
        "USER: 以下是一道中国高考数学填空题，请填入正确的答案。\n若 $x+1=3$，则 $x=$\n答案是：  ASSISTANT:"
    )
    assert prompt(task, items["lsat-ar/0"]).split("\n")[1].startswith("Five lamps, A to E, hang in a row. ")


def test_agieval_ranks_where_one_option_is_right_and_generates_the_rest() -> None:
    task = find_task("agieval_ppl")
    items = by_id(task.items(DATA))
    assert list(items["lsat-ar/0"].choices.values()) == [f"The answer is {letter}" for letter in "ABCDE"]
    assert list(items["sat-math/0"].choices) == ["A", "B", "C", "D"]
    assert prompt(task, items["sat-math/0"]).endswith("(D)4 ASSISTANT:")
    assert items["gaokao-physics/0"].choices == items["math/0"].choices == {}
    assert prompt(task, items["gaokao-physics/0"]).endswith("答案是：  ASSISTANT:")
    assert (task.parse(items["sat-math/0"], "C"), task.parse(items["sat-math/0"], "So C")) == ("C", None)
    assert task.parse(items["jec-qa-kd/0"], "应选 ABD") == "ABD"


def test_agieval_reads_letters_and_compares_gaps_as_mathematics() -> None:
    task = find_task("agieval")
    said = {
        "gaokao-physics/0": "AB",
        "lsat-ar/0": "A",
        "lsat-ar/1": "the lamp",
        "sat-math/0": "C",
        "jec-qa-kd/0": "AB",
        "gaokao-mathcloze/0": "x=2",
        "math/0": r"It is $\dfrac{3}{4}$",
    }
    scores = task.score(answers(task, task.items(DATA), said))
    assert (scores[0].value, scores[0].paper_id) == (
        pytest.approx(100 * (1 + 0.5 + 1 + 0 + 1 + 1) / 6),
        "3/16",
    )


def test_arc_turns_numbers_into_letters_and_counts_as_opencompass_four_options_only() -> None:
    task = find_task("arc_c")
    items = by_id(task.items(DATA))
    assert items["test/NYSEDREGENTS_1"].references == ("D",)
    assert list(items["test/TAKS_1"].choices) == list("ABCDE")
    scores = task.score(
        answers(task, list(items.values()), {"test/Mercury_1": "B. a candle", "test/TAKS_1": "C"})
    )
    assert [(score.metric, score.group, score.value, score.n) for score in scores] == [
        ("accuracy", "test", 50.0, 2),
        ("accuracy, all questions", "test", pytest.approx(200 / 3), 3),
        ("accuracy", "dev", 0.0, 1),
        ("accuracy, all questions", "dev", 0.0, 1),
    ]
    assert (scores[0].paper_id, scores[1].paper_id) == ("3/17", "")


def test_arc_is_asked_for_letters_or_ranks_the_options_texts() -> None:
    task, ranked = find_task("arc_e"), find_task("arc_e_ppl")
    item = by_id(task.items(DATA))["test/Mercury_SC_1"]
    question = "USER: Question: Which animal can fly?\n"
    assert prompt(task, item) == f"{question}A. a cat\nB. a cow\nC. a crow\nD. a crab\nAnswer: ASSISTANT:"
    assert prompt(ranked, item) == f"{question}Answer:  ASSISTANT:"
    assert ranked.items(DATA)[0].choices["C"] == "a crow"


def test_arc_runs_on_opencompass_layout_and_without_dev(tmp_path: Path) -> None:
    official = DATA / "ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl"
    folder = tmp_path / "ARC/ARC-c"
    folder.mkdir(parents=True)
    (folder / official.name).write_text(official.read_text())
    assert [item.category["split"] for item in find_task("arc_c").items(tmp_path)] == ["test"] * 3


def test_an_answer_that_is_no_option_costs_its_question_and_names_its_line(tmp_path: Path) -> None:
    data = copy(tmp_path, "ARC-V1-Feb2018-2")
    file = data / "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl"
    row = json.loads(file.read_text().splitlines()[0]) | {"answerKey": "E"}
    file.write_text(json.dumps(row) + "\n" + file.read_text())
    (reason,) = skipped("arc_e", data)
    assert "ARC-Easy-Test.jsonl: line 1: answerKey is 'E', not one of A, B" in reason
