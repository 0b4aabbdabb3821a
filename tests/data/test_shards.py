"""The index of a shard: made once, kept outside the corpus, and never believed when the shard has changed."""

import multiprocessing
import os
from pathlib import Path

import pytest

from owl2.data.readers.cache import MAX_SLICE_BYTES, _drop_oldest
from owl2.data.readers.shards import Shard, TarSource, index_path, open_shard
from owl2.data.readers.storage import look_at
from owl2.data.sample import DataError
from tests.data.small import jpeg, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return write_shard(tmp_path / "corpus" / "0.tar", 100)


def write_shard(path: Path, num_pairs: int, first: int = 0) -> Path:
    members = {}
    for number in range(num_pairs):
        members |= {f"{number}.jpg": jpeg(number % 20), f"{number}.txt": b"owl %d" % (first + number)}
    return write_tar(path, members)


def captions(folder: Path) -> list[str]:
    source = TarSource("captions", folder)
    return [source[index].messages[1]["content"] for index in range(len(source))]


def test_an_index_takes_sixteen_bytes_a_pair_and_lies_outside_the_corpus(shard: Path) -> None:
    path = index_path(look_at(shard))
    open_shard(look_at(shard))
    with path.open("rb") as file:
        file.readline()
        assert len(file.read()) == 16 * 100
    assert os.listdir(shard.parent) == ["0.tar"]


def test_an_index_is_made_once(shard: Path) -> None:
    opened = open_shard(look_at(shard))
    before = opened.index.stat()
    assert open_shard(look_at(shard)) == opened
    after = opened.index.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_shard_that_changed_is_indexed_again(shard: Path) -> None:
    assert captions(shard.parent) == [f"owl {n}" for n in range(100)]
    write_shard(shard, 7, first=50)
    assert captions(shard.parent) == [f"owl {n}" for n in range(50, 57)]


def test_a_shard_that_changes_while_it_is_read_is_an_error_and_never_other_bytes(shard: Path) -> None:
    source = TarSource("captions", shard.parent)
    data = shard.read_bytes()
    shard.write_bytes(data[512:] + data[:512])
    with pytest.raises(DataError, match=r"0\.tar has changed since it was indexed: at \d+ is"):
        source[40]


def test_a_damaged_shard_is_remembered_with_its_reason(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-20_000])
    first, second = open_shard(look_at(shard)), open_shard(look_at(shard))
    assert first == second
    assert f"shard {shard} is " in str(first.damage)


def test_processes_that_start_together_make_one_index(shard: Path, own_cache: Path) -> None:
    stored = look_at(shard)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        opened: list[Shard] = pool.map(open_shard, [stored] * 8)
    assert opened == [opened[0]] * 8
    assert os.listdir(own_cache / "index") == [opened[0].index.name]


def test_a_cache_that_cannot_be_written_is_named(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/index cannot be made .*; set OWL2_CACHE to a folder"):
        TarSource("captions", shard.parent)


def test_pieces_of_shards_are_dropped_from_the_oldest_on(tmp_path: Path) -> None:
    for number in range(4):
        with (tmp_path / f"{number}").open("wb") as file:
            file.truncate(MAX_SLICE_BYTES // 3)
        os.utime(tmp_path / f"{number}", ns=(0, 1000 - number))
    _drop_oldest(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
