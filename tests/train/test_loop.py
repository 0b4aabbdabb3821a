"""One step of training does what the paper's does: the right parameters, the right mean, nothing on a NaN."""

import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from owl2.data.order import Mixture
from owl2.data.readers.sources import open_source
from owl2.model import Owl2Model
from owl2.processor import Processor
from owl2.train import loop
from owl2.train.config import OptimConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.parallel import Objective
from owl2.train.ranks import Ranks
from owl2.train.state.state import saved_states
from tests.data.small import turns, write_jsonl
from tests.train.tiny import (
    STAGE_1,
    STEPS,
    losses,
    run_whole,
    stage,
    weights,
)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Owl2Model]:
    """Collects the models that are trained, as they are in memory."""
    seen: list[Owl2Model] = []
    load_stage = loop.load_stage

    def load(config: TrainConfig, ranks: Ranks) -> tuple[Objective, Processor]:
        objective, processor = load_stage(config, ranks)
        seen.append(objective.model)
        return objective, processor

    monkeypatch.setattr(loop, "load_stage", load)
    return seen


def test_the_loss_falls_and_every_step_is_measured(whole: TrainConfig) -> None:
    rows = read_metrics(whole.run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert {"loss", "lr", "grad_norm", "tokens", "images", "seconds"} <= rows[0].keys()
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    for row in rows:
        assert row["tokens"] > row["targets"] > 0
        assert row["seconds"] > row["data_wait"] > 0
    assert 0 < sum(row["images"] for row in rows) < STEPS * whole.global_batch_size
    assert [row["lr"] for row in rows[:2]] == [5e-3, 1e-2]
    assert rows[-1]["lr"] == whole.optim.min_lr


def test_an_untrained_model_begins_near_the_loss_of_guessing(whole: TrainConfig, checkpoint: Path) -> None:
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    assert abs(losses(whole.run)[0] - math.log(vocabulary)) < 0.7


def test_accumulating_four_batches_is_the_same_as_one_of_four_times_the_size(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    # eps far above the rounding of gradients, which Adam would otherwise blow up to whole updates
    changes = {"global_batch_size": 8, "optim": OptimConfig(lr=1e-2, warmup_steps=1, eps=1e-3)}
    one = stage(tmp_path / "one", checkpoint, corpora, micro_batch_size=8, accumulation=1, **changes)
    four = stage(tmp_path / "four", checkpoint, corpora, micro_batch_size=2, accumulation=4, **changes)
    for config in (one, four):
        run_whole(config)
    for a, b in zip(read_metrics(one.run), read_metrics(four.run), strict=True):
        assert [a[key] for key in ("tokens", "targets", "images")] == [b["tokens"], b["targets"], b["images"]]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    ours, theirs = weights(one.run / "checkpoint"), weights(four.run / "checkpoint")
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-6, atol=1e-6, msg=name)


def test_the_micro_batches_of_that_test_have_uneven_numbers_of_targets(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    """Otherwise a mean of means would pass it too."""
    config = stage(tmp_path, checkpoint, corpora, global_batch_size=8, accumulation=4)
    _, processor = loop.load_stage(config)
    batches = list(loop.make_loader(config, loop.open_dataset(config, processor), 0))
    counts = [batch.targets.count for batch in batches[:4] if batch is not None]
    assert max(counts) > 1.5 * min(counts)


def test_stage_1_moves_vision_abstractor_and_visual_weights_and_leaves_the_language_model_bit_for_bit(
    checkpoint: Path, corpora: Path, tmp_path: Path, models: list[Owl2Model]
) -> None:
    """After twenty steps."""
    config = stage(tmp_path, checkpoint, corpora, rules=STAGE_1, steps=20)
    config = dataclasses.replace(config, optim=OptimConfig(lr=1e-2, warmup_steps=1, weight_decay=0.0))
    run_whole(config)
    before, after = weights(checkpoint), weights(tmp_path / "checkpoint")
    still = {name for name in before if torch.equal(before[name], after[name])}
    learns = {name for name, p in models[0].named_parameters() if p.requires_grad}
    parameters = {name for name, _ in models[0].named_parameters()}
    assert parameters - learns <= still
    assert {name for name in parameters if ".multiway.1." in name} < learns
    assert "model.embed_tokens.weight" not in learns
    # No target directly follows an image, so what the last layer makes of visual rows is never read:
    # this norm feeds only their FFN. Its gradient is exactly zero.
    unread = "model.layers.1.post_attention_layernorm.multiway.1.weight"
    assert still & learns == {unread}
    # A key bias adds the same to all scores of a query and cancels in the softmax: what it gets is rounding.
    key_biases = {name for name in learns if name.endswith("attention.key.bias")}
    moved = {name: (after[name] - before[name]).abs().max().item() for name in learns - {unread}}
    assert max(moved[name] for name in key_biases) < 1e-3
    assert min(moved[name] for name in moved.keys() - key_biases) > 1e-3


def test_text_alone_in_stage_1_is_measured_and_changes_nothing(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (corpora / "chat.jsonl").read_text().splitlines()]
    text = write_jsonl(tmp_path / "text.jsonl", [row for row in rows if "image" not in row])
    config = stage(tmp_path / "run", checkpoint, corpora, rules=STAGE_1, steps=2)
    data = dataclasses.replace(config.data, sources=[SourceConfig(name="text", path=text)])
    run_whole(dataclasses.replace(config, data=data, optim=OptimConfig(warmup_steps=1)))
    assert min(losses(config.run)) > 1
    before, after = weights(checkpoint), weights(config.run / "checkpoint")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_not_finite_stops_before_the_update_with_its_samples_on_disk(
    checkpoint: Path, corpora: Path, tmp_path: Path, models: list[Owl2Model]
) -> None:
    # The first update makes every weight huge, so the second loss overflows.
    huge = OptimConfig(lr=1e30, warmup_steps=1, max_grad_norm=float("inf"))
    config = stage(tmp_path, checkpoint, corpora, save_every=1, optim=huge)
    with pytest.raises(loop.NotFiniteError, match=r"step 2: loss nan.* nothing was updated. The 4 samples"):
        run_whole(config)
    assert_stopped_before_step_2(config, models[0])


def test_a_gradient_that_is_not_finite_stops_before_the_update_as_well(
    checkpoint: Path, corpora: Path, tmp_path: Path, models: list[Owl2Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage(tmp_path, checkpoint, corpora, save_every=1)
    load, calls = loop.load_stage, []

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) > config.accumulation else gradient

    def load_and_watch(config: TrainConfig, ranks: Ranks) -> tuple[Objective, Processor]:
        objective, processor = load(config, ranks)
        objective.model.lm_head.weight.register_hook(overflow)
        return objective, processor

    monkeypatch.setattr(loop, "load_stage", load_and_watch)
    with pytest.raises(loop.NotFiniteError, match=r"step 2: loss \d\.\d+, gradient norm nan"):
        run_whole(config)
    assert_stopped_before_step_2(config, models[0])


def assert_stopped_before_step_2(config: TrainConfig, model: Owl2Model) -> None:
    newest = saved_states(config.run)[-1]
    assert newest.name == "step-0000001"
    kept = weights(newest)
    assert all(torch.equal(kept[name], parameter) for name, parameter in model.named_parameters())
    record = json.loads((config.run / "bad_steps.jsonl").read_text())
    assert record["step"] == 2
    assert set(record["samples"]) == sample_keys(config, range(4, 8))
    assert len(losses(config.run)) == 1
    assert not (config.run / "checkpoint").exists()


def sample_keys(config: TrainConfig, draws: range) -> set[str]:
    """The samples of these draws, from the order alone."""
    sources = [open_source(s.name, s.path, s.image_root) for s in config.data.sources]
    mixture = Mixture([len(s) for s in sources], [s.weight for s in config.data.sources], config.data.seed)
    drawn = [mixture[n] for n in draws]
    return {f"{sources[d.source].name}:{sources[d.source][d.index].key}" for d in drawn}


def test_a_step_without_any_usable_sample_updates_nothing_and_the_run_goes_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    good = {"id": "good", "conversations": turns("what is two?", "an owl on a branch")}
    bad = {"id": "bad", "image": "nowhere.jpg", "conversations": turns("<image>", "an owl")}
    path = write_jsonl(tmp_path / "half.jsonl", [good, bad])
    one_at_a_time = {"global_batch_size": 1, "micro_batch_size": 1, "accumulation": 1, "save_every": 1}
    config = stage(tmp_path / "run", checkpoint, tmp_path, steps=6, keep_last=9, **one_at_a_time)
    data = dataclasses.replace(config.data, sources=[SourceConfig(name="half", path=path)])
    run_whole(dataclasses.replace(config, data=data))
    rows = read_metrics(tmp_path / "run")
    usable = [row["targets"] > 0 for row in rows]
    assert set(usable) == {True, False}
    assert [row["loss"] > 0 for row in rows] == usable
    states = [weights(checkpoint), *(weights(state) for state in saved_states(tmp_path / "run"))]
    for is_usable, before, after in zip(usable, states, states[1:], strict=False):
        same = all(torch.equal(before[name], after[name]) for name in after)
        assert same != is_usable
    holes = (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()
    assert len(holes) == usable.count(False)


def test_a_run_prints_at_its_start_parameters_and_data_and_then_a_line_per_step(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    file = io.StringIO()
    config = stage(tmp_path / "run", checkpoint, corpora, rules=STAGE_1, steps=3, log_every=2)
    loop.train(config, Console(file=file, width=120))
    lines = file.getvalue().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0] for row in rows[:4]] == [rule.match for rule in STAGE_1]
    assert [row[3:] for row in rows[:4]] == [
        ["0.0081 to 0.01", "0 to 0.05"],
        ["0.01", "0 to 0.05"],
        ["0.01", "0 to 0.05"],
        ["frozen", ""],
    ]
    assert rows[4:] == [["captions", "20", "33.3%", "0", "0"], ["chat", "20", "66.7%", "0", "0"]]
    steps = [line for line in lines if "  run  step" in line]
    assert [line.split()[4] for line in steps] == ["2/3", "3/3"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  run ", line) for line in steps)
    assert all("img/s" in line and "eta" in line for line in steps)


def test_a_resolution_of_the_stages_own_is_what_its_checkpoint_has(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    run_whole(stage(tmp_path, checkpoint, corpora, image_size=84, steps=2, optim=OptimConfig(warmup_steps=1)))
    config = json.loads((tmp_path / "checkpoint/config.json").read_text())
    assert config["visual_config"]["visual_model"]["image_size"] == 84
    assert json.loads((tmp_path / "checkpoint/preprocessor_config.json").read_text())["size"] == 84


def test_samples_longer_than_the_decoders_context_are_refused_at_the_start(
    whole: TrainConfig, tmp_path: Path
) -> None:
    data = dataclasses.replace(whole.data, max_tokens=4096)
    with pytest.raises(TrainConfigError, match=r"data.max_tokens 4096 exceeds .* context, 2048 tokens"):
        run_whole(dataclasses.replace(whole, run=tmp_path, data=data))
