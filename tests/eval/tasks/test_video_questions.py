"""MSRVTT-QA, MSVD-QA and TGIF-QA: clips found under their names, answers joined by id, judge's grades."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from owl2.eval.task import DataMissing, EvalDataError, Item, Task, find_task
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, edit, figures, prompt, skipped, write

CSV = "tgif_qa/Test_frameqa_question.csv"


def write_video_chatgpt(data: Path, task: Task, items: list[Item]) -> None:
    """The same questions in Video-ChatGPT's two files, the answers in another order."""
    questions: list[dict[str, Any]] = [
        {"video_name": item.cluster, "question": item.question, "question_id": f"v_{item.id}_0"}
        for item in items
    ]
    right = [
        {"answer": item.references[0], "type": 1, "question_id": f"v_{item.id}_0"} for item in reversed(items)
    ]
    write(data / task.name / "test_q.json", questions)
    write(data / task.name / "test_a.json", right)


def test_msrvtt_items_have_their_clip_answer_and_cluster() -> None:
    items = find_task("msrvtt_qa").items(DATA)
    assert [item.id for item in items] == ["158581", "158582", "158583"]
    assert items[0].video == DATA / "msrvtt_qa/videos/video7010.mp4"
    assert items[0].cluster == items[1].cluster == "video7010"
    assert items[2].references == ("two",)


def test_msvd_clips_are_found_by_number_and_by_youtube_name(tmp_path: Path) -> None:
    items = find_task("msvd_qa").items(DATA)
    assert [item.video.name for item in items if item.video] == ["-4wsuPCjDBc_5_15.avi", "vid1452.avi"]
    data = copy(tmp_path, "msvd_qa")
    (data / "msvd_qa/youtube_mapping.txt").unlink()
    with pytest.raises(EvalDataError, match=r"msvd_qa: 1 of 2 questions lack .*vid1451 \(.mp4.* is not in"):
        find_task("msvd_qa").items(data)
    (data / "msvd_qa/youtube_mapping.txt").write_text("only_a_name\n")
    with pytest.raises(EvalDataError, match=r"youtube_mapping\.txt: line 1 is 'only_a_name'"):
        find_task("msvd_qa").items(data)


@pytest.mark.parametrize(
    ("name", "file"),
    [("msrvtt_qa", "test_qa.json"), ("msvd_qa", "test_qa.json"), ("tgif_qa", "Test_frameqa_question.csv")],
)
def test_video_chatgpts_files_are_joined_by_id_not_by_position(tmp_path: Path, name: str, file: str) -> None:
    data = copy(tmp_path, name)
    task = find_task(name)
    official = task.items(data)
    write_video_chatgpt(data, task, official)
    (data / name / file).unlink()
    converted = task.items(data)
    assert [(i.question, i.references, i.video, i.cluster) for i in converted] == [
        (i.question, i.references, i.video, i.cluster) for i in official
    ]
    edit(data / name / "test_a.json", lambda value: value.pop())
    (reason,) = skipped(name, data)
    assert reason.endswith("test_a.json")
    assert "record 1: question_id v_" in reason
    assert len(task.items(data)) == len(official) - 1
    (data / name / "test_a.json").unlink()
    with pytest.raises(EvalDataError, match=r"test_q\.json: holds no answers; put .*test_a\.json"):
        task.items(data)


