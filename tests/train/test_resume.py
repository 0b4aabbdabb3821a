"""A run stopped, killed or failed at any step goes on as if nothing had happened, bit for bit."""

import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from owl2.checkpoint import CheckpointError
from owl2.data.loader import BatchLoader
from owl2.train import loop
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.state.state import saved_states
from tests.train.tiny import STAGE_1, STEPS, losses, run_until, run_whole, stage, weights

CHILD = """
import dataclasses, os, signal, subprocess, sys
from pathlib import Path
import torch
from owl2.train import loop
from owl2.train.metrics import Metrics
from tests.train.tiny import quiet, stage

run, checkpoint, corpora, step, kind, workers = sys.argv[1:]
torch.set_num_threads(1)

class Hit(Metrics):
    def update(self, row):
        super().update(row)
        if row["step"] == int(step):
            # The group is the run and its workers; the sender is another process, as a scheduler is.
            group = str(-os.getpid() if kind != "KILL" else os.getpid())
            subprocess.run(["kill", f"-{kind}", "--", group], start_new_session=True)

loop.Metrics = Hit
config = stage(Path(run), Path(checkpoint), Path(corpora), save_every=2)
data = dataclasses.replace(config.data, num_workers=int(workers))
loop.train(dataclasses.replace(config, data=data), quiet())
"""


def run_in_child(config: TrainConfig, corpora: Path, step: int, kind: str, workers: int) -> tuple[int, str]:
    """Run a stage, saving every second step, that is hit after `step`; return its exit code and errors."""
    arguments = [config.run, config.model, corpora, step, kind, workers]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def assert_same_run(config: TrainConfig, whole: TrainConfig) -> None:
    assert losses(config.run) == losses(whole.run)
    ours, theirs = weights(config.run / "checkpoint"), weights(whole.run / "checkpoint")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_asked_to_stop_after_any_step_goes_on_bit_for_bit(
    step: int, whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, step, monkeypatch)
    assert [state.name for state in saved_states(tmp_path)] == [f"step-{step:07d}"]
    assert not (tmp_path / "checkpoint").exists()
    run_whole(config)
    assert_same_run(config, whole)


def test_a_run_stopped_after_every_step_goes_on_bit_for_bit(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    for step in range(1, STEPS + 1):
        run_until(config, step, monkeypatch)
    run_whole(config)
    assert_same_run(config, whole)
    assert len(saved_states(tmp_path)) == config.keep_last


def test_a_run_killed_between_two_saves_goes_on_bit_for_bit(
    whole: TrainConfig, corpora: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    code, _ = run_in_child(config, corpora, 5, "KILL", workers=0)
    assert code == -signal.SIGKILL
    assert saved_states(tmp_path)[-1].name in (
        "step-0000002",
        "step-0000004",
    )  # whole, however far the last was
    assert len(losses(tmp_path)) == 5
    run_whole(config)
    assert_same_run(config, whole)


def test_a_signal_to_the_whole_process_group_lets_the_step_be_saved(
    whole: TrainConfig, corpora: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    code, errors = run_in_child(config, corpora, 3, "TERM", workers=2)
    assert code == 1
    assert errors.strip() == f"stopped after step 3 of {STEPS}; the same command continues it"
    assert saved_states(tmp_path)[-1].name == "step-0000003"
    run_whole(config)
    assert_same_run(config, whole)


def test_a_finished_run_does_nothing_when_it_is_run_again(whole: TrainConfig) -> None:
    def touched() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.run.rglob("*")}

    before = touched()
    assert run_whole(whole) == whole.run / "checkpoint"
    assert touched() == before


def test_what_was_measured_after_the_state_is_forgotten_and_a_torn_line_too(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 2, monkeypatch)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 99.0}) + '\n{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    run_whole(config)
    assert losses(tmp_path) == losses(whole.run)


def test_resuming_reads_no_sample_of_the_finished_steps(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 5, monkeypatch)
    seen: list[str] = []

    def watch(self: BatchLoader):  # type: ignore[no-untyped-def]
        for batch, _, is_last in self.loader:
            seen.extend(batch.keys)
            yield batch, is_last

    monkeypatch.setattr(BatchLoader, "micro_batches", watch)
    run_whole(config)
    assert len(seen) == (STEPS - 5) * config.global_batch_size


