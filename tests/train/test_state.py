"""A state is whole or absent: a full disk, a kill while saving and old leftovers never spoil a run."""

import dataclasses
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from owl2.checkpoint import CheckpointError
from owl2.model import Owl2Model, build
from owl2.train.config import OptimConfig, TrainConfig
from owl2.train.optim import make_optimizer
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.state.state import StateRecord, load_state, save_state, saved_states, tensors_of
from tests.model.tiny import images_of, pad, random_samples
from tests.train.tiny import STAGE_1, STAGE_2, losses, run_until, run_whole, weights


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def step_once(model: Owl2Model, optimizer: torch.optim.Optimizer) -> None:
    batch = pad(random_samples("2 I 3"))
    model(
        batch.input_ids, batch.attention_mask, images_of(random_samples("2 I 3"))
    ).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def trained(rules: str = "stage 2") -> tuple[Owl2Model, torch.optim.AdamW]:
    """A tiny model and its optimizer after one step."""
    model = build("tiny")
    assignments = assign_rules(model, STAGE_1 if rules == "stage 1" else STAGE_2, weight_decay=0.05)
    apply_freeze(model, assignments)
    optimizer = make_optimizer(model, assignments, OptimConfig())
    step_once(model, optimizer)
    return model, optimizer


def test_a_disk_that_runs_full_while_saving_is_a_clear_error_and_the_last_state_is_kept(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    run_until(config, 2, monkeypatch)
    before = weights(saved_states(tmp_path)[-1])
    with (
        file_size_limit(100_000),
        pytest.raises(CheckpointError, match=r"step-0000004 could not be written .*File too large.* rank 0"),
    ):
        run_whole(config)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-0000002"]
    after = weights(saved_states(tmp_path)[-1])
    assert all(torch.equal(before[name], after[name]) for name in before)
    run_whole(config)
    assert losses(tmp_path) == losses(whole.run)


def test_a_disk_known_to_be_too_full_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    save_state(tmp_path, StateRecord(1), tensors_of(model, optimizer), keep_last=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        CheckpointError, match=r"step-0000002 needs 1\d\.\d MB, but the disk has 1\.0 MB free"
    ):
        save_state(tmp_path, StateRecord(2), tensors_of(model, optimizer), keep_last=1)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-0000001"]


def test_a_save_that_was_killed_is_no_state_and_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    model, optimizer = trained()
    whole = save_state(tmp_path, StateRecord(3), tensors_of(model, optimizer), keep_last=2)
    killed = whole.with_name(".step-0000004.partial")
    shutil.copytree(whole, killed)
    (killed / "step.json").unlink()
    assert saved_states(tmp_path) == [whole]
    newest = save_state(tmp_path, StateRecord(5), tensors_of(model, optimizer), keep_last=2)
    assert sorted((tmp_path / "state").iterdir()) == [whole, newest]


def test_only_the_newest_states_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (9, 10, 99, 1000):
        save_state(tmp_path, StateRecord(step), tensors_of(model, optimizer), keep_last=3)
    assert [path.name for path in saved_states(tmp_path)] == ["step-0000010", "step-0000099", "step-0001000"]


def test_a_state_brings_back_weights_moments_and_step_counts_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save_state(tmp_path, StateRecord(1), tensors_of(model, optimizer), keep_last=1)
    other = build("tiny", seed=9)
    assignments = assign_rules(other, STAGE_2, weight_decay=0.05)
    again = make_optimizer(other, assignments, OptimConfig())
    assert load_state(folder, other, again) == StateRecord(1)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert optimizer.state[ours].keys() == again.state[theirs].keys()
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, again.state[theirs][key]), (name, key)
    shutil.rmtree(folder)  # nothing of it is still read
    for each, its_optimizer in ((model, optimizer), (other, again)):
        step_once(each, its_optimizer)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_parameters_have_no_moments(tmp_path: Path) -> None:
    model, optimizer = trained("stage 1")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "lm_head.weight" in frozen
    assert all(p not in optimizer.state for name, p in model.named_parameters() if name in frozen)
    folder = save_state(tmp_path, StateRecord(1), tensors_of(model, optimizer), keep_last=1)
    (file,) = folder.glob("*.safetensors")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    with safe_open(file, "pt") as opened:
        slots = {key for key in opened.keys() if key.startswith("optimizer.")}  # noqa: SIM118
    assert slots == {f"optimizer.{n}.{key}" for n in learning for key in ("exp_avg", "exp_avg_sq", "step")}


def test_states_after_a_multiple_of_keep_every_steps_are_never_deleted(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in range(2, 14, 2):
        save_state(tmp_path, StateRecord(step), tensors_of(model, optimizer), keep_last=1, keep_every=4)
    assert [int(path.name[5:]) for path in saved_states(tmp_path)] == [4, 8, 12]
    save_state(tmp_path, StateRecord(14), tensors_of(model, optimizer), keep_last=1, keep_every=4)
    assert [int(path.name[5:]) for path in saved_states(tmp_path)] == [4, 8, 12, 14]
