"""Scoring: joined by id, wrong data and broken files named, unread answers counted, both runs compared."""

from pathlib import Path

import pytest

from owl2.errors import Owl2Error
from owl2.eval.answers.predictions import PredictionError
from owl2.eval.engines.engine import Reply
from owl2.eval.engines.local import OwlEngine
from owl2.eval.report.compare import CompareError, compare, comparison_table
from owl2.eval.scoring.score import ScoreError, score_run
from tests.eval.small import Scripted, plan, run, write_json, write_vqa


def right(data: Path, share: float = 1.0) -> Scripted:
    """An engine that gives the most frequent answer to the first share of the questions."""
    items = plan(data).items
    known = items[: round(share * len(items))]
    return Scripted(
        {item.id: Reply(max(item.references, key=item.references.count)) for item in known},
    )


def test_answers_are_joined_to_their_questions_by_id(vqa_data: Path, tmp_path: Path) -> None:
    run(right(vqa_data), vqa_data, tmp_path)
    (path,) = (tmp_path / "predictions").iterdir()
    head, *rows = path.read_text().splitlines(keepends=True)
    before = score_run(tmp_path)[0].scores[0].value
    path.write_text(head + "".join(reversed(rows)))
    assert score_run(tmp_path)[0].scores[0].value == before > 60


def test_wrong_answers_are_kept_for_the_report_the_worst_first(vqa_data: Path, tmp_path: Path) -> None:
    run(right(vqa_data, 0.5), vqa_data, tmp_path)
    (result,) = score_run(tmp_path)
    shares = dict(zip([a.item.id for a in result.answers], result.scores[0].values, strict=True))
    found = [shares[answer.item.id] for answer in result.failures]
    assert found == sorted(found)
    assert found[0] == 0.0
    assert not any(answer.parsed in answer.item.references for answer in result.failures)


def test_questions_that_were_not_asked_count_as_wrong_and_are_listed(vqa_data: Path, tmp_path: Path) -> None:
    engine = right(vqa_data)
    engine.replies["1000"] = Reply(error="too long")
    engine.replies["1001"] = Reply("")
    run(engine, vqa_data, tmp_path)
    (result,) = score_run(tmp_path)
    assert result.errors == {"1000": "too long"}
    assert result.unparsed == ["1001"]
    assert result.scores[0].n == len(result.answers) == result.num_items
    assert result.scores[0].values[:2] == (0.0, 0.0)


def test_data_of_another_split_is_an_error_that_names_both(vqa_data: Path, tmp_path: Path) -> None:
    run(right(vqa_data), vqa_data, tmp_path / "run")
    other = write_vqa(tmp_path / "other", num_questions=3)
    with pytest.raises(ScoreError, match=r"vqav2\.0of1\.jsonl: 13 of 16 answers .*other.*'10\d\d'.*nearest"):
        score_run(tmp_path / "run", other)
    with pytest.raises(ScoreError, match=r"missing .* below .*nowhere.*--data"):
        score_run(tmp_path / "run", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1000", "output": "yes"}', r"vqav2\.0of1\.jsonl:3: 'prompt_hash' is None"),
        ('{"id": 1000, "output": "yes", "prompt_hash": "x"}', r":3: 'id' is 1000, expected text"),
        ("yes", r":3: not JSON"),
        ("[1]", r":3: holds a list"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_and_line(
    vqa_data: Path, tmp_path: Path, line: str, message: str
) -> None:
    run(right(vqa_data), vqa_data, tmp_path)
    (path,) = (tmp_path / "predictions").iterdir()
    head, first, _, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, first, line, *rest]) + "\n")
    with pytest.raises(Owl2Error, match=message):
        score_run(tmp_path)


