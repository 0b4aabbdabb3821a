"""POPE and MME on miniatures of their official files: two sizes, two layouts, odd readings of answers."""

import dataclasses
import json
from pathlib import Path

import pytest

from owl2.eval.metrics.yes_no import mme_score
from owl2.eval.task import Answer, DataMissing, EvalDataError, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, figures, prompt, skipped

RELEASE = "mme/MME_Benchmark_release_version"
POPE_2910 = (1233, 74, 267, 1336)
"""Right and wrong yes, wrong and right no: what integers give the paper's row of 2910 questions."""


def test_pope_reads_three_splits_and_images_of_coco() -> None:
    items = find_task("pope").items(DATA)
    assert [item.category["split"] for item in items] == ["random"] * 3 + ["popular"] * 4 + [
        "adversarial"
    ] * 4
    item = by_id(items)["random/2"]
    assert (item.question, item.references) == ("Is there a snowboard in the image?", ("no",))
    assert item.images[0].name == "coco/val2014/COCO_val2014_000000310196.jpg"
    assert item.images[0].open().size == (96, 64)


def test_popes_2910_questions_give_the_papers_random_row() -> None:
    task = find_task("pope")
    first = by_id(task.items(DATA))["random/1"]
    outputs = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    asked = [
        Answer(dataclasses.replace(first, references=(label,)), said, said)
        for count, (said, label) in zip(POPE_2910, outputs, strict=True)
        for _ in range(count)
    ]
    scores = task.score(asked)
    paper = {"9/117": 88.28, "9/118": 94.34, "9/119": 82.2, "9/120": 87.85, "9/121": 44.91}
    assert {score.paper_id: pytest.approx(score.value, abs=0.006) for score in scores} == paper
    assert {score.n for score in scores} == {2910}
    assert 2910 + 3000 + 3000 in task.expected


def test_pope_takes_the_2910_questions_of_llava_rlhf_by_their_name(tmp_path: Path) -> None:
    data = copy(tmp_path, "pope", "coco")
    old = data / "pope/output/coco/coco_pope_random.json"
    old.rename(data / "pope/coco_pope_random.jsonl")
    assert len(find_task("pope").items(data)) == 11


def test_what_is_neither_yes_nor_no_counts_as_yes_to_pope_and_as_unread_to_us() -> None:
    task = find_task("pope")
    items = task.items(DATA)
    said = {"random/1": "A circle.", "random/2": "There is not", "random/3": "Yes. No doubt"}
    read = answers(task, items, said)
    assert [answer.parsed for answer in read[:3]] == [None, "no", "yes"]
    assert figures(task.score(read))["accuracy random"] == 100.0


def test_pope_asks_as_mme_does() -> None:
    task = find_task("pope")
    question = (
        "USER: <|image|>Is there a circle in the image?\nAnswer the question using a single word or phrase."
    )
    for template, ending in (("owl2-2023", ""), ("owl2-2024", " "), ("llava15", "")):
        assert prompt(task, task.items(DATA)[0], template) == f"{question} ASSISTANT:{ending}"


def test_images_that_are_missing_are_counted_before_anything_is_asked(tmp_path: Path) -> None:
    data = copy(tmp_path, "pope", "coco")
    (data / "coco/val2014/COCO_val2014_000000310196.jpg").unlink()
    with pytest.raises(
        EvalDataError, match=r"pope: \d of 11 questions lack .*310196.* is not in .*coco/val2014"
    ):
        find_task("pope").items(data)


def test_an_absent_benchmark_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"coco_pope_popular\.json") as caught:
        find_task("pope").items(tmp_path)
    assert len(caught.value.paths) == 4
    with pytest.raises(DataMissing, match="MME_Benchmark_release_version"):
        find_task("mme").items(tmp_path)


def test_a_label_that_is_no_label_costs_its_question_and_names_its_line(tmp_path: Path) -> None:
    data = copy(tmp_path, "pope", "coco")
    file = data / "pope/output/coco/coco_pope_popular.json"
    file.write_text(file.read_text().replace('"no"', '"No!"', 1))
    (reason,) = skipped("pope", data)
    assert "coco_pope_popular.json: line 2: label is 'No!'" in reason
    assert len(find_task("pope").items(data)) == 10


def test_mme_reads_both_layouts_and_images_in_deeper_folders() -> None:
    items = by_id(find_task("mme").items(DATA))
    assert len(items) == 2 * 14
    assert items["artwork/16006.jpg/2"].references == ("no",)
    assert items["artwork/16006.jpg/2"].cluster == items["artwork/16006.jpg/1"].cluster
    assert items["OCR/0001.jpg/1"].question == 'Is the word in the logo "stop"? Please answer yes or no.'
    assert items["OCR/0001.jpg/1"].category == {"kind": "perception", "subtask": "OCR"}
    for item in items.values():
        assert item.images[0].open().size == (96, 64)


def test_mmes_release_may_have_its_subtasks_a_folder_deeper(tmp_path: Path) -> None:
    data = copy(tmp_path, "mme")
    (data / RELEASE).rename(data / "subtasks")
    (data / RELEASE).mkdir()
    (data / "subtasks").rename(data / RELEASE / "MME_Benchmark")
    assert len(find_task("mme").items(data)) == 28


