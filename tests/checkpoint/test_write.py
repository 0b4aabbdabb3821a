"""Writing a folder: safetensors under the released names, all of it or nothing."""

import json
import resource
import shutil
import stat
from collections import namedtuple
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from owl2.checkpoint import CheckpointError, check_absent, load_model, save_checkpoint
from owl2.checkpoint.write import new_folder
from owl2.model import build

Usage = namedtuple("Usage", "total used free")


@contextmanager
def largest_file(num_bytes: int):
    """Let no file grow beyond `num_bytes`: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_written_folder_has_what_the_contract_says(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours", files={"tokenizer.json": b"{}"})
    written = {p.name for p in (tmp_path / "ours").iterdir()}
    assert written == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (raw["model_type"], raw["torch_dtype"]) == ("mplug_owl2", "float32")
    assert "4 heads" in (tmp_path / "ours" / "README.md").read_text()
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(tiny.state_dict())
        assert file.metadata() == {"format": "pt"}


def test_files_can_be_read_by_whoever_may_read_the_folder(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    folder_mode = (tmp_path / "ours").stat().st_mode
    for file in (tmp_path / "ours").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == folder_mode & 0o666


def test_a_large_model_is_split_into_shards_that_load_again(tiny, tmp_path):
    limit = 200_000
    save_checkpoint(tiny, tmp_path / "ours", max_shard_bytes=limit)
    shards = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in shards}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tiny.state_dict().values())
    assert all(shard.stat().st_size < limit + 20_000 for shard in shards)
    loaded = load_model(tmp_path / "ours", progress=False).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tiny.state_dict().items())


def test_the_processor_and_a_generation_config_are_written_too(tiny, tmp_path):
    class Words:
        def save(self, folder):
            (folder / "tokenizer.model").write_bytes(b"words")

    save_checkpoint(tiny, tmp_path / "ours", processor=Words(), generation_config={"temperature": 0.2})
    assert (tmp_path / "ours" / "tokenizer.model").read_bytes() == b"words"
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text()) == {"temperature": 0.2}


def test_an_older_checkpoint_is_replaced_whole(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours", max_shard_bytes=200_000)
    newer = build("tiny", seed=9)
    save_checkpoint(newer, tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("model-*"))
    assert torch.equal(load_model(tmp_path / "ours", progress=False).head_weight, newer.head_weight)
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_a_model_can_be_saved_over_the_folder_it_was_loaded_from(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", progress=False)
    save_checkpoint(loaded, tmp_path / "ours")
    again = load_model(tmp_path / "ours", progress=False).state_dict()
    assert all(torch.equal(again[name], value) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_a_folder_that_holds_other_things_is_not_replaced(tiny, tmp_path, make):
    (tmp_path / "photos").mkdir()
    make(tmp_path / "photos" / "summer.jpg")
    with pytest.raises(CheckpointError, match=r"holds files that no checkpoint has \(summer\.jpg\)"):
        save_checkpoint(tiny, tmp_path / "photos")
    assert (tmp_path / "photos" / "summer.jpg").exists()


def test_a_target_that_is_a_file_is_refused(tiny, tmp_path):
    (tmp_path / "ours").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        save_checkpoint(tiny, tmp_path / "ours")
    assert (tmp_path / "ours").read_text() == "mine"


def test_commands_refuse_a_target_that_exists(tmp_path):
    check_absent(tmp_path / "new")
    check_absent(tmp_path)
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="exists already"):
            check_absent(taken)


def test_too_little_room_is_told_in_numbers_before_anything_is_written(tiny, tmp_path, monkeypatch):
    save_checkpoint(tiny, tmp_path / "ours")
    before = contents(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1_500_000))
    with pytest.raises(
        CheckpointError, match=r"needs 17\.6 MB, but the disk has 1\.5 MB free; free 16\.1 MB"
    ):
        save_checkpoint(build("tiny", seed=4), tmp_path / "ours")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("limit", [100, 300_000])
def test_a_disk_that_runs_full_while_writing_leaves_the_older_checkpoint(tiny, tmp_path, limit):
    save_checkpoint(tiny, tmp_path / "ours")
    before = contents(tmp_path)
    with largest_file(limit), pytest.raises(CheckpointError, match=r"could not be written.*Nothing was left"):
        save_checkpoint(build("tiny", seed=4), tmp_path / "ours")
    assert contents(tmp_path) == before


def test_an_error_of_the_processor_leaves_nothing_behind(tiny, tmp_path):
    class Broken:
        def save(self, folder):
            raise KeyError("no vocabulary")

    with pytest.raises(KeyError, match="no vocabulary"):
        save_checkpoint(tiny, tmp_path / "ours", processor=Broken())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_by_the_next(tiny, tmp_path):
    with suppress(SystemExit), new_folder(tmp_path / "ours", need_bytes=0) as partial:
        (partial / "model.safetensors").write_bytes(b"half of it")
        left = partial.rename(tmp_path / "left")  # as if killed: nothing tidies up
        raise SystemExit
    left.rename(partial)
    save_checkpoint(tiny, tmp_path / "ours")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]
    assert torch.equal(load_model(tmp_path / "ours", progress=False).head_weight, tiny.head_weight)
