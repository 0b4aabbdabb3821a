"""Questions of one's own: how rows are read, which metric scores them, and the way through every command."""

import base64
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.__main__ import main
from owl2.errors import Owl2Error, Owl2Warning
from owl2.eval.answers.predictions import PredictionError
from owl2.eval.engines.engine import Reply
from owl2.eval.metrics.named import METRICS, UnknownMetric, find_metric, metric_for
from owl2.eval.questions import own_questions
from owl2.eval.report.compare import CompareError, compare
from owl2.eval.report.rows import Run
from owl2.eval.report.write import write_report
from owl2.eval.runner import Plan, plan_tasks, run_plans
from owl2.eval.scoring.score import score_run
from owl2.eval.task import Answer, EvalDataError, Item, Skipped
from owl2.jsonl import to_line
from owl2.processor.template import render
from tests.eval.small import Scripted
from tests.eval.tasks.test_fuzz import damage

COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    for name in COLOURS:
        Image.new("RGB", (30, 20), name).save(tmp_path / f"{name}.png")


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join(map(to_line, rows)))
    return path


def item(tmp_path: Path, **row: Any) -> Item:
    """The only question of a file."""
    (found,) = own_questions(write(tmp_path / "one.jsonl", {"question": "What?", **row})).items(tmp_path)
    return found


def why(tmp_path: Path, row: Any, metric: str = "") -> str:
    """Why a row is no question, next to one that is."""
    file = write(tmp_path / "two.jsonl", {"question": "What?"}, row)
    (skipped,) = own_questions(file, metric).load(tmp_path).skipped
    assert skipped.where == f"{file}: line 2"
    return skipped.reason


def planned(file: Path, metric: str = "") -> Plan:
    (plan,), _ = plan_tasks([own_questions(file, metric)], file.parent)
    return plan


def answered(out: Path, file: Path, metric: str = "", **replies: str) -> list[Any]:
    """Run with these answers by id; returns the scored results."""
    engine = Scripted({name: Reply(output) for name, output in replies.items()})
    run_plans(engine, [planned(file, metric)], file.parent, out)
    return score_run(out)


def test_a_row_has_images_a_question_and_what_is_right_in_any_of_the_usual_forms(tmp_path: Path) -> None:
    plain = item(tmp_path, image="red.png", answer="Red")
    assert ([image.name for image in plain.images], plain.references) == (["red.png"], ("Red",))
    assert plain.images[0].open().size == (30, 20)
    both = item(tmp_path, images=["red.png", {"path": "blue.png"}], references=["two", 2, True], id=7)
    assert ([image.name for image in both.images], both.references) == (
        ["red.png", "blue.png"],
        ("two", "2", "yes"),
    )
    assert (both.id, plain.id) == ("7", "1")
    absolute = item(tmp_path, image=str(tmp_path / "red.png"), group="colour")
    assert absolute.references == ()
    assert absolute.category == {"group": "colour"}
    vqa = item(tmp_path, image="red.png", answers=[{"answer": "red"}] * 10)
    assert vqa.references == ("red",) * 10
    assert item(tmp_path, answer=[1234.5678, 0, -1_000_000_000_001]).references == (
        "1234.5678",
        "0",
        "-1000000000001",
    )
    shutil.copy(tmp_path / "red.png", tmp_path / "row 1.png")
    assert item(tmp_path, image="row 1.png").images[0].open().size == (30, 20)
    assert item(tmp_path, image={"path": ".\\red.png"}).images[0].open().size == (30, 20)
    assert item(tmp_path, question="你好？", answer="是").references == ("是",)