def test_mmes_parquet_files_give_the_items_of_the_folders(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folders = find_task("mme").items(DATA)
    rows = [
        {
            "question_id": item.cluster,
            "image": {"bytes": item.images[0].read(), "path": None},
            "question": item.question,
            "answer": item.references[0].capitalize(),
            "category": item.category["subtask"],
        }
        for item in folders
    ]
    (tmp_path / "mme/data").mkdir(parents=True)
    for number, part in enumerate((rows[:10], rows[10:])):
        table = pyarrow.Table.from_pylist(part)
        parquet.write_table(table, tmp_path / f"mme/data/test-0000{number}-of-00002.parquet")
    items = find_task("mme").items(tmp_path)
    assert [(item.id, item.question, item.references) for item in items] == [
        (item.id, item.question, item.references) for item in folders
    ]
    assert items[0].images[0].open().size == (96, 64)


def test_mmes_request_for_yes_or_no_is_cut_out_and_the_authors_leave_a_blank() -> None:
    task = find_task("mme")
    item = task.items(DATA)[0]
    short = "Answer the question using a single word or phrase."
    authors = f"USER: <|image|>Is there a circle in this image? \n{short} ASSISTANT:"
    assert (prompt(task, item), prompt(task, item, "owl2-2024")) == (authors, f"{authors} ")
    bare = f"USER: <|image|>Is there a circle in this image?\n{short} ASSISTANT:"
    assert prompt(task, item, "lmms-eval") == prompt(task, item, "llava15") == bare


def test_mme_adds_accuracy_and_accuracy_of_pairs_over_ten_subtasks() -> None:
    task = find_task("mme")
    items = task.items(DATA)
    said = {item.id: item.references[0].capitalize() for item in items}
    said["count/000000006471.jpg/2"] = "Yes"  # one of two wrong: 50 + 0
    said["color/000000012120.jpg/1"] = "it is green"  # no yes or no in front
    said["color/000000012120.jpg/2"] = "it is green"
    said["code_reasoning/0001.png/1"] = "no"
    read = answers(task, items, said)
    assert by_id([a.item for a in read if a.parsed is None]).keys() == {
        "color/000000012120.jpg/1",
        "color/000000012120.jpg/2",
    }
    scores = task.score(read)
    assert (scores[0].paper_id, scores[0].value, scores[0].n) == ("2/9", pytest.approx(8 * 200 + 50), 20)
    assert (scores[1].group, scores[1].value) == ("cognition", pytest.approx(3 * 200 + 50))
    shown = figures(scores)
    assert shown["accuracy + accuracy+ count"] == mme_score({"": [True, False]}).score == 50.0
    assert shown["accuracy + accuracy+ color"] == 0.0
    for score in scores:
        assert sum(score.values) / score.n * score.scale == pytest.approx(score.value)
        assert len(score.clusters) == score.n


def test_of_an_odd_number_of_first_questions_the_last_pair_is_left_out() -> None:
    task = find_task("mme")
    items = task.items(DATA)[:5]
    scores = task.score(answers(task, items, {item.id: item.references[0] for item in items}))
    assert (scores[0].value, scores[0].n) == (pytest.approx(400.0), 4)
    assert task.score(answers(task, items[:1], {})) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Is there one?\tYes\n", "expected two lines"),
        (b"Is there one? Yes\nIs there none? No\n", "expected two lines"),
        (b"Is there one?\tYes\nIs there none?\tPerhaps\n", "the answer is 'perhaps', not yes or no"),
        ("Is there ä?\tYes\nNone?\tNo\n".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_a_text_of_mme_that_is_no_pair_of_questions_costs_its_image(
    tmp_path: Path, content: bytes, said: str
) -> None:
    data = copy(tmp_path, "mme")
    (data / RELEASE / "count/000000006471.txt").write_bytes(content)
    (reason,) = skipped("mme", data)
    assert f"count/000000006471.txt: {said}" in reason
    task = find_task("mme")
    items = task.items(data)
    assert len(items) == 26
    scores = task.score(answers(task, items, {item.id: item.references[0] for item in items}))
    # Without one of its ten subtasks, the sum is not the paper's.
    assert (scores[0].group, scores[0].value, scores[0].paper_id) == ("perception", pytest.approx(1800), "")


def test_a_text_of_mme_without_image_costs_itself_and_a_missing_subtask_is_an_error(tmp_path: Path) -> None:
    data = copy(tmp_path, "mme")
    (data / RELEASE / "artwork/images/toy_dataset/16006.jpg").unlink()
    (record,) = find_task("mme").load(data).skipped
    assert (record.lacks_file, record.where.rpartition("/")[2]) == (True, "16006.txt")
    (data / RELEASE / "artwork").rename(data / "artwork")
    with pytest.raises(EvalDataError, match=r"mme: 1 of 14 subtasks are not in .*: artwork"):
        find_task("mme").items(data)


def test_a_line_of_pope_that_is_cut_off_costs_itself_and_is_named(tmp_path: Path) -> None:
    data = copy(tmp_path, "pope", "coco")
    file = data / "pope/output/coco/coco_pope_random.json"
    file.write_text(file.read_text() + json.dumps({"question_id": 4})[:-3])
    (reason,) = skipped("pope", data)
    assert "coco_pope_random.json: line 4: not JSON" in reason
