"""Samples that cannot be used are seen: on the console, in every step's metrics, in the report; and once."""

import dataclasses
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from owl2.data.dataset import NUM_PROBED, SampleDataset, target_last_answer
from owl2.data.inspect.inspection import inspect_source
from owl2.data.inspect.page import facts
from owl2.data.readers.sources import open_source
from owl2.data.recipes.convert import check_row, without_blank_answers
from owl2.data.sample import DataError
from owl2.processor import Encoding, Processor
from owl2.processor.video import NoVideoReaderError
from owl2.train import loop
from owl2.train.config import DataConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.prepare import load_stage, open_dataset
from owl2.train.report import RunFiles, page
from owl2.train.validate import FirstSamples
from tests.data.small import jpeg, turns, write_jsonl
from tests.processor.test_video import write_clip, write_gif
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import STEPS, run_until, run_whole, stage

GOOD = [{"id": str(n), "conversations": turns("what is two?", "an owl on a branch")} for n in range(3)]
GONE = {"id": "gone", "image": "gone.jpg", "conversations": turns("<image>", "an owl")}


def run_of(run: Path, checkpoint: Path, rows: list[dict[str, Any]], **changes: Any) -> TrainConfig:
    """A run over a file of these rows, which may all be unusable."""
    path = write_jsonl(run.parent / "rows.jsonl", rows)
    source = SourceConfig(name="rows", path=path, turns=changes.pop("turns", "together"))
    data = DataConfig(sources=[source], max_bad_fraction=changes.pop("max_bad_fraction", 1.0), max_tokens=256)
    return stage(run, checkpoint, run.parent, **{"data": data, **changes})