def test_the_rows_of_the_documentation_are_questions(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (block,) = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for name in ("owl.jpg", "a.jpg", "b.jpg", "flight.mp4"):
        shutil.copy(tmp_path / "red.png", tmp_path / name)
    (tmp_path / "own.json").write_text(block)
    loaded = own_questions(tmp_path / "own.json").load(tmp_path)
    assert not loaded.skipped
    assert [item.references for item in loaded.items] == [("an owl",), ("yes",), ("B",), ("3",)]
    assert [item.extra["metric"] for item in loaded.items] == ["exact", "yes_no", "choice", "number"]


@pytest.mark.parametrize("answer", ["B", "b", "(B)", 1, "Blue", " blue "])
def test_an_answer_to_choices_is_a_letter_a_place_or_a_text(tmp_path: Path, answer: Any) -> None:
    assert item(tmp_path, choices=["red", "blue"], answer=answer).references == ("B",)
    assert item(tmp_path, options={"a": "red", "b": "blue"}, answer=answer).references == ("B",)


@pytest.mark.parametrize("form", ["llava", "openai", "parts"])
def test_a_row_of_training_is_asked_up_to_its_last_answer(tmp_path: Path, form: str) -> None:
    said = ["What colour?", "Red.", "And this?", "Blue."]
    if form == "llava":
        turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        turns[2]["value"] += "<image>"
        row: dict[str, Any] = {"conversations": turns}
    else:
        parts = form == "parts"
        turns = [
            {
                "role": ("user", "assistant")[n % 2],
                "content": [*([{"type": "image"}] if n % 2 == 0 else []), {"type": "text", "text": text}]
                if parts
                else ("<image>" if n % 2 == 0 else "") + text,
            }
            for n, text in enumerate(said)
        ]
        row = {"messages": turns}
    file = write(tmp_path / "train.jsonl", {**row, "images": ["red.png", "blue.png"]})
    task = own_questions(file)
    (found,) = task.items(tmp_path)
    assert found.references == ("Blue.",)
    assert [image.name for image in found.images] == ["red.png", "blue.png"]
    messages = task.template("as-written").messages(found)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert "And this?" in str(messages[-1]["content"])


def test_marks_system_prompt_input_history_and_data_uris_are_read_as_in_training(tmp_path: Path) -> None:
    data = base64.b64encode((tmp_path / "blue.png").read_bytes()).decode()
    row = {
        "instruction": "Which of <image> and <image>?",
        "input": "Only one.",
        "history": [["Hello?", "Hello!"]],
        "system": "You are an owl.",
        "images": ["red.png", f"data:image/png;base64,{data}"],
        "output": "red",
    }
    task = own_questions(write(tmp_path / "own.jsonl", row))
    (found,) = task.items(tmp_path)
    messages = task.template("as-written").messages(found)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[-1]["content"]] == ["text", "image", "text", "image", "text"]
    assert [image.open().getpixel((0, 0)) for image in found.images] == [(255, 0, 0), (0, 0, 255)]
    assert (
        task.template("short")
        .messages(found)[-1]["content"][-1]["text"]
        .startswith("?\nOnly one.\nAnswer the")
    )


