"""Tables are sources like the others: the samples, batches and losses of the same rows elsewhere."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from owl2.data.dataset import SampleDataset
from owl2.data.inspect.inspection import inspect_source
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture, StepSampler
from owl2.data.packing import PackSampler
from owl2.data.readers.base import Source
from owl2.data.readers.shards import TarSource
from owl2.data.readers.sources import open_source
from owl2.data.readers.tables import TableSource
from owl2.data.sample import DataError, Sample
from owl2.processor import Processor, SentencePieceTokenizer
from owl2.train.config import DataConfig, SourceConfig
from tests.data.hub import (
    IMAGE,
    TURNS,
    chat_table,
    read_rows,
    write_arrow,
    write_folder,
    write_parquet,
    write_stream,
)
from tests.data.small import NUM_IMAGES, jpeg, turns, write_tar
from tests.data.test_jsonl import shape
from tests.data.test_loader import assert_same
from tests.data.test_storage import assert_same_samples, images_of
from tests.data.web import Server
from tests.train.tiny import losses, run_whole, stage, write_checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def chat(corpora: Path) -> Source:
    """The rows as they are in JSONL."""
    return open_source("chat", corpora / "chat.jsonl")


@pytest.mark.parametrize("embed", [True, False], ids=["bytes", "paths"])
@pytest.mark.parametrize("write", [write_parquet, write_arrow, write_stream])
def test_a_table_in_any_format_has_the_samples_of_the_same_rows_in_jsonl(
    corpora: Path, chat: Source, tmp_path: Path, write: Callable[..., Path], embed: bool
) -> None:
    table = chat_table(corpora, embed=embed)
    path = write(tmp_path / f"rows.{'parquet' if write is write_parquet else 'arrow'}", table)
    assert_same_samples(open_source("chat", path, image_root=corpora), chat)


def test_a_folder_of_files_is_one_source_in_the_order_of_their_names(
    corpora: Path, chat: Source, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "chat", chat_table(corpora), [3, 0, 9, 8])
    source = open_source("chat", folder)
    assert_same_samples(source, chat)
    assert [source[n].key for n in (19, 2, 3, 11)] == ["chat-19", "chat-2", "chat-3", "chat-11"]
    for index in (-1, NUM_IMAGES):
        with pytest.raises(IndexError, match=f"chat has 20 samples, none is number {index}"):
            source[index]


def test_images_with_captions_are_those_of_tar_shards(corpora: Path, tmp_path: Path) -> None:
    shards = TarSource("captions", corpora / "captions")
    data = [images_of(sample)[0] for sample in map(shards.__getitem__, range(len(shards)))]
    captions = [shards[n].messages[1]["content"] for n in range(len(shards))]
    table = pa.table({"__key__": [shards[n].key for n in range(len(shards))], "jpg": data, "txt": captions})
    path = write_parquet(tmp_path / "web.parquet", table, row_group_size=6)
    assert_same_samples(open_source("captions", path), shards)


def one_row(tmp_path: Path, columns: dict[str, Any]) -> Sample:
    """Write a table of one row and read it back as a sample."""
    path = write_parquet(tmp_path / "rows.parquet", pa.table({k: pa.array(v) for k, v in columns.items()}))
    return TableSource("rows", path)[0]


@pytest.mark.parametrize("name", ["conversation", "messages"])
def test_a_chat_with_roles_is_the_same_conversation(tmp_path: Path, name: str) -> None:
    talk = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "an owl"}]
    sample = one_row(tmp_path, {name: [talk], "images": [[{"bytes": jpeg(1), "path": None}]]})
    assert shape(sample) == [["[rows.parquet:0]", "what?"], ["an owl"]]
    assert sample.key == "rows.parquet:0", "named by its place where it has no id"
    assert images_of(sample) == [jpeg(1)]


def test_a_chat_in_parts_has_its_images_where_the_parts_are(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image", "text": None}, {"type": "text", "text": "?"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": [parts[0]]}]
    sample = one_row(tmp_path, {"messages": [talk], "image": ["owls/a.jpg"], "id": [7]})
    assert shape(sample) == [["one ", "[owls/a.jpg]", "?"], ["one "]]
    assert sample.key == "7"


def test_clips_are_paths_or_bytes_too(tmp_path: Path) -> None:
    row = {"conversations": [turns("<video>what?", "an owl")], "video": ["a.mp4"]}
    (part, _) = one_row(tmp_path, row).messages[0]["content"]
    assert (part["type"], part["video"].name) == ("video", "a.mp4")


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"image": None, "conversations": turns("<image>?", "x")},
        "1 image mark",
        "image marks and images differ",
    ),
    (
        {"image": [b"", b""], "conversations": turns("<image>what?", "x")},
        r"1 image mark\(s\) and 2 image\(s\)",
        "image marks and images differ",
    ),
    (
        {"image": [None], "conversations": turns("<image>?", "x")},
        "an image or clip of rows: row",
        "image is missing",
    ),
    ({"conversations": None}, "row rows.parquet:0 has no conversation", "unknown row format"),
    ({"conversations": turns("?", "x")[1:]}, "turn 1 of sample rows.parquet:0", "turns do not alternate"),
    (
        {"conversations": [{"from": "human", "value": None}]},
        "turn 1 of sample rows.parquet:0 is None, expected text",
        "unknown row format",
    ),
    ({"messages": [{"role": "system", "content": "?"}]}, "from 'system'", "turns do not alternate"),
    ({"image": None, "caption": "an owl"}, "has a caption and 0 images", "image is missing"),
    (
        {"image": [b"a", b"b"], "text": "two"},
        "has a caption and 2 images",
        "several images with one caption",
    ),
    ({"image": b"a", "text": None}, "the caption of rows.parquet:0 is blank", "caption is blank"),
    ({"image": b"a", "text": b"caf\xe9"}, "not UTF-8", "text is not UTF-8"),
]


@pytest.mark.parametrize(
    ("row", "message", "kind"), FAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_row_that_cannot_be_used_is_named_with_its_kind(
    tmp_path: Path, row: dict[str, Any], message: str, kind: str
) -> None:
    types = {"conversations": TURNS, "text": pa.string(), "image": None}
    arrays = {}
    for name, value in row.items():
        is_broken = name == "text" and isinstance(value, bytes)
        array = pa.array([value], None if is_broken else types.get(name))
        arrays[name] = array.view(pa.string()) if is_broken else array
    with pytest.raises(DataError, match=message) as found:
        TableSource("rows", write_parquet(tmp_path / "rows.parquet", pa.table(arrays)))[0]
    assert found.value.kind == kind


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
def test_a_row_without_an_image_is_text_alone(tmp_path: Path, image: dict[str, Any] | None) -> None:
    columns = {"image": pa.array([image], IMAGE), "conversations": [turns("2 + 2?", "4")]}
    assert shape(one_row(tmp_path, columns)) == [["2 + 2?"], ["4"]]


def test_an_image_stays_closed_until_it_is_opened(tmp_path: Path) -> None:
    columns = {"image": [b"no image"], "text": ["an owl"]}
    sample = one_row(tmp_path, columns)
    assert sample.text.strip() == "an owl"
    with pytest.raises(Exception, match=r"rows.parquet:0: "):
        sample.messages[0]["content"][0]["image"].open()


def test_a_truncated_file_is_left_out_whole_and_counted_and_a_second_one_is_an_error(
    corpora: Path, processor: Processor, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "chat", chat_table(corpora), [5, 5, 5, 5])
    first, second, *_ = sorted(folder.iterdir())
    second.write_bytes(second.read_bytes()[:-100])
    source = open_source("chat", folder)
    assert (len(source), [file for file, _ in source.lost]) == (15, [second.name])
    assert [source[n].key for n in (4, 5)] == ["chat-4", "chat-10"]
    batches = open_batches([source], processor, tmp_path / "bad.jsonl")
    assert all(batches)
    assert batches.num_bad_by_kind == {("chat", "shard is damaged"): 1}
    first.write_bytes(b"<html>404</html>")
    with pytest.raises(
        DataError, match=rf"chat: table .*{second.name} is damaged or none: .*; make or fetch"
    ):
        open_source("chat", folder)


def open_batches(
    sources: Sequence[Source],
    processor: Processor,
    log: Path,
    *,
    num_workers: int = 0,
    start_step: int = 0,
    is_packed: bool = False,
) -> BatchLoader:
    mixture = Mixture([len(s) for s in sources], [1] * len(sources), 0)
    dataset = SampleDataset(sources, ["crop_flip"] * len(sources), mixture, processor, 512)
    span = {"ranks": 1, "rank": 0, "start_step": start_step, "steps": 8}
    sampler = (
        PackSampler(dataset.size, 6, 512, **span)
        if is_packed
        else StepSampler(micro_batch_size=3, accumulation=2, **span)
    )
    return BatchLoader(dataset, sampler, num_workers=num_workers, bad_samples=log, max_bad_fraction=0.0)


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_from_any_step_on_are_those_of_jsonl(
    corpora: Path, chat: Source, processor: Processor, tmp_path: Path, num_workers: int, is_packed: bool
) -> None:
    """Also in a worker, forked from a process that has read from the tables before."""
    source = open_source("chat", write_folder(tmp_path / "chat", chat_table(corpora), [11, 9]))
    options: dict[str, Any] = {"start_step": 3, "is_packed": is_packed}
    theirs = open_batches([chat], processor, tmp_path / "bad.jsonl", **options)
    assert source[3].key == "chat-3"
    ours = open_batches([source], processor, tmp_path / "bad.jsonl", num_workers=num_workers, **options)
    assert_same(list(ours), list(theirs))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_that_is_open_works_in_processes_of_either_kind(
    corpora: Path, tmp_path: Path, method: str
) -> None:
    source = open_source("chat", write_folder(tmp_path / "chat", chat_table(corpora), [11, 9]))
    expected = read_rows(source)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(read_rows, [source] * 2) == [expected] * 2


def test_a_stage_trained_from_parquet_has_the_losses_of_one_from_jsonl(
    corpora: Path, sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    folder = write_folder(tmp_path / "chat", chat_table(corpora), [11, 9])
    runs = {}
    for name, path in (("jsonl", corpora / "chat.jsonl"), ("parquet", folder)):
        data = DataConfig(sources=[SourceConfig(name="chat", path=path)], max_tokens=512)
        config = stage(tmp_path / name, checkpoint, corpora, data=data, steps=3)
        run_whole(config)
        runs[name] = losses(config.run)
    assert runs["parquet"] == runs["jsonl"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    with Server(tmp_path / "web").running() as server:
        yield server


def test_tables_at_a_url_are_fetched_once_and_then_read_from_the_cache(
    corpora: Path, chat: Source, web: Server, tmp_path: Path
) -> None:
    write_folder(tmp_path / "web" / "chat", chat_table(corpora), [11, 9])
    write_stream(tmp_path / "web" / "rows.arrow", chat_table(corpora))
    for place in (f"{web.url}/chat", f"{web.url}/rows.arrow", f"{web.url}/chat/train-*.parquet"):
        source = open_source("chat", place)
        assert not source.in_slices
        web.requests.clear()
        assert_same_samples(source, chat)
        assert_same_samples(open_source("chat", place), chat)
        assert not [request for request in web.requests if "bytes=" in request]


def test_inspection_shows_what_a_table_holds(corpora: Path, processor: Processor, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", chat_table(corpora))
    found = inspect_source(open_source("rows", path), processor, num_opened=0)
    assert (found.num_opened, len(found.bad)) == (NUM_IMAGES, 0)
    assert found.shapes == {"with 1 image": 13, "text alone": 7}


def test_what_is_to_be_read_of_a_folder_is_never_guessed(corpora: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "chat", chat_table(corpora), [11, 9])
    write_parquet(folder / "test-00000-of-00001.parquet", chat_table(corpora))
    with pytest.raises(DataError, match=r"has test-.*parquet and train-.*, and some .* path: .*/train\*"):
        open_source("chat", folder)
    assert len(open_source("chat", folder / "train-*.parquet")) == NUM_IMAGES
    with pytest.raises(DataError, match=r"none of 3 \*.parquet and \*.arrow in .* matches dev\*.parquet"):
        open_source("chat", folder / "dev*.parquet")
    write_tar(folder / "0.tar", {"a.jpg": jpeg(1), "a.txt": b"an owl"})
    with pytest.raises(DataError, match=r"has both 1 .tar shards and 3 tables, such as test-"):
        open_source("chat", folder)
    with pytest.raises(
        DataError, match=r"has no \*.tar, \*.parquet or \*.arrow of its own; it has \['cache', 'chat'\]"
    ):
        open_source("chat", tmp_path)


def test_the_parquet_that_img2dataset_leaves_beside_a_shard_is_no_corpus(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"a.jpg": jpeg(1), "a.txt": b"an owl"})
    write_parquet(tmp_path / "00000.parquet", pa.table({"key": ["a"], "status": ["success"]}))
    assert isinstance(open_source("web", tmp_path), TarSource)


def test_a_table_without_pyarrow_says_what_to_install(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "rows.parquet", chat_table(corpora))
    monkeypatch.setattr("owl2.data.readers.tables.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"rows.parquet needs pyarrow: pip install 'owl2\[data\]'"):
        open_source("rows", path)
