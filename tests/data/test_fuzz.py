"""Damaged rows of every form: a sample with all its text and media, or a fault with a kind; the others stay.

Rows are generated whole, with texts and paths that occur once each, and then damaged: a value becomes another
type, disappears, moves under a name that is not known. Whatever text or path is left in a row must be in its
sample, or the row is refused.
"""

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from owl2.data.dataset import SampleDataset
from owl2.data.order import Mixture
from owl2.data.readers.base import Source
from owl2.data.readers.sources import open_source
from owl2.data.sample import Clip, DataError, Sample, StoredImage
from owl2.processor import Encoding, Processor
from tests.data.hub import write_parquet
from tests.data.small import jpeg

EXAMPLES = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
Json = Any
TOKEN = re.compile(r"(?:text|image|clip)-\d+")
NUMBER = itertools.count()
"""Of a file: none is written twice."""
DEEP: Json = json.loads("[" * 400 + "]" * 400)
OTHER_NAMES = {
    "image": ["img", "image_path", "picture", "images"],
    "images": ["img", "imageFiles", "photos", "image"],
    "video": ["video_path", "clip", "videos"],
    "system": ["system_message", "system_prompt"],
    "conversations": ["chatter", "messages"],
    "messages": ["turns", "conversation"],
    "caption": ["captions", "text"],
    "value": ["content", "said"],
    "content": ["value", "text"],
    "from": ["role", "by"],
    "role": ["from", "speaker"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for number in range(4):
        (folder / f"image-{number}.jpg").write_bytes(jpeg(number))
    return folder


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A whole row: LLaVA's form, a chat, a chat in parts, or an image with its caption."""
    numbers = itertools.count()
    texts = (f"text-{n}" for n in numbers)
    images = [f"image-{n}.jpg" for n in range(draw(st.integers(0, 2)))]
    form = draw(st.sampled_from(["llava", "chat", "parts", "caption"]))
    if form == "caption":
        return {"id": "row", "image": "image-0.jpg", "caption": next(texts)}
    is_marked = draw(st.booleans())
    turns: list[dict[str, Any]] = []
    for number in range(2 * draw(st.integers(1, 2))):
        role = ("user", "assistant")[number % 2]
        if form == "parts":
            parts: list[dict[str, Any]] = [{"type": "text", "text": next(texts)}]
            if number == 0 and is_marked:
                parts = [*({"type": "image", "image": name} for name in images), *parts]
            turns.append({"role": role, "content": parts})
        else:
            text = next(texts)
            if number == 0 and is_marked:
                text = "<image>" * len(images) + text
            llava = {"from": {"user": "human", "assistant": "gpt"}[role], "value": text}
            turns.append(llava if form == "llava" else {"role": role, "content": text})
    row: dict[str, Any] = {"id": "row", "conversations" if form == "llava" else "messages": turns}
    if images and not (form == "parts" and is_marked):
        row[draw(st.sampled_from(["image", "images"]))] = images
    if draw(st.booleans()):
        row["system"] = next(texts)
    return row


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.sampled_from(["", "\ufeff", "\ud800", "a\0b", "<image>", "<video>", "text", "image", "human"]),
    st.sampled_from([[], {}, [None], [[]], [{}], {"path": None}, {"bytes": 3}, {"type": "video"}]),
)


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a row but the row itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, junk: st.SearchStrategy[Json] = JUNK) -> dict[str, Any]:
    """A row with up to three faults."""
    row = copy.deepcopy(draw(rows()))
    for _ in range(draw(st.integers(0, 3))):
        found = [*places(row)]
        if not found:
            break
        *above, key = draw(st.sampled_from(found))
        holder = row
        for step in above:
            holder = holder[step]
        kind = draw(st.sampled_from(["replace", "remove", "rename", "double", "wrap"]))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(junk))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and key in OTHER_NAMES:
            holder[draw(st.sampled_from(OTHER_NAMES[key]))] = holder.pop(key)
        elif kind == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == "wrap":
            holder[key] = [holder[key]]
    return row


