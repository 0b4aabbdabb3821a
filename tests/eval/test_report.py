"""The report: every figure next to the paper's, what is missing, wrong answers with their images."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest

from owl2.eval.answers.grades import Grades
from owl2.eval.engines.engine import Reply
from owl2.eval.report import page
from owl2.eval.report.display import print_results
from owl2.eval.report.paper import missing_rows, paper_rows
from owl2.eval.report.radar import radar
from owl2.eval.report.rows import Row, Run, name_runs
from owl2.eval.report.write import write_report
from owl2.eval.runner import plan_tasks, run_plans
from owl2.eval.scoring.score import score_run
from owl2.eval.task import Score, all_tasks, find_task
from tests.eval.small import Scripted, plan, run
from tests.eval.tasks.miniature import DATA
from tests.markup import check_that_text_stays_text


@pytest.fixture
def paths(vqa_data: Path, tmp_path: Path) -> dict[str, Path]:
    """The report of a run with right, wrong, unread and unasked questions."""
    first, second, third, *_ = plan(vqa_data).items
    replies = {
        first.id: Reply(max(first.references, key=first.references.count)),
        second.id: Reply(""),
        third.id: Reply(error="no image"),
    }
    engine = Scripted(replies)
    engine.replies["1003"] = Reply("<script>alert('owl')</script>")
    run(engine, vqa_data, tmp_path / "run")
    return write_report([Run("run", tmp_path / "run", score_run(tmp_path / "run"), {})], tmp_path / "run")


def test_markdown_has_ours_the_papers_and_what_a_reader_must_know(paths: dict[str, Path]) -> None:
    text = paths["md"].read_text()
    row = next(line for line in text.splitlines() if line.startswith("| VQAv2 val"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    ours, paper, difference = (float(cell) for cell in cells[2:5])
    assert paper == 79.4
    assert difference == pytest.approx(ours - 79.4, abs=0.011)
    low, high = (float(end) for end in cells[5].split(" – "))
    assert low <= ours <= high
    assert cells[6:] == ["16 (!~)", "16 of 214,354", "1 + 1 not asked", "owl2-2023", "–"]
    assert "VQAv2 val: 16 answered of 16 in the data; official: 214,354" in text
    assert "takes them for a yes)\n\n- VQAv2 val: 1, such as 1001" in text
    assert "the first, 1002: no image" in text
    absent = next(line for line in text.splitlines() if "benchmarks: COCO Caption" in line)
    assert "MME" in absent
    assert "VQAv2" not in absent


def test_csv_and_json_have_every_figure_unrounded(paths: dict[str, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    raw = json.loads(paths["json"].read_text())
    assert len(rows) == len(raw["rows"]) > 3
    assert float(rows[0]["ours"]) == raw["rows"][0]["ours"]
    assert rows[0]["paper_place"] == "Table 1"
    assert raw["runs"][0]["tasks"][0]["unparsed"] == ["1001"]
    assert raw["rows"][0]["is_main"]


def test_the_page_shows_failures_with_image_question_answer_and_reference(
    paths: dict[str, Path], vqa_data: Path
) -> None:
    page = paths["html"].read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert re.search(r'<em title="not all questions[^"]*; fewer than[^"]*">16 \(!~\)</em>', page)
    assert "&lt;script&gt;alert(&#39;owl&#39;)" in page
    cards = re.findall(r"<article.*?</article>", page, re.DOTALL)
    items = {item.id: item for item in plan(vqa_data).items}
    assert len(cards) == 15
    for card in cards:
        item = items[re.search(r"<small>(\d+) ·", card)[1]]  # type: ignore[index]
        assert "data:image/jpeg;base64," in card
        assert item.question in card
        assert item.references[0] in card
    assert "could not be read" in next(card for card in cards if "1001 ·" in card)
    assert "no image" in next(card for card in cards if "1002 ·" in card)


def test_an_image_that_is_gone_is_said_and_does_not_stop_the_report(vqa_data: Path, tmp_path: Path) -> None:
    run(Scripted({}), vqa_data, tmp_path / "run", limit=2)
    results = score_run(tmp_path / "run")

    def gone() -> bytes:
        raise FileNotFoundError("owl.jpg is gone")

    for result in results:
        for answer in result.answers:
            object.__setattr__(answer.item.images[0], "read", gone)
    page = write_report([Run("run", tmp_path, results, {})], tmp_path)["html"].read_text()
    assert "owl.jpg is gone" in page


def test_several_runs_stand_in_one_table(vqa_data: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder in folders:
        run(Scripted({}), vqa_data, folder, limit=2)
    assert name_runs([*folders, tmp_path / "x" / "with"]) == [
        str(folders[0]),
        "without",
        str(tmp_path / "x" / "with"),
    ]
    runs = [Run(folder.name, folder, score_run(folder), {}) for folder in folders]
    text = write_report(runs, tmp_path / "both")["md"].read_text()
    assert "| with | VQAv2 val |" in text
    assert "| without | VQAv2 val |" in text


def test_every_row_of_the_paper_that_a_task_claims_is_of_its_benchmark() -> None:
    rows = paper_rows()
    assert len(rows) == 93
    assert rows["2/9"].value == 1450.19
    assert {row.benchmark for row in missing_rows(set()).values()} >= {"POPE", "XSum", "MMLU", "MMHal-Bench"}
    assert "3/14" not in missing_rows({"3/14"})
    assert not [key for key, row in missing_rows(set()).items() if not row.mam]
    assert len(all_tasks()) >= 25


def test_the_radar_has_an_axis_a_benchmark_in_the_pages_colours() -> None:
    svg = radar(["VQAv2", "GQA", "MME"], {"ours": [90.0, 101.0, 55.0], "without MAM": [80.0, 95.0, 50.0]})
    assert svg.startswith("<svg")
    for shown in ("VQAv2", "GQA", "MME", "var(--accent)", "var(--second)"):
        assert shown in svg
    assert "#00000" not in svg


def test_no_text_of_the_page_becomes_markup(
    vqa_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Scripted({}), vqa_data, tmp_path)
    runs = [Run(name, tmp_path, score_run(tmp_path), {}) for name in ("with", "without")]
    check_that_text_stays_text(page, lambda: write_report(runs, tmp_path), monkeypatch)


MINIATURES = ("pope", "mmbench_dev", "mme", "gqa", "scienceqa")


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A scored run over a few records of several benchmarks."""
    out = tmp_path_factory.mktemp("miniatures")
    plans, not_run = plan_tasks([find_task(name) for name in MINIATURES], DATA)
    assert not not_run
    run_plans(Scripted({}), plans, DATA, out)
    return Run("run", out, score_run(out), {})


