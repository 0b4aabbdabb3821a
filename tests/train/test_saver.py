"""Saving in the background: a state is that of its step, complete or absent; failures are always raised."""

import dataclasses
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl2.checkpoint import CheckpointError, load_model
from owl2.train import loop
from owl2.train.config import TrainConfig
from owl2.train.fingerprints import frozen_fingerprints
from owl2.train.metrics import read_metrics
from owl2.train.ranks import ALONE
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.state import state
from owl2.train.state.state import StateError, saved_states
from tests.train.ranks import Pool
from tests.train.splits import Reference, split
from tests.train.test_resume import assert_same_run
from tests.train.tiny import (
    STAGE_1,
    STEPS,
    losses,
    quiet,
    run_until,
    run_whole,
    stage,
    weights,
    write_checkpoint,
)


def test_a_state_written_in_the_background_is_that_of_its_step_bit_for_bit(
    whole: TrainConfig, tmp_path: Path
) -> None:
    every = dataclasses.replace(whole, save_every=3)
    background = dataclasses.replace(every, run=tmp_path / "background")
    between = dataclasses.replace(every, run=tmp_path / "between", save_in_background=False)
    for config in (background, between):
        run_whole(config)
    assert len(saved_states(background.run)) == len(saved_states(between.run)) == 2
    for one, other in zip(saved_states(background.run), saved_states(between.run), strict=True):
        (ours,), (theirs,) = (map(load_file, folder.glob("*.safetensors")) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_one_save_is_in_progress_at_a_time_and_a_request_to_stop_waits_for_it(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = [0], [0]

    def slow(*arguments: Any, **options: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.5)
        save_file(*arguments, **options)
        under_way[0] -= 1

    monkeypatch.setattr(state, "save_file", slow)
    config = dataclasses.replace(whole, run=tmp_path, save_every=1, keep_last=STEPS)
    run_until(config, 3, monkeypatch)
    assert most == [1]
    assert under_way == [0]
    assert [path.name[-1] for path in saved_states(tmp_path)] == ["1", "2", "3"]


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from owl2.cli.train import read_config
from owl2.train import loop
from owl2.train.state import state
from tests.train.tiny import quiet

torch.set_num_threads(1)
write = state.save_file
saves = []

def die_in_the_middle(tensors, path, metadata):
    write(tensors, path, metadata)
    saves.append(path)
    if len(saves) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

state.save_file = die_in_the_middle
loop.train(read_config([sys.argv[1]]), quiet())
"""


def test_a_run_killed_in_the_middle_of_a_background_save_resumes_from_the_state_before(
    whole: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(whole, run=tmp_path / "run", save_every=2)
    file = write_config(config, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file)], cwd=Path(__file__).parents[2], timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (config.run / "state").iterdir())
    assert left == [".step-0000004.partial", "step-0000002"]
    run_whole(config)
    assert_same_run(config, whole)
    assert not list((config.run / "state").glob(".*"))


def write_config(config: TrainConfig, folder: Path) -> Path:
    import yaml

    from owl2.train.config import config_to_dict

    file = folder / "stage.yaml"
    file.write_text(yaml.safe_dump(config_to_dict(config)))
    return file


def train_with_little_room_on(rank: int, config: TrainConfig, full: int) -> str:
    """Train on ranks, one of which can write no large file; the metrics' first step was undisturbed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        return str(run_whole(config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_runs_full_on_one_rank_stops_all_at_the_next_step_and_the_last_state_is_kept(
    reference: Reference, pool: Pool, tmp_path: Path
) -> None:
    config = dataclasses.replace(split(reference("stage 2"), tmp_path, 2), save_every=1)
    results = pool.run(2, train_with_little_room_on, config, 1)
    for result in results:
        message = result.args[0]
        assert "step-0000001 could not be written on 1 of 2 rank(s)" in message, message
        assert "File too large" in message
        assert "on rank 1" in message
    assert not (tmp_path / "checkpoint").exists()
    assert list((tmp_path / "state").iterdir()) == []


def test_a_failed_write_is_raised_at_the_next_step_and_not_only_at_the_next_save(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=5)
    written = threading.Event()

    def full(*_: Any, **__: Any) -> None:
        written.set()
        raise OSError(28, "No space left on device")

    accumulate = loop.accumulate

    def wait_for_the_disk(run: loop.Run, batches: Any, tally: Any, step: int) -> None:
        if step == 5:
            assert written.wait(20)
            time.sleep(0.5)
        accumulate(run, batches, tally, step)

    monkeypatch.setattr(state, "save_file", full)
    monkeypatch.setattr(loop, "accumulate", wait_for_the_disk)
    with pytest.raises(CheckpointError, match=r"step-0000005 could not be .*No space left.*free room"):
        run_whole(config)
    assert len(losses(tmp_path)) in (5, 6)  # the write failed during step 6 at the latest
    assert not (tmp_path / "checkpoint").exists()


def test_a_state_has_trainable_parameters_only_and_the_result_is_complete(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path, checkpoint, corpora, rules=STAGE_1, save_every=STEPS)
    run_whole(config)
    model = load_model(checkpoint, progress=False)
    apply_freeze(model, assign_rules(model, STAGE_1, 0.0))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert weights(saved_states(tmp_path)[-1]).keys() == learning
    assert weights(tmp_path / "checkpoint").keys() == weights(checkpoint).keys() > learning


def test_a_run_goes_on_from_no_other_frozen_weights_than_it_began_with(
    checkpoint: Path,
    corpora: Path,
    tmp_path: Path,
    sentencepiece_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    config = stage(tmp_path / "run", base, corpora, rules=STAGE_1)
    run_until(config, 2, monkeypatch)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][3, 5] += 1e-6
    tensors["model.visual_abstractor.vit_eos"] += 1  # learns, so it is that of the state
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StateError, match=r"frozen weights: 1 of \d+ .*\(lm_head.weight\).* restore the"):
        run_whole(config)
    tensors["lm_head.weight"] = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    run_whole(config)
    untouched = stage(tmp_path / "untouched", checkpoint, corpora, rules=STAGE_1)
    run_whole(untouched)
    assert_same_run(config, untouched)


def test_the_fingerprint_of_a_parameter_changes_with_any_of_its_bits(checkpoint: Path) -> None:
    model = load_model(checkpoint, progress=False).requires_grad_(False)
    before = frozen_fingerprints(model, ALONE)
    weight = model.lm_head.weight.view(torch.int32)
    seen = {before["lm_head.weight"]}
    for bit in range(32):
        weight[7, 1] ^= torch.tensor(-(2**31) if bit == 31 else 2**bit, dtype=torch.int32)
        after = frozen_fingerprints(model, ALONE)
        assert {name for name in before if before[name] != after[name]} == {"lm_head.weight"}
        seen.add(after["lm_head.weight"])
    assert len(seen) == 33


def test_nothing_is_lost_when_a_run_fails_while_a_save_is_under_way(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> None:
        time.sleep(0.5)
        save_file(*arguments, **options)

    def fail(run: loop.Run, batches: Any, tally: Any, step: int) -> None:
        if step == 2:
            raise RuntimeError("a bug")
        accumulate(run, batches, tally, step)

    accumulate = loop.accumulate
    monkeypatch.setattr(state, "save_file", slow)
    monkeypatch.setattr(loop, "accumulate", fail)
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.train(config, quiet())
    assert [path.name for path in saved_states(tmp_path)] == ["step-0000002"]
    assert len(read_metrics(tmp_path)) == 2