def test_a_file_without_head_or_a_folder_without_files_is_an_error(vqa_data: Path, tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"has no predictions/\*\.jsonl"):
        score_run(tmp_path)
    run(right(vqa_data), vqa_data, tmp_path)
    (path,) = (tmp_path / "predictions").iterdir()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(PredictionError, match=r":1: the first line must be the head"):
        score_run(tmp_path)


def test_a_task_that_was_not_run_is_an_error_with_the_nearest(vqa_data: Path, tmp_path: Path) -> None:
    run(right(vqa_data), vqa_data, tmp_path)
    with pytest.raises(ScoreError, match="no answers of 'vqa'; nearest is 'vqav2'"):
        score_run(tmp_path, tasks=["vqa"])


def test_runs_are_compared_on_the_questions_that_both_answered(tmp_path: Path) -> None:
    data = write_vqa(tmp_path / "data", num_questions=80, num_images=40)
    run(right(data, 0.2), data, tmp_path / "a")
    run(right(data), data, tmp_path / "b", limit=50)
    rows = compare(score_run(tmp_path / "a"), score_run(tmp_path / "b"))
    first = rows[0]
    assert first.difference is not None
    assert (first.difference.n, first.difference.num_clusters) == (50, 25)
    assert first.difference.value == pytest.approx(first.b - first.a)
    assert first.difference.low > 0
    assert first.is_significant
    table = comparison_table(rows, "a", "b")
    assert "VQAv2 val" in table
    assert f"{first.difference.value:+.2f} *" in table


def test_a_difference_over_few_clusters_has_no_star_and_no_p_is_zero(vqa_data: Path, tmp_path: Path) -> None:
    run(right(vqa_data, 0.0), vqa_data, tmp_path / "a")
    run(right(vqa_data), vqa_data, tmp_path / "b")
    rows = compare(score_run(tmp_path / "a"), score_run(tmp_path / "b"))
    first = rows[0]
    assert first.difference is not None
    assert first.difference.num_clusters == 8
    assert first.difference.low > 0
    assert first.difference.p == 2 / 2**8, "8 clusters in favour of one run: an exact sign test"
    assert not any(row.is_significant for row in rows)
    table = comparison_table(rows, "a", "b")
    assert "0.000" not in table
    assert "over fewer than 20 clusters are not tested" in table
    assert all(row.p_holm is None for row in rows)
    run(right(vqa_data, 0.0), vqa_data, tmp_path / "c", limit=1)
    (alone, *_) = compare(score_run(tmp_path / "c"), score_run(tmp_path / "b"))
    assert alone.difference is not None
    assert alone.difference.p == 1.0, "one image says nothing"


def test_the_p_values_of_a_table_are_corrected_for_its_rows(tmp_path: Path) -> None:
    data = write_vqa(tmp_path / "data", num_questions=80, num_images=40)
    run(right(data, 0.2), data, tmp_path / "a")
    run(right(data), data, tmp_path / "b")
    rows = compare(score_run(tmp_path / "a"), score_run(tmp_path / "b"))
    pairs = [(row.difference.p, row.p_holm) for row in rows if row.difference and row.p_holm is not None]
    assert len(pairs) > 3
    assert all(corrected >= p for p, corrected in pairs)
    assert min(corrected for _, corrected in pairs) == min(p for p, _ in pairs) * len(pairs)


def test_runs_without_a_common_task_cannot_be_compared(
    vqa_data: Path, tmp_path: Path, engine: OwlEngine
) -> None:
    run(right(vqa_data), vqa_data, tmp_path / "a", limit=2)
    data = tmp_path / "data" / "arc"
    data.mkdir(parents=True)
    choices = [{"text": t, "label": label} for t, label in zip("wxyz", "ABCD", strict=True)]
    question = {"id": "M1", "question": {"stem": "Which?", "choices": choices}, "answerKey": "A"}
    write_json(data / "ARC-Easy-Test.jsonl", question)
    with pytest.raises(CompareError, match="no task is in both runs: the first has vqav2"):
        compare(score_run(tmp_path / "a"), [])
