"""Steps that are not finite are skipped within a bound; what went wrong counts from the run's beginning."""

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from owl2.data.sample import DataError
from owl2.train import loop
from owl2.train.config import DataConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.parallel import local_part
from owl2.train.prepare import share_of_seen
from owl2.train.ranks import Ranks
from owl2.train.state.state import Seen, saved_states
from tests.data.small import turns, write_jsonl
from tests.train.ranks import Pool, all_returned
from tests.train.splits import Reference, split
from tests.train.test_loop import sample_keys
from tests.train.test_resume import assert_same_run
from tests.train.tiny import quiet, run_until, run_whole, stage, weights

Accumulate = Callable[[loop.Run, Any, Any, int], None]


def overflowing(steps: set[int], on_rank: int = 0) -> Accumulate:
    """The loop's own accumulation, with gradients of one rank that overflow in these steps (from 1)."""
    accumulate = loop.accumulate

    def overflow(run: loop.Run, batches: Any, tally: Any, step: int) -> None:
        accumulate(run, batches, tally, step)
        if step + 1 in steps and run.ranks.rank == on_rank:
            gradient = run.objective.model.lm_head.weight.grad
            assert gradient is not None
            local_part(gradient).fill_(math.inf)

    return overflow


def test_allowed_steps_that_are_not_finite_change_nothing_and_are_on_disk_with_their_samples(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "accumulate", overflowing({3, 5}))
    config = dataclasses.replace(whole, run=tmp_path, skip_nonfinite=2, save_every=1, keep_last=9)
    said = io.StringIO()
    loop.train(config, Console(file=said, width=400))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if row.get("skipped")] == [3, 5]
    assert [row["step"] for row in rows if math.isnan(row["grad_norm"])] == [3, 5]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text(), "JSON has no NaN"
    assert "skipped 1 of 2" in said.getvalue()
    assert "skipped 2 of 2" in said.getvalue()
    states = [weights(state) for state in saved_states(tmp_path)]
    for step, (before, after) in enumerate(itertools.pairwise(states), start=2):
        assert all(torch.equal(before[name], after[name]) for name in after) == (step in (3, 5)), step
    bad = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in bad] == [3, 5]
    for row in bad:
        draws = range(4 * (row["step"] - 1), 4 * row["step"])
        assert set(row["samples"]) == sample_keys(config, draws)


def test_skipped_steps_count_over_interruptions(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "accumulate", overflowing({3, 5}))
    uninterrupted = dataclasses.replace(whole, run=tmp_path / "uninterrupted", skip_nonfinite=2)
    run_whole(uninterrupted)
    config = dataclasses.replace(whole, run=tmp_path / "run", skip_nonfinite=1)
    run_until(config, 4, monkeypatch)
    with pytest.raises(loop.NotFiniteError, match=r"step 5: .*\(after 1 skipped steps\)"):
        run_whole(config)
    run_whole(dataclasses.replace(config, skip_nonfinite=2))
    ours, theirs = (
        [row["loss"] for row in read_metrics(run) if not row.get("skipped")]
        for run in (config.run, uninterrupted.run)
    )
    assert ours == theirs
    assert_same_run(config, uninterrupted)
    bad = (config.run / "bad_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in bad] == [3, 5], "what came after the state is forgotten"


def test_no_step_is_skipped_unless_that_is_asked_for(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "accumulate", overflowing({2}))
    with pytest.raises(loop.NotFiniteError, match=r"step 2: .*\(skip_nonfinite would allow some\)"):
        run_whole(dataclasses.replace(whole, run=tmp_path))
    with pytest.raises(TrainConfigError, match="skip_nonfinite = -1 must be 0 or more"):
        dataclasses.replace(whole, skip_nonfinite=-1).check()


def overflow_on_the_last(rank: int, config: TrainConfig) -> None:
    before, loop.accumulate = loop.accumulate, overflowing({2}, on_rank=1)
    try:
        loop.train(config, quiet())
    finally:
        loop.accumulate = before


def test_all_ranks_skip_what_overflows_on_one(reference: Reference, pool: Pool, tmp_path: Path) -> None:
    config = dataclasses.replace(split(reference("stage 2"), tmp_path, 2), skip_nonfinite=1)
    all_returned(pool.run(2, overflow_on_the_last, config))
    assert [row.get("skipped", 0) for row in read_metrics(tmp_path)] == [0, 1, 0, 0, 0]
    (row,) = (tmp_path / "bad_steps.jsonl").read_text().splitlines()
    assert len(json.loads(row)["samples"]) == 4


def test_unusable_samples_count_from_the_runs_beginning_whatever_interrupted_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"id": "good", "conversations": turns("what is two?", "an owl on a branch")}
    bad = {"id": "bad", "image": "nowhere.jpg", "conversations": turns("<image>", "an owl")}
    path = write_jsonl(tmp_path / "half.jsonl", [good, bad])
    one = {"global_batch_size": 1, "micro_batch_size": 1, "accumulation": 1}
    data = DataConfig(sources=[SourceConfig(name="half", path=path)], max_bad_fraction=0.2)
    whole = dataclasses.replace(stage(tmp_path / "whole", checkpoint, tmp_path, steps=40, **one), data=data)
    with pytest.raises(DataError, match=r"11 of \d+ samples could not be used") as stopped:
        run_whole(whole)
    config = dataclasses.replace(whole, run=tmp_path / "run")
    run_until(config, 9, monkeypatch)
    with pytest.raises(DataError) as again:
        run_whole(config)
    assert str(again.value) == str(stopped.value).replace("/whole/", "/run/")
    assert len(read_metrics(config.run)) == len(read_metrics(whole.run))


def test_no_draw_is_lost_or_counted_twice_when_other_ranks_go_on() -> None:
    seen = [Seen(10, {"a": 3}), Seen(11, {"a": 1, "b": 1})]
    assert share_of_seen(seen, Ranks(rank=1, size=2)) == seen[1]
    assert share_of_seen(seen, Ranks(rank=3, size=4, tensor=2)) == seen[1]
    for size in (1, 3, 4):
        parts = [share_of_seen(seen, Ranks(rank=rank, size=size)) for rank in range(size)]
        assert sum(part.drawn for part in parts) == 21
        assert sum(part.bad["a"] for part in parts) == 4
        assert sum(part.bad["b"] for part in parts) == 1
    assert share_of_seen([], Ranks()) == Seen()
