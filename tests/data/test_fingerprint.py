"""Fingerprints: the same wherever a corpus is, another one when a row is edited, moved or added."""

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from owl2.data.readers.sources import open_source
from tests.data.hub import chat_table, write_arrow, write_folder, write_parquet, write_stream
from tests.data.small import jpeg, turns, write_jsonl, write_tar
from tests.data.web import Server

ROWS: list[dict[str, Any]] = [
    {"id": str(n), "conversations": turns("What?", f"A cup {n}.")} for n in range(9)
]
"""Texts of the same length, which their index alone would not tell apart."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    with Server(tmp_path / "web").running() as server:
        yield server


def mark(path: Path | str) -> str:
    return open_source("corpus", path).fingerprint()


def write_shards(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    members = {}
    for number, caption in enumerate(captions):
        members |= {f"{number}.jpg": jpeg(number), f"{number}.txt": caption.encode()}
    write_tar(folder / "0.tar", dict([*members.items()][:6]))
    write_tar(folder / "1.tar", dict([*members.items()][6:]))
    return folder


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    return write_jsonl(folder / "rows.jsonl", rows)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    return write_parquet(folder / "rows.parquet", pa.Table.from_pylist(rows))


def captions_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["conversations"][1]["value"] for row in rows]


@pytest.mark.parametrize(
    "write",
    [
        write_rows,
        write_table,
        lambda folder, rows: write_shards(folder, captions_of(rows)),
    ],
    ids=["jsonl", "table", "shards"],
)
def test_a_row_that_is_edited_moved_added_or_removed_is_noticed(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    edited = [*ROWS[:4], {"id": "4", "conversations": turns("What?", "A jug 4.")}, *ROWS[5:]]
    versions = [ROWS, edited, ROWS[::-1], [*ROWS, ROWS[0]], ROWS[:-1], [ROWS[1], ROWS[0], *ROWS[2:]]]
    marks = [mark(write(tmp_path / str(n), rows)) for n, rows in enumerate(versions)]
    assert len(set(marks)) == len(versions)
    assert mark(write(tmp_path / "elsewhere", ROWS)) == marks[0], "the place of a corpus does not count"
    assert all(len(bytes.fromhex(one)) == 32 for one in marks)


def test_it_is_the_same_for_a_copy_a_relative_path_and_at_a_url(
    corpora: Path, web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "web" / "table", chat_table(corpora), [11, 9])
    shutil.copytree(corpora / "captions", tmp_path / "web" / "captions")
    shutil.copy(corpora / "chat.jsonl", tmp_path / "web" / "chat.jsonl")
    for name in ("table", "captions", "chat.jsonl"):
        local = mark(tmp_path / "web" / name)
        assert mark(f"{web.url}/{name}") == local
        monkeypatch.chdir(tmp_path / "web")
        assert mark(name) == local
    os.utime(tmp_path / "web" / "chat.jsonl", ns=(0, 0))
    assert mark(tmp_path / "web" / "chat.jsonl") == mark(corpora / "chat.jsonl"), "dates do not count"


def test_a_table_has_one_however_its_rows_are_cut_and_stored(corpora: Path, tmp_path: Path) -> None:
    table = chat_table(corpora)
    wide = table.cast(
        pa.schema(
            [(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type) for f in table.schema]
        )
    )
    marks = {
        mark(write_parquet(tmp_path / "a.parquet", table, row_group_size=3)),
        mark(write_parquet(tmp_path / "b.parquet", table.append_column("score", [range(20)]))),
        mark(write_arrow(tmp_path / "a.arrow", table, 1)),
        mark(write_arrow(tmp_path / "b.arrow", table, 7)),
        mark(write_arrow(tmp_path / "c.arrow", wide, 20)),
        mark(write_stream(tmp_path / "d.arrow", table, 5)),
        mark(write_parquet(tmp_path / "e.parquet", table.slice(0, 20), compression="none")),
    }
    assert len(marks) == 1
    assert mark(write_parquet(tmp_path / "f.parquet", chat_table(corpora, embed=False))) not in marks


def test_an_image_that_is_replaced_is_noticed_also_at_the_same_size(tmp_path: Path) -> None:
    """By the bytes at its end."""
    one, other = jpeg(1), bytearray(jpeg(1))
    other[-10] ^= 0xFF
    marks = set()
    for number, image in enumerate((one, bytes(other), one + b"\0", one)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tar(folder / "0.tar", {"a.jpg": image, "a.txt": b"an owl"})
        marks.add(mark(folder))
        table = pa.table({"image": [{"bytes": image, "path": "a.jpg"}], "text": ["an owl"]})
        marks.add(mark(write_parquet(tmp_path / f"{number}.parquet", table)))
    assert len(marks) == 2 * 3


def test_null_and_empty_and_how_texts_are_divided_count(tmp_path: Path) -> None:
    talks = [
        [turns("ab", "c"), turns("d", "e")],
        [turns("a", "bc"), turns("d", "e")],
        [turns("ab", "c", "d", "e")],
        [turns("ab", ""), turns("d", "e")],
        [turns("ab", "c"), None],
    ]
    marks = [
        mark(
            write_parquet(
                tmp_path / f"{n}.parquet",
                pa.table(
                    {
                        "conversations": pa.array(
                            talk, pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
                        )
                    }
                ),
            )
        )
        for n, talk in enumerate(talks)
    ]
    assert len(set(marks)) == len(talks)


def test_a_file_that_changed_gets_another_one_and_an_unchanged_one_is_not_read_again(
    tmp_path: Path,
) -> None:
    path = write_rows(tmp_path / "a", ROWS)
    fresh = mark(path)
    assert not (tmp_path / "cache" / "index").exists(), "it may be written again within a tick of the clock"
    os.utime(path, ns=(1, 1))
    assert mark(path) == fresh
    write_jsonl(path, ROWS[::-1])
    os.utime(path, ns=(2, 2))
    assert mark(path) != fresh
    indices = sorted((tmp_path / "cache" / "index").iterdir())
    assert len(indices) == 2
    times = [index.stat().st_mtime_ns for index in indices]
    mark(path)
    assert [index.stat().st_mtime_ns for index in sorted((tmp_path / "cache" / "index").iterdir())] == times


def test_members_that_are_not_read_do_not_count(tmp_path: Path) -> None:
    pair = {"a.jpg": jpeg(1), "a.txt": b"an owl"}
    for name, members in (("x", pair), ("y", {**pair, "a.json": b"{}", "notes.md": b"#"})):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", members)
    with tarfile.open(tmp_path / "x" / "0.tar") as tar:
        assert len(tar.getnames()) == 2
    assert mark(tmp_path / "x") == mark(tmp_path / "y")
