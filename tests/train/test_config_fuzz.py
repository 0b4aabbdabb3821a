"""Any values in a training configuration are accepted or refused with a message, never with a traceback."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from owl2.cli.train import read_config
from owl2.errors import Owl2Error
from owl2.train.config import (
    DataConfig,
    EmaConfig,
    LoraConfig,
    OptimConfig,
    ParallelConfig,
    Rule,
    SourceConfig,
    TrainConfig,
    ValidationConfig,
)
from owl2.train.optim import lr_at

STAGE = str(Path(__file__).parents[2] / "owl2/configs/tiny.yaml")
SOURCE = SourceConfig(name="a", path="a.jsonl")
GOOD = TrainConfig(
    run=Path("run"),
    model=Path("model"),
    data=DataConfig(sources=[SOURCE]),
    rules=[Rule(match="*")],
    steps=2000,
    global_batch_size=4,
    micro_batch_size=2,
    accumulation=2,
    validation=ValidationConfig(sources=[SOURCE]),
    ema=EmaConfig(decay=0.9),
    lora=LoraConfig(),
)
KEYS = [
    *(f.name for f in dataclasses.fields(TrainConfig)),
    *(f"optim.{f.name}" for f in dataclasses.fields(OptimConfig)),
    *(f"data.{f.name}" for f in dataclasses.fields(DataConfig)),
    *(f"data.sources.0.{f.name}" for f in dataclasses.fields(SourceConfig)),
    *(f"validation.{f.name}" for f in dataclasses.fields(ValidationConfig)),
    *(f"rules.0.{f.name}" for f in dataclasses.fields(Rule)),
    *(f"parallel.{f.name}" for f in dataclasses.fields(ParallelConfig)),
    *(f"lora.{f.name}" for f in dataclasses.fields(LoraConfig)),
    *(f"ema.{f.name}" for f in dataclasses.fields(EmaConfig)),
]
NUMBERS = (
    some.integers(-3, 12)
    | some.sampled_from([256, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30)])
    | some.floats()
    | some.booleans()
)
TEXTS = some.text(max_size=6) | some.sampled_from(
    ["", "none", "all", "size", "bfloat16", "nf4", "full", "~", "a\0b", "\ud83d", "\udcff", "cuda"]
)
ITEMS = NUMBERS | TEXTS | some.sampled_from([SOURCE, Rule(match="*")])
VALUES = ITEMS | some.none() | some.lists(ITEMS, max_size=3) | some.just({}) | some.builds(Path)


def replaced(value: Any, key: list[str], new: Any) -> Any:
    """A configuration with another value under a key; as it is where an earlier change took the key away."""
    if not key:
        return new
    if isinstance(value, list):
        return [replaced(item, key[1:], new) for item in value]
    if not hasattr(value, key[0]):
        return value
    return dataclasses.replace(value, **{key[0]: replaced(getattr(value, key[0]), key[1:], new)})


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=some.lists(some.tuples(some.sampled_from(KEYS), VALUES), max_size=3), ranks=some.integers(1, 2)
)
def test_a_configuration_of_any_values_is_accepted_or_refused_with_a_message(
    changes: list[tuple[str, Any]], ranks: int
) -> None:
    config = GOOD
    for key, value in changes:
        config = replaced(config, key.split("."), value)
    try:
        config.check(ranks)
    except Owl2Error:
        return
    # What is accepted can be used: the rates are finite, not negative and never above the peak.
    rates = [lr_at(step, config.steps, config.optim) for step in (0, config.steps // 2, config.steps - 1)]
    assert all(0 <= rate < math.inf for rate in rates)
    assert max(rates) <= config.optim.lr * (1 + 1e-9)


WORDS = some.text(max_size=8) | some.sampled_from(
    [
        "-1",
        "1e400",
        ".nan",
        ".inf",
        "null",
        "~",
        "[",
        "{a: b}",
        "[{}]",
        "- 1",
        "0x10",
        "1_000",
        "true",
        "!!int x",
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=some.lists(some.tuples(some.sampled_from(KEYS), WORDS), max_size=3))
def test_any_text_for_any_key_is_read_or_refused_with_a_message(words: list[tuple[str, str]]) -> None:
    with suppress(Owl2Error):
        read_config([STAGE, *(f"--{key}={text}" for key, text in words)]).check()