def test_a_conversation_that_ends_with_a_question_has_no_reference(tmp_path: Path) -> None:
    file = write(tmp_path / "open.jsonl", {"messages": [{"role": "user", "content": "Hello?"}]})
    (found,) = own_questions(file).items(tmp_path)
    assert (found.question, found.references) == ("Hello?", ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "holds a list, expected an object"),
        ({"image": "red.png"}, "no field 'question', only image"),
        ({"question": 3}, "question is 3, not text"),
        ({"question": " "}, "the question is blank"),
        ({"question": "a\ud800"}, "half a surrogate pair"),
        ({"question": "?", "image": "none.png"}, "none.png is not in "),
        ({"question": "?", "image": "a" * 5000}, "is not in "),
        ({"question": "?", "image": "data:image/png;base64,abc"}, "is not base64"),
        ({"question": "?", "image": 3}, "an image or clip of row 2 is missing"),
        ({"question": "?", "image": "a\0b"}, "which no file can have"),
        ({"question": "?", "image": "red.png", "images": ["red.png"]}, "both image and images"),
        ({"question": "?", "prompt": "?"}, "both question and prompt"),
        ({"question": "?", "answer": {"a": 1}}, "a reference is None, expected text"),
        ({"question": "?", "answer": "x", "reference": "y"}, "both reference and answer"),
        ({"question": "?", "choices": ["one"], "answer": 0}, "expected a list of 2 to 26 texts"),
        (
            {"question": "?", "choices": ["a", "c"], "answer": "x"},
            "'x' is no letter, text or place of a choice",
        ),
        ({"question": "?", "choices": ["b", "a"], "answer": "a"}, "the answer 'a' may mean A or B"),
        ({"question": "?", "choices": [1, 2, 3], "answer": 2}, "the answer 2 may mean B or C"),
        ({"question": "?", "choices": ["x", "y"], "answer": 2}, "is no letter"),
        ({"question": "?", "tolerance": "much", "answer": "3"}, "tolerance is 'much'"),
        ({"question": "?", "segment": [1], "answer": "3"}, "segment is [1]"),
        ({"id": 1.5, "question": "?"}, "id is 1.5, not text"),
        ({"id": "1", "question": "?"}, "an earlier record has this id"),
        ({"conversations": []}, "no field 'question'"),
        ({"conversations": "hello"}, "the conversation is 'hello', expected a list of turns"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "turn 1 is from 'gpt', expected 'human'"),
        ({"conversations": [{"from": "human", "value": "<image>x"}]}, "has 1 image mark(s) and 0 image(s)"),
    ],
    ids=str,
)
def test_a_bad_row_costs_itself_and_says_why(tmp_path: Path, row: Any, reason: str) -> None:
    if isinstance(row, dict) and row.get("id") == "1":
        file = write(tmp_path / "two.jsonl", {"question": "What?"}, row)
        assert reason in own_questions(file).load(tmp_path).skipped[0].reason
    else:
        assert reason in why(tmp_path, row)


