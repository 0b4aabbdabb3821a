"""What every benchmark shares: unique ids, skipped records, spellings of files, versions of prompts."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from owl2.eval.runner import RunError, plan_tasks
from owl2.eval.task import (
    Answer,
    DataFile,
    DataMissing,
    Decoding,
    EvalDataError,
    Item,
    Score,
    Skipped,
    Task,
    Template,
    UnknownTemplate,
    ending_note,
    find_task,
)
from owl2.eval.tasks.prompts import bare_question
from owl2.processor.template import TEMPLATES
from tests.eval.tasks.miniature import DATA, OF_PAPER, copy, prompt


class Listed(Task):
    """A benchmark of given records."""

    name = "listed"
    title = "Listed"
    files = (DataFile("there", "nowhere"),)
    templates: ClassVar[dict[str, Template]] = {
        "first": Template("x", bare_question),
        "second": Template(
            "x", bare_question, " ", Decoding(5, num_beams=3), parse=lambda item, output: output[:1]
        ),
    }
    old_names: ClassVar[dict[str, str]] = {"before": "second"}
    decoding = Decoding(7)
    expected = (4,)

    def __init__(self, *records: Item | Skipped):
        self.records = records

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        yield from self.records

    def parse(self, item: Item, output: str) -> str | None:
        return output

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return []


def items(*names: str) -> list[Item]:
    return [Item(name, "?") for name in names]


def bad(count: int, *, lacks_file: bool = False) -> list[Skipped]:
    return [Skipped(f"file: record {n}", "torn", lacks_file) for n in range(count)]


def test_a_second_record_of_one_id_is_skipped_and_counts_as_a_record(tmp_path: Path) -> None:
    loaded = Listed(*items("a", "b", "a"), *bad(1)).load(tmp_path)
    assert [item.id for item in loaded.items] == ["a", "b"]
    assert [str(one) for one in loaded.skipped] == [
        "listed: item a: an earlier record has this id",
        "file: record 0: torn",
    ]
    assert loaded.num_records == 4


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "listed: the files hold no question of this split"),
        (bad(2), r"listed: 2 of 2 records cannot be used, the first is file: record 0: torn; is the file of"),
        ([*items("a"), *bad(2)], r"2 of 3 records cannot be used"),
        (
            [*items("a", "b", "c"), *bad(1, lacks_file=True)],
            r"1 of 4 questions lack their image or clip, .*rec",
        ),
    ],
)
def test_a_file_of_another_layout_and_an_incomplete_download_are_errors(
    tmp_path: Path, records: list[Item | Skipped], message: str
) -> None:
    with pytest.raises(EvalDataError, match=message):
        Listed(*records).load(tmp_path)


@pytest.mark.parametrize(
    "records",
    [[*items("a"), *bad(1)], [*items(*"abcdefghi"), *bad(1, lacks_file=True)], [*items(*"abc"), *bad(3)]],
)
def test_half_of_the_records_and_a_tenth_of_the_images_may_be_missing(
    tmp_path: Path, records: list[Item | Skipped]
) -> None:
    assert Listed(*records).load(tmp_path).num_records == len(records)


def test_a_template_has_its_own_decoding_and_reading_or_the_tasks() -> None:
    task = Listed()
    assert (task.decoding_of("first").max_new_tokens, task.decoding_of("second").num_beams) == (7, 3)
    (item,) = items("a")
    assert [task.parse_answer(name, item, "said") for name in ("first", "second")] == ["said", "s"]


def test_an_old_folders_name_of_a_template_is_known_and_any_other_has_its_nearest() -> None:
    task = Listed()
    assert task.template("before") is task.templates["second"]
    with pytest.raises(UnknownTemplate, match="listed has no template 'scond'; nearest is 'second'"):
        task.template("scond")


@pytest.mark.parametrize("name", [*OF_PAPER, "seed_bench_ppl"])
def test_folders_of_the_old_default_template_are_read_and_it_is_not_asked_with(
    name: str, tmp_path: Path
) -> None:
    task = find_task(name)
    if name != "seed_bench_ppl":
        assert task.template("owl2-paper").source
        assert "owl2-paper" not in task.templates
    with pytest.raises(RunError, match=r"'owl2-paper' mixed two versions.*owl2-2023 .*owl2-2024"):
        plan_tasks([task], tmp_path, template="owl2-paper")


@pytest.mark.parametrize("name", OF_PAPER)
def test_each_benchmark_has_the_paper_s_version_first_and_that_of_2024_second(name: str) -> None:
    task = find_task(name)
    assert list(task.templates)[:2] == ["owl2-2023", "owl2-2024"]
    paper, later = task.template("owl2-2023"), task.template("owl2-2024")
    opened = " A:" if name == "triviaqa" else ""
    assert (paper.answer_prefix, later.answer_prefix) == (opened, opened or " ")
    item = task.items(DATA)[0]
    assert prompt(task, item, "owl2-2023").endswith(f" ASSISTANT:{opened}")
    assert prompt(task, item, "owl2-2024").endswith(f" ASSISTANT:{opened or ' '}")


def test_beams_are_those_of_the_script_of_each_version() -> None:
    with_beams = {name for name in OF_PAPER if find_task(name).decoding_of("owl2-2023").num_beams == 5}
    assert with_beams == {
        *("vqav2", "vqav2_test", "okvqa", "textvqa", "textvqa_ocr", "gqa", "vizwiz", "vizwiz_test"),
        *("msrvtt_qa", "msvd_qa", "tgif_qa"),
    }
    for name in OF_PAPER:
        task = find_task(name)
        assert {task.decoding_of(t).num_beams for t in task.templates if t != "owl2-2023"} <= {1}


@pytest.mark.parametrize("conversation", sorted(TEMPLATES))
def test_an_ending_that_training_never_has_is_said_in_one_line(conversation: str) -> None:
    for name in ("mme", "vqav2", "mmlu", "triviaqa"):
        task = find_task(name)
        assert ending_note("owl2-2023", task.template("owl2-2023"), conversation) == ""
    note = ending_note("owl2-2024", find_task("mme").template("owl2-2024"), conversation)
    assert note.startswith("template owl2-2024: prompts end in 'ASSISTANT: ', training has 'ASSISTANT:'")
    assert "\n" not in note


@pytest.mark.parametrize(
    ("name", "path", "spelling"),
    [
        ("pope", "pope/output/coco/coco_pope_random.json", "pope/output/coco/coco_pope_random.jsonl"),
        ("pope", "pope/output/coco/coco_pope_random.json", "pope/output/coco/COCO_POPE_Random.JSON"),
        ("boolq", "BoolQ/val.jsonl", "boolq/VAL.json"),
        ("agieval", "AGIEval/data/v1/math.jsonl", "AGIEval/data/v1/MATH.json"),
        ("bbh", "BIG-Bench-Hard/bbh/navigate.json", "BIG-Bench-Hard/bbh/Navigate.json"),
        ("xsum", "Xsum/dev.jsonl", "xsum/dev.jsonl"),
        ("tgif_qa", "tgif_qa/Test_frameqa_question.csv", "tgif_qa/test_frameqa_question.CSV"),
        ("mmbench", "mmbench/MMBench_TEST_EN.tsv", "mmbench/mmbench_test_en.tsv"),
    ],
)
def test_a_file_is_read_under_another_spelling(tmp_path: Path, name: str, path: str, spelling: str) -> None:
    data = copy(tmp_path, path.partition("/")[0], *(["coco"] if name == "pope" else []))
    whole = [(item.id, item.question, item.references) for item in find_task(name).items(data)]
    (data / path).rename(data / "renamed")
    (data / spelling).parent.mkdir(parents=True, exist_ok=True)
    (data / "renamed").rename(data / spelling)
    assert [(item.id, item.question, item.references) for item in find_task(name).items(data)] == whole


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("triviaqa", "triviaqa/trivia-dev.qa.csv"),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl"),
        ("mmvet", "mm-vet/mm-vet.json"),
        ("agieval", "AGIEval/data/v1/math.jsonl"),
        ("tgif_qa", "tgif_qa/Test_frameqa_question.csv"),
    ],
)
def test_a_file_is_read_compressed_with_bom_and_with_other_line_ends(
    tmp_path: Path, name: str, path: str
) -> None:
    data = copy(tmp_path, path.partition("/")[0])
    whole = [(item.id, item.question, item.references) for item in find_task(name).items(data)]
    content = (data / path).read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n")
    for changed in (b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n") + b"\r\n", content):
        (data / path).write_bytes(changed)
        found = find_task(name).items(data)
        assert [(item.id, item.question, item.references) for item in found] == whole
    (data / path).unlink()
    (data / f"{path}.gz").write_bytes(gzip.compress(content))
    assert [(i.id, i.question, i.references) for i in find_task(name).items(data)] == whole


def test_files_that_are_not_there_are_missing_under_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "BoolQ").mkdir()
    (tmp_path / "BoolQ/val.jsonl.part").touch()
    with pytest.raises(DataMissing, match=r"boolq: missing BoolQ/val\.jsonl"):
        find_task("boolq").load(tmp_path)
