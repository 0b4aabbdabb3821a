"""Judges: every trouble of a server, nothing paid twice, no silent zero, and grades that others made."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.eval.answers.grades import grades_path
from owl2.eval.engines.chat_client import ChatClient, EndpointError
from owl2.eval.engines.engine import Reply
from owl2.eval.judge.grading import Grading, JudgeError
from owl2.eval.judge.official import import_grades
from owl2.eval.judge.prompts import JUDGES, read_mmhal, read_mmvet, read_video
from owl2.eval.report.rows import Run
from owl2.eval.report.write import markdown
from owl2.eval.scoring.score import TaskResult, score_run
from owl2.eval.task import Answer, Item, find_task
from tests.eval.server import Script, Trouble, body_of, served
from tests.eval.small import Scripted, run, write_json

GRADES = {"v1_0": 0.0, "v1_1": 0.5, "v1_2": 1.0, "v1_3": 0.3}


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A run over a small MM-Vet in the official format."""
    folder = tmp_path / "data" / "mm-vet"
    (folder / "images").mkdir(parents=True)
    questions = {}
    for number, name in enumerate(GRADES):
        Image.new("RGB", (9, 9)).save(folder / "images" / f"{name}.png")
        questions[name] = {
            "imagename": f"{name}.png",
            "imagesource": "ours",
            "question": f"What is {number}?",
            "answer": "-1<AND>-5",
            "capability": ["ocr", "math"] if number % 2 else ["rec"],
        }
    write_json(folder / "mm-vet.json", questions)
    replies = {name: Reply(f"x = {name}") for name in GRADES}
    run(Scripted(replies), tmp_path / "data", tmp_path / "run", "mmvet")
    return tmp_path / "run"


def result(folder: Path) -> TaskResult:
    (found,) = score_run(folder)
    return found


def grading(folder: Path, model: str = "gpt", runs: int = 1) -> Grading:
    return Grading(folder, find_task("mmvet"), result(folder).answers, model, runs)


def client(script: Script, **settings: Any) -> ChatClient:
    return ChatClient(script.url, "gpt", **{"first_wait_s": 0.01, "timeout_s": 0.5, **settings})


def grade(request: dict[str, Any]) -> str:
    """What a good judge says of an answer."""
    (name,) = re.findall(r"x = (v1_\d)", request["messages"][-1]["content"])
    return str(GRADES[name])


def test_a_judge_that_fails_in_every_way_still_gives_the_right_scores(answered: Path) -> None:
    troubles: list[Trouble] = [429, "garbage", 500, "silence", "I cannot say", "1.7", 503]
    with served(grade, troubles, retry_after="0.05") as script:
        assert grading(answered).ask(client(script)) == []
    scored = result(answered)
    figures = {figure.group: figure.value for figure in scored.scores}
    assert figures == pytest.approx({"": 45.0, "rec": 50.0, "ocr": 40.0, "math": 40.0})
    assert scored.judge is not None
    assert scored.judge.summary() == {
        "judge": "gpt",
        "models": {"gpt-2026": 4},
        "graded": 4,
        "answers": 4,
        "unread": [],
        "of_other_answers": 0,
    }


def test_the_question_reaches_the_judge_as_the_official_script_writes_it(answered: Path) -> None:
    with served(grade) as script:
        grading(answered).ask(client(script), parallel=1)
    request = script.requests[0]
    assert request["messages"][0]["content"].endswith(
        "is derived from the unexpected contrast between the names of the countries and their actual "
        "physical characteristics. | 1.0\n\nWhat is 0? | -1 <AND> -5 | x = v1_0 | "
    )
    assert (request["max_tokens"], request["temperature"]) == (3, 0)


def test_a_grade_that_cannot_be_read_is_no_zero(answered: Path) -> None:
    with served(lambda request: "no grade" if "v1_2" in str(request) else grade(request)) as script:
        assert grading(answered).ask(client(script)) == ["v1_2"]
    scored = result(answered)
    assert scored.judge is not None
    assert scored.judge.unread == ("v1_2",)
    assert scored.scores[0].n == 3
    assert sum("v1_2" in str(request) for request in script.requests) == 5
    with served(grade) as script:
        assert grading(answered).ask(client(script)) == []
    assert len(script.requests) == 1
    assert result(answered).scores[0].value == pytest.approx(45.0)


def test_a_dead_judge_loses_nothing_and_is_not_paid_twice(answered: Path) -> None:
    with (
        served(grade, ["0.0", "0.5", *[401] * 9]) as script,
        pytest.raises(EndpointError, match=r"401.*OPENAI_API_KEY"),
    ):
        grading(answered).ask(client(script), parallel=1)
    path = grades_path(answered, "mmvet")
    path.write_bytes(path.read_bytes() + b'{"torn')
    estimate = grading(answered).estimate()
    assert (estimate.calls, estimate.cached) == (2, 2)
    with served(grade) as script:
        grading(answered).ask(client(script))
    assert len(script.requests) == 2
    assert result(answered).scores[0].value == pytest.approx(45.0)
    with served(grade) as script:
        grading(answered).ask(client(script))
    assert script.requests == []


