"""VQAv2, OK-VQA, VizWiz, TextVQA and GQA on miniatures of their official files, with their traps."""

from pathlib import Path

import pytest

from owl2.eval.task import DataMissing, Decoding, EvalDataError, Task, find_task
from tests.eval.tasks.miniature import (
    DATA,
    answers,
    by_id,
    copy,
    edit,
    figures,
    prompt,
    read,
    skipped,
    write,
    write_lines,
)

QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_val2014_annotations.json"
SHORT = "Answer the question using a single word or phrase."


def test_vqav2_items_have_their_image_ten_answers_and_type() -> None:
    items = find_task("vqav2").items(DATA)
    assert [item.id for item in items] == ["262148000", "262148001", "262148002", "391895000", "42000"]
    item = by_id(items)["42000"]
    assert item.references == ("white",) * 4 + ("gray",) * 3 + ("light grey",) * 3
    assert item.category == {"answer type": "other"}
    assert item.images[0].name == "coco/val2014/COCO_val2014_000000000042.jpg"
    assert item.images[0].open().size == (96, 64)
    assert items[0].cluster == items[1].cluster != item.cluster


def test_annotations_are_joined_by_id_though_they_come_in_another_order() -> None:
    files = read(DATA / ANNOTATIONS)["annotations"], read(DATA / QUESTIONS)["questions"]
    assert [row["question_id"] for row in files[0]] != [row["question_id"] for row in files[1]]
    assert by_id(find_task("vqav2").items(DATA))["262148001"].references == ("yes",) * 10


def test_vqav2_is_scored_by_three_variants_that_differ_where_people_are_unanimous() -> None:
    task = find_task("vqav2")
    items = task.items(DATA)
    said = {"262148000": "Red", "262148001": "yes", "262148002": "one", "391895000": "a square"}
    scores = task.score(answers(task, items, said))
    assert scores[0].paper_id == "1/2"
    assert (scores[0].metric, scores[0].n) == ("VQA accuracy (lavis)", 5)
    shown = figures(scores)
    # "one" is 1, which six of ten wrote; evalai also takes the three who wrote "one" for 1.
    # lavis leaves "a square" of people as it is, so five agree; the blank answer is wrong.
    assert shown["VQA accuracy (lavis)"] == 80.0
    assert shown["VQA accuracy (official)"] == 60.0
    assert shown["VQA accuracy (evalai)"] == 80.0
    assert shown["VQA accuracy (lavis) yes/no"] == 100.0
    assert shown["VQA accuracy (lavis) other"] == pytest.approx(200 / 3)


def test_shares_and_clusters_of_a_score_belong_to_its_answers() -> None:
    task = find_task("vqav2")
    score = task.score(answers(task, task.items(DATA), {"262148000": "red"}))[0]
    assert score.values == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert len(set(score.clusters)) == 3


def test_qwens_lines_give_the_same_items_as_the_official_questions(tmp_path: Path) -> None:
    task = find_task("vqav2")
    official = task.items(DATA)
    data = copy(tmp_path, "vqav2", "coco")
    lines = [
        {
            "image": f"data/vqav2/val2014/{item.cluster}",
            "question": item.question,
            "question_id": int(item.id),
            "answer": item.references[0],
        }
        for item in official
    ]
    (data / QUESTIONS).unlink()
    write_lines(data / "vqav2/vqav2_val.jsonl", lines)
    converted = task.items(data)
    assert [(i.id, i.question, i.references, i.cluster) for i in converted] == [
        (i.id, i.question, i.references, i.cluster) for i in official
    ]
    write(data / "vqav2/vqav2_val.jsonl", lines)  # the authors' script wants an array in that file
    assert [item.id for item in task.items(data)] == [item.id for item in official]
    write_lines(data / "vqav2/vqav2_val.jsonl", lines[:1])
    assert [item.id for item in task.items(data)] == ["262148000"]


