"""Fuzz: whatever is in the JSON files of a folder, loading it succeeds or is an `Owl2Error`, soon."""

import contextlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import owl2
from tests.checkpoint.small import make_released, write_checkpoint
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
)

LIMIT_S = 5

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**12, 10**30, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\\ud800", "</s>", "<unk>", "llama3", "pad", "vicuna_v1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, byte_level_tokenizer, sentencepiece_tokenizer) -> dict[str, Path]:  # noqa: F811
    """A folder of ours with tokenizer.json, and a released one with tokenizer.model and all its files."""
    released = write_checkpoint(tmp_path_factory.mktemp("fuzz") / "released", sentencepiece_tokenizer)
    make_released(released)
    (released / "special_tokens_map.json").write_text(
        '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}'
    )
    (released / "added_tokens.json").write_text('{"<pad>": 460}')
    ours = write_checkpoint(tmp_path_factory.mktemp("fuzz") / "ours", byte_level_tokenizer)
    return {"ours": ours, "released": released}


FILES = [
    *(("ours", name) for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json")),
    *(("ours", name) for name in ("generation_config.json", "tokenizer.json")),
    *(("released", name) for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json")),
    *(("released", name) for name in ("special_tokens_map.json", "added_tokens.json")),
]


def load_with(file: Path, content: bytes) -> None:
    whole = file.read_bytes()
    file.write_bytes(content)
    begin = time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.suppress(owl2.Owl2Error):
            warnings.simplefilter("ignore")
            owl2.load(file.parent, progress=False)
    finally:
        file.write_bytes(whole)
    assert time.process_time() - begin < LIMIT_S


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values of a JSON document, of long lists and objects the first ten."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [place for name in list(value)[:10] for place in places(value[name], (*path, name))]
    elif isinstance(value, list):
        found += [
            place for number in range(min(10, len(value))) for place in places(value[number], (*path, number))
        ]
    return found


def load_with_other_values(file: Path, data: st.DataObject) -> None:
    """Put any value at any place of the file, or take the place away."""
    raw = json.loads(file.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(raw) or [("new",)]))
        place = raw
        for step in way:
            place = place[step]
        if data.draw(st.booleans()) and isinstance(place, dict):
            place.pop(last, None)
        else:
            place[last] = data.draw(VALUES)
    load_with(file, json.dumps(raw).encode())


def load_with_other_bytes(file: Path, data: st.DataObject) -> None:
    """Replace a part of the file by any bytes."""
    whole = file.read_bytes()
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    load_with(file, whole[:begin] + data.draw(st.binary(max_size=20)) + whole[end:])


def examples(count: int) -> Any:
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize(("kind", "name"), FILES)
@examples(8)
@given(data=st.data())
def test_any_value_or_bytes_in_a_json_file_load_or_are_our_error(folders, kind, name, data):
    load_with_other_values(folders[kind] / name, data)
    load_with_other_bytes(folders[kind] / name, data)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), FILES)
@examples(150)
@given(data=st.data())
def test_many_values_in_a_json_file_load_or_are_our_error(folders, kind, name, data):
    load_with_other_values(folders[kind] / name, data)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), FILES)
@examples(50)
@given(data=st.data())
def test_many_bytes_in_a_json_file_load_or_are_our_error(folders, kind, name, data):
    load_with_other_bytes(folders[kind] / name, data)
