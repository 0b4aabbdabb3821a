"""The launcher itself: `torchrun` starts the ranks, and starts them again when one of them dies."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from owl2.train.config import config_to_dict
from owl2.train.metrics import read_metrics
from tests.train.ranks import Pool, all_returned, free_port
from tests.train.splits import Reference, assert_equal_runs, split, train_on_rank

ROOT = Path(__file__).parents[2]

DYING = """
import os, signal, sys
from owl2.__main__ import main
from owl2.train import loop
from owl2.train.metrics import Metrics

class Dying(Metrics):
    def update(self, row):
        super().update(row)
        first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first_time and os.environ["RANK"] == sys.argv[2] and row["step"] == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

loop.Metrics = Dying
main(["train", sys.argv[1]])
"""


def torchrun(*arguments: str, ranks: int = 2, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", str(restarts), "--master-port", str(free_port()), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_with_all_others_and_the_run_ends_as_if_nothing_had_happened(
    reference: Reference, tmp_path: Path
) -> None:
    whole = reference("stage 2")
    config = dataclasses.replace(split(whole, tmp_path / "run", 2), save_every=1)
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    (tmp_path / "dying.py").write_text(DYING)
    done = torchrun(str(tmp_path / "dying.py"), str(tmp_path / "stage.yaml"), "1", "3", restarts=1)
    assert done.returncode == 0, done.stderr
    assert f"{config.run}: continuing after step" in done.stdout
    assert done.stdout.count(str(config.run / "checkpoint")) == 1, "every rank prints the result"
    assert_equal_runs(config, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_rank_killed_at_any_step_costs_nothing_and_any_other_ranks_go_on(
    seed: int, reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    """Of 14 steps at least ten follow the one after which a rank dies."""
    rng = random.Random(seed)
    whole = reference(rng.choice(["stage 1", "stage 2"]), steps=14)
    config = dataclasses.replace(split(whole, tmp_path / "run", 2, tensor=rng.choice([1, 2])), save_every=1)
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    (tmp_path / "dying.py").write_text(DYING)
    rank, step = str(rng.randrange(2)), rng.randrange(1, 5)
    done = torchrun(str(tmp_path / "dying.py"), str(tmp_path / "stage.yaml"), rank, str(step))
    assert done.returncode != 0
    assert step <= len(read_metrics(config.run)) < 14
    ranks, parallel = rng.choice([(4, {"tensor": 2}), (4, {"replicate": 2}), (2, {}), (2, {"tensor": 2})])
    resumed = split(whole, config.run, ranks, **parallel)
    all_returned(pool.run(ranks, train_on_rank, resumed))
    assert_equal_runs(resumed, whole)


@pytest.mark.slow
def test_the_command_line_refuses_ranks_that_do_not_add_up(reference: Reference, tmp_path: Path) -> None:
    whole = reference("stage 2")
    config = dataclasses.replace(whole, run=tmp_path / "run")
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    done = torchrun("-m", "owl2", "train", str(tmp_path / "stage.yaml"))
    assert "owl2 train: micro_batch_size 4 x accumulation 1 x 2 rank(s) = 8" in done.stderr
    assert not (tmp_path / "run").exists()