def test_a_file_that_is_no_file_of_questions_is_an_error(tmp_path: Path) -> None:
    for name, content, message in [
        ("none.jsonl", None, "does not exist"),
        ("empty.jsonl", "", "none of 0 rows is a question"),
        ("words.txt", "What is this?\nAnd this?\n", "neither a JSON array nor JSON lines"),
        (
            "bad.jsonl",
            '{"image": "red.png"}\n',
            "none of 1 rows is a question; the first: .*line 1: no field",
        ),
        ("cut.json", '[{"question": "What?"}', "not JSON"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(EvalDataError, match=message):
            own_questions(tmp_path / name)
    with pytest.raises(EvalDataError, match="is a folder"):
        own_questions(tmp_path)
    with pytest.raises(UnknownMetric, match="no metric 'exakt'; nearest is 'exact' of"):
        own_questions(write(tmp_path / "one.jsonl", {"question": "What?"}), "exakt")


def test_an_array_and_lines_are_the_same_questions(tmp_path: Path) -> None:
    rows = [{"question": "What?", "answer": "red"}, {"question": "Where?"}]
    lines = write(tmp_path / "own.jsonl", *rows)
    array = tmp_path / "array.json"
    array.write_text("\ufeff" + json.dumps(rows))
    assert own_questions(array).items(tmp_path) == own_questions(lines).items(tmp_path)
    assert own_questions(array).origin["fingerprint"] == own_questions(lines).origin["fingerprint"]


@pytest.mark.parametrize(
    ("references", "choices", "expected"),
    [
        ((), {}, ""),
        (("red",), {}, "exact"),
        (("Yes",), {}, "yes_no"),
        (("3",), {}, "number"),
        (("1,200.5", "two"), {}, "number"),
        (("A",), {"A": "x", "B": "y"}, "choice"),
        (("red",) * 10, {}, "vqa"),
        (("one two three four five six",), {}, "f1"),
        (("one two three four five six",) * 2, {}, "cider"),
    ],
)
def test_the_metric_follows_from_the_form(references: tuple[str, ...], choices: Any, expected: str) -> None:
    assert metric_for(Item("1", "What?", references=references, choices=choices)) == expected


@pytest.mark.parametrize(
    ("name", "said", "references", "worth"),
    [
        ("exact", "The Cat.", ("cat",), 1),
        ("exact", "two", ("2",), 1),
        ("exact", "是的。", ("是的",), 1),
        ("exact", "a cat here", ("cat",), 0),
        ("exact", "  ", ("cat",), 0),
        ("contains", "There is a cat here", ("cat",), 1),
        ("contains", "cats", ("cat",), 0),
        ("yes_no", "Yes, there is no dog", ("yes",), 1),
        ("yes_no", "There is no dog", ("No",), 1),
        ("yes_no", "It may be yes or no", ("yes",), 0),
        ("yes_no", "True", ("yes",), 1),
        ("number", "There are three owls", ("3",), 1),
        ("number", "1,200 people", ("1200",), 1),
        ("number", "−2.50", ("-2.5",), 1),
        ("number", "of 5 birds, 3 fly", ("3",), 0),
        ("number", "nobody knows", ("3",), 0),
        ("relaxed", "97", ("100",), 1),
        ("relaxed", "94", ("100",), 0),
        ("f1", "an owl", ("the owl sits",), 2 / 3),
        ("vqa", "red", ("red", "red", "red", "blue"), 0.75),
    ],
)
def test_a_metric_reads_and_scores(name: str, said: str, references: tuple[str, ...], worth: float) -> None:
    metric, asked = find_metric(name), Item("1", "What?", references=references)
    assert metric.values([Answer(asked, said, metric.parse(asked, said))]) == [pytest.approx(worth)]


def test_a_number_may_have_a_tolerance_of_its_own(tmp_path: Path) -> None:
    asked = item(tmp_path, answer=100, tolerance=3)
    metric = find_metric("number")
    for said, worth in (("103", 1.0), ("97", 1.0), ("104", 0.0)):
        assert metric.values([Answer(asked, said, said)]) == [worth]


def test_every_metric_has_a_name_a_title_and_a_docstring() -> None:
    for name, metric in METRICS.all().items():
        assert (metric.name, bool(metric.title), bool(metric.__doc__)) == (name, True, True)


def test_a_metric_that_does_not_suit_a_row_costs_the_row(tmp_path: Path) -> None:
    assert why(tmp_path, {"question": "?", "answer": "red"}, "number") == "metric number needs a number"
    assert (
        why(tmp_path, {"question": "?", "answer": "red"}, "choice")
        == "metric choice needs choices and an answer"
    )


def test_scores_have_intervals_by_image_groups_and_one_figure_over_all(tmp_path: Path) -> None:
    rows = [
        {"id": f"{colour}{n}", "image": f"{colour}.png", "group": colour, **asked}
        for colour in COLOURS
        for n, asked in enumerate(
            [{"question": "What?", "answer": colour}, {"question": "Red?", "answer": "yes"}]
        )
    ]
    file = write(tmp_path / "own.jsonl", *rows, {"id": "open", "question": "Why?"})
    (result,) = answered(tmp_path / "out", file, red0="Red.", red1="yes", green0="red", blue1="Yes")
    scores = {(score.metric, score.group): score for score in result.scores}
    assert (result.scores[0].metric, result.scores[0].n) == ("right", 6)
    assert scores["right", ""].value == pytest.approx(50.0)
    assert scores["right", "red"].value == 100.0
    assert scores["exact match", ""].n == scores["yes or no", ""].n == 3
    assert "3 clusters" in scores["right", ""].interval.method
    assert {answer.item.id for answer in result.failures} == {"green0", "green1", "blue0"}
    assert (
        "metric: exact (3), yes_no (3), none, without references (1); by the form" in result.task.remarks[0]
    )


def test_the_page_shows_every_answer_with_its_image_and_says_how_it_is_scored(tmp_path: Path) -> None:
    rows = [{"id": c, "image": f"{c}.png", "question": "What colour?", "answer": c} for c in COLOURS]
    file = write(tmp_path / "own.jsonl", *rows, {"id": "bad"})
    results = answered(tmp_path / "out", file, red="red", green="It is purple", blue="blue")
    files = write_report([Run("mine", tmp_path / "out", results, {})], tmp_path / "out")
    page = files["html"].read_text()
    assert page.count("<img") == 3
    assert "own.jsonl: 1 of 3 not right" in page
    assert page.index("It is purple") < page.index(">blue<")
    assert (page.count("<dt>answer</dt>"), page.count("<dt>right answer</dt>")) == (1, 2)
    text = files["md"].read_text()
    assert "own.jsonl: metric: exact (3); by the form of each row" in text
    assert "own.jsonl: 1: " in text
    assert "In the paper, not in this run" not in text


def test_questions_without_references_are_answered_and_shown(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", {"id": "a", "image": "red.png", "question": "What?"})
    results = answered(tmp_path / "out", file, a="Something red")
    files = write_report([Run("mine", tmp_path / "out", results, {})], tmp_path / "out")
    assert "Something red" in files["html"].read_text()
    assert "own.jsonl: no question has a reference" in files["md"].read_text()


def test_answers_to_other_questions_are_never_taken_for_these(tmp_path: Path) -> None:
    file = write(
        tmp_path / "own.jsonl", {"id": "a", "image": "red.png", "question": "What?", "answer": "red"}
    )
    out = tmp_path / "out"
    answered(out, file, a="red")
    Image.new("RGB", (60, 20), "blue").save(tmp_path / "red.png")
    with pytest.raises(PredictionError, match=r"another setting \(questions '\w+' -> '\w+'\)"):
        answered(out, file, a="red")
    with pytest.warns(
        Owl2Warning, match=r"own.jsonl asks something else by now: its copy in .*out is scored"
    ):
        (result,) = score_run(out)
    assert result.scores[0].value == 100.0
    write(file, {"id": "a", "image": "red.png", "question": "Which?", "answer": "red"})
    (other,) = answered(tmp_path / "other", file, a="red")
    with pytest.warns(Owl2Warning), pytest.raises(CompareError, match="asked different questions"):
        compare(score_run(out), [other])


def test_a_corrected_reference_is_scored_without_asking_again(tmp_path: Path) -> None:
    row = {"id": "a", "question": "What?", "answer": "rad"}
    out, file = tmp_path / "out", write(tmp_path / "own.jsonl", row)
    assert answered(out, file, a="red")[0].scores[0].value == 0.0
    write(file, {**row, "answer": "red"})
    assert score_run(out)[0].scores[0].value == 100.0


def test_a_folder_that_moved_away_from_its_file_and_images_is_scored_by_its_copy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(tmp_path / "red.png", home)
    file = write(home / "own.jsonl", {"id": "a", "image": "red.png", "question": "What?", "answer": "red"})
    answered(tmp_path / "out", file, a="red")
    shutil.rmtree(home)
    with pytest.warns(Owl2Warning, match="does not exist"):
        results = score_run(tmp_path / "out")
    assert results[0].scores[0].value == 100.0
    page = write_report([Run("mine", tmp_path / "out", results, {})], tmp_path / "out")["html"].read_text()
    assert "red.png" in page


def test_before_and_after_are_compared_on_the_same_questions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"image": f"{c}.png", "question": f"What colour {n}?", "answer": c} for n in range(8) for c in COLOURS
    ]
    file = write(tmp_path / "own.jsonl", *rows, {"nothing": 1})
    for out, template in (("before", "as-written"), ("after", "short")):
        asked = ["eval", "run", str(checkpoint), "--questions", str(file), "--template", template]
        main([*asked, "--out", str(tmp_path / out)])
        main([*asked, "--out", str(tmp_path / out)])
    said = capsys.readouterr()
    assert "24 kept" in said.err
    assert "1 records skipped" in said.err
    assert (tmp_path / "after" / "report.html").exists()
    main(["eval", "compare", str(tmp_path / "before"), str(tmp_path / "after")])
    row = next(line for line in capsys.readouterr().out.splitlines() if "exact match" in line)
    assert re.search(r"own.jsonl \| exact match \|.*\| 24 \| 3 \|$", row), row


def test_image_paths_may_begin_elsewhere(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    file = write(tmp_path / "rows" / "own.jsonl", {"image": "red.png", "question": "What?", "answer": "red"})
    rooted = ["--questions", str(file), "--image_root", str(tmp_path)]
    main(["eval", "show", *rooted])
    main(["eval", "run", str(checkpoint), *rooted, "--out", str(tmp_path / "out")])
    main(["eval", "report", str(tmp_path / "out")])
    assert "red.png (30 x 20)" in capsys.readouterr().out
    assert "<img" in (tmp_path / "out" / "report.html").read_text()


def test_two_files_of_one_name_and_nothing_to_ask_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "own.jsonl", {"question": "What?"})
    (tmp_path / "more").mkdir()
    other = write(tmp_path / "more" / "own.json", {"question": "What?"})
    words = ["eval", "run", str(checkpoint), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--questions", str(file), "--questions", str(other)])
    assert stopped.value.code == 1
    assert "own.jsonl and own.json are both kept as own: rename one" in capsys.readouterr().err


def test_a_video_is_shown_as_its_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), (20 * n, 0, 0)) for n in range(8)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    plain = item(tmp_path, video="clip.gif", segment=[0, 0.4], answer="red")
    assert len(plain.images) == 8
    assert len({image.open().getpixel((8, 8)) for image in plain.images}) <= 5, "half of the clip"
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "Red."}]
    task = own_questions(write(tmp_path / "v.jsonl", {"conversations": turns, "video": "clip.gif"}))
    (found,) = task.items(tmp_path)
    assert len(found.images) == 8
    assert found.images[3].open().size == (16, 16)


