"""BoolQ, TriviaQA, XSum and HellaSwag on miniatures of their files, asked and read as OpenCompass does."""

import json
from pathlib import Path

import pytest

from owl2.eval.task import EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, figures, prompt, skipped, write_lines


def test_boolq_is_asked_with_two_options_and_read_by_the_first_capital() -> None:
    task = find_task("boolq")
    items = task.items(DATA)
    assert prompt(task, items[1]) == (
        "USER: Square -- A square has four equal sides and four corners.\n"
        "Question: does a square have five corners\nA. Yes\nB. No\nAnswer: ASSISTANT:"
    )
    scores = task.score(answers(task, items, {"0": "A. Yes", "1": "no, B", "2": "No"}))
    assert (scores[0].value, scores[0].paper_id) == (pytest.approx(200 / 3), "fig3/36")
    assert items[1].cluster == items[2].cluster != items[0].cluster


def test_boolqs_likelihoods_are_of_yes_and_no_behind_the_passage() -> None:
    task = find_task("boolq_ppl")
    item = task.items(DATA)[0]
    passage = "A circle is the set of points with one distance from its centre. It is round -- always."
    assert prompt(task, item).endswith(f" -- {passage}\nQuestion: is a circle round? ASSISTANT:")
    assert item.choices == {"A": "Yes", "B": "No"}
    assert task.template("owl2-2023").choices is None


def test_the_likelihoods_of_opencompass_llama_collection_are_behind_the_passage_without_title() -> None:
    task = find_task("boolq_ppl")
    item = task.items(DATA)[0]
    assert prompt(task, item, "opencompass-llama") == (
        "USER: Passage: A circle is the set of points with one distance from its centre. "
        "It is round -- always.\n"
        "Question: Is a circle round? ASSISTANT:"
    )
    choices = task.template("opencompass-llama").choices
    assert choices is not None
    assert choices(item) == {"A": "Answer: Yes", "B": "Answer: No"}


def test_boolqs_three_layouts_say_the_same(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (DATA / "BoolQ/val.jsonl").read_text().splitlines()]
    expected = [item.references for item in find_task("boolq").items(DATA)]
    assert expected == [("A",), ("B",), ("A",)]
    first_release = [
        {"question": row["question"], "title": "", "answer": row["label"], "passage": row["passage"]}
        for row in rows
    ]
    opencompass = [row | {"label": str(row["label"]).lower()} for row in rows]
    for name, changed in (("boolq/dev.jsonl", first_release), ("BoolQ/val.jsonl", opencompass)):
        (tmp_path / name).parent.mkdir()
        write_lines(tmp_path / name, changed)
        assert [item.references for item in find_task("boolq").items(tmp_path)] == expected


def test_a_label_of_boolq_that_is_none_names_its_line(tmp_path: Path) -> None:
    data = copy(tmp_path, "BoolQ")
    write_lines(data / "BoolQ/val.jsonl", [{"question": "?", "passage": "p", "label": "maybe"}])
    with pytest.raises(EvalDataError, match=r"val\.jsonl: line 1: the label is 'maybe', not true or false"):
        find_task("boolq").items(data)


def test_triviaqas_answer_is_opened_with_a_and_a_colon() -> None:
    task = find_task("triviaqa")
    item = task.items(DATA)[0]
    assert prompt(task, item) == (
        "USER: Answer these questions, your answer should be as simple as possible, start your answer with "
        "the prompt 'The answer is '.\nQ: Which painter made a black square in 1915? ASSISTANT: A:"
    )
    assert task.decoding.max_new_tokens == 50


def test_triviaqa_reads_quotes_and_says_both_its_old_and_its_new_figure() -> None:
    task = find_task("triviaqa")
    items = task.items(DATA)
    assert items[1].question == 'Who sang "Yesterday" first'
    assert items[1].references == ("The Beatles", "Beatles' band")
    said = {
        "1": "The answer is Kazimir Malevich.",
        "2": "The answer is the Beatles of Liverpool",
        "3": "five",
    }
    scores = task.score(answers(task, items, said))
    assert figures(scores) == {
        "exact match": pytest.approx(100 / 3, abs=1e-6),
        "substring match": pytest.approx(200 / 3, abs=1e-6),
    }
    assert (scores[0].paper_id, scores[1].paper_id) == ("fig3/38", "")


@pytest.mark.parametrize("row", ["no tab", "question\tnot a list", "question\t[]"])
def test_a_row_of_triviaqa_without_answers_is_named(tmp_path: Path, row: str) -> None:
    data = copy(tmp_path, "triviaqa")
    (data / "triviaqa/trivia-dev.qa.csv").write_text(f"q\t['a']\n{row}\n")
    (reason,) = skipped("triviaqa", data)
    assert "trivia-dev.qa.csv: row 2: " in reason
    assert [item.id for item in find_task("triviaqa").items(data)] == ["1"]


