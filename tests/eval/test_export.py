"""Submissions: each in the form that the organisers' own scripts read."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from owl2.data.sample import StoredImage
from owl2.eval.engines.engine import Reply
from owl2.eval.metrics.vqa import vqa_accuracy
from owl2.eval.report.export import EXPORTS, ExportError, export_task
from owl2.eval.scoring.score import TaskResult, score_run
from owl2.eval.task import Answer, Item, all_tasks
from tests.eval.small import Scripted, run

IMAGE = StoredImage("existence/0001.jpg", lambda: b"")


def files(task: str, *answers: Answer) -> dict[str, bytes]:
    return dict(EXPORTS[task](task, answers))


def one(task: str, item: Item, output: str, parsed: str | None = None) -> Any:
    """The single JSON file of one answer."""
    (content,) = files(task, Answer(item, output, parsed)).values()
    return json.loads(content)


def test_every_format_is_of_a_task_that_exists() -> None:
    assert set(EXPORTS) <= set(all_tasks())


def test_answers_for_evalai_have_numbers_as_ids(vqa_data: Path, tmp_path: Path) -> None:
    run(Scripted({"1000": Reply(" Red. ")}), vqa_data, tmp_path)
    (result,) = score_run(tmp_path)
    (path,) = export_task(result, tmp_path / "submissions")
    assert path.name == "vqav2.json"
    assert json.loads(path.read_text())[:2] == [
        {"question_id": 1000, "answer": "red"},
        {"question_id": 1001, "answer": "no idea"},
    ]
    unknown = dataclasses.replace(result, task=all_tasks()["boolq"]())
    with pytest.raises(ExportError, match="boolq has no format for submissions"):
        export_task(unknown, tmp_path)
    assert isinstance(result, TaskResult)


@pytest.mark.parametrize("task", ["vqav2", "vqav2_test", "okvqa", "textvqa", "textvqa_ocr"])
def test_vqa_answers_are_normalised_so_that_the_official_code_counts_them(task: str) -> None:
    (row,) = one(task, Item("1", "Is it?"), "Yes")
    assert vqa_accuracy("Yes", ["yes"] * 10, "official") == 0.0
    assert vqa_accuracy(row["answer"], ["yes"] * 10, "official") == 1.0
    (number,) = one(task, Item("2", "How many?"), " The two owls. ")
    assert number == {"question_id": 2, "answer": "2 owls"}


def test_vizwiz_names_images_and_normalises() -> None:
    item = Item("VizWiz_test_00000000.jpg", "What?")
    assert one("vizwiz_test", item, "Two.") == [{"image": "VizWiz_test_00000000.jpg", "answer": "2"}]


def test_gqa_is_compared_exactly_so_case_and_full_stop_go() -> None:
    assert one("gqa", Item("20644644", "Which?"), "Bedroom.") == [
        {"questionId": "20644644", "prediction": "bedroom"}
    ]


def test_captions_have_cocos_image_ids() -> None:
    item = Item("COCO_val2014_000000391895", "", extra={"image_id": 391895})
    assert one("coco_caption", item, " A man. ") == [{"image_id": 391895, "caption": "A man."}]


def test_mmbench_is_a_table_with_its_options_as_they_are() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    first = Item("241", "=SUM(1)?\x07", choices={"A": "None", "B": "nan", "C": "=1"})
    second = Item("1000241", "Which?", choices={"A": "x", "B": "y", "C": "z", "D": "w"})
    (content,) = files("mmbench", Answer(first, "A.", "A"), Answer(second, "none of them", None)).values()
    rows = list(openpyxl.load_workbook(io.BytesIO(content)).active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction")
    assert rows[1] == (241, "=SUM(1)?", "None", "nan", "=1", None, "A")
    assert rows[2] == (1000241, "Which?", "x", "y", "z", "w", "none of them")


def test_mme_has_a_text_a_subtask_with_four_columns() -> None:
    item = Item(
        "existence/0001.jpg/1",
        "Is there an owl? Please answer yes or no.",
        (IMAGE,),
        references=("yes",),
        category={"kind": "perception", "subtask": "existence"},
    )
    assert files("mme", Answer(item, "Yes,\nan owl.", "yes")) == {
        "mme/existence.txt": b"0001.jpg\tIs there an owl? Please answer yes or no.\tYes\tYes, an owl.\n"
    }


def test_pope_has_a_file_a_split_in_the_order_of_the_questions() -> None:
    answers = [
        Answer(Item(f"{split}/{n}", f"Is {n} there?"), "No", "no")
        for split in ("random", "popular")
        for n in (2, 1)
    ]
    found = files("pope", *answers)
    assert set(found) == {"pope/coco_pope_random.jsonl", "pope/coco_pope_popular.jsonl"}
    assert [json.loads(line) for line in found["pope/coco_pope_random.jsonl"].splitlines()] == [
        {"question": "Is 2 there?", "answer": "No"},
        {"question": "Is 1 there?", "answer": "No"},
    ]


def test_judged_benchmarks_have_what_their_judges_scripts_read() -> None:
    assert one("mmvet", Item("v1_0", "What is x?"), "x = 3") == {"v1_0": "x = 3"}
    item = Item(
        "0/abc",
        "What?",
        references=("A cat.",),
        category={"type": "attribute", "topic": "animal"},
        cluster="abc",
        extra={"image_content": ("Lynx", "Cat")},
    )
    (row,) = one("mmhal", item, "An owl.")
    assert row["image_content"] == ["Lynx", "Cat"]
    assert (row["gt_answer"], row["model_answer"], row["image_id"]) == ("A cat.", "An owl.", "abc")


def test_seed_bench_has_a_letter_a_line() -> None:
    assert one("seed_bench", Item("v1962", "What?"), "B.", "B") == {"question_id": "v1962", "prediction": "B"}
