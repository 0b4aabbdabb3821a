"""What a run says of itself adds up: losses by source, operations, utilisation, memory."""

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from owl2.model import Work, build
from owl2.train import loop
from owl2.train.config import TrainConfig
from owl2.train.flops import StepCost, peak_memory
from owl2.train.metrics import console_line, duration, rates, read_metrics
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
    # The counter knows no causal mask.
    work = Work(2, batch.layout.num_tokens, batch.targets.count, 2 * sum(n * n for n in batch.layout.lengths))
    vision, abstractor = model.model.vision_model, model.model.visual_abstractor
    features = vision(batch.pixel_values).detach()
    assert counted(lambda: vision(batch.pixel_values)) == vision.flops(work)
    assert counted(lambda: abstractor(features, (4, 4))) == abstractor.flops(work)

    def decode() -> None:
        visual = torch.zeros(2, model.config.tokens_per_image, model.config.decoder.hidden_size)
        embedded = model.embed(batch.input_ids, batch.layout, visual_tokens=visual)
        model.logits(model.hidden(embedded, batch.layout, rows=batch.targets.rows))

    assert counted(decode) == model.model.layers.flops(work)


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


def test_the_console_has_one_line_a_step_with_every_figure(whole: TrainConfig, tmp_path: Path) -> None:
    said = io.StringIO()
    config = dataclasses.replace(whole, run=tmp_path, log_every=3)
    loop.train(config, Console(file=said, width=60))
    lines = [line for line in said.getvalue().splitlines() if "  step " in line]
    assert [int(re.findall(r"step +(\d+)/7", line)[0]) for line in lines] == [3, 6, 7]
    figures = r"loss \d.*  lr \S+  norm \S+  \S+ img/s  \S+ tok/s  wait \d+%  \d+\.\d\d GB  eta \d+s$"
    assert all(re.search(figures, line) for line in lines), lines


def test_utilisation_is_on_the_line_where_it_is_known(whole: TrainConfig) -> None:
    row = read_metrics(whole.run)[-1]
    assert "mfu 41%" in console_line({**row, "mfu": 0.412})
    assert "mfu" not in console_line(row)


def test_rates_follow_from_counts_and_seconds() -> None:
    row = {"tokens": 100, "images": 5, "seconds": 2.0, "data_wait": 0.5}
    assert rates(row) == {"tokens_per_second": 50, "images_per_second": 2.5, "data_wait_share": 0.25}


def test_a_duration_has_its_two_largest_units() -> None:
    said = [duration(s) for s in (0.4, 59.4, 59.6, 185, 3599.7, 25_920, 187_200)]
    assert said == ["0s", "59s", "1m00s", "3m05s", "1h00m", "7h12m", "2d04h"]
