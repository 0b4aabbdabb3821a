"""TensorBoard, W&B and trackio get every step once, under one name, over all interruptions of a run.

The real packages, without network: W&B offline, trackio in a database of the test's own.
"""

import dataclasses
import io
import json
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from owl2.train import loop, trackers
from owl2.train.config import TrackerName, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.state.state import saved_states
from owl2.train.trackers import TrackedRun
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import STEPS, quiet, run_until, run_whole

RATES = {"tokens_per_second", "images_per_second", "data_wait_share"}


class Notebook:
    """A tracker that keeps what it is sent as files in the run's folder, one a start."""

    overwrites = False

    def __init__(self, run: TrackedRun):
        number = len(list(run.folder.glob("notebook-*.jsonl")))
        self.path = run.folder / f"notebook-{run.id}-start-{number}.jsonl"
        self.path.touch()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self.path.with_suffix(".closed").touch()


def keep_notebooks(monkeypatch: pytest.MonkeyPatch, kind: type = Notebook) -> None:
    monkeypatch.setitem(trackers.KINDS, "wandb", (kind, "json", "wandb"))


def tracked(whole: TrainConfig, run: Path, *names: TrackerName, save_every: int = 2) -> TrainConfig:
    return dataclasses.replace(whole, run=run, trackers=list(names), save_every=save_every)


def lose_the_newest_state(run: Path) -> None:
    """As if the machine had died some steps after the state that is left."""
    shutil.rmtree(saved_states(run)[-1])


def test_a_tracker_has_every_step_once_under_one_name_after_steps_that_were_lost(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_notebooks(monkeypatch)
    config = tracked(whole, tmp_path, "wandb")
    run_until(config, 5, monkeypatch)
    lose_the_newest_state(tmp_path)
    run_until(config, 5, monkeypatch)  # steps 5 and 4 again
    lose_the_newest_state(tmp_path)
    run_whole(config)
    record = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    books = sorted(tmp_path.glob("notebook-*.jsonl"))
    assert {book.name.partition("-start-")[0] for book in books} == {f"notebook-{record['id']}"}
    rows = [json.loads(line) for book in books for line in book.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for sent, kept in zip(rows, read_metrics(tmp_path), strict=True):
        assert sent.keys() == kept.keys() | RATES
        assert sent["loss"] == kept["loss"], "the same step has the same loss again"
    assert len(list(tmp_path.glob("*.closed"))) == len(books)


def test_tensorboard_has_every_step_once_after_steps_that_were_lost(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tracked(whole, tmp_path, "tensorboard")
    run_until(config, 5, monkeypatch)
    lose_the_newest_state(tmp_path)
    run_whole(config)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0}).Reload()
    rows = read_metrics(tmp_path)
    assert set(events.Tags()["scalars"]) >= {"loss", "loss/chat", "lr", "grad_norm", *RATES}
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows]
    shown = [event.value for event in events.Scalars("loss")]
    assert shown == pytest.approx([row["loss"] for row in rows])


def test_wandb_goes_on_with_the_run_it_began(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tracked(whole, tmp_path, "wandb")
    run_until(config, 5, monkeypatch)
    lose_the_newest_state(tmp_path)
    run_whole(config)
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    rows = []
    for data in [data for file in files for data in logged(file.read_bytes())]:
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(tmp_path)]


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a W&B file: a log in the format of LevelDB behind a header of 7 bytes."""
    place, parts = 7, b""
    while place < len(data):
        if place % 32768 > 32768 - 7:  # the rest of a block has no room for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_trackio_goes_on_with_the_run_it_began(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    config = tracked(whole, tmp_path / "run", "trackio")
    run_until(config, 5, monkeypatch)
    lose_the_newest_state(config.run)
    run_whole(config)
    identity = json.loads((config.run / "trackers.json").read_text())["trackio"]["id"]
    rows = SQLiteStorage.get_logs("owl2", identity)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(config.run)]
    assert capsys.readouterr().out == "", "standard output is the checkpoint's path alone"


def test_only_the_first_rank_has_trackers(
    checkpoint: Path, whole: TrainConfig, tmp_path: Path, pool: Pool
) -> None:
    pytest.importorskip("tensorboard")
    config = split(tracked(whole, tmp_path, "tensorboard"), tmp_path, 2)
    short = dataclasses.replace(config, steps=2, optim=dataclasses.replace(config.optim, warmup_steps=1))
    all_returned(pool.run(2, train_on_rank, short))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_tracker_that_fails_is_switched_off_and_the_run_goes_on(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Notebook):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            if step == 3:
                raise ConnectionError("no route to host")
            super().log(step, values)

    keep_notebooks(monkeypatch, Broken)
    said = io.StringIO()
    loop.train(tracked(whole, tmp_path, "wandb"), Console(file=said, width=200))
    assert "wandb failed after step 3 (ConnectionError: no route to host); the run goes on" in said.getvalue()
    assert len(read_metrics(tmp_path)) == STEPS
    assert (tmp_path / "checkpoint").exists()


def test_a_tracker_whose_package_is_missing_is_an_error_before_any_work(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(tracked(whole, tmp_path / "run", "wandb"), model=tmp_path / "missing")
    with pytest.raises(TrainConfigError, match=r"trackers: wandb needs .*pip install 'owl2\[wandb\]'"):
        loop.train(config, quiet())
    assert not config.run.exists()


def test_a_tracker_that_does_not_exist_or_is_named_twice_is_an_error(whole: TrainConfig) -> None:
    for names in (["tensorbord"], ["wandb", "wandb"]):
        config = dataclasses.replace(whole, trackers=names)  # type: ignore[arg-type]
        with pytest.raises(TrainConfigError, match=r"must be .* of tensorboard, wandb, trackio"):
            config.check()


def test_a_tracker_that_is_added_in_the_middle_gets_what_comes_from_then_on(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_notebooks(monkeypatch)
    run_until(tracked(whole, tmp_path), 3, monkeypatch)
    run_whole(tracked(whole, tmp_path, "wandb"))
    (book,) = tmp_path.glob("notebook-*.jsonl")
    steps = [json.loads(line)["step"] for line in book.read_text().splitlines()]
    assert steps == list(range(4, STEPS + 1))
