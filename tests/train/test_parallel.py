"""However the work is split, a run has the losses and gradient norms of one process."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from owl2.data.loader import Batch
from owl2.model import build, preset
from owl2.train.config import ParallelConfig, TrainConfig
from owl2.train.parallel import with_image
from owl2.train.prepare import load_stage, make_loader, open_dataset
from owl2.train.ranks import Ranks
from tests.train.ranks import Pool, all_returned
from tests.train.splits import Reference, assert_equal_runs, split, train_on_rank

ARRANGEMENTS = {
    "DP2": (2, {}),
    "HSDP 2x2": (4, {"replicate": 2}),
    "TP2": (2, {"tensor": 2}),
    "DP2 x TP2": (4, {"tensor": 2}),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_any_arrangement_of_ranks_has_the_losses_norms_and_weights_of_one_process(
    name: str, reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    ranks, parallel = ARRANGEMENTS[name]
    config = split(reference("stage 2"), tmp_path, ranks, **parallel)
    all_returned(pool.run(ranks, train_on_rank, config))
    assert_equal_runs(config, reference("stage 2"))


def test_accumulation_on_copies_exchanges_gradients_once_and_correctly(
    reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    config = split(reference("stage 2"), tmp_path, 2, accumulation=2, replicate=2)
    all_returned(pool.run(2, train_on_rank, config))
    assert_equal_runs(config, reference("stage 2"))


def test_stage_1_with_its_frozen_language_model_is_the_same_on_ranks_without_images(
    reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    whole = reference("stage 1")
    config = split(whole, tmp_path, 4)
    all_returned(pool.run(4, train_on_rank, config))
    assert_equal_runs(config, whole)
    assert without_images(config), "the test would show nothing"


def without_images(config: TrainConfig) -> list[Batch]:
    """The micro-batches of four ranks that have no image."""
    _, processor = load_stage(dataclasses.replace(config, parallel=ParallelConfig()))
    dataset = open_dataset(config, processor)
    per_rank = [make_loader(config, dataset, 0, Ranks(rank, 4)) for rank in range(4)]
    return [b for batches in per_rank for b in batches if b is not None and not len(b.pixel_values)]


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param({"activation_checkpointing": "full"}, id="all computed again"),
        pytest.param({"activation_checkpointing": "selective"}, id="products kept", marks=pytest.mark.slow),
        pytest.param({"compile": "aot_eager"}, id="compiled", marks=pytest.mark.slow),
        pytest.param(
            {"compile": "aot_eager", "activation_checkpointing": "full"}, id="both", marks=pytest.mark.slow
        ),
    ],
)
def test_layers_computed_again_or_compiled_change_nothing(
    parallel: dict[str, Any], reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    config = split(reference("stage 2"), tmp_path, 2, **parallel)
    all_returned(pool.run(2, train_on_rank, config))
    assert_equal_runs(config, reference("stage 2"))


def test_a_blank_image_has_no_loss_and_gives_every_parameter_a_gradient_of_zero() -> None:
    model = build("tiny")
    blank = with_image(None, preset("tiny"))
    loss = model.token_losses(blank.input_ids, blank.layout, blank.targets, blank.pixel_values).sum()
    loss.backward()
    assert loss.item() == 0
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or gradient.any()] == []
