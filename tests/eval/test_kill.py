"""A run killed again and again, on one rank and on two, ends with the answers of an undisturbed one."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owl2.eval.engines.local import OwlEngine
from tests.eval.small import lines, outputs, run, write_vqa

NUM_KILLS = 10
NUM_QUESTIONS = 150


def start(checkpoint: Path, data: Path, out: Path, rank: int, world_size: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "owl2", "eval", "run", str(checkpoint), "--tasks", "vqav2"]
    command += ["--data", str(data), "--out", str(out), "--batch-size", "2"]
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env={**os.environ, **ranks}, stderr=subprocess.PIPE)


def size(out: Path) -> int:
    return sum(path.stat().st_size for path in (out / "predictions").glob("*.jsonl"))


@pytest.mark.slow
def test_killed_ten_times_on_one_and_two_ranks_the_answers_are_those_of_an_undisturbed_run(
    engine: OwlEngine, checkpoint: Path, tmp_path: Path
) -> None:
    data = write_vqa(tmp_path / "data", NUM_QUESTIONS)
    out = tmp_path / "killed"
    out.mkdir()
    rng = random.Random(0)
    kills = 0
    while kills < NUM_KILLS:
        world_size = 1 + kills % 2
        ranks = [start(checkpoint, data, out, rank, world_size) for rank in range(world_size)]
        enough = size(out) + rng.randrange(800, 3500)
        while size(out) < enough and any(process.poll() is None for process in ranks):
            time.sleep(0.005)
        kills += sum(process.poll() is None for process in ranks) > 0
        for process in ranks:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
        assert len(lines_whole(out)) < NUM_QUESTIONS, f"only {kills} kills came before the end"
    run(engine, data, out)
    run(engine, data, tmp_path / "undisturbed")
    assert outputs(out) == outputs(tmp_path / "undisturbed")
    assert sorted(row["id"] for row in lines(out)) == sorted(outputs(out)), "something was asked twice"


def lines_whole(out: Path) -> list[bytes]:
    """Every whole line of the files but their heads."""
    found = [path.read_bytes().splitlines(keepends=True) for path in (out / "predictions").glob("*.jsonl")]
    return [line for rows in found for line in rows[1:] if line.endswith(b"\n")]