def test_the_test_split_has_no_answers_no_figures_and_is_all_of_test2015(tmp_path: Path) -> None:
    task = find_task("vqav2_test")
    items = task.items(DATA)
    assert [item.references for item in items] == [()] * 3
    assert task.score(answers(task, items, {"1000": "purple"})) == []
    data = copy(tmp_path, "vqav2", "coco")
    (data / "vqav2/v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    assert [item.id for item in task.items(data)] == ["1000", "1001"]


def test_questions_of_another_split_are_an_error_that_names_both(tmp_path: Path) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    edit(data / QUESTIONS, lambda value: value.update(data_subtype="train2014"))
    with pytest.raises(EvalDataError, match=r"v2_OpenEnded.*questions of 'train2014', expected 'val2014'"):
        find_task("vqav2").items(data)


def test_a_question_without_annotation_costs_itself_and_annotations_of_another_split_are_an_error(
    tmp_path: Path,
) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    edit(data / ANNOTATIONS, lambda value: value["annotations"].pop())
    (reason,) = skipped("vqav2", data)
    assert "record 1: question_id 262148000 is not in " in reason
    assert reason.endswith(ANNOTATIONS)
    edit(data / ANNOTATIONS, lambda value: value.update(annotations=value["annotations"][:2]))
    with pytest.raises(
        EvalDataError, match=r"vqav2: 3 of 5 records cannot be used, .*another split or layout"
    ):
        find_task("vqav2").items(data)


def test_missing_images_are_counted_before_anything_runs(tmp_path: Path) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    (data / "coco/val2014/COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(EvalDataError, match=r"vqav2: 1 of 5 questions lack .*COCO_val2014_000000000042\.jpg"):
        find_task("vqav2").items(data)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("vqav2", QUESTIONS),
        ("okvqa", "okvqa/mscoco_val2014_annotations.json"),
        ("gqa", "gqa/testdev_balanced_questions.json"),
        ("vizwiz", "vizwiz/val.json"),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json"),
        ("textvqa_ocr", "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str, gone: str) -> None:
    data = copy(tmp_path, gone.partition("/")[0])
    (data / gone).unlink()
    with pytest.raises(DataMissing) as error:
        find_task(name).items(data)
    assert gone in error.value.paths


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value["questions"][1].pop("question"), "record 2: no field 'question'"),
        (lambda value: value["questions"][0].update(image_id="262148"), "record 1: image_id is '262148'"),
        (
            lambda value: value["questions"][1].update(question_id=262148000),
            "vqav2: item 262148000: an earlier record has this id",
        ),
        (lambda value: value["questions"].__setitem__(0, "?"), "record 1: str, expected an object"),
        (lambda value: value["questions"][0].update(question="\ud83d?"), "record 1: question has half a"),
    ],
)
def test_a_record_out_of_format_costs_itself_and_is_named(tmp_path: Path, change: object, said: str) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    edit(data / QUESTIONS, change)  # type: ignore[arg-type]
    (reason,) = skipped("vqav2", data)
    assert said in reason
    assert find_task("vqav2").load(data).num_records == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.update(questions=[]), "no question of this split"),
        (lambda value: value.update(questions="?"), "expected a list of records, found str"),
        (lambda value: value.update(questions=["?"]), "1 of 1 records cannot be used, .*record 1: str"),
    ],
)
def test_a_file_without_a_usable_record_is_an_error(tmp_path: Path, change: object, said: str) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    edit(data / QUESTIONS, change)  # type: ignore[arg-type]
    with pytest.raises(EvalDataError, match=said):
        find_task("vqav2").items(data)


