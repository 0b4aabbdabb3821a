"""What a path of a source means: files, folders, braces, wildcards, and clones of the hub."""

from pathlib import Path

import pyarrow as pa
import pytest

from owl2.data.readers.paths import expand_braces, find_files
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from tests.data.hub import write_parquet
from tests.data.small import jpeg, turns, write_jsonl, write_tar


def rows(path: Path, name: str = "a") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"id": name, "conversations": turns("?", "x")}
    return (
        write_jsonl(path, [row])
        if path.suffix == ".jsonl"
        else write_parquet(path, pa.Table.from_pylist([row]))
    )


def shard(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tar(path, {f"{path.stem}.jpg": jpeg(1), f"{path.stem}.txt": b"an owl"})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{00..02}b", ["a00b", "a01b", "a02b"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..1}", ["2", "1"]),
        ("{009..011}", ["009", "010", "011"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("s3://x/{a,b}.tar", ["s3://x/a.tar", "s3://x/b.tar"]),
        ("{plain}", ["{plain}"]),
        ("a{,b}", ["a", "ab"]),
    ],
)
def test_braces_are_written_out(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


def test_a_name_that_exists_is_no_pattern(tmp_path: Path) -> None:
    path = rows(tmp_path / "{a,b} [1].jsonl")
    assert len(open_source("own", path)) == 1
    assert [file.path for file in find_files("own", path, (".jsonl",))] == [str(path)]


def test_one_shard_braces_and_wildcards_are_sources_of_shards(tmp_path: Path) -> None:
    for number in range(12):
        shard(tmp_path / f"shards-{number:05d}.tar")
    assert len(open_source("own", tmp_path / "shards-00003.tar")) == 1
    assert len(open_source("own", f"{tmp_path}/shards-{{00000..00009}}.tar")) == 10
    assert len(open_source("own", f"{tmp_path}/shards-0000?.tar")) == 10
    assert open_source("own", f"{tmp_path}/*.tar").fingerprint() == open_source("own", tmp_path).fingerprint()
    with pytest.raises(DataError, match=r"shards-00012\.tar does not exist"):
        open_source("own", f"{tmp_path}/shards-{{00010..00012}}.tar")


def test_held_out_splits_next_to_others_are_an_error_unless_they_are_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows(tmp_path / f"{name}.jsonl", name)
    with pytest.raises(DataError, match=r"has test.jsonl and train.jsonl, and some may not be meant"):
        open_source("own", f"{tmp_path}/*.jsonl")
    assert len(open_source("own", f"{tmp_path}/{{train,test}}.jsonl")) == 2


def test_kinds_cannot_be_mixed(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl"), shard(tmp_path / "b.tar")
    with pytest.raises(DataError, match="mixes kinds of files; make a source of each"):
        open_source("own", f"{tmp_path}/{{a.jsonl,b.tar}}")


def test_a_clone_with_one_split_is_read_and_one_with_several_is_an_error_that_lists_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "README.md").write_text("# Data")
    rows(tmp_path / "data" / "train-00000-of-00002.parquet", "a")
    rows(tmp_path / "data" / "train-00001-of-00002.parquet", "b")
    assert [open_source("own", tmp_path)[n].key for n in range(2)] == ["a", "b"]
    rows(tmp_path / "data" / "test-00000-of-00001.parquet")
    rows(tmp_path / "extra" / "deep" / "0000.parquet")
    rows(tmp_path / ".cache" / "0000.parquet")
    with pytest.raises(DataError, match=r"of its own; it has .* say which is meant as path: ") as found:
        open_source("own", tmp_path)
    choices = str(found.value).partition("path: ")[2].split(" or ")
    names = ["data/test*.parquet", "data/train*.parquet", "extra/deep"]
    assert choices == [f"{tmp_path}/{name}" for name in names]
    assert [len(open_source("own", choice)) for choice in choices] == [1, 2, 1]
    assert len(open_source("own", f"{tmp_path}/*/t*.parquet")) == 3


def test_nested_shards_are_found_too_and_a_folder_of_json_says_which_files_it_has(tmp_path: Path) -> None:
    shard(tmp_path / "web" / "00000" / "0.tar")
    assert len(open_source("own", tmp_path / "web")) == 1
    rows(tmp_path / "talk" / "own.jsonl")
    with pytest.raises(DataError, match=r"say which is meant as path: .*talk/own\.jsonl"):
        open_source("own", tmp_path / "talk")
