"""What happens to one rank happens to all: stops, saves, errors and hangs; and any ranks resume any state."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from owl2.checkpoint import load_model
from owl2.data.loader import BatchLoader
from owl2.model import Owl2Model
from owl2.train import loop, parallel
from owl2.train.config import OptimConfig, ParallelConfig, TrainConfig
from owl2.train.metrics import Metrics, read_metrics
from owl2.train.parallel import Sharding
from owl2.train.ranks import start_ranks
from owl2.train.state import sharded as shards
from owl2.train.state.state import saved_states
from tests.train.ranks import TIMEOUT_S, Pool, Raised, all_returned
from tests.train.splits import Reference, assert_equal_runs, split, train_on_rank
from tests.train.tiny import quiet, run_until, run_whole, weights


def stop_on_rank(rank: int, config: TrainConfig, step: int, number: int) -> None:
    """Train, and send one of the ranks a signal after a step: twice, as scheduler and launcher do."""

    class Stopping(Metrics):
        def update(self, row: dict[str, float]) -> None:
            super().update(row)
            if rank == 1 and row["step"] == step:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)

    before, loop.Metrics = loop.Metrics, Stopping  # type: ignore[misc]
    try:
        loop.train(config, quiet())
    finally:
        loop.Metrics = before  # type: ignore[misc]


def stopped_at_2(config: TrainConfig, ranks: int, pool: Pool, number: int = signal.SIGTERM) -> None:
    results = pool.run(ranks, stop_on_rank, config, 2, number)
    assert all(isinstance(result, Raised) for result in results)
    assert {result.args[0] for result in results} == {
        "Interrupted: stopped after step 2 of 5; the same command continues it"
    }
    assert [state.name for state in saved_states(config.run)] == ["step-0000002"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)], ids=["TERM", "USR1"]
)
def test_a_signal_to_one_rank_saves_all_at_the_same_step_and_other_ranks_go_on(
    number: int, reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    """Two copies, stopped; then two tensor-parallel pairs."""
    whole = reference("stage 2")
    stopped_at_2(split(whole, tmp_path, 2), 2, pool, number)
    config = split(whole, tmp_path, 4, tensor=2)
    all_returned(pool.run(4, train_on_rank, config))
    assert_equal_runs(config, whole)


def test_a_state_of_many_ranks_resumes_on_one_and_one_of_one_on_many(
    reference: Reference, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference("stage 1")
    many = split(whole, tmp_path / "many", 4, replicate=2)
    stopped_at_2(many, 4, pool)
    run_whole(split(whole, many.run, 1))
    assert_equal_runs(many, whole)
    one = dataclasses.replace(whole, run=tmp_path / "one")
    run_until(one, 2, monkeypatch)
    all_returned(pool.run(2, train_on_rank, split(whole, one.run, 2, tensor=2)))
    assert_equal_runs(one, whole)


@pytest.mark.slow
def test_the_same_ranks_resume_bit_for_bit(reference: Reference, pool: Pool, tmp_path: Path) -> None:
    uninterrupted = split(reference("stage 2"), tmp_path / "whole", 2)
    all_returned(pool.run(2, train_on_rank, uninterrupted))
    stopped = dataclasses.replace(uninterrupted, run=tmp_path / "stopped")
    stopped_at_2(stopped, 2, pool)
    all_returned(pool.run(2, train_on_rank, stopped))
    ours, theirs = read_metrics(stopped.run), read_metrics(uninterrupted.run)
    assert [(r["loss"], r["grad_norm"]) for r in ours] == [(r["loss"], r["grad_norm"]) for r in theirs]
    kept, expected = weights(stopped.run / "checkpoint"), weights(uninterrupted.run / "checkpoint")
    assert all(torch.equal(kept[name], weight) for name, weight in expected.items())


def test_a_step_that_is_not_finite_stops_every_rank_with_the_samples_of_all(
    reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    huge = OptimConfig(lr=1e30, warmup_steps=1, max_grad_norm=float("inf"))
    config = dataclasses.replace(split(reference("stage 2"), tmp_path, 2), optim=huge)
    results = pool.run(2, train_on_rank, config)
    assert all("NotFiniteError: step 2: loss nan" in result.args[0] for result in results)
    assert len(json.loads((tmp_path / "bad_steps.jsonl").read_text())["samples"]) == 4
    assert len(read_metrics(tmp_path)) == 1


def sleep_on_rank(rank: int, config: TrainConfig) -> None:
    """Train, with one rank that does not come back from reading its third batch."""
    iterate = BatchLoader.micro_batches

    def sleepy(self: BatchLoader) -> Any:
        for number, batch in enumerate(iterate(self)):
            if rank == 1 and number == 2:
                time.sleep(1.5 * config.parallel.timeout_s)
            yield batch

    BatchLoader.micro_batches = sleepy  # type: ignore[method-assign]
    try:
        run_whole(config)
    finally:
        BatchLoader.micro_batches = iterate  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_by_a_timeout_that_names_it(
    reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    config = split(reference("stage 2"), tmp_path, 2)
    config = dataclasses.replace(config, parallel=ParallelConfig(timeout_s=40))
    waited, hung = pool.run(2, sleep_on_rank, config)
    assert "RankError: rank 0 of 2 lost another one: rank 1 reading micro-batch 1 of step 3" in waited.args[0]
    assert isinstance(hung, Raised)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bfloat16_computes_in_it_and_keeps_float32_weights(
    ranks: int, reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    whole = reference("stage 2")
    config = dataclasses.replace(split(whole, tmp_path, ranks), dtype="bfloat16", save_every=5)
    all_returned(pool.run(ranks, train_on_rank, config))
    ours, theirs = read_metrics(config.run), read_metrics(whole.run)
    assert [a["loss"] for a in ours] == pytest.approx([b["loss"] for b in theirs], rel=0.02)
    assert ours[0]["loss"] != theirs[0]["loss"]
    assert {t.dtype for t in weights(tmp_path / "checkpoint").values()} == {torch.bfloat16}
    for file in saved_states(tmp_path)[-1].glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def bytes_while_loading(rank: int, checkpoint: Path) -> tuple[int, int]:
    """Most bytes of weights that this rank held while it loaded a checkpoint, and those of the whole."""
    held: list[int] = []

    def watched(model: Owl2Model, sharding: Sharding, fill: parallel.Fill) -> None:
        def fill_and_look(part: nn.Module) -> None:
            fill(part)
            own = [parallel.local_part(p) for p in model.parameters() if not p.is_meta]
            held.append(sum(tensor.nbytes for tensor in own))

        parallel.shard_layers(model, sharding, fill_and_look)

    with start_ranks("cpu", 1, TIMEOUT_S, alone=False) as ranks:
        shards.shard_layers, before = watched, shards.shard_layers
        try:
            sharding = Sharding.over(ranks, ParallelConfig(), "cpu", torch.float32)
            model = shards.load_sharded(checkpoint, sharding, "cpu")
        finally:
            shards.shard_layers = before
        return max(held), sum(p.numel() * 4 for p in model.parameters())


def test_no_rank_holds_more_than_its_part_and_one_layer_while_a_checkpoint_is_read(
    checkpoint: Path, pool: Pool
) -> None:
    model = load_model(checkpoint, progress=False)
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in parallel.layers_of(model)]
    outside = sum(p.nbytes for p in model.parameters()) - sum(sizes)
    for peak, whole in all_returned(pool.run(4, bytes_while_loading, checkpoint)):
        assert whole == outside + sum(sizes)
        assert peak <= max(sum(sizes) / 4 + outside, sum(sizes) / 4 + max(sizes)) * 1.02
