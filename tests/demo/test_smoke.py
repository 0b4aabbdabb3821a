"""The whole demo in its smallest size, as a user runs it: interrupted, continued, and asked afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KINDS = {"yes_no", "naming", "colour", "counting", "text"}


def owl2(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "owl2", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], timeout_s: float = 900) -> str:
    """What the process prints to its end; a process that takes longer is killed."""
    try:
        return process.communicate(timeout=timeout_s)[0]
    finally:
        process.kill()


def wait_for(path: Path, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {path} after {timeout_s} s"
        time.sleep(0.2)


def check_that_the_command_gives_the_same_answers(demo: Path, out: Path) -> None:
    """Those of the benchmarks at the demo's end; asked as in training, those of its held-out questions."""
    alone, data = out.with_name("question-alone"), str(demo / "world/test")
    for words in (["all", "--out", str(out)], ["vqav2", "--template", "question", "--out", str(alone)]):
        run = owl2("eval", "run", str(demo / "checkpoint"), "--data", data, "--tasks", *words)
        output = finish(run)
        assert run.returncode == 0, output
    for task in ("mmbench_dev", "pope", "vqav2"):
        file = f"predictions/{task}.0of1.jsonl"
        assert answers(out / file) == answers(demo / "benchmarks" / file)
    asked = answers(alone / file)
    own = {row["image"]: row["said"] for row in jsonl(demo / "answers.jsonl") if row["image"]}
    assert len(asked) == len(own) == 4 * 20
    for image, said in own.items():
        assert asked[str(1000 * int(Path(image).stem))].startswith(said), "up to 10 tokens, not 8"


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path: Path) -> dict[str, str]:
    """Question id -> answer, of a file of predictions; its first line is a head."""
    return {row["id"]: row["output"].strip() for row in jsonl(path)[1:]}


@pytest.mark.slow
def test_the_demo_survives_an_interruption_and_ends_with_a_model_that_answers(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = owl2("demo", "--preset", "smoke", "--out", str(out))
    wait_for(out / "language" / "metrics.jsonl", first)
    os.kill(first.pid, signal.SIGTERM)
    output = finish(first)
    assert first.returncode == 75, output
    stopped_at = len((out / "language" / "metrics.jsonl").read_text().splitlines())

    second = owl2("demo", "--preset", "smoke", "--out", str(out))
    output = finish(second)
    assert second.returncode == 0, output
    assert f"continuing after step {stopped_at} of" in output

    results = json.loads((out / "results.json").read_text())
    assert set(results) == KINDS
    for row in results.values():
        assert row["n"] > 0
        assert all(0 <= row[share] <= 1 for share in ("accuracy", "blank_image", "majority"))
    for stage in ("language", "warm", "pretrain", "instruct"):
        rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), stage
    assert "<html" in (out / "report.html").read_text()

    check_that_the_command_gives_the_same_answers(out, tmp_path / "eval")
    refused = owl2("demo", "--preset", "tiny", "--out", str(out))
    assert "holds a demo of preset smoke (world, base, language" in finish(refused)
    assert refused.returncode == 1

    moved = out.rename(tmp_path / "moved")
    again = owl2("demo", "--preset", "smoke", "--out", str(moved))
    output = finish(again)
    assert again.returncode == 0, output
    assert "step" not in output, "a finished demo is not trained again"
    out = moved

    image = next((out / "world" / "test" / "images").iterdir())
    asked = owl2("chat", str(out / "checkpoint"), "--image", str(image), "-m", "What is in the picture?")
    answer = finish(asked)
    assert asked.returncode == 0, answer