def test_a_row_that_is_skipped_is_no_item(tmp_path: Path) -> None:
    task = own_questions(write(tmp_path / "own.jsonl", {"question": "What?"}, {"id": 1}))
    assert [type(row) for row in task.read(tmp_path)] == [Item, Skipped]


def test_a_damaged_file_is_read_or_skipped_or_an_error_for_the_user(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "An owl."}]
    rows = [
        {"id": 1, "image": "red.png", "question": "How many?", "answer": 3, "tolerance": 1, "group": "a"},
        {"images": ["red.png", {"path": "blue.png"}], "question": "?", "choices": ["x", "y"], "answer": "B"},
        {"conversations": turns, "image": "green.png", "system": "Be an owl."},
        {"instruction": "Is it?", "input": "An owl", "output": "yes", "history": [["a", "b"]]},
        {"video": "red.png", "segment": [0, 1], "question": "What?", "references": ["a", "b"]},
    ]
    text = write(tmp_path / "own.jsonl", *rows).read_text()
    rng = random.Random(0)
    for _ in range(300):
        (tmp_path / "own.jsonl").write_bytes(damage(text, rng))
        try:
            task = own_questions(tmp_path / "own.jsonl")
        except Owl2Error:
            continue
        items = task.items(tmp_path)
        for asked in items:
            for template in task.templates.values():
                render(template.messages(asked), generation_prompt=True)
        for said in ("A", "3", ""):
            task.score([Answer(asked, said, task.parse(asked, said)) for asked in items])
        assert json.dumps(task.origin)
        assert task.remarks
