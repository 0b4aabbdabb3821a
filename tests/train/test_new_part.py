"""A new part of the model is initialised, loaded, sharded, planned and trained, though no file lists it.

The part is between vision encoder and abstractor. It has a stack of layers that ranks can split, buffers in
and outside of it, and parameters that only images reach. The subclass that uses it is all of its wiring.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl2.checkpoint import load_model, save_checkpoint
from owl2.data.loader import Batch
from owl2.model import Owl2Model, Work, build, packed_layout, preset, reset_buffers, targets_of
from owl2.model import owl2 as wiring
from owl2.model.abstractor import VisualAbstractor
from owl2.model.config import VisionConfig
from owl2.model.parts import LayerStack, Split
from owl2.processor import SentencePieceTokenizer
from owl2.train.config import ParallelConfig
from owl2.train.flops import StepCost
from owl2.train.parallel import Sharding, drop_blank_gradients, layers_of, local_part, with_image
from owl2.train.plan.plan import GPUS, plan_exactly
from owl2.train.plan.tracer import shorten
from owl2.train.ranks import start_ranks
from owl2.train.rules import Rule, assign_rules
from owl2.train.state.sharded import load_sharded
from tests.data.small import write_corpora
from tests.model.tiny import IMAGE, images_of, random_samples
from tests.train.ranks import TIMEOUT_S, Pool, all_returned
from tests.train.splits import OPTIM, RULES, assert_equal_runs, split
from tests.train.test_plan import AVERAGES, tiny_stage
from tests.train.tiny import run_whole, stage, write_checkpoint

DEPTH = 6
NAMES = "model.visual_abstractor.prism."


class Table(nn.Module):
    """A buffer that no checkpoint has."""

    def __init__(self, size: int):
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", torch.empty(size), persistent=False)

    def reset_buffers(self) -> None:
        self.values.fill_(1.0)


class PrismLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.inner = nn.Sequential(nn.Identity(), Table(width))

    def tensor_parallel_plan(self) -> dict[str, Split]:
        return {"up": Split("columns", self.up.out_features), "down": Split("rows", self.up.out_features)}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x))) * self.inner[1].values


class Prism(nn.Module):
    """Image features (B, S, D) -> (B, S, D)."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(vision.hidden_size))
        self.layers = LayerStack(PrismLayer(vision.hidden_size) for _ in range(DEPTH))
        self.width, self.grid_size = vision.hidden_size, vision.grid_size
        self.places: Tensor
        self.register_buffer("places", torch.empty(vision.grid_size), persistent=False)

    def reset_buffers(self) -> None:
        self.places.copy_(torch.arange(self.grid_size))

    def set_vision(self, vision: VisionConfig) -> None:
        self.grid_size = vision.grid_size
        self.places = self.places.new_empty(vision.grid_size)

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    def flops(self, work: Work) -> float:
        return work.images * 2.0 * DEPTH * (self.grid_size**2 + 1) * 4 * self.width**2

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * (1 + self.gain) + self.places.mean()


class AbstractorWithPrism(VisualAbstractor):
    def __init__(self, *configs: Any):
        super().__init__(*configs)
        self.prism = Prism(configs[1])

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().forward(self.prism(features), grid)


@contextmanager
def new_part() -> Iterator[None]:
    """Models that are built in the block have the part."""
    wiring.VisualAbstractor = AbstractorWithPrism  # type: ignore[misc]
    try:
        yield
    finally:
        wiring.VisualAbstractor = VisualAbstractor  # type: ignore[misc]


def tables(model: Owl2Model) -> list[Tensor]:
    return [local_part(buffer) for name, buffer in model.named_buffers() if name.startswith(NAMES)]


def assert_filled(buffers: list[Tensor], grid_size: int = 4) -> None:
    places, *others = buffers
    assert places.tolist() == list(range(grid_size))
    assert len(others) == DEPTH
    assert all(buffer.eq(1).all() for buffer in others)


def load_on_rank(rank: int, checkpoint: Path) -> list[Tensor]:
    with new_part(), start_ranks("cpu", 1, TIMEOUT_S, alone=False) as ranks:
        sharding = Sharding.over(ranks, ParallelConfig(), "cpu", torch.float32)
        return tables(load_sharded(checkpoint, sharding, "cpu"))


def test_its_buffers_are_filled_when_it_is_built_loaded_resized_and_loaded_by_ranks(
    pool: Pool, tmp_path: Path
) -> None:
    with new_part():
        model = build("tiny")
        assert_filled(tables(model))
        save_checkpoint(model, tmp_path / "tiny")
        loaded = load_model(tmp_path / "tiny", progress=False)
        assert_filled(tables(loaded))
        loaded.set_image_size(112)
        assert_filled(tables(loaded), grid_size=8)
    for held in all_returned(pool.run(2, load_on_rank, tmp_path / "tiny")):
        assert_filled(held)