def said_by(config: TrainConfig) -> str:
    console = Console(file=io.StringIO(), width=300)
    loop.train(config, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def recorded(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]


def shown(run: Path) -> str:
    """The report, without the labels of cells for phones."""
    return re.sub(' data-label="[^"]*"', "", page(RunFiles.read(run)))


def test_a_line_comes_with_the_first_and_whenever_their_number_has_doubled(
    checkpoint: Path, tmp_path: Path
) -> None:
    text = said_by(run_of(tmp_path / "run", checkpoint, [*GOOD, GONE], steps=9))
    lines = [line for line in text.splitlines() if "could not be used so far" in line]
    assert [line.split()[0] for line in lines] == ["1", "2", "4", "8"]
    assert lines[0].startswith(
        "1 of 4 samples could not be used so far (1 x rows: image is missing). The last: rows:"
    )
    assert "gone.jpg" in lines[0]
    assert lines[0].endswith(f"All are in {tmp_path}/run/bad_samples.jsonl")
    rows = read_metrics(tmp_path / "run")
    assert [row["bad"] for row in rows] == [1] * 9
    assert [row["bad_samples"] for row in rows] == list(range(1, 10))
    assert [row["step"] for row in recorded(tmp_path / "run")] == list(range(1, 10))


def test_a_run_without_any_says_nothing_and_counts_none(checkpoint: Path, tmp_path: Path) -> None:
    config = run_of(tmp_path / "run", checkpoint, GOOD)
    assert "could not be used" not in said_by(config)
    assert {row["bad"] for row in read_metrics(config.run)} == {0}
    assert "Unusable" not in page(RunFiles.read(config.run))


def test_the_report_has_a_section_with_kinds_numbers_and_an_example(checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        *GOOD,
        GONE,
        {**GONE, "id": "b", "image": "b.jpg"},
        {"id": "odd", "conversations": turns("x", "y")[1:]},
    ]
    config = run_of(tmp_path / "run", checkpoint, rows)
    run_whole(config)
    html = shown(config.run)
    assert "<h2>Unusable samples</h2>" in html
    assert '<td>image is missing</td><td class="n">2</td><td>rows:' in html
    assert "turns do not alternate" in html
    bad = int(read_metrics(config.run)[-1]["bad_samples"])
    assert f"<dd>{bad} of {4 * STEPS}</dd>" in html


def test_the_record_of_a_try_that_failed_does_not_stay_with_the_run(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{**GONE, "id": str(n)} for n in range(20)]
    config = run_of(tmp_path / "run", checkpoint, rows, max_bad_fraction=0.1)
    with pytest.raises(DataError, match="could not be used"):
        run_whole(config)
    assert len(recorded(config.run)) > 10
    (config.run / "bad_samples-1.jsonl").write_text('{"source": "rows"}\n')  # of a second rank
    write_jsonl(tmp_path / "rows.jsonl", GOOD)
    run_whole(config)
    assert not list(config.run.glob("bad_samples*"))


def test_a_resumed_run_records_each_step_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of(tmp_path / "run", checkpoint, [*GOOD, GONE])
    run_until(config, 3, monkeypatch)
    with (config.run / "bad_samples.jsonl").open("a") as file:  # as a crash after two more steps leaves it
        file.write('{"source": "rows", "key": "k", "kind": "k", "reason": "r", "step": 5}\n{"torn')
    run_whole(config)
    assert [row["step"] for row in recorded(config.run)] == list(range(1, STEPS + 1))


def test_ranks_count_together(checkpoint: Path, tmp_path: Path, pool: Pool) -> None:
    config = run_of(tmp_path / "run", checkpoint, [*GOOD, GONE])
    many = split(config, tmp_path / "many", 2)
    all_returned(pool.run(2, train_on_rank, many))
    assert [row["bad"] for row in read_metrics(many.run)] == [1] * STEPS


# -- a package that is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, NUM_PROBED - 1])
def test_without_pyav_a_source_of_videos_does_not_start(
    place: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "a.mp4", 3)
    rows = [{"id": str(n), "conversations": turns("what?", "an owl")} for n in range(NUM_PROBED)]
    rows[place] = {"id": "clip", "video": "a.mp4", "conversations": turns("<video>\nwhat?", "an owl")}
    config = run_of(tmp_path / "run", checkpoint, rows)
    monkeypatch.setitem(sys.modules, "av", None)
    message = r"rows: sample .*clip has the video a.mp4; .* package av: pip install 'owl2\[video\]'"
    with pytest.raises(DataError, match=message):
        run_whole(config)
    assert not config.run.exists()


def test_without_pyav_gifs_are_trained_on_and_a_late_video_stops_the_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    write_gif(tmp_path / "a.gif", [100] * 3)
    gif = {"id": "clip", "video": "a.gif", "conversations": turns("<video>\nwhat?", "an owl")}
    config = run_of(tmp_path / "run", checkpoint, [gif])
    run_whole(config)
    assert {row["bad"] for row in read_metrics(config.run)} == {0}
    (tmp_path / "b.mp4").write_bytes(b"not looked at")
    rows = [{"id": str(n), "conversations": turns("what?", "an owl")} for n in range(NUM_PROBED * 2)]
    rows[1] = {**gif, "video": "b.mp4"}  # between two of those that are looked at
    late = run_of(tmp_path / "late", checkpoint, rows, global_batch_size=200, micro_batch_size=100)
    with pytest.raises(NoVideoReaderError, match=r"b.mp4.* pip install"):
        run_whole(late)


# -- one question of several -----------------------------------------------------------------------------


def encoded(path: Path, rows: list[dict[str, Any]], processor: Processor, **changes: Any) -> list[Any]:
    source = open_source("rows", write_jsonl(path, rows))
    dataset = SampleDataset([source], ["none"], FirstSamples(len(rows)), processor, 512, **changes)
    return [dataset[n][1] for n in range(len(rows))]


@pytest.mark.parametrize("apart", [(), ("rows",)], ids=["together", "apart"])
@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_blank_answer_costs_its_question_and_not_the_others(
    place: int, blank: str, apart: tuple[str, ...], checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    _, processor = load_stage(stage(tmp_path, checkpoint, corpora))
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    said = [f"{question} {n}" for n in range(3) for question in ("what?", "an owl")]
    left = [text for n, text in enumerate(said) if n // 2 != place]
    with_blank = [blank if n == 2 * place + 1 else text for n, text in enumerate(said)]
    rows = [
        {"image": "a.jpg", "conversations": turns(f"<image>{texts[0]}", *texts[1:])}
        for texts in (with_blank, left)
    ]
    found, expected = (
        encoded(tmp_path / f"{n}.jsonl", [row], processor, turns_apart=apart)[0] for n, row in enumerate(rows)
    )
    assert found.blank == (place + 1,)
    assert (found.ids, found.is_target, found.rows) == (expected.ids, expected.is_target, expected.rows)
    assert len(found.images) == len(expected.images) == 1
    row = {"id": "a", **rows[0]}
    kept, lost = without_blank_answers(row)
    assert [(each.key, each.reason, each.detail) for each in lost] == [
        ("a", "an answer is blank", f"question {place + 1} of 3")
    ]
    texts = [turn["value"].replace("<image>", "").strip() for turn in kept["conversations"]]
    assert texts == left
    assert check_row(kept, tmp_path) is None


def test_a_lost_question_is_recorded_and_said_but_is_no_lost_sample(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "conversations": turns("what?", "an owl", "and?", "")} for n in range(4)]
    config = run_of(
        tmp_path / "run",
        checkpoint,
        rows,
        max_bad_fraction=0.0,
        steps=3,
        global_batch_size=12,
        micro_batch_size=6,
    )
    text = said_by(config)
    assert "0 of 12 samples could not be used so far (12 x rows: answer is blank)" in text
    assert "question 2 is blank; the others are used" in text
    assert {row["bad"] for row in read_metrics(config.run)} == {0}
    assert {(row["kind"], row["question"]) for row in recorded(config.run)} == {("answer is blank", "2")}
    found = inspect_source(open_source("rows", tmp_path / "rows.jsonl"))
    assert ("4", "questions with a blank answer, left out") in facts(found)
    assert '<td>answer is blank</td><td class="n">4</td>' in shown(config.run)


def test_a_conversation_of_blank_answers_alone_is_a_bad_sample(checkpoint: Path, tmp_path: Path) -> None:
    config = run_of(
        tmp_path / "run", checkpoint, [*GOOD, {"id": "b", "conversations": turns("a?", "", "b?", " ")}]
    )
    run_whole(config)
    assert {(row["kind"], row["reason"]) for row in recorded(config.run)} == {
        ("answer is blank", "DataError: all 2 answers are blank")
    }
    assert {row["bad"] for row in read_metrics(config.run)} == {1}


# -- the last answer -------------------------------------------------------------------------------------


def test_targets_last_learns_the_last_answer_and_its_end(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path, checkpoint, corpora)
    _, processor = load_stage(config)
    rows = [
        {"conversations": turns("one?", "an owl", "two?", "a red cup")},
        {"conversations": turns("one?", "two")},
    ]
    every = encoded(tmp_path / "a.jsonl", rows, processor)
    for both, last, text in zip(
        every,
        encoded(tmp_path / "b.jsonl", rows, processor, targets="last"),
        ("a red cup", "two"),
        strict=True,
    ):
        assert both.ids == last.ids
        learned = [token for token, flag in zip(last.ids, last.is_target, strict=True) if flag]
        assert processor.decode(learned).strip() == text
        assert learned[-1] == processor.tokenizer.eos_token_id
    none = Encoding([1, 2], [False, False])
    assert target_last_answer(none).is_target == [False, False]


def test_targets_last_and_turns_apart_contradict_each_other(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path, checkpoint, corpora)
    sources = [dataclasses.replace(source, turns="apart") for source in config.data.sources]
    data = dataclasses.replace(config.data, targets="last", sources=sources)
    with pytest.raises(
        TrainConfigError, match=r"data.targets last has no effect on captions, chat, where turns"
    ):
        dataclasses.replace(config, data=data).check()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, targets="last"))
    assert open_dataset(config, load_stage(config)[1]).targets == "last"