def test_xsum_is_asked_with_a_full_width_colon_and_scored_by_the_first_line() -> None:
    pytest.importorskip("rouge_score")
    task = find_task("xsum")
    items = task.items(DATA)
    assert prompt(task, items[1]) == (
        "USER: Document：A cat was found in a tree in the park. Firemen brought it down with a ladder.\n"
        "Based on the previous text, provide a brief single summary: ASSISTANT:"
    )
    read = answers(task, items, {"2": "\nFiremen have rescued a cat from a tree.\nIt is well."})
    assert read[0].parsed is None
    scores = task.score(read)
    assert [score.metric for score in scores] == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert [score.value for score in scores] == [pytest.approx(50.0)] * 4
    assert (scores[0].paper_id, scores[0].values) == ("fig3/40", (0.0, 1.0))


def test_xsum_takes_the_first_thousand_lines_and_the_datasets_own_field(tmp_path: Path) -> None:
    (tmp_path / "Xsum").mkdir()
    write_lines(tmp_path / "Xsum/dev.jsonl", [{"document": f"text {n}", "summary": "s"} for n in range(1001)])
    items = find_task("xsum").items(tmp_path)
    assert (len(items), items[-1].question) == (1000, "text 999")


def test_hellaswag_shows_the_text_as_it_is_and_from_2023_11_13_on_tidied() -> None:
    task, ranked = find_task("hellaswag"), find_task("hellaswag_ppl")
    item = by_id(task.items(DATA))["1"]
    row = json.loads((DATA / "hellaswag/hellaswag_val.jsonl").read_text().splitlines()[1])
    assert "[" in item.question
    assert (item.question, list(item.choices.values())) == (row["ctx"], row["endings"])
    assert prompt(task, item).startswith(f"USER: {row['ctx']}\nQuestion: Which ending makes")
    assert prompt(ranked, item) == f"USER: {row['ctx']} ASSISTANT:"
    later = prompt(task, item, "opencompass-2023-11-13")
    text = "How to sleep well. Go to bed early. Night is for sleep."
    assert later.startswith(f"USER: {text}\nQuestion: Which ending makes")
    assert "\nB. Keep the room dark and quiet.\n" in later
    assert prompt(ranked, item, "opencompass-2023-11-13") == f"USER: {text} ASSISTANT:"
    tidied = ranked.template("opencompass-2023-11-13").choices
    assert tidied is not None
    assert tidied(item)["B"] == "Keep the room dark and quiet."


def test_hellaswag_is_asked_for_letters_or_ranks_its_endings() -> None:
    task, ranked = find_task("hellaswag"), find_task("hellaswag_ppl")
    items = by_id(task.items(DATA))
    assert prompt(task, items["0"]) == (
        "USER: A man is sitting on a roof. he\nQuestion: Which ending makes the most sense?\n"
        "A. starts pulling up roofing.\nB. is using wrap to wrap a pair of skis.\n"
        "C. is ripping level tiles off.\nD. holds a cube.\n"
        "You may choose from 'A', 'B', 'C', 'D'.\nAnswer: ASSISTANT:"
    )
    assert prompt(ranked, items["0"]) == "USER: A man is sitting on a roof. he ASSISTANT:"
    assert prompt(task, items["0"], "opencompass-2023-11-13").startswith(
        "USER: A man is sitting on a roof. He\n"
    )
    scores = task.score(answers(task, list(items.values()), {"0": "The answer is A", "1": "C"}))
    assert figures(scores) == {"accuracy": 50.0, "accuracy activitynet": 100.0, "accuracy wikihow": 0.0}
    assert scores[0].paper_id == "fig3/42"


def test_hellaswags_opencompass_layout_loses_its_activity(tmp_path: Path) -> None:
    (tmp_path / "hellaswag").mkdir()
    row = {"query": "Roof shingle removal: A man: on a roof. He", "choices": ["a", "b", "c", "d"], "gold": 3}
    write_lines(tmp_path / "hellaswag/hellaswag.jsonl", [row])
    task, ranked = find_task("hellaswag"), find_task("hellaswag_ppl")
    (item,) = task.items(tmp_path)
    assert (item.question, item.references) == ("A man: on a roof. He", ("D",))
    assert prompt(task, item, "opencompass-2023-11-13").startswith("USER: A man: on a roof. He\n")
    assert prompt(ranked, item, "opencompass-2023-11-13") == "USER: on a roof. He ASSISTANT:"
    write_lines(tmp_path / "hellaswag/hellaswag.jsonl", [row | {"gold": 4}])
    with pytest.raises(EvalDataError, match=r"hellaswag\.jsonl: line 1: 4 endings and label 4"):
        find_task("hellaswag").items(tmp_path)
