"""MMBench, SEED-Bench and Q-Bench on miniatures of their files: rotations, borrowed images, clips."""

import base64
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from owl2.eval.formats.frames import frames_of
from owl2.eval.task import DataMissing, EvalDataError, Item, find_task
from owl2.processor.images import ImageError
from tests.eval.tasks.miniature import DATA, answers, by_id, copy, edit, figures, prompt, skipped

LETTER = "Answer with the option’s letter from the given choices directly."
LETTER_LLAVA = LETTER.replace("’", "'")
DEV_TABLE = "mmbench/mmbench_dev_20230712.tsv"
TEST_TABLE = "mmbench/MMBench_TEST_EN.tsv"
Rows = list[dict[str, str]]


def change_table(file: Path, change: Callable[[Rows], object]) -> None:
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        rows, columns = list(reader), reader.fieldnames
    change(rows)
    assert columns is not None
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def right(items: list[Item]) -> dict[str, str]:
    return {item.id: item.references[0] for item in items}


def test_the_legacy_table_has_an_image_a_row_and_rotations_that_come_together() -> None:
    items = by_id(find_task("mmbench_dev").items(DATA))
    assert list(items) == ["241", "1000241", "2000241", "242", "1000242", "2000242", "3000242"]
    assert items["241"].question == 'Which shape is\n"in the middle"?'
    assert list(items["241"].choices.items()) == [("A", "a circle"), ("B", "a square"), ("C", "a triangle")]
    assert list(items["1000241"].choices.values()) == ["a square", "a triangle", "a circle"]
    assert (items["241"].references, items["1000241"].references) == (("A",), ("C",))
    assert items["2000241"].cluster == "241"
    assert all(item.images[0].open().size == (96, 64) for item in items.values())


def test_an_image_that_is_another_rows_index_is_that_rows_image() -> None:
    items = by_id(find_task("mmbench").items(DATA))
    assert items["3000009"].images[0].read() == items["9"].images[0].read()
    assert items["8"].images[0].read() != items["9"].images[0].read()


def test_the_option_none_is_an_option_and_nan_is_none() -> None:
    items = by_id(find_task("mmbench_dev").items(DATA))
    assert items["242"].choices == {"A": "One", "B": "Two", "C": "None", "D": "All"}
    assert items["242"].references == ("C",)
    assert items["242"].extra["hint"] == ""
    assert list(by_id(find_task("mmbench").items(DATA))["8"].choices) == ["A", "B"]


