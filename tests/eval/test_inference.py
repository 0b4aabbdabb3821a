"""`owl2 generate`: a file of prompts becomes a file of answers, whatever stops it in between."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.__main__ import main
from owl2.api import Owl2
from owl2.eval.answers.predictions import PredictionError
from owl2.eval.engines.local import OwlEngine
from owl2.eval.inference import Prompts, generate_file
from owl2.eval.runner import Batching, RunError, Shard
from owl2.generate import GenerationConfig

SHORT = GenerationConfig(max_new_tokens=6)


def content(text: str, *paths: str) -> list[dict[str, str]]:
    return [*({"type": "image", "image": path} for path in paths), {"type": "text", "text": text}]


ROWS: list[dict[str, Any]] = [
    {"image": "red.png", "question": "what is this?", "id": "first"},
    {"question": "and a longer question, to be asked alone?"},
    {"image": "gone.png", "question": "what?"},
    {"messages": [{"role": "user", "content": content("both?", "red.png", "blue.png")}]},
    {
        "conversations": [{"from": "human", "value": "<image>\nwhy?"}, {"from": "gpt", "value": "so"}],
        "image": "blue.png",
    },
    {"nothing": 1},
    {"image": "torn.png", "question": "what is torn?"},
    {"question": "what is this?", "id": "first"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "in.jsonl"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_row_has_its_answer_or_its_reason_in_the_order_of_the_file(
    engine: OwlEngine, owl: Owl2, source: Path
) -> None:
    target = source.with_name("out.jsonl")
    assert generate_file(engine, Prompts(source), target, SHORT) == 0
    rows = rows_of(target)
    folder = source.parent
    asked = [
        ("what is this?", ["red.png"]),
        ("and a longer question, to be asked alone?", []),
        None,
        ("both?", ["red.png", "blue.png"]),
        ("why?", ["blue.png"]),
        None,
        None,
        ("what is this?", []),
    ]
    for row, question in zip(rows, asked, strict=True):
        if question is None:
            assert "answer" not in row
            continue
        text, images = question
        expected = owl.chat(text, images=[folder / name for name in images], max_new_tokens=6)
        if row["id"] != "5":  # its conversation has a line break behind the image
            assert row["answer"] == expected
    assert [row["id"] for row in rows] == ["first", "2", "3", "4", "5", "6", "7", "first"]
    assert "gone.png" in rows[2]["error"]
    assert "nothing" in rows[5]["error"]
    assert "torn.png" in rows[6]["error"]
    assert not source.with_name("out.jsonl.parts").exists()


def test_answers_are_the_same_in_any_batches_and_parts_and_the_last_part_writes_the_file(
    engine: OwlEngine, source: Path
) -> None:
    sampled = SHORT.replace(do_sample=True, temperature=1.5, seed=3)
    whole, parts = source.with_name("whole.jsonl"), source.with_name("parts.jsonl")
    assert generate_file(engine, Prompts(source), whole, sampled) == 0
    missing = [
        generate_file(
            engine, Prompts(source), parts, sampled, batching=Batching(max_rows=1), shard=Shard(rank, 3)
        )
        for rank in range(3)
    ]
    assert missing[0] > missing[1] > missing[2] == 0
    assert parts.read_bytes() == whole.read_bytes()
    other = source.with_name("other.jsonl")
    generate_file(engine, Prompts(source), other, sampled.replace(seed=4))
    assert other.read_bytes() != whole.read_bytes()


def test_unfinished_answers_are_not_mixed_with_others(engine: OwlEngine, source: Path) -> None:
    target = source.with_name("out.jsonl")
    assert generate_file(engine, Prompts(source), target, SHORT, shard=Shard(0, 2))
    for config in (SHORT.replace(max_new_tokens=7), SHORT.replace(stop="a")):
        with pytest.raises(PredictionError, match=r"another model or in another setting"):
            generate_file(engine, Prompts(source), target, config)
    assert generate_file(engine, Prompts(source), target, SHORT) == 0
    again = target.read_bytes()
    assert generate_file(engine, Prompts(source), target, SHORT) == 0, "it is finished"
    assert target.read_bytes() == again
    target.write_text('{"mine": 1}\n')
    with pytest.raises(RunError, match="name another file"):
        generate_file(engine, Prompts(source), target, SHORT)
    assert target.read_text() == '{"mine": 1}\n'


def test_the_command_says_what_has_no_answer(
    checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("out.jsonl")
    words = ["generate", str(checkpoint), str(source), str(target), "--max-new-tokens", "6", "--stop", "zz"]
    main([*words, "--shard", "2/2"])
    shown = capsys.readouterr()
    assert "rows are left to other parts" in shown.err
    assert not target.exists()
    main([*words, "--shard", "1/2"])
    shown = capsys.readouterr()
    assert shown.out == f"{target}\n"
    assert "3 of 8 rows have no answer; the first: gone.png is not in" in shown.err
    assert len(rows_of(target)) == 8


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("", [], "in.jsonl"),
        ('{"nothing": 1}\n', [], "none of 1 rows"),
        (None, [], "does not exist"),
        ('{"question": "a?"}\n', ["--shard", "3/2"], "--shard 3/2 must be 1/N to N/N"),
        ('{"question": "a?"}\n', ["--temperature", "-1"], "temperature"),
        ('{"question": "a?"}\n', ["--beams", "2", "--temperature", "1"], "beam search does not sample"),
        ('{"question": "a?"}\n', ["--stop", ""], "stop"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    text: str | None,
    words: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in.jsonl"
    if text is not None:
        source.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["generate", str(checkpoint), str(source), str(tmp_path / "out.jsonl"), *words])
    assert stopped.value.code in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_killed_ten_times_on_one_and_two_ranks_the_file_is_that_of_an_undisturbed_run(
    engine: OwlEngine, checkpoint: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"question": f"question {n}?"}) + "\n" for n in range(300)))
    parts, rng, kills = tmp_path / "out.jsonl.parts", random.Random(0), 0
    command = [sys.executable, "-m", "owl2", "generate", str(checkpoint), str(source), str(target)]
    command += ["--batch-size", "2", "--max-new-tokens", "6"]

    def size() -> int:
        return sum(path.stat().st_size for path in parts.rglob("*.jsonl"))

    while kills < 10:
        world_size = 1 + kills % 2
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"},
                stderr=subprocess.DEVNULL,
            )
            for rank in range(world_size)
        ]
        enough = size() + rng.randrange(500, 4000)
        while size() < enough and any(process.poll() is None for process in ranks):
            time.sleep(0.005)
        for process in ranks:
            process.kill()
            process.wait()
        kills += 1
        assert not target.exists(), f"only {kills} kills came before the end"
    assert generate_file(engine, Prompts(source), target, SHORT) == 0
    whole = tmp_path / "whole.jsonl"
    assert generate_file(engine, Prompts(source), whole, SHORT) == 0
    assert target.read_bytes() == whole.read_bytes()