def test_the_estimate_counts_what_is_to_be_asked(answered: Path) -> None:
    estimate = grading(answered, runs=5).estimate()
    assert (estimate.calls, estimate.cached, estimate.new_tokens) == (20, 0, 60)
    assert 9_000 < estimate.prompt_tokens < 14_000
    assert estimate.cost(30.0, 60.0) == pytest.approx((30 * estimate.prompt_tokens + 60 * 60) / 1e6)


def test_of_several_gradings_the_mean_counts(answered: Path) -> None:
    seen: dict[str, int] = {}

    def vary(request: dict[str, Any]) -> str:
        name = re.findall(r"x = (v1_\d)", request["messages"][-1]["content"])[0]
        seen[name] = seen.get(name, -1) + 1
        return "0.2" if seen[name] else "0.4"

    with served(vary) as script:
        grading(answered, runs=2).ask(client(script), parallel=1)
    assert result(answered).scores[0].value == pytest.approx(30.0)


def test_another_answer_loses_its_grade(answered: Path) -> None:
    with served(grade) as script:
        grading(answered).ask(client(script))
    (path,) = (answered / "predictions").iterdir()
    path.write_text(path.read_text().replace("x = v1_2", "x = new"))
    scored = result(answered)
    assert scored.judge is not None
    assert sorted(scored.judge.by_id) == ["v1_0", "v1_1", "v1_3"]


def test_grades_of_the_official_script_are_taken_over(answered: Path, tmp_path: Path) -> None:
    file = tmp_path / "owl_gpt-4-grade-2runs.json"
    graded = {
        name: {"model": ["gpt-4-0613"] * 2, "content": ["", ""], "score": [score, score / 2]}
        for name, score in GRADES.items()
    }
    write_json(file, graded)
    write_json(tmp_path / "owl.json", {name: f"x = {name}" for name in GRADES})
    assert import_grades(answered, find_task("mmvet"), result(answered).answers, file) == 4
    scored = result(answered)
    assert scored.scores[0].value == pytest.approx(45.0 * 0.75)
    assert scored.judge is not None
    assert scored.judge.models == {"gpt-4-0613": 8}
    assert scored.judge.judge == f"imported from {file.name}"


def official(folder: Path, scores: dict[str, Any]) -> Path:
    """Grades as the official script writes them."""
    file = folder / "owl_gpt-4-grade-1runs.json"
    write_json(file, {n: {"model": ["gpt-4"], "content": [""], "score": [s]} for n, s in scores.items()})
    return file


def test_grades_of_another_runs_answers_are_refused(answered: Path, tmp_path: Path) -> None:
    file = official(tmp_path, GRADES)
    write_json(tmp_path / "owl.json", {name: f"x = {name}" for name in GRADES} | {"v1_2": "x = 7"})
    with pytest.raises(JudgeError, match=r"answers of another run: 1 of 4 .* owl\.json differ.* is v1_2"):
        import_grades(answered, find_task("mmvet"), result(answered).answers, file)
    assert not grades_path(answered, "mmvet").exists()


def test_grades_of_answers_that_nobody_knows_are_refused(answered: Path, tmp_path: Path) -> None:
    file = official(tmp_path, GRADES)
    write_json(tmp_path / "another.json", {})
    with pytest.raises(JudgeError, match=r"nothing says which answers it grades.*such as mmvet\.json"):
        import_grades(answered, find_task("mmvet"), result(answered).answers, file)


def test_the_combined_video_grades_have_the_answers_inside(tmp_path: Path) -> None:
    task, item = find_task("msvd_qa"), Item("1", "What?", references=("owl",))
    answers = [Answer(item, "an owl", "an owl")]
    file = tmp_path / "combined.json"
    write_json(file, {"1": [{"pred": "yes", "score": 4}, {"q": "What?", "a": "owl", "pred": "a cat"}]})
    with pytest.raises(JudgeError, match=r"answers of another run: 1 of 1"):
        import_grades(tmp_path, task, answers, file)
    write_json(file, {"1": [{"pred": "yes", "score": 4}, {"q": "What?", "a": "owl", "pred": "an owl"}]})
    assert import_grades(tmp_path, task, answers, file) == 1


def test_mmhals_grades_need_the_answers_too(tmp_path: Path) -> None:
    task = find_task("mmhal")
    answers = [Answer(Item(f"{n}/a", "What?", references=("owl",)), f"an owl {n}", "") for n in range(2)]
    file = tmp_path / "mmhal_graded.json"
    write_json(file, [{"model": "g", "choices": [{"message": {"content": "Rating: 4"}}]}] * 2)
    write_json(tmp_path / "mmhal.json", [{"model_answer": "an owl 1"}, {"model_answer": "an owl 0"}])
    with pytest.raises(JudgeError, match="2 of 2"):
        import_grades(tmp_path, task, answers, file)
    write_json(tmp_path / "mmhal.json", [{"model_answer": "an owl 0"}, {"model_answer": "an owl 1"}])
    assert import_grades(tmp_path, task, answers, file) == 2


