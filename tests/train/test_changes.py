"""What may change between two starts of a run: settings, data, folders; and what is said about the rest."""

import dataclasses
import errno
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from owl2.checkpoint import CheckpointError
from owl2.data.sample import DataError
from owl2.train import lock, loop
from owl2.train.config import DataConfig, OptimConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.report import write_report
from owl2.train.state.state import StateError, saved_states
from owl2.train.summary import Summary
from tests.data.small import turns, write_jsonl
from tests.train.test_resume import assert_same_run
from tests.train.tiny import STEPS, losses, quiet, run_until, run_whole, stage, weights


def said(config: TrainConfig) -> str:
    """What a run prints."""
    output = io.StringIO()
    loop.train(config, Console(file=output, width=300))
    return output.getvalue()


# -- finished runs ---------------------------------------------------------------------------------------


@pytest.fixture
def finished(whole: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A finished run with states."""
    config = dataclasses.replace(whole, run=tmp_path / "run", save_every=1)
    run_whole(config)
    return config


def test_a_finished_run_is_left_alone_whatever_does_not_change_its_result(finished: TrainConfig) -> None:
    written = (finished.run / "checkpoint/model.safetensors").stat().st_mtime_ns
    data = dataclasses.replace(finished.data, num_workers=1)
    again = dataclasses.replace(
        finished, micro_batch_size=4, accumulation=1, log_every=1, save_every=3, data=data
    )
    assert f"finished before; the result is {finished.run / 'checkpoint'}" in said(again)
    assert (finished.run / "checkpoint/model.safetensors").stat().st_mtime_ns == written


def test_a_finished_run_that_is_asked_for_another_result_says_what_differs(
    finished: TrainConfig, tmp_path: Path
) -> None:
    slower = OptimConfig(lr=1e-3, warmup_steps=2)
    moved = [dataclasses.replace(source, path=tmp_path) for source in finished.data.sources]
    others = {
        r"is finished, .* 1 key\(s\) .*\n  optim.lr: 0.01 -> 0.001\nSet them back, raise": {"optim": slower},
        r"is finished, .*\n  steps: 7 -> 5\n": {"steps": 5},
        r"is finished, .*\n  dtype: float32 -> bfloat16\n": {"dtype": "bfloat16"},
        r"is finished, .*\n  data.sources.captions.path: ": {
            "data": dataclasses.replace(finished.data, sources=moved)
        },
        r"was begun with another configuration, .*\n  model: ": {"model": tmp_path / "other"},
        r"was begun with another configuration, .*\n  data.seed: 0 -> 1\n": {
            "data": dataclasses.replace(finished.data, seed=1)
        },
    }
    for message, changes in others.items():
        with pytest.raises(TrainConfigError, match=message):
            loop.train(dataclasses.replace(finished, **changes), quiet())


def test_raised_steps_train_on_from_the_last_state_and_keep_the_result_so_far(finished: TrainConfig) -> None:
    before = weights(finished.run / "checkpoint")
    more = dataclasses.replace(finished, steps=9)
    text = said(more)
    assert "  steps: 7 -> 9\n" in text
    assert "the result so far is kept as" in text
    assert "continuing after step 7 of 9" in text
    assert len(losses(finished.run)) == 9
    kept = weights(finished.run / "checkpoint-before-1")
    assert all((kept[name] == tensor).all() for name, tensor in before.items())
    assert any((weights(finished.run / "checkpoint")[name] != t).any() for name, t in before.items())


def test_raised_steps_that_are_interrupted_are_not_taken_for_finished(
    finished: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = dataclasses.replace(finished, steps=10)
    twin = dataclasses.replace(more, run=shutil.copytree(finished.run, tmp_path / "twin"))
    run_until(more, 8, monkeypatch)
    assert not (finished.run / "checkpoint").exists()
    run_whole(more)
    run_whole(twin)
    assert_same_run(more, twin)


def test_raised_steps_without_a_state_are_refused_with_the_way_to_go_on(
    whole: TrainConfig, tmp_path: Path
) -> None:
    run = shutil.copytree(whole.run, tmp_path / "run")
    shutil.rmtree(run / "state", ignore_errors=True)
    with pytest.raises(
        TrainConfigError, match=r"no state to continue from; choose another `run`, with `model`"
    ):
        loop.train(dataclasses.replace(whole, run=run, steps=9), quiet())
    assert (run / "checkpoint").exists()


# -- data ------------------------------------------------------------------------------------------------


def chat(run: Path, checkpoint: Path, path: Path) -> TrainConfig:
    data = DataConfig(sources=[SourceConfig(name="chat", path=path, image_root=path.parent)], max_tokens=512)
    return stage(run, checkpoint, path.parent, data=data)


def reversed_rows(rows: list[str]) -> list[str]:
    return rows[::-1]


def edited_rows(rows: list[str]) -> list[str]:
    return [row.replace("owl", "elk") for row in rows]


def more_rows(rows: list[str]) -> list[str]:
    return [*rows, rows[0]]


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (reversed_rows, r"content of chat: \w{16} -> \w{16}"),
        (edited_rows, r"content of chat: \w{16} -> \w{16}"),
        (more_rows, "samples of chat: 20 -> 21"),
    ],
)
def test_data_that_changed_under_a_run_stops_it_until_that_is_accepted(
    edit: object,
    change: str,
    checkpoint: Path,
    corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(corpora, tmp_path / "corpora")
    config = chat(tmp_path / "run", checkpoint, copy / "chat.jsonl")
    run_until(config, 2, monkeypatch)
    rows = (copy / "chat.jsonl").read_text().splitlines()
    (copy / "chat.jsonl").write_text("\n".join(edit(rows)) + "\n")  # type: ignore[operator]
    before = (config.run / "metrics.jsonl").read_text()
    with pytest.raises(StateError, match=rf"{change}(.|\n)*set data.accept_edits to true"):
        loop.train(config, quiet())
    assert (config.run / "metrics.jsonl").read_text() == before
    accepted = dataclasses.replace(config, data=dataclasses.replace(config.data, accept_edits=True))
    run_until(accepted, 4, monkeypatch)
    text = said(config)  # the state has the new content, so nothing is left to accept
    assert "the data changed" not in text
    assert len(losses(config.run)) == STEPS


def test_accepted_edits_are_printed_and_other_orders_are_never_accepted(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(corpora, tmp_path / "corpora")
    config = chat(tmp_path / "run", checkpoint, copy / "chat.jsonl")
    run_until(config, 2, monkeypatch)
    (copy / "chat.jsonl").write_text((copy / "chat.jsonl").read_text().replace("owl", "elk"))
    accepted = dataclasses.replace(config, data=dataclasses.replace(config.data, accept_edits=True))
    for record in saved_states(config.run)[0].glob("step.json"):
        state = json.loads(record.read_text())
        state["order"]["seed"] = 5
        record.write_text(json.dumps(state))
    with pytest.raises(StateError, match=r"seed: 5 -> 0(.|\n)*restore the data, or choose") as error:
        loop.train(accepted, quiet())
    assert "accept_edits" not in str(error.value)
    state["order"]["seed"] = 0
    record.write_text(json.dumps(state))
    assert "the data changed after step 2:\n  content of chat: " in said(accepted)


def test_a_corpus_that_was_moved_is_the_same_corpus(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(corpora, tmp_path / "corpora")
    config = chat(tmp_path / "run", checkpoint, copy / "chat.jsonl")
    whole = dataclasses.replace(config, run=tmp_path / "whole")
    run_whole(whole)
    run_until(config, 2, monkeypatch)
    moved = copy.rename(tmp_path / "elsewhere")
    config = chat(tmp_path / "run", checkpoint, moved / "chat.jsonl")
    run_whole(config)
    assert_same_run(config, whole)


def test_a_run_of_an_earlier_version_goes_on(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states have no fingerprints of the data, and its configuration lacks the newer keys."""
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 3, monkeypatch)
    (record,) = saved_states(tmp_path)[-1].glob("step.json")
    state = json.loads(record.read_text())
    del state["order"]["content"]
    record.write_text(json.dumps(state))
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del settings["data"]["accept_edits"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "changed after step" not in said(config)
    assert_same_run(config, whole)


def test_a_damaged_configuration_of_a_run_is_an_error_that_names_it(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 1, monkeypatch)
    for damage in (b"", b"steps: [", b"\xff\xfe", b"- 1"):
        (tmp_path / "config.yaml").write_bytes(damage)
        with pytest.raises(TrainConfigError, match=r"config.yaml .*; restore it or choose another `run`"):
            loop.train(config, quiet())


# -- folders ---------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from owl2.train.prepare import open_run_folder
with open_run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_do_not_train_in_one_folder(whole: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(whole, run=tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(config.run)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            owner = rf"in this folder: process {other.pid} on {socket.gethostname()}, started \d+s ago; wait"
            with pytest.raises(TrainConfigError, match=f"another process is training {owner}"):
                loop.train(config, quiet())
        finally:
            other.kill()
    shown = said(config)  # a killed process holds nothing
    assert f"the lock of process {other.pid} on {socket.gethostname()}" in shown
    assert "is taken over" in shown
    assert losses(config.run) == losses(whole.run)
    assert not (config.run / ".lock").exists()


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_a_lock_of_another_host_counts_while_it_is_rewritten(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    if not has_locks:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    code = "import socket; socket.gethostname = lambda: 'far'\nfrom owl2.train import lock\n"
    code += "lock.HEARTBEAT_S = 0.05\nlock.fcntl.lockf = lambda *_: None\n" + HOLD
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with (
                pytest.raises(TrainConfigError, match=rf"process {other.pid} on far, started"),
                lock.open_run_folder(tmp_path, quiet()),
            ):
                pass
        finally:
            other.kill()
    output = io.StringIO()
    with lock.open_run_folder(tmp_path, Console(file=output, width=400)):
        owner = json.loads((tmp_path / ".lock").read_text())
        assert (owner["host"], owner["process"]) == (socket.gethostname(), os.getpid())
    assert "on far" in output.getvalue()
    assert "is taken over" in output.getvalue()
    assert not tmp_path.exists()


def test_an_empty_lock_of_a_killed_process_and_one_of_an_earlier_version_are_taken(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / ".lock").write_text(text)
        with lock.open_run_folder(tmp_path, quiet()):
            assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
        tmp_path.mkdir()


def test_what_the_result_does_not_depend_on_leaves_no_configuration_behind(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path)
    run_until(config, 2, monkeypatch)
    split = dataclasses.replace(config, micro_batch_size=4, accumulation=1, save_every=3)
    assert "  micro_batch_size: 2 -> 4\n" in said(split)
    assert not [*tmp_path.glob("config-until*")]
    attempt = json.loads((tmp_path / "run.json").read_text())["attempts"][1]
    assert attempt["changed"]["accumulation"] == [2, 1]


def test_a_run_that_cannot_have_its_folder_is_refused_before_anything_is_loaded(
    whole: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file/run", tmp_path / ("x" * 300)):
        config = dataclasses.replace(whole, run=run, model=tmp_path / "none")
        with pytest.raises(TrainConfigError, match="cannot be a folder that this run writes to"):
            loop.train(config, quiet())


def test_a_run_that_does_not_start_leaves_no_folder(whole: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; expected a folder, or a hub id"):
        loop.train(dataclasses.replace(whole, run=tmp_path / "run", model=tmp_path / "none"), quiet())
    assert not (tmp_path / "run").exists()


# -- what is lost or unusable ----------------------------------------------------------------------------


def shard(path: Path, keys: list[str], image: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in [
            (f"{key}{end}", d) for key in keys for end, d in ((".jpg", image), (".txt", b"owl"))
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def half_lost(corpora: Path, tmp_path: Path) -> SourceConfig:
    """Two shards of forty pairs, one of them cut in the middle."""
    with tarfile.open(next((corpora / "captions").glob("*.tar"))) as tar:
        member = next(member for member in tar if member.name.endswith(".jpg"))
        opened = tar.extractfile(member)
        assert opened is not None
        image = opened.read()
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        shard(folder / f"{number}.tar", [f"{number}-{n}" for n in range(40)], image)
    cut = folder / "1.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return SourceConfig(name="web", path=folder)


def test_lost_files_above_the_threshold_stop_a_run_before_its_first_step(
    half_lost: SourceConfig, checkpoint: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path / "run", checkpoint, tmp_path, data=DataConfig(sources=[half_lost]))
    with pytest.raises(
        DataError, match=r"web: about .* are lost, more than 1.0%.*raise data.max_bad_fraction"
    ):
        loop.train(config, quiet())
    assert not read_metrics(config.run)


def test_lost_files_below_the_threshold_are_in_the_console_the_summary_and_the_report(
    half_lost: SourceConfig, checkpoint: Path, tmp_path: Path
) -> None:
    data = DataConfig(sources=[half_lost], max_tokens=512, max_bad_fraction=0.9)
    config = stage(tmp_path / "run", checkpoint, tmp_path, data=data, steps=3)
    text = said(config)
    assert "1 file(s), " in text
    assert "1.tar" in text
    summary = Summary.read(config.run)
    assert summary is not None
    (corpus,) = summary.corpora
    assert [file for file, _ in corpus.lost] == ["1.tar"]
    assert 0.1 < corpus.lost_share < 0.9
    page = write_report(config.run).read_text()
    assert "1.tar" in page
    assert f"{corpus.lost_share:.1%}" in page


def test_unusable_samples_are_in_the_metrics_the_console_and_the_report(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [{"id": str(n), "conversations": turns("what is two?", "an owl on a branch")} for n in range(3)]
    bad = {"id": "bad", "image": "nowhere.jpg", "conversations": turns("<image>", "an owl")}
    path = write_jsonl(tmp_path / "quarter.jsonl", [*good, bad])
    data = DataConfig(sources=[SourceConfig(name="quarter", path=path)], max_bad_fraction=0.5)
    config = stage(tmp_path / "run", checkpoint, tmp_path, data=data)
    run_until(config, 3, monkeypatch)
    with (config.run / "bad_samples.jsonl").open("a") as file:
        file.write('{"source": "quar')  # as a killed process leaves it
    text = said(config)
    rows = read_metrics(config.run)
    assert [row.get("bad_samples", 0) for row in rows] == list(range(1, STEPS + 1))  # one of every four
    assert f"unusable {STEPS}" in text
    assert f"{STEPS} of {4 * STEPS} samples could not be used, see {config.run}/bad_samples.jsonl" in text
    lines = (config.run / "bad_samples.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == STEPS
    page = write_report(config.run).read_text()
    assert "unusable samples" in page
    assert "image is missing" in page
