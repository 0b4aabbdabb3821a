"""Tables in the cache: written once, by the first process that needs it, whole or not at all; the others in
place."""

import multiprocessing
import os
import pickle
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from owl2.data.readers import storage
from owl2.data.readers.arrow import ROWS, Table, open_table
from owl2.data.readers.sources import open_source
from owl2.data.readers.storage import StorageError, look_at
from owl2.data.sample import DataError
from tests.data.hub import write_arrow, write_parquet, write_stream
from tests.data.web import Server


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pairs(count: int, first: int = 0, image: bytes = b"no image") -> pa.Table:
    captions = [f"owl {number}" for number in range(first, first + count)]
    return pa.table({"image": [image] * count, "text": captions})


def captions(path: Path) -> list[str]:
    source = open_source("web", path)
    return [source[index].messages[1]["content"] for index in range(len(source))]


def owls(count: int, first: int = 0) -> list[str]:
    return [f"owl {number}" for number in range(first, first + count)]


def prepare(path: Path) -> Table:
    return open_table(look_at(path), lambda path, schema: schema.names)


@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
@pytest.mark.parametrize("write", [write_parquet, write_stream])
def test_rows_are_in_even_batches_however_many_there_are(
    tmp_path: Path, write: Callable[..., Path], count: int
) -> None:
    path = write(tmp_path / ("a.parquet" if write is write_parquet else "a.arrow"), pairs(count))
    table = prepare(path)
    assert (table.num_rows, list(table.firsts)) == (count, list(range(0, count, ROWS)))
    assert captions(path) == owls(count)


def test_a_table_is_written_once_and_again_when_it_changed(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", pairs(100))
    assert captions(path) == owls(100)
    assert "web: preparing 1 of 1 files (0.0 MB) of" in capsys.readouterr().err
    (kept,) = (own_cache / "tables").iterdir()
    before = kept.stat()
    assert captions(path) == owls(100)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert capsys.readouterr().err == ""
    write_parquet(path, pairs(7, first=50))
    assert captions(path) == owls(7, first=50)


def test_an_arrow_file_is_read_where_it_lies_unless_it_is_compressed(tmp_path: Path, own_cache: Path) -> None:
    plain = write_arrow(tmp_path / "plain.arrow", pairs(100))
    assert captions(plain) == owls(100)
    assert not list(own_cache.glob("tables/*"))
    packed = write_arrow(tmp_path / "packed.arrow", pairs(100, image=bytes(500)), compression="zstd")
    assert captions(packed) == owls(100)
    assert len(list(own_cache.glob("tables/*"))) == 1


def test_dictionaries_of_row_groups_become_plain_text(tmp_path: Path) -> None:
    table = pairs(300)
    table = table.set_column(1, "text", table["text"].dictionary_encode())
    assert captions(write_parquet(tmp_path / "a.parquet", table, row_group_size=70)) == owls(300)
    assert captions(write_arrow(tmp_path / "a.arrow", table)) == owls(300)


def test_processes_that_start_together_make_one_table(tmp_path: Path, own_cache: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pairs(2000))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(captions, [path] * 8) == [owls(2000)] * 8
    assert len(list((own_cache / "tables").iterdir())) == 1


def cut(data: bytes) -> bytes:
    return data[:-1000]


def cut_between_batches(data: bytes) -> bytes:
    return data[:-8]


def broken(data: bytes) -> bytes:
    return data[:5000] + bytes(200) + data[5200:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.parquet", cut),
        ("a.parquet", broken),
        ("a.parquet", lambda data: b""),
        ("a.parquet", lambda data: b"<html>404</html>"),
        ("a.arrow", cut),
        ("a.arrow", lambda data: b""),
        ("stream.arrow", cut),
        ("stream.arrow", cut_between_batches),
    ],
)
def test_a_damaged_table_is_remembered_with_its_reason_and_leaves_nothing_half_written(
    tmp_path: Path, own_cache: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    write = {"a.parquet": write_parquet, "a.arrow": write_arrow, "stream.arrow": write_stream}[name]
    checked = {"write_page_checksum": True} if write is write_parquet else {}
    path = write(tmp_path / name, pairs(1000, image=os.urandom(50)), **checked)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"web: table {path} is damaged or none: .*; make or fetch it again"):
        open_source("web", path)
    assert [file.suffix for file in (own_cache / "tables").iterdir()] == [".damage"]
    assert prepare(path) == prepare(path)


def test_a_table_that_cannot_be_reached_is_tried_again_at_the_next_start(
    tmp_path: Path, own_cache: Path
) -> None:
    path = write_parquet(tmp_path / "a.parquet", pairs(3))
    stored, data = look_at(path), path.read_bytes()
    path.unlink()
    assert "No such file" in str(open_table(stored, lambda path, schema: None).damage)
    assert list((own_cache / "tables").iterdir()) == []
    path.write_bytes(data)
    assert open_table(stored, lambda path, schema: None).num_rows == 3


def test_a_disk_without_room_is_named_and_left_as_it_was(tmp_path: Path, own_cache: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pairs(1000, image=os.urandom(2000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            DataError, match=r"bytes\) cannot be written to .*tables: .*free there; set OWL2_CACHE"
        ):
            open_source("web", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((own_cache / "tables").iterdir()) == []
    assert len(open_source("web", path)) == 1000


def test_columns_of_no_use_are_an_error_before_anything_is_written(tmp_path: Path, own_cache: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"pixels": [b"x"]}))
    with pytest.raises(DataError, match="has no image, no caption"):
        open_source("web", path)
    assert list((own_cache / "tables").iterdir()) == []


def test_a_file_that_changes_before_a_process_maps_it_is_an_error(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", pairs(9))
    source = pickle.dumps(open_source("web", path))
    write_arrow(path, pairs(10))
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(DataError, match="has changed since"),
    ):
        pool.apply(_first_of_a_fresh_process, [source])


def _first_of_a_fresh_process(source: bytes) -> str:
    from owl2.data.readers import arrow

    arrow._map.cache_clear()
    return str(pickle.loads(source)[0].key)


def test_storage_that_fails_on_the_way_stops_and_the_table_is_not_taken_for_damaged(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_S", (0.0,))
    (tmp_path / "web").mkdir()
    write_parquet(tmp_path / "web" / "a.parquet", pairs(500))
    with Server(tmp_path / "web").running() as web:
        web.failures = [503] * 2
        with pytest.raises(StorageError, match=r"a\.parquet could not be read: .*503"):
            open_source("web", f"{web.url}/a.parquet")
        assert list((own_cache / "tables").iterdir()) == []
        assert len(open_source("web", f"{web.url}/a.parquet")) == 500


def test_a_hundred_thousand_rows_take_no_memory(tmp_path: Path) -> None:
    path, expected = write_parquet(tmp_path / "a.parquet", pairs(100_000)), owls(100_000)[::997]
    open_source("web", path)
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    source = open_source("web", path)
    assert [source[index].text.strip() for index in range(0, 100_000, 997)] == expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pickle.dumps(source)) < 2_000, "what each worker gets"
    assert peak < 500_000
    assert pa.total_allocated_bytes() - allocated < 100_000
