"""What cannot be read costs itself: a record is skipped, a benchmark is not run, and both are named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.eval.engines.local import OwlEngine
from owl2.eval.report.rows import Run
from owl2.eval.report.write import as_json, markdown
from owl2.eval.runner import NOT_RUN_FILE, SKIPPED_FILE, RunError, plan_tasks, read_not_run, run_plans
from owl2.eval.scoring.score import score_run
from owl2.eval.task import EvalDataError, Item, Skipped, find_task
from owl2.eval.tasks.vqav2 import VqaV2
from tests.eval.small import NUM_QUESTIONS, Scripted, lines, plan, run, write_json

WHERE = "questions.json: record 3"


@pytest.fixture
def gappy(monkeypatch: pytest.MonkeyPatch) -> None:
    """VQAv2 with a record that is no question, and one whose id is taken."""
    whole = VqaV2.read

    def read(self: VqaV2, data: Path) -> Iterator[Item | Skipped]:
        found = list(whole(self, data))
        yield from found[:2]
        yield Skipped(WHERE, "question is None, not text")
        yield from found[2:]
        yield found[0]

    monkeypatch.setattr(VqaV2, "read", read)


def break_boolq(data: Path) -> Path:
    """A benchmark whose only file is damaged."""
    (data / "BoolQ").mkdir(parents=True)
    (data / "BoolQ" / "val.jsonl").write_text("{broken")
    return data


@pytest.mark.usefixtures("gappy")
def test_skipped_records_are_named_in_the_folder_the_report_and_the_results(
    vqa_data: Path, tmp_path: Path
) -> None:
    planned = plan(vqa_data)
    assert len(planned.items) == NUM_QUESTIONS
    run_plans(Scripted({}), [planned], vqa_data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / SKIPPED_FILE).read_text().splitlines()]
    assert rows == [
        {"task": "vqav2", "where": WHERE, "reason": "question is None, not text"},
        {"task": "vqav2", "where": "vqav2: item 1000", "reason": "an earlier record has this id"},
    ]
    scored = Run("run", tmp_path, score_run(tmp_path), {})
    assert f"VQAv2 val: 2: {WHERE}: question is None, not text; vqav2: item 1000: an" in markdown(
        [scored], scored.rows()
    )
    found = as_json([scored], scored.rows())
    assert found["rows"][0]["skipped"] == 2
    assert found["runs"][0]["tasks"][0]["num_skipped"] == 2
    assert len(lines(tmp_path)) == NUM_QUESTIONS


@pytest.mark.usefixtures("gappy")
def test_skipped_records_are_on_the_console(
    checkpoint: Path, vqa_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(vqa_data), "--out", str(tmp_path), "--limit", "2"]
    main(["eval", "run", str(checkpoint), "--tasks", "vqav2", *words])
    shown, progress = capsys.readouterr()
    assert f"vqav2: 2 records skipped; the first, {WHERE}: question is None" in progress
    assert "Records that no question can be made of (skipped):" in shown


def test_more_skipped_records_than_questions_are_another_format(
    vqa_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [Skipped(f"record {n}", "no question") for n in range(3)]
    monkeypatch.setattr(VqaV2, "read", lambda self, data: [Item("1", "?"), *bad])
    with pytest.raises(EvalDataError, match=r"vqav2: 3 of 4 records cannot be used, the first is record 0"):
        VqaV2().load(vqa_data)
    monkeypatch.setattr(VqaV2, "read", lambda self, data: [])
    with pytest.raises(EvalDataError, match="no question"):
        VqaV2().load(vqa_data)


def test_a_benchmark_that_cannot_be_read_is_not_run_and_the_others_are(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    data = break_boolq(tmp_path / "data")
    for name in ("coco", "vqav2"):
        (data / name).symlink_to(vqa_data / name)
    plans, not_run = plan_tasks([find_task(name) for name in ("boolq", "gqa", "vqav2")], data)
    assert [planned.task.name for planned in plans] == ["vqav2"]
    assert [(one.task, one.is_fault) for one in not_run] == [("boolq", True), ("gqa", False)]
    assert "val.jsonl" in not_run[0].reason
    run_plans(engine, plans, data, tmp_path / "out", not_run=not_run)
    assert list(read_not_run(tmp_path / "out")) == ["boolq", "gqa"]
    scored = Run("run", tmp_path, score_run(tmp_path / "out"), read_not_run(tmp_path / "out"))
    text = markdown([scored], scored.rows())
    assert "- boolq: " in text.partition("## Not run")[2]
    run_plans(engine, plans, data, tmp_path / "out", not_run=not_run[1:])
    assert list(read_not_run(tmp_path / "out")) == ["boolq", "gqa"], "not asked for again, not forgotten"
    (data / "BoolQ" / "val.jsonl").unlink()
    plans, not_run = plan_tasks([find_task(name) for name in ("boolq", "gqa", "vqav2")], data)
    run_plans(engine, plans, data, tmp_path / "out", not_run=not_run)
    assert "missing" in read_not_run(tmp_path / "out")["boolq"]


def test_the_command_ends_with_1_and_names_what_was_not_run(
    checkpoint: Path, vqa_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = break_boolq(tmp_path / "data")
    for name in ("coco", "vqav2"):
        (data / name).symlink_to(vqa_data / name)
    words = ["--data", str(data), "--out", str(tmp_path / "out"), "--limit", "2"]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "run", str(checkpoint), "--tasks", "all", *words])
    shown, progress = capsys.readouterr()
    assert stopped.value.code == 1
    assert "boolq was not run: " in progress
    assert "VQAv2 val" in shown, "the others are asked and reported"
    assert (tmp_path / "out" / NOT_RUN_FILE).exists()
    main(["eval", "report", str(tmp_path / "out")])
    assert "boolq: " in capsys.readouterr().out


def test_nothing_to_ask_is_an_error_with_reasons(tmp_path: Path) -> None:
    data = break_boolq(tmp_path / "data")
    plans, not_run = plan_tasks([find_task("boolq"), find_task("gqa")], data)
    with pytest.raises(RunError, match=r"none of the 2 benchmarks.*boolq: .*val\.jsonl.*owl2 eval data"):
        run_plans(Scripted({}), plans, data, tmp_path / "out", not_run=not_run)


def test_likelihood_tasks_are_not_run_at_a_server(vqa_data: Path) -> None:
    _, not_run = plan_tasks([find_task("mmlu_ppl")], vqa_data, has_likelihoods=False)
    assert "chat API does not give" in not_run[0].reason
    assert not not_run[0].is_fault


def test_a_task_that_cannot_be_scored_does_not_stop_the_report(vqa_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "BoolQ").mkdir(parents=True)
    question = {"question": "is it", "passage": "An owl.", "idx": 0, "label": "true"}
    write_json(data / "BoolQ" / "val.jsonl", question)
    run(Scripted({}), data, tmp_path / "out", "boolq")
    run(Scripted({}), vqa_data, tmp_path / "out", limit=2)
    (data / "BoolQ" / "val.jsonl").write_text("{broken")
    results = score_run(tmp_path / "out")
    assert [(result.task.name, bool(result.problem)) for result in results] == [
        ("boolq", True),
        ("vqav2", False),
    ]
    scored = Run("run", tmp_path, results, {})
    assert "val.jsonl" in markdown([scored], scored.rows()).partition("## Not scored")[2]
    with pytest.raises(EvalDataError, match=r"val\.jsonl"):
        score_run(tmp_path / "out", tasks=["boolq"])
