"""The learning rate as a function of the step, and settings that do not add up."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from owl2.train.config import (
    DataConfig,
    OptimConfig,
    ParallelConfig,
    SourceConfig,
    TrainConfig,
    TrainConfigError,
)
from owl2.train.optim import lr_at
from owl2.train.rules import Rule

STAGE_1 = OptimConfig()


def test_the_rate_warms_up_linearly_peaks_and_falls_as_a_cosine_to_its_floor() -> None:
    steps = 42_500
    assert lr_at(0, steps, STAGE_1) == pytest.approx(1e-7)
    assert lr_at(499, steps, STAGE_1) == pytest.approx(0.5e-4)
    assert lr_at(999, steps, STAGE_1) == 1e-4
    assert lr_at(1000, steps, STAGE_1) == 1e-4
    half = (1000 + steps - 1) / 2
    assert lr_at(int(half), steps, STAGE_1) == pytest.approx((1e-4 + 1e-6) / 2, rel=1e-3)
    quarter = 1e-6 + (1e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_at(1000 + (steps - 1001) // 4, steps, STAGE_1) == pytest.approx(quarter, rel=1e-3)
    assert lr_at(steps - 1, steps, STAGE_1) == 1e-6
    rates = [lr_at(step, steps, STAGE_1) for step in range(1000, steps, 100)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_the_first_step_has_the_peak_and_one_step_is_enough() -> None:
    config = dataclasses.replace(STAGE_1, warmup_steps=0)
    assert lr_at(0, 10, config) == 1e-4
    assert lr_at(9, 10, config) == 1e-6
    assert lr_at(0, 1, config) == 1e-4


def config(**changes: Any) -> TrainConfig:
    source = SourceConfig(name="a", path=Path("a.jsonl"))
    base = TrainConfig(
        run=Path("run"),
        model=Path("model"),
        data=DataConfig(sources=[source]),
        rules=[Rule(match="*")],
        steps=2000,
        micro_batch_size=16,
        accumulation=16,
    )
    return dataclasses.replace(base, **changes)


def test_the_batch_must_be_the_product_of_its_parts() -> None:
    config().check()
    config(accumulation=4).check(ranks=4)
    message = r"micro_batch_size 16 x accumulation 16 x 2 rank\(s\) = 512, but global_batch_size is 256"
    with pytest.raises(TrainConfigError, match=message):
        config().check(ranks=2)


def test_ranks_that_share_a_sample_count_once() -> None:
    pairs = config(accumulation=4, parallel=ParallelConfig(tensor=2))
    pairs.check(ranks=8)
    message = r"accumulation 4 x 2 rank\(s\) \(4 / parallel.tensor 2\) = 128, but global_batch_size is 256"
    with pytest.raises(TrainConfigError, match=message):
        pairs.check(ranks=4)


def test_an_arrangement_that_does_not_divide_the_ranks_shows_the_arithmetic() -> None:
    message = r"6 process\(es\) cannot be parallel.replicate 2 copies x parallel.tensor 2: 2 x 2 = 4 does not"
    with pytest.raises(TrainConfigError, match=message):
        ParallelConfig(tensor=2, replicate=2).check(6)
    with pytest.raises(TrainConfigError, match=r"parallel.tensor 0 must be at least 1"):
        ParallelConfig(tensor=0).check(1)
    with pytest.raises(TrainConfigError, match=r"selective has no access to layers compiled by inductor"):
        ParallelConfig(compile="inductor", activation_checkpointing="selective").check(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"save_every": 0}, "save_every 0 must be at least 1"),
        ({"keep_last": 0}, "keep_last 0 must be at least 1"),
        ({"keep_every": 700}, "keep_every 700 must be a multiple of save_every 500"),
        ({"log_every": -1}, "log_every -1 must be at least 1"),
        ({"steps": 1000}, "optim.warmup_steps 1000 must be below steps 1000"),
        (
            {"optim": OptimConfig(max_grad_norm=0)},
            "optim.max_grad_norm 0 must be above 0; .inf does not clip",
        ),
        ({"data": DataConfig(sources=[])}, "data.sources must be there"),
        (
            {"data": DataConfig(sources=[SourceConfig(name="a", path=Path(p)) for p in "xy"])},
            r"different names: \['a', 'a'\]",
        ),
        (
            {"data": DataConfig(sources=[SourceConfig(name="a", path=Path("x"), augment="flop")])},
            "data.sources.a.augment 'flop' must be one of none, crop, flip, crop_flip",
        ),
        ({"data": DataConfig(sources=config().data.sources, seed=-1)}, "data.seed -1 must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        config(**changes).check()


def test_no_clipping_is_written_as_infinity() -> None:
    config(optim=OptimConfig(max_grad_norm=math.inf)).check()
