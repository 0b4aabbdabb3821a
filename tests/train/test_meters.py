"""What a run says of itself adds up: losses by source, operations, utilisation, memory."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from owl2.model import build
from owl2.train.config import TrainConfig
from owl2.train.flops import StepCost, Work, abstractor_flops, decoder_flops, peak_memory, vision_flops
from owl2.train.meters import read_metrics
from owl2.train.rules import apply_freeze, assign_rules
from tests.train.test_objectives import CAPTIONS, captioned
from tests.train.tiny import STAGE_1, STEPS


def test_the_losses_of_the_sources_are_those_of_their_tokens(whole: TrainConfig) -> None:
    rows = read_metrics(whole.run)
    seen = {key for row in rows for key in row if key.startswith("loss/")}
    assert seen == {"loss/captions", "loss/chat"}
    for row in rows:
        losses = [row[key] for key in seen & row.keys()]
        assert min(losses) - 1e-9 <= row["loss"] <= max(losses) + 1e-9
    assert len(rows) == STEPS


def test_operations_are_those_that_the_model_does() -> None:
    model = build("tiny").requires_grad_(False)
    batch = captioned(model, CAPTIONS, 2)
    features = model.model.vision_model(batch.pixel_values).detach()
    assert counted(lambda: model.model.vision_model(batch.pixel_values)) == 2 * vision_flops(model.config)
    abstractor = model.model.visual_abstractor
    assert counted(lambda: abstractor(features, (4, 4))) == 2 * abstractor_flops(model.config)

    def decode() -> None:
        visual = torch.zeros(2, model.config.tokens_per_image, model.config.decoder.hidden_size)
        embedded = model.embed(batch.input_ids, batch.layout, visual_tokens=visual)
        model.logits(model.hidden(embedded, batch.layout)[batch.targets.rows])

    # The counter knows no causal mask.
    work = Work(2, batch.layout.num_tokens, batch.targets.count, 2 * sum(n * n for n in batch.layout.lengths))
    assert counted(decode) == decoder_flops(model.config, work)


@torch.no_grad()
def counted(run: Callable[[], object]) -> int:
    """Operations of matrix products, with attention as two of them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_frozen_decoder_costs_no_gradients_of_its_weights_and_a_frozen_encoder_none_at_all() -> None:
    model = build("tiny")
    assert StepCost(model, 1).factors == [3, 3, 3]
    apply_freeze(model, assign_rules(model, STAGE_1, 0.0))
    vision, abstractor, decoder = StepCost(model, 1).factors
    assert (vision, abstractor) == (3, 3)
    assert 2 < decoder < 2.2
    model.model.vision_model.requires_grad_(False)
    assert StepCost(model, 1).factors[:2] == [1, 3]


def test_utilisation_is_of_every_device_and_unknown_on_a_cpu(whole: TrainConfig) -> None:
    cost, work = StepCost(build("tiny"), 4), Work(1, 10, 5, 50)
    assert cost.rates(work, 2.0) == {"tflops": pytest.approx(cost.flops(work) / 8e12)}
    row = read_metrics(whole.run)[-1]
    assert row["tflops"] > 0
    assert 50e6 < row["peak_memory"] <= peak_memory("cpu")
    assert "mfu" not in row