def test_a_buffer_that_nothing_fills_is_an_error_that_names_it() -> None:
    part = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(
        TypeError, match=r"BatchNorm1d has the buffers running_mean, .* no method reset_buffers"
    ):
        reset_buffers(part.modules())


def train_on_rank(rank: int, config: Any) -> None:
    with new_part():
        run_whole(config)


@pytest.mark.parametrize(
    "parallel", [{"tensor": 2}, {"activation_checkpointing": "full"}], ids=["split", "sharded"]
)
def test_ranks_train_it_as_one_process_does(
    parallel: dict[str, Any],
    pool: Pool,
    sentencepiece_tokenizer: SentencePieceTokenizer,
    tmp_path: Path,
) -> None:
    (tmp_path / "corpora").mkdir()
    corpora = write_corpora(tmp_path / "corpora")
    with new_part():
        checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
        settings = {"global_batch_size": 4, "micro_batch_size": 4, "accumulation": 1, "optim": OPTIM}
        whole = stage(tmp_path / "one", checkpoint, corpora, rules=RULES["stage 1"], steps=4, **settings)
        run_whole(whole)
    config = split(whole, tmp_path / "two", 2, **parallel)
    all_returned(pool.run(2, train_on_rank, config))
    assert_equal_runs(config, whole)


def test_rules_decide_for_it_and_its_learning_is_counted() -> None:
    with new_part():
        model = build("tiny")
    rules = [Rule(match=f"{NAMES}*", lr=0.5), Rule(match="*", frozen=True)]
    trained = {a.name for a in assign_rules(model, rules, 0.0) if not a.rule.frozen}
    assert trained == {name for name, _ in model.named_parameters() if ".prism." in name}
    assert len(trained) == 1 + 3 * DEPTH
    plain, work = build("tiny"), Work(images=2, tokens=0, targets=0, squares=0)
    more = StepCost(model, 1).flops(work) - StepCost(plain, 1).flops(work)
    assert more == 3 * model.model.visual_abstractor.prism.flops(work)  # type: ignore[union-attr, operator]


def test_its_gradients_are_dropped_in_a_step_without_images() -> None:
    with new_part():
        model = build("tiny")
    (text,) = random_samples("9")
    layout = packed_layout(text.ids, [9], IMAGE)
    batch = Batch(
        text.ids, layout, targets_of(text.labels, layout), torch.zeros(0, 3, 56, 56), keys=(), num_samples=1
    )
    batch = with_image(batch, preset("tiny"))
    model.token_losses(batch.input_ids, batch.layout, batch.targets, batch.pixel_values).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for n, p in model.named_parameters() if ".prism." in n)
    drop_blank_gradients(model)
    assert all(p.grad is None for n, p in model.named_parameters() if ".prism." in n)
    assert model.model.embed_tokens.weight.grad is not None


def test_a_plan_counts_all_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = tiny_stage("instruct", image_size=None, parallel=ParallelConfig(), micro_batch_size=2)
    config = dataclasses.replace(config, accumulation=2, global_batch_size=16, device="cuda")
    with new_part():
        assert list(shorten(build("tiny", device="meta")).values()) == [1 + DEPTH - 4]
        few = plan_exactly(config, model, 4, GPUS["h100"], AVERAGES)
        monkeypatch.setattr("owl2.train.plan.plan.shorten", lambda model: {})
        every = plan_exactly(config, model, 4, GPUS["h100"], AVERAGES)
    assert few.trace.peak == pytest.approx(every.trace.peak, rel=2e-3)
    assert dataclasses.replace(few.trace, peak=every.trace.peak) == every.trace
    assert few.num_parameters > plan_exactly(config, model, 4, GPUS["h100"], AVERAGES).num_parameters


def test_its_layers_come_before_the_decoders() -> None:
    with new_part():
        model = build("tiny", device="meta")
    kinds = [type(layer).__name__ for layer in layers_of(model)]
    assert kinds == 2 * ["VisionLayer"] + 2 * ["AbstractorLayer"] + DEPTH * ["PrismLayer"] + 2 * [
        "DecoderLayer"
    ]


def test_the_loss_reaches_it() -> None:
    with new_part():
        model = build("tiny")
    samples = random_samples("3 I 5")
    layout = packed_layout(samples[0].ids, [len(samples[0].ids)], IMAGE)
    targets = targets_of(samples[0].labels, layout)
    model.token_losses(samples[0].ids, layout, targets, images_of(samples)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if ".prism." in n)