def test_options_that_pandas_wrote_as_nan_are_left_out(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmbench")
    change_table(data / TEST_TABLE, lambda rows: rows[0].update(C="nan", D="nan"))
    assert list(find_task("mmbench").items(data)[0].choices) == ["A", "B"]


def test_mmbench_is_asked_as_the_authors_scripts_ask_it() -> None:
    task = find_task("mmbench_dev")
    items = by_id(task.items(DATA))
    question = 'Which shape is\n"in the middle"?\nA. a circle\nB. a square\nC. a triangle'
    hint = "The ground is white."
    assert prompt(task, items["241"]) == f"USER: <|image|>{hint}\n{question}\n{LETTER} ASSISTANT:"
    assert prompt(task, items["242"]).startswith("USER: <|image|>N/A\nHow many squares are red?\nA. One\n")
    wrapper = prompt(task, items["241"], "owl2-vlmevalkit")
    assert wrapper == f"USER: <|image|>Hint: {hint}\n{question}\n\n{LETTER}  ASSISTANT: "
    assert "Hint" not in prompt(task, items["242"], "owl2-vlmevalkit")
    assert prompt(task, items["242"], "lmms-eval") == (
        "USER: <|image|>How many squares are red? There are several options:\n"
        f"A. One\nB. Two\nC. None\nD. All\n\n{LETTER_LLAVA} ASSISTANT:"
    )
    assert prompt(task, items["242"], "llava15").endswith(f"D. All\n{LETTER_LLAVA} ASSISTANT:")


def test_a_question_is_right_only_if_all_its_rotations_are() -> None:
    task = find_task("mmbench_dev")
    items = task.items(DATA)
    said = right(items) | {"2000241": "A"}
    scores = task.score(answers(task, items, said))
    assert (scores[0].paper_id, scores[0].value, scores[0].n) == ("10/132", 50.0, 2)
    assert (scores[0].values, scores[0].clusters) == ((0.0, 1.0), ("241", "242"))
    shown = figures(scores)
    assert shown["vanilla accuracy"] == 100.0
    assert shown["CircularEval accuracy AR"] == 0.0
    assert shown["CircularEval accuracy FP-S"] == 100.0
    assert {score.group: score.paper_id for score in scores[2:]} == {"AR": "10/134", "FP-S": "10/136"}


def test_an_answer_in_words_is_read_and_one_that_cannot_be_read_is_wrong_not_a_guess() -> None:
    task = find_task("mmbench_dev")
    item = by_id(task.items(DATA))["242"]
    assert task.parse(item, "C. None") == task.parse(item, "None") == task.parse(item, "(C)") == "C"
    assert task.parse(item, "A or B") is None
    assert task.parse(item, "") is None


def test_a_test_table_without_answers_is_asked_but_has_no_figures(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmbench")
    change_table(data / TEST_TABLE, lambda rows: [row.update(answer="") for row in rows])
    (data / TEST_TABLE).rename(data / "mmbench/mmbench_test_20230712.tsv")
    task = find_task("mmbench")
    items = task.items(data)
    assert all(item.references == () for item in items)
    assert task.score(answers(task, items, {})) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, r"MMBench_TEST_EN.tsv: row 1: split is dev; mmbench needs test"),
        ({"image": "77"}, r"row 1: image is '77', which is neither base64 nor the index"),
        ({"image": "1000008"}, r"row 1: image is '1000008', which is neither base64 nor the index"),
        ({"answer": "D"}, r"row 1: answer is 'D', not one of A, B"),
        ({"index": "9"}, r"row 2: index 9 again, after .*row 1"),
        ({"index": "eight"}, r"row 1: index is 'eight', not a number"),
        ({"B": ""}, r"row 1: 1 options"),
    ],
)
def test_rows_that_are_wrong_cost_themselves_and_are_named(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    data = copy(tmp_path, "mmbench")
    whole = len(find_task("mmbench").items(data))
    change_table(data / TEST_TABLE, lambda rows: rows[0].update(changes))
    reasons = skipped("mmbench", data)
    assert re.search(message, reasons[0])
    # Rows that borrow the image of a row without index go with it.
    assert all("image is" in reason for reason in reasons[1:])
    assert len(find_task("mmbench").items(data)) == whole - len(reasons)


def test_a_table_without_rotations_cannot_be_scored_circularly(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmbench")

    def keep_first_two(rows: Rows) -> None:
        del rows[2:]

    change_table(data / TEST_TABLE, keep_first_two)
    with pytest.raises(EvalDataError, match="no row from index 1,000,000 on"):
        find_task("mmbench").items(data)


def test_an_image_that_is_not_base64_is_an_error_with_its_rows_name(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmbench")
    change_table(data / TEST_TABLE, lambda rows: rows[0].update(image="!" * 80))
    with pytest.raises(ImageError, match="MMBench_TEST_EN/8: not base64"):
        find_task("mmbench").items(data)[0].images[0].open()


def test_a_row_that_is_cut_off_costs_itself_and_is_named(tmp_path: Path) -> None:
    data = copy(tmp_path, "mmbench")
    text = (data / DEV_TABLE).read_text()
    (data / DEV_TABLE).write_text(text[: text.rindex("\t") - 30])
    (reason,) = skipped("mmbench_dev", data)
    assert reason.endswith("mmbench_dev_20230712.tsv: row 7: 12 cells, the header has 14")


def test_seed_bench_has_seconds_for_epic_kitchens_and_turns_breakfasts_frames_into_them() -> None:
    items = by_id(find_task("seed_bench").items(DATA))
    assert [items[name].segment for name in ("v1738", "v1962", "v4397")] == [None, (1.0, 3.0), (1.0, 3.0)]
    assert items["101669"].segment is None
    assert items["101669"].images[0].open().size == (96, 64)
    assert items["v1962"].category == {"data": "video", "type": "Action Prediction"}


def test_seed_benchs_clips_show_their_segment() -> None:
    items = by_id(find_task("seed_bench").items(DATA))
    for name in ("v1738", "v1962", "v4397"):
        video = items[name].video
        assert video is not None
        frames = frames_of(video, items[name].segment)
        assert [frame.open().size for frame in frames] == [(96, 64)] * len(frames)


def test_seed_bench_is_asked_for_letters_and_its_own_way_ranks_the_texts() -> None:
    task, ranked = find_task("seed_bench"), find_task("seed_bench_ppl")
    item = task.items(DATA)[0]
    options = "A. One\nB. Two\nC. Three\nD. Four"
    question = "How many squares are in the image?"
    assert prompt(task, item) == f"USER: <|image|>N/A\n{question}\n{options}\n{LETTER} ASSISTANT:"
    assert prompt(task, item, "llava15") == f"USER: <|image|>{question}\n{options}\n{LETTER_LLAVA} ASSISTANT:"
    assert (task.mode, ranked.mode) == ("generate", "rank")
    assert prompt(ranked, item, "seed-bench") == f"USER: <|image|>{question} ASSISTANT:"
    assert (ranked.parse(item, "B"), ranked.parse(item, "E")) == ("B", None)


def test_seed_bench_scores_all_questions_images_videos_and_each_type() -> None:
    task = find_task("seed_bench")
    items = task.items(DATA)
    scores = task.score(answers(task, items, right(items) | {"v1962": "A"}))
    assert (scores[0].value, scores[0].n, scores[0].paper_id) == (80.0, 5, "2/12")
    assert figures(scores)["accuracy image"] == 100.0
    assert figures(scores)["accuracy video"] == pytest.approx(200 / 3)
    assert figures(scores)["accuracy Action Prediction"] == 0.0


def test_seed_bench_without_the_videos_runs_but_is_not_compared_with_the_papers_figure(
    tmp_path: Path,
) -> None:
    (tmp_path / "seed_bench").mkdir()
    for part in ("SEED-Bench.json", "SEED-Bench-image"):
        (tmp_path / "seed_bench" / part).symlink_to(DATA / "seed_bench" / part)
    task = find_task("seed_bench")
    items = task.items(tmp_path)
    assert [item.id for item in items] == ["101669", "101670"]
    assert task.score(answers(task, items, right(items)))[0].paper_id == ""
    (tmp_path / "seed_bench/SEED-Bench-image").unlink()
    with pytest.raises(DataMissing, match="SEED-Bench-image"):
        task.items(tmp_path)


def test_a_segment_that_is_none_costs_its_question_and_too_many_missing_clips_are_an_error(
    tmp_path: Path,
) -> None:
    data = copy(tmp_path, "seed_bench")
    file = data / "seed_bench/SEED-Bench.json"
    edit(file, lambda content: content["questions"][3].update(segment=[3.0]))
    (reason,) = skipped("seed_bench", data)
    assert reason.endswith("record 4: segment is [3.0], expected begin and end")
    (data / "seed_bench/SSV2/videos/94328.webm").unlink()
    message = r"seed_bench: 1 of 5 questions lack .*94328.webm is not in .*SSV2/videos; unpack the whole"
    with pytest.raises(EvalDataError, match=message):
        find_task("seed_bench").items(data)


def test_q_benchs_json_gives_types_concerns_and_the_letter_of_the_right_text() -> None:
    items = find_task("q_bench_dev").items(DATA)
    assert [item.references for item in items] == [("B",), ("B",), ("C",)]
    assert items[0].category == {"type": "how", "concern": "in-context others"}
    assert items[2].choices["C"] == "None"
    assert items[0].images[0].name == "q_bench/images/00097.jpg"


def test_an_option_more_than_is_read_costs_its_question_instead_of_being_lost(tmp_path: Path) -> None:
    data = copy(tmp_path, "q_bench", "seed_bench")
    edit(
        data / "q_bench/llvisionqa_dev.json",
        lambda rows: rows[0].update(candidates=["High", "Low", "Medium", "None", "All"]),
    )
    edit(data / "seed_bench/SEED-Bench.json", lambda content: content["questions"][0].update(choice_e="Five"))
    assert skipped("q_bench_dev", data)[0].endswith("record 1: 5 candidates, expected 4 at most")
    assert skipped("seed_bench", data)[0].endswith("record 1: a choice_e, expected choice_a to choice_d")
    with (data / "q_bench/Q-Bench1_TEST.tsv").open() as table:
        header, first, *rest = table.read().splitlines()
    wider = [f"{header}\tE", f"{first}\tAll", *(f"{row}\t" for row in rest)]
    (data / "q_bench/Q-Bench1_TEST.tsv").write_text("\n".join(wider))
    assert skipped("q_bench", data)[0].endswith("row 1: an option E, expected A to D")


def test_q_benchs_three_layouts_say_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    of_json = find_task("q_bench_dev").items(DATA)
    # Parquet counts "how" before "what".
    rows = [
        {
            "id": number,
            "image": {"bytes": item.images[0].read(), "path": "x.jpg"},
            "question": item.question,
            **{f"option{n}": ([*item.choices.values()] + ["N/A"] * 4)[n] for n in range(4)},
            "question_type": ("yes-or-no", "how", "what").index(item.category["type"]),
            "question_concern": (3, 0, 2)[number],
            "correct_choice": item.references[0],
        }
        for number, item in enumerate(of_json)
    ]
    (tmp_path / "q_bench/data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q_bench/data/dev-00000-of-00001.parquet")
    columns = ["index", "image", "question", "A", "B", "C", "D", "answer", "category"]
    cells = [
        [
            str(number),
            base64.b64encode(item.images[0].read()).decode(),
            item.question,
            *[item.choices.get(letter, "") for letter in "ABCD"],
            item.references[0],
            item.category["type"],
        ]
        for number, item in enumerate(of_json)
    ]
    of_parquet = find_task("q_bench_dev").items(tmp_path)
    (tmp_path / "q_bench/Q-Bench1_VAL.tsv").write_text(
        "".join("\t".join(row) + "\n" for row in [columns, *cells])
    )
    of_table = find_task("q_bench_dev").items(tmp_path)
    for others in (of_parquet, of_table):
        assert [(i.question, i.choices, i.references) for i in others] == [
            (i.question, i.choices, i.references) for i in of_json
        ]
        assert [item.category["type"] for item in others] == ["how", "yes-or-no", "what"]
    assert [item.category for item in of_parquet] == [item.category for item in of_json]


def test_q_bench_is_scored_over_all_and_in_fractions_by_type() -> None:
    task = find_task("q_bench")
    items = task.items(DATA)
    scores = task.score(answers(task, items, right(items) | {"1": "High"}))
    assert (scores[0].paper_id, scores[0].value) == ("2/13", pytest.approx(200 / 3))
    assert {score.group: (score.value, score.paper_id) for score in scores[1:]} == {
        "yes-or-no": (1.0, "12/146"),
        "how": (0.0, "12/148"),
        "what": (1.0, "12/147"),
    }


def test_the_official_q_bench_test_file_has_no_answers_and_so_no_figures(tmp_path: Path) -> None:
    data = copy(tmp_path, "q_bench")
    rows = json.loads((data / "q_bench/llvisionqa_dev.json").read_text())
    for row in rows:
        del row["correct_ans"]
    (data / "q_bench/llvisionqa_test.json").write_text(json.dumps(rows))
    (data / "q_bench/Q-Bench1_TEST.tsv").unlink()
    task = find_task("q_bench")
    items = task.items(data)
    assert len(items) == 3
    assert task.score(answers(task, items, {})) == []