def test_a_file_cut_short_is_an_error_that_names_it(tmp_path: Path) -> None:
    data = copy(tmp_path, "vqav2", "coco")
    text = (data / QUESTIONS).read_text()
    (data / QUESTIONS).write_text(text[: len(text) // 2])
    with pytest.raises(EvalDataError, match=r"v2_OpenEnded_mscoco_val2014_questions\.json: not JSON"):
        find_task("vqav2").items(data)


def test_okvqa_compares_with_the_stemmed_answers() -> None:
    task = find_task("okvqa")
    items = task.items(DATA)
    assert items[0].references == ("stop",) * 6 + ("no entry",) * 4
    shown = figures(task.score(answers(task, items, {"2621485": "Stopping", "425": "spring"})))
    # spring: two of ten; leaving out one of the two leaves one match, so (2 x 1/3 + 8 x 2/3) / 10.
    assert shown == {
        "VQA accuracy (lavis)": 30.0,
        "VQA accuracy (official)": 30.0,
        "VQA accuracy (evalai)": 30.0,
    }


def test_vizwiz_counts_equal_answers_though_they_carry_no_id() -> None:
    task = find_task("vizwiz")
    items = task.items(DATA)
    assert "answer_id" not in read(DATA / "vizwiz/val.json")[0]["answers"][0]
    said = {items[0].id: "unsuitable image", items[1].id: "navy blue", items[2].id: "Yes."}
    shown = figures(task.score(answers(task, items, said)))
    # 2 of 10: (2 x 1/3 + 8 x 2/3) / 10 = 0.6; 3 of 10: (3 x 2/3 + 7) / 10 = 0.9; unanimous: 1.
    assert shown["VQA accuracy (evalai)"] == pytest.approx(100 * (0.6 + 0.9 + 1) / 3)
    assert shown["VQA accuracy (evalai) unanswerable"] == 60.0


def test_vizwiz_reports_how_well_the_unanswerable_is_told() -> None:
    task = find_task("vizwiz")
    items = task.items(DATA)
    said = {items[0].id: "Unanswerable", items[1].id: "unanswerable", items[2].id: "yes"}
    shown = figures(task.score(answers(task, items, said)))
    assert (shown["unanswerable: precision"], shown["unanswerable: recall"]) == (50.0, 100.0)
    assert "unanswerable: precision" not in figures(task.score(answers(task, items, {})))


def test_vizwiz_refuses_the_file_of_another_split(tmp_path: Path) -> None:
    data = copy(tmp_path, "vizwiz")
    (data / "vizwiz/test.json").write_text((DATA / "vizwiz/val.json").read_text())
    with pytest.raises(EvalDataError, match=r"VizWiz_val_00000000\.jpg', not of test"):
        find_task("vizwiz_test").items(data)
    task = find_task("vizwiz_test")
    assert task.score(answers(task, task.items(DATA), {})) == []


def test_textvqa_needs_no_ocr_and_its_twin_shows_the_tokens(tmp_path: Path) -> None:
    plain, ocr = find_task("textvqa"), find_task("textvqa_ocr")
    item = by_id(ocr.items(DATA))["34602"]
    assert prompt(plain, item) == f"USER: <|image|>what is written on the sign?\n{SHORT} ASSISTANT:"
    with_ocr = "USER: <|image|>what is written on the sign?\nReference OCR token: OPEN, 24h\n"
    assert prompt(ocr, item) == f"{with_ocr}{SHORT} ASSISTANT:"
    assert prompt(ocr, item, "owl2-2024") == f"{with_ocr}{SHORT} ASSISTANT: "
    assert "\nReference OCR token: \n" in prompt(ocr, by_id(ocr.items(DATA))["34604"])
    assert prompt(plain, item, "lmms-eval").startswith("USER: <|image|>What is written on the sign?\n")
    data = copy(tmp_path, "textvqa")
    (data / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert len(plain.items(data)) == 3
    assert {plain.score(answers(plain, [item], {}))[0].paper_id, *paper_ids(ocr)} == {"1/6", "1/7"}


def paper_ids(task: Task) -> set[str]:
    return {score.paper_id for score in task.score(answers(task, task.items(DATA), {})) if score.paper_id}


def test_textvqa_images_without_an_ocr_record_are_counted(tmp_path: Path) -> None:
    data = copy(tmp_path, "textvqa")
    edit(data / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", lambda value: value["data"].pop(0))
    with pytest.raises(
        EvalDataError, match=r"2 of 3 records cannot be used.*image_id \w+ is not in .*Rosetta"
    ):
        find_task("textvqa_ocr").items(data)
    edit(data / "textvqa/TextVQA_0.5.1_val.json", lambda value: value.update(dataset_type="train"))
    with pytest.raises(EvalDataError, match="questions of 'train', expected 'val'"):
        find_task("textvqa").items(data)


def test_gqa_is_read_by_id_and_scored_by_type() -> None:
    task = find_task("gqa")
    items = task.items(DATA)
    assert items[0].category == {"structural": "query", "semantic": "attr"}
    said = {"20644644": "Blue.", "20644645": "yes", "2030": "to the left"}
    scores = task.score(answers(task, items, said))
    shown = figures(scores)
    assert scores[0].paper_id == "1/4"
    assert shown["accuracy (llava)"] == pytest.approx(200 / 3)
    assert shown["accuracy (exact)"] == pytest.approx(100 / 3)
    assert shown["accuracy (llava) choose"] == 0.0
    assert shown["accuracy (llava) attr"] == 100.0


def test_gqa_takes_qwens_lines(tmp_path: Path) -> None:
    data = copy(tmp_path, "gqa")
    task = find_task("gqa")
    official = task.items(data)
    (data / "gqa/testdev_balanced_questions.json").unlink()
    write_lines(
        data / "gqa/testdev_balanced.jsonl",
        [
            {
                "image": f"data/gqa/images/{item.cluster}",
                "question": item.question,
                "question_id": item.id,
                "answer": item.references[0],
            }
            for item in official
        ],
    )
    assert [(i.id, i.references) for i in task.items(data)] == [(i.id, i.references) for i in official]
    assert task.score(answers(task, task.items(data), {"2030": "left"}))[0].value == pytest.approx(100 / 3)


def test_what_the_authors_published_is_asked_in_their_words_of_2023_and_2024() -> None:
    for name in ("vqav2", "okvqa", "textvqa", "gqa", "vizwiz"):
        task = find_task(name)
        item = task.items(DATA)[0]
        assert prompt(task, item) == f"USER: <|image|>{item.question}\n{SHORT} ASSISTANT:"
        assert prompt(task, item, "owl2-2024") == f"USER: <|image|>{item.question} {SHORT} ASSISTANT: "
        assert next(iter(task.templates)) == "owl2-2023"
        assert task.decoding_of("owl2-2023") == Decoding(10, 1, num_beams=5, length_penalty=1.0)
        assert task.decoding_of("owl2-2024") == Decoding(10, 1, num_beams=1)
        assert task.decoding_of("llava15") == Decoding(10, 1)
    vizwiz = find_task("vizwiz")
    assert prompt(vizwiz, vizwiz.items(DATA)[1], "llava15") == (
        "USER: <|image|>Can you tell me what color this is, please?\nWhen the provided information is "
        f"insufficient, respond with 'Unanswerable'.\n{SHORT} ASSISTANT:"
    )
    assert vizwiz.templates["owl2-2023"].source.startswith("not published")
    assert "Unanswerable" in prompt(find_task("okvqa"), find_task("okvqa").items(DATA)[0], "lmms-eval")