def test_a_damaged_state_is_set_aside_loudly_and_the_one_before_is_taken(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    run_until(config, 5, monkeypatch)
    newest = saved_states(tmp_path)[-1]
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    said = io.StringIO()
    loop.train(config, Console(file=said, width=400))
    assert re.search(r"step-0000005 is damaged: \S+safetensors has [\d,]+ bytes of [\d,]+", said.getvalue())
    assert "step-0000005.damaged; trying the state before" in said.getvalue()
    assert "continuing after step 4" in said.getvalue()
    assert_same_run(config, whole)


def test_a_state_with_a_changed_bit_is_damaged_and_the_one_before_it_is_named(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    run_until(config, 5, monkeypatch)
    before, newest = saved_states(tmp_path)
    (file,) = newest.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    said = io.StringIO()
    loop.train(config, Console(file=said, width=400))
    assert f"step-0000005 is damaged: {file.name} is not as it was written" in said.getvalue()
    assert f"trying the state before it, {before}" in said.getvalue()
    assert_same_run(config, whole)


def test_a_state_of_a_version_without_checksums_is_loaded(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 3, monkeypatch)
    path = saved_states(tmp_path)[-1] / "step.json"
    record = json.loads(path.read_text())
    assert record.pop("checksums").keys() == record["files"].keys()
    path.write_text(json.dumps(record))
    run_whole(config)
    assert_same_run(config, whole)


def test_a_run_whose_states_are_all_damaged_does_not_start_over_by_itself(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 2, monkeypatch)
    (saved_states(tmp_path)[-1] / "step.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"all 1 states of .* are damaged.*Remove that folder"):
        run_whole(config)


def test_another_model_order_or_rules_are_an_error_that_names_every_difference(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 1, monkeypatch)
    before = (tmp_path / "config.yaml").read_text()
    data = dataclasses.replace(config.data, seed=1, sources=config.data.sources[::-1])
    other = dataclasses.replace(config, image_size=84, data=data, rules=STAGE_1, steps=9)
    with pytest.raises(TrainConfigError, match=r"these 4 .* decide what it learns") as error:
        run_whole(other)
    lines = str(error.value).splitlines()
    assert "  image_size: None -> 84" in lines
    assert "  data.seed: 0 -> 1" in lines
    assert "  data.sources: ['captions', 'chat'] -> ['chat', 'captions']" in lines
    assert any(line.startswith("  rules: ") for line in lines)
    assert not any(line.startswith("  steps") for line in lines)
    assert (tmp_path / "config.yaml").read_text() == before


def test_more_steps_are_said_and_the_configuration_before_is_kept(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 2, monkeypatch)
    before = (tmp_path / "config.yaml").read_text()
    said = io.StringIO()
    loop.train(dataclasses.replace(config, steps=9, save_every=5), Console(file=said, width=200))
    assert "changed after step 2 (before: config-until-step-2.yaml)" in said.getvalue()
    assert "  steps: 7 -> 9\n" in said.getvalue()
    assert (tmp_path / "config-until-step-2.yaml").read_text() == before
    assert len(losses(tmp_path)) == 9


def test_a_corpus_that_grew_is_an_error_because_its_order_is_another(
    whole: TrainConfig, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(corpora, tmp_path / "corpora")
    config = stage(tmp_path / "run", whole.model, copy)
    run_until(config, 1, monkeypatch)
    lines = (copy / "chat.jsonl").read_text().splitlines()
    (copy / "chat.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(CheckpointError, match=r"another order of samples:\n  samples of chat: 20 -> 21\n"):
        run_whole(config)


def test_fewer_steps_than_are_done_is_an_error(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(dataclasses.replace(whole, run=tmp_path), 5, monkeypatch)
    with pytest.raises(TrainConfigError, match=r"steps 4, but .* has finished 5 already"):
        run_whole(dataclasses.replace(whole, run=tmp_path, steps=4))
    assert not (tmp_path / "checkpoint").exists()


def test_the_run_folder_says_how_it_was_made(whole: TrainConfig, checkpoint: Path, corpora: Path) -> None:
    from owl2.cli.train import read_config

    again = read_config([str(whole.run / "config.yaml")])
    assert again == whole == stage(whole.run, checkpoint, corpora)