def test_n_is_that_of_the_figure_in_every_format(
    miniatures: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {(row.task, row.figure): row for row in miniatures.rows()}
    questions = {answer.item.cluster for answer in miniatures.results[1].answers}
    circular = next(row for row in rows.values() if row.task == "mmbench_dev" and row.is_main)
    assert circular.score.n == len(questions) < len(circular.result.answers)
    split = rows["pope", "F1: popular"]
    assert split.score.n < len(split.result.answers)
    files = write_report([miniatures], tmp_path)
    print_results([miniatures])
    console = capsys.readouterr().out
    for row in (circular, split):
        assert row.num_values == f"{row.score.n} (!~)"
        line = next(
            line
            for line in files["md"].read_text().splitlines()
            if line.startswith(f"| {row.title} | {row.figure} |")
        )
        assert f"| {row.score.n} (!~) | {len(row.result.answers)} of " in line
    assert f"{circular.score.n} (!~)" in console
    assert "N (~): fewer than 100 values" in console
    found = json.loads(files["json"].read_text())["rows"]
    assert [row["n"] for row in found if row["group"] == "popular"] == [split.score.n] * 5
    assert all(row["marks"] == "!~" for row in found)
    table = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["n"] for row in table] == [str(row["n"]) for row in found]


def test_a_small_or_partial_n_is_marked_in_the_radar(miniatures: Run, tmp_path: Path) -> None:
    page = write_report([miniatures], tmp_path)["html"].read_text()
    assert page.count(">MMBench dev (!) (~)<") == 2, "once in the wide chart and once in the narrow one"


def test_a_complete_task_has_no_mark_and_a_part_of_its_grades_has(miniatures: Run) -> None:
    result = miniatures.results[0]
    score = Score("accuracy", 50.0, 500)

    class Whole(type(result.task)):  # type: ignore[misc]
        expected = (len(result.answers),)

    whole = dataclasses.replace(result, task=Whole())
    assert Row("run", whole, score, True).marks == ""
    assert Row("run", whole, score, True).questions == f"{len(result.answers)}"
    assert Row("run", result, score, True).marks == "!"
    grades = Grades("judge", {}, {"1": {"score": 1.0}}, len(result.answers), ())
    graded = dataclasses.replace(whole, judge=grades)
    assert Row("run", graded, dataclasses.replace(score, n=1), True).marks == "!~"


def test_an_old_runs_template_that_is_gone_does_not_stop_the_report(miniatures: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(miniatures.results[0].config, template="gone")
    old = dataclasses.replace(miniatures.results[0], config=config)
    text = write_report([Run("run", tmp_path, [old], {})], tmp_path)["md"].read_text()
    assert "| gone |" in text


def test_half_a_surrogate_pair_and_markup_in_a_question_do_not_stop_the_report(
    miniatures: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = miniatures.results[0]
    answers = [
        dataclasses.replace(a, item=dataclasses.replace(a.item, question="half \ud83d"))
        for a in result.answers
    ]
    scores = [dataclasses.replace(score, group="[/odd] [red]\ud83d") for score in result.scores]
    odd = dataclasses.replace(result, failures=answers, scores=scores)
    files = write_report([Run("run", tmp_path, [odd], {})], tmp_path)
    assert "half \\ud83d" in files["html"].read_text()
    assert json.loads(files["json"].read_text())["rows"][0]["group"] == "[/odd] [red]\ud83d"
    marked = dataclasses.replace(odd, scores=[dataclasses.replace(scores[0], group="[/odd] [red]")])
    print_results([Run("run", tmp_path, [marked], {})])
    assert "[/odd] [red]" in capsys.readouterr().out
