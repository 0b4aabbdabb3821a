"""The moving average of the weights is what it says, survives interruptions and is shared out as they are."""

import dataclasses
from pathlib import Path

import pytest
import torch

from owl2.model import build
from owl2.train import loop
from owl2.train.config import EmaConfig, TrainConfig, TrainConfigError
from owl2.train.ema import MovingAverage
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.state.state import saved_states
from tests.train.ranks import Pool, all_returned
from tests.train.splits import OPTIM, split, train_on_rank
from tests.train.tiny import STAGE_1, run_until, run_whole, weights

DECAY = 0.75


def test_the_average_is_that_of_a_hand_computation_and_only_of_trainable_parameters() -> None:
    model = build("tiny")
    apply_freeze(model, assign_rules(model, STAGE_1, 0.0))
    average = MovingAverage(model, DECAY)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert average.averages.keys() == {name for name, _ in model.named_parameters()} - frozen
    name, parameter = next(iter(average.parameters.items()))
    with torch.no_grad():
        parameter.fill_(1.0)
    average.averages[name].fill_(0.0)
    for expected in (0.25, 0.4375, 0.578125):  # 1 - 0.75^n
        average.update()
        assert torch.equal(average.averages[name], torch.full_like(parameter, expected))
    average.copy_to_model()
    assert parameter.unique().tolist() == [0.578125]


@pytest.fixture(scope="module")
def averaged(whole: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run with an average that keeps the state of every step."""
    folder = tmp_path_factory.mktemp("averaged")
    config = dataclasses.replace(whole, run=folder, ema=EmaConfig(decay=DECAY), save_every=1, keep_last=9)
    run_whole(config)
    return config


def test_a_run_exports_the_average_of_the_weights_after_each_of_its_steps(
    averaged: TrainConfig, whole: TrainConfig
) -> None:
    start = weights(whole.model)
    names = [name for name in start if "rotary_emb" not in name]
    average = {name: start[name].clone() for name in names}
    for state in saved_states(averaged.run):
        for name, weight in weights(state).items():
            if name in average:
                average[name].mul_(DECAY).add_(weight, alpha=1 - DECAY)
    exported = weights(averaged.run / "checkpoint")
    for name in names:
        torch.testing.assert_close(exported[name], average[name], rtol=1e-5, atol=1e-7, msg=name)
    last = weights(whole.run / "checkpoint")
    assert not torch.equal(exported["lm_head.weight"], last["lm_head.weight"])


def test_the_average_changes_nothing_about_training_and_the_last_weights_can_be_exported(
    averaged: TrainConfig, whole: TrainConfig, tmp_path: Path
) -> None:
    ema = EmaConfig(decay=DECAY, checkpoint="last")
    config = dataclasses.replace(whole, run=tmp_path, ema=ema)
    run_whole(config)
    ours, theirs = weights(tmp_path / "checkpoint"), weights(whole.run / "checkpoint")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_run_has_the_average_of_the_uninterrupted_one_bit_for_bit(
    averaged: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(averaged, run=tmp_path, save_every=1000)
    for step in (2, 5):
        run_until(config, step, monkeypatch)
    run_whole(config)
    ours, theirs = weights(tmp_path / "checkpoint"), weights(averaged.run / "checkpoint")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_average_cannot_begin_in_the_middle_of_a_run(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 2, monkeypatch)
    with pytest.raises(TrainConfigError, match=r"ema\.decay: None -> 0\.75"):
        loop.train(dataclasses.replace(config, ema=EmaConfig(decay=DECAY)))


def test_two_ranks_average_the_parts_they_hold_and_one_goes_on_with_them(
    checkpoint: Path, whole: TrainConfig, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"steps": 4, "optim": OPTIM, "micro_batch_size": 4, "accumulation": 1, "save_every": 2}
    config = dataclasses.replace(whole, run=tmp_path / "one", ema=EmaConfig(decay=DECAY), **base)
    run_whole(config)
    many = split(config, tmp_path / "many", 2)
    all_returned(pool.run(2, train_on_rank, many))
    expected = weights(config.run / "checkpoint")
    assert_close(weights(many.run / "checkpoint"), expected)
    # The same run from its state after two steps, on one process.
    (many.run / "checkpoint").rename(tmp_path / "aside")
    for state in saved_states(many.run)[1:]:
        state.rename(tmp_path / state.name)
    run_whole(dataclasses.replace(config, run=many.run))
    assert_close(weights(many.run / "checkpoint"), expected)


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_that_is_no_share_is_an_error(whole: TrainConfig, decay: float) -> None:
    config = dataclasses.replace(whole, ema=EmaConfig(decay=decay))
    with pytest.raises(TrainConfigError, match=rf"ema\.decay = {decay} must be (above 0|below 1)"):
        config.check()