def tokens(value: Json) -> set[str]:
    """Texts and paths that were generated and are still in a value."""
    if isinstance(value, str):
        return {*TOKEN.findall(value)}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(tokens, inner))


def tokens_of(sample: Sample) -> set[str]:
    contents = [message["content"] for message in sample.messages]
    media = [
        part.get("image") or part.get("video")
        for content in contents
        if isinstance(content, list)
        for part in content
        if part["type"] != "text"
    ]
    assert all(isinstance(one, StoredImage | Clip) for one in media)
    return tokens(sample.text) | tokens([one.name for one in media])


def check(source: Source, index: int, row: dict[str, Any]) -> Sample | None:
    """Read a row that may be damaged: nothing of it is lost, or it is refused with a kind."""
    sample, fault = None, None
    try:
        sample = source[index]
    except DataError as error:
        fault = error
    if sample is None:
        assert fault is not None
        assert fault.kind not in ("", "unusable")
        str(fault).encode()
    elif sample.messages:  # without any the processor refuses it
        assert tokens_of(sample) == tokens(row), row
        sample.key.encode()
    return sample if sample and sample.messages else None


GOOD = {"conversations": [{"from": "human", "value": "text-1"}, {"from": "gpt", "value": "text-2"}]}


@EXAMPLES
@given(st.lists(damaged(JUNK | st.just(DEEP)), min_size=1, max_size=4))
def test_a_damaged_row_of_jsonl_costs_itself_alone(
    folder: Path, processor: Processor, broken: list[dict[str, Any]]
) -> None:
    path = folder / f"{next(NUMBER)}.jsonl"
    lines = [json.dumps(row) for row in broken]
    good = [json.dumps({"id": f"good-{n}", **GOOD}) for n in range(len(lines) + 1)]
    path.write_text("\n".join(itertools.chain(*zip(good, lines, strict=False), good[-1:])), encoding="utf-8")
    source = open_source("fuzz", path)
    assert [source[2 * n].key for n in range(len(good))] == [f"good-{n}" for n in range(len(good))]
    found = [check(source, 2 * n + 1, row) for n, row in enumerate(broken)]
    dataset = SampleDataset([source], ["none"], Mixture([len(source)], [1.0], 0), processor, 512)
    for n in range(2 * len(source)):
        index = dataset.mixture[n].index
        key, item = dataset[n]
        assert dataset.size(n).tokens == (len(item.ids) if isinstance(item, Encoding) else 0) or (
            isinstance(item, dict) and "image" in item["kind"]
        )
        if index % 2 == 0:
            assert (key, isinstance(item, Encoding)) == (f"fuzz:good-{index // 2}", True)
        elif found[index // 2] is None:
            assert isinstance(item, dict)


@EXAMPLES
@given(st.lists(damaged(), min_size=1, max_size=4))
def test_a_damaged_row_of_a_table_costs_itself_alone(folder: Path, broken: list[dict[str, Any]]) -> None:
    try:
        table = pa.Table.from_pylist(broken)
        path = write_parquet(folder / f"{next(NUMBER)}.parquet", table)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # rows that no table can have
        assume(False)
    try:
        source = open_source("fuzz", path)
    except DataError as error:
        str(error).encode()
        return
    assert len(source) == len(broken)
    for index, row in enumerate(table.to_pylist()):
        check(source, index, {name: row[name] for name in row})


@EXAMPLES
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_lines_of_any_bytes_are_rows_or_faults_in_their_order(folder: Path, lines: list[bytes]) -> None:
    good = json.dumps({"id": "good", **GOOD}).encode()
    content = b"\n".join([good, *(line.replace(b"\n", b"") for line in lines), good])
    path = folder / f"{next(NUMBER)}.jsonl"
    path.write_bytes(content)
    source = open_source("fuzz", path)
    assert source[0].key == source[len(source) - 1].key == "good"
    for index in range(1, len(source) - 1):
        with pytest.raises(DataError) as found:
            source[index]
        assert found.value.kind in ("text is not UTF-8", "not a JSON object", "unknown row format")
