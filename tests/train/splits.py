"""One run, split over ranks in different ways, and what must be equal then."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from owl2.train.config import OptimConfig, ParallelConfig, TrainConfig
from owl2.train.metrics import read_metrics
from tests.train.ranks import TIMEOUT_S
from tests.train.tiny import STAGE_1, STAGE_2, run_whole, weights

# eps far above the rounding of gradients, which Adam would otherwise blow up to whole updates
OPTIM = OptimConfig(lr=1e-2, warmup_steps=1, eps=1e-3, max_grad_norm=0.5)
RULES = {"stage 1": STAGE_1, "stage 2": STAGE_2}


class Reference(Protocol):
    """A finished run of a stage on one process."""

    def __call__(self, name: str, steps: int = 5) -> TrainConfig: ...


def train_on_rank(rank: int, config: TrainConfig) -> str:
    return str(run_whole(config))


def split(config: TrainConfig, run: Path, ranks: int, accumulation: int = 1, **parallel: Any) -> TrainConfig:
    """The same run on `ranks` processes."""
    arrangement = ParallelConfig(timeout_s=TIMEOUT_S, **parallel)
    samples = config.global_batch_size // arrangement.data_ranks(ranks) // accumulation
    return dataclasses.replace(
        config, run=run, micro_batch_size=samples, accumulation=accumulation, parallel=arrangement
    )


def assert_equal_runs(config: TrainConfig, whole: TrainConfig) -> None:
    ours, theirs = read_metrics(config.run), read_metrics(whole.run)
    assert len(ours) == len(theirs) == whole.steps
    for a, b in zip(ours, theirs, strict=True):
        assert [a[key] for key in ("tokens", "targets", "images")] == [b["tokens"], b["targets"], b["images"]]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    exported, expected = weights(config.run / "checkpoint"), weights(whole.run / "checkpoint")
    assert exported.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(exported[name], weight, rtol=1e-4, atol=1e-5, msg=name)