@pytest.mark.parametrize("score", [1.5, -1, float("nan")])
def test_an_impossible_official_grade_is_no_grade(score: float, answered: Path, tmp_path: Path) -> None:
    file = official(tmp_path, GRADES | {"v1_2": score})
    write_json(tmp_path / "owl.json", {name: f"x = {name}" for name in GRADES})
    import_grades(answered, find_task("mmvet"), result(answered).answers, file)
    scored = result(answered)
    assert scored.judge is not None
    assert scored.judge.unread == ("v1_2",)
    assert scored.scores[0].n == 3


def test_grades_of_an_earlier_run_are_reported_as_not_counted(answered: Path, tmp_path: Path) -> None:
    with served(grade) as script:
        grading(answered).ask(client(script))
    (path,) = (answered / "predictions").iterdir()
    path.write_text(path.read_text().replace("x = v1_2", "x = new"))
    scored = result(answered)
    assert scored.judge is not None
    assert scored.judge.num_other == 1
    text = markdown([run := Run("run", answered, [scored], {})], run.rows())
    assert "MM-Vet: 1 are of other answers than this run's" in text


@pytest.mark.parametrize(
    "odd", [(400, b"too long"), body_of(None), body_of("\ud83d"), b"<html>", b'{"choices": 3}'], ids=repr
)
def test_an_odd_reply_costs_one_grade_and_the_others_are_paid_once(odd: Trouble, answered: Path) -> None:
    with served(lambda request: odd if "v1_2" in str(request) else grade(request)) as script:
        assert grading(answered).ask(client(script, max_tries=2)) == ["v1_2"]
    scored = result(answered)
    assert scored.judge is not None
    assert sorted(scored.judge.by_id) == ["v1_0", "v1_1", "v1_3"]
    rows = [json.loads(line) for line in grades_path(answered, "mmvet").read_text().splitlines()]
    assert [bool(row.get("error")) for row in sorted(rows, key=lambda row: str(row["id"]))] == [0, 0, 1, 0]
    with served(grade) as script:
        assert grading(answered).ask(client(script)) == []
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"v9": {"model": ["m"], "score": [1]}}', "none of its 1 grades is of an answer here.*v1_0"),
        ('[{"choices": []}]', "no grades as the official script of mmvet"),
        ("graded: yes", "no grades as the official script of mmvet"),
    ],
)
def test_a_file_without_grades_of_this_run_is_an_error_that_names_it(
    answered: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "grades.json"
    file.write_text(content)
    with pytest.raises(JudgeError, match=rf"grades\.json: {message}"):
        import_grades(answered, find_task("mmvet"), result(answered).answers, file)


def test_a_task_without_a_judge_cannot_be_graded(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="pope is scored without a judge"):
        Grading(tmp_path, find_task("pope"), [], "gpt")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", {"score": 0.5}),
        ("1.0 because", {"score": 1.0}),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("half", None),
        ("", None),
    ],
)
def test_mm_vets_grade_is_a_number_from_0_to_1(reply: str, grade: dict[str, float] | None) -> None:
    assert read_mmvet(reply) == grade


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("It is fine.\nRating: 4, somewhat informative", {"rating": 4.0}),
        ("rating: 0", {"rating": 0.0}),
        ("Rating: 3. Rating: 5.", None),
        ("Rating: 7", None),
        ("I would say four", None),
    ],
)
def test_mmhals_rating_must_be_named_once(reply: str, grade: dict[str, float] | None) -> None:
    assert read_mmhal(reply) == grade


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("{'pred': 'yes', 'score': 4.8}", {"is_right": 1.0, "score": 4.0}),
        ('```json\n{"pred": "no", "score": 0}\n```', {"is_right": 0.0, "score": 0.0}),
        ("{'pred': 'Yes', 'score': '5'}", {"is_right": 1.0, "score": 5.0}),
        ("{'pred': 'yes'}", None),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': 'yes', 'score': 9}", None),
        ("{'pred': 'yes', 'score': inf}", None),
        ('{"pred": "yes", "score": Infinity}', None),
        ("{['pred']: 'yes'}", None),
        ("yes, 4", None),
        ("{" * 500 + "}", None),
    ],
)
def test_video_grades_are_a_dictionary_anywhere_in_the_reply(
    reply: str, grade: dict[str, float] | None
) -> None:
    assert read_video(reply) == grade


def test_every_judged_task_has_its_judge() -> None:
    from owl2.eval.task import all_tasks

    judged = {task.judge for task in all_tasks().values() if task.judge}
    assert judged == set(JUDGES)
    item = Item("1", "What?", references=("owl",), extra={"image_content": ("Owl", "Tree")})
    for judge in JUDGES.values():
        messages, _ = judge.ask(item, "a bird", 0)
        assert "a bird" in messages[-1]["content"]
        assert "owl" in messages[-1]["content"]
        json.dumps(messages)