def test_tgifs_table_is_read_by_tabs_with_its_quotes_and_wrong_words() -> None:
    items = by_id(find_task("tgif_qa").items(DATA))
    assert list(items) == ["FRAMEQA1159", "FRAMEQA1160", "FRAMEQA9405"]
    assert items["FRAMEQA1160"].question == "what is the color of the fiFRAMEQAlace ?"
    assert items["FRAMEQA9405"].category == {"asks for": "number"}
    assert items["FRAMEQA1159"].video == DATA / "tgif_qa/gifs/tumblr_no73q2fm0I1uuf348o1_250.gif"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\tcircle\t0\t", "\tcircle\t7\t", "line 2: type is '7', not one of 0, 1, 2, 3"),
        ("\ttwo\t1\t", "\ttwo\t", "line 4: 6 cells, the header has 7"),
        ("FRAMEQA1160", "FRAMEQA1159", "item FRAMEQA1159: an earlier record has this id"),
    ],
)
def test_a_tgif_row_out_of_format_costs_itself_and_is_named(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    data = copy(tmp_path, "tgif_qa")
    text = (data / CSV).read_text()
    assert old in text
    (data / CSV).write_text(text.replace(old, new))
    (reason,) = skipped("tgif_qa", data)
    assert said in reason


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gif_name\tquestion", "gif_name\tdescription", "the header is"),
        ("tumblr_nedt1ck9181ttuja3o1_250", "tumblr_other", "tgif_qa: 1 of 3 questions lack .*tumblr_other"),
    ],
)
def test_another_header_and_too_many_missing_gifs_are_errors(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    data = copy(tmp_path, "tgif_qa")
    text = (data / CSV).read_text()
    assert old in text
    (data / CSV).write_text(text.replace(old, new))
    with pytest.raises(EvalDataError, match=said):
        find_task("tgif_qa").items(data)


def test_exact_match_counts_case_and_blanks_only_in_the_raw_variant() -> None:
    task = find_task("msrvtt_qa")
    items = task.items(DATA)
    scores = task.score(answers(task, items, {"158581": " Circle", "158582": "red", "158583": "2"}))
    shown = figures(scores)
    assert scores[0].paper_id == "4/19"
    assert shown["exact match (lower)"] == pytest.approx(200 / 3)
    assert shown["exact match (raw)"] == pytest.approx(100 / 3)
    assert shown["exact match (evalai)"] == 100.0
    assert shown["exact match (lower) what"] == 100.0
    assert not any(metric.startswith("GPT") for metric in shown)


def test_a_judges_grades_become_its_two_figures() -> None:
    task = find_task("msvd_qa")
    given = answers(task, task.items(DATA), {"40000": "box", "40001": "a man"})
    grades = ({"is_right": 1.0, "score": 4.0}, {"is_right": 0.0, "score": 1.0})
    graded = [dataclasses.replace(answer, grade=grade) for answer, grade in zip(given, grades, strict=True)]
    by_metric = {score.metric: score for score in task.score(graded)}
    assert (by_metric["GPT accuracy"].value, by_metric["GPT accuracy"].paper_id) == (50.0, "4/24")
    assert (by_metric["GPT score"].value, by_metric["GPT score"].paper_id) == (2.5, "4/25")
    assert by_metric["GPT score"].values == (4.0, 1.0)
    assert {score.n for score in task.score(graded[:1] + given[1:]) if score.metric == "GPT score"} == {1}
    assert task.judge == "video_chatgpt"


def test_frames_stand_before_the_question_in_their_order() -> None:
    task = find_task("tgif_qa")
    item = task.items(DATA)[0]
    assert item.video is not None
    frames = by_id(find_task("vqav2").items(DATA))["42000"].images * 3
    shown = dataclasses.replace(item, images=frames)
    assert prompt(task, shown) == (
        "USER: <|image|><|image|><|image|>what is moving to the right ?\n"
        "Answer the question using a single word or phrase. ASSISTANT:"
    )


def test_no_clips_at_all_are_missing_data_and_some_are_counted(tmp_path: Path) -> None:
    data = copy(tmp_path, "msrvtt_qa")
    (data / "msrvtt_qa/videos/video7011.mp4").unlink()
    with pytest.raises(EvalDataError, match=r"msrvtt_qa: 1 of 3 questions lack .*video7011"):
        find_task("msrvtt_qa").items(data)
    (data / "msrvtt_qa/videos/video7010.mp4").unlink()
    (data / "msrvtt_qa/videos").rmdir()
    with pytest.raises(DataMissing, match="missing msrvtt_qa/videos"):
        find_task("msrvtt_qa").items(data)
