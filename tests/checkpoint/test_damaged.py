"""Damaged files of a folder: one sentence that names the file and what it seems to be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import owl2
from owl2.files import in_short, read_json
from owl2.processor import JsonTokenizer, SentencePieceTokenizer
from tests.checkpoint.small import JSON_FILES, write_checkpoint
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
HTML = b"\n<!DOCTYPE html>\n<html><title>404</title></html>"

WRONG = {
    b"": "is empty: download it again",
    b" \n": "is empty",
    bytes(500): "holds nothing but zeros: download it again",
    HTML: "is an HTML page, such as a server answers with: download the file again",
    b"\xef\xbb\xbf<HTML>": "is an HTML page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "is an XML page",
    LFS: "is a Git LFS pointer: run `git lfs pull` in its folder",
}
WRONG_JSON = {
    '{"a": 1}'.encode("utf-16"): "is UTF-16 text: save it as UTF-8",
    b'{"a": "caf\xe9"}': "is not UTF-8 text (byte 0xe9 at 10): save it as UTF-8",
    b"null": "holds null, expected an object",
    b"[]": "holds a list, expected an object",
    b'"text"': "holds text, expected an object",
    b'{"a" 1}': "is not JSON: Expecting ':' delimiter",
    b"[" * 100_000: "is not JSON",
    b'{"a": ' + b"9" * 5000 + b"}": "is not JSON",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, byte_level_tokenizer, sentencepiece_tokenizer) -> dict[str, Path]:  # noqa: F811
    """A whole folder of each kind of tokenizer."""
    made: dict[str, SentencePieceTokenizer | JsonTokenizer] = {
        "tokenizer.json": byte_level_tokenizer,
        "tokenizer.model": sentencepiece_tokenizer,
    }
    return {name: write_checkpoint(tmp_path_factory.mktemp("x") / "whole", t) for name, t in made.items()}


@pytest.fixture
def damage(folders) -> Callable[..., str]:
    """`damage(file, change)`: the error of loading the folder with that file changed for once."""
    whole: list[tuple[Path, bytes | None]] = []

    def load(name: str, change: Callable[[bytes], bytes] | bytes, folder: Path | None = None) -> str:
        folder = folder or folders["tokenizer.model" if name not in ("tokenizer.json",) else name]
        file = folder / name
        content = file.read_bytes() if file.exists() else None
        whole.append((file, content))
        file.write_bytes(change(content or b"{}") if callable(change) else change)
        with pytest.raises(owl2.Owl2Error) as caught:
            owl2.load(folder, progress=False)
        _restore(whole)
        return str(caught.value)

    yield load
    _restore(whole)


def _restore(whole: list[tuple[Path, bytes | None]]) -> None:
    while whole:
        file, content = whole.pop()
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)


FILES = (*JSON_FILES, "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")


@pytest.mark.parametrize("file", [*FILES, "model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_a_download_replaced_is_named_with_what_it_is(damage, file):
    for content, said in WRONG.items():
        text = damage(file, content)
        assert said in text
        assert file in text
        assert "\n" not in text


@pytest.mark.parametrize("file", [name for name in FILES if name.endswith(".json")])
def test_a_json_file_that_cannot_be_read_is_named_with_the_reason(damage, folders, file):
    for content, said in WRONG_JSON.items():
        text = damage(file, content)
        assert said in text
        assert file in text
        assert str(folders["tokenizer.model"].parent.parent) in text  # and its folder


@pytest.mark.parametrize("file", [*JSON_FILES, "tokenizer.json"])
def test_a_json_file_cut_anywhere_is_named(damage, file):
    for share in (0.1, 0.5, 0.9):
        text = damage(file, lambda whole, share=share: whole[: int(len(whole) * share)])
        assert f"{file} is cut short at line" in text or f"{file} is not JSON" in text


@pytest.mark.parametrize("file", ["tokenizer.model", "model.safetensors"])
def test_a_binary_file_cut_anywhere_is_named(damage, file):
    for share in (0.1, 0.5, 0.9):
        assert file in damage(file, lambda whole, share=share: whole[: int(len(whole) * share)])


@pytest.mark.parametrize("file", [name for name in FILES if name.endswith(".json")])
def test_a_byte_order_mark_is_skipped(folders, file):
    for folder in folders.values():
        whole = (folder / file).read_bytes() if (folder / file).exists() else None
        (folder / file).write_bytes(b"\xef\xbb\xbf" + (whole or b"{}"))
        try:
            owl = owl2.load(folder, progress=False)
            assert owl.processor.decode(owl.processor.tokenizer.encode("an owl")) == "an owl"
        finally:
            _restore([(folder / file, whole)])


def test_a_folder_in_place_of_a_file_is_named(folders, tmp_path):
    for name in (*JSON_FILES, "tokenizer.model"):
        file = folders["tokenizer.model"] / name
        aside = file.rename(tmp_path / "aside")
        file.mkdir()
        try:
            with pytest.raises(owl2.Owl2Error, match=name):
                owl2.load(folders["tokenizer.model"], progress=False)
        finally:
            file.rmdir()
            aside.rename(file)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_theta": None}),
        ("config.json", {"rms_norm_eps": "1e-6"}),
        ("config.json", {"max_position_embeddings": None}),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"hidden_size": 10**30}),
        ("config.json", {"tie_word_embeddings": 1}),
        ("config.json", {"visual_config": None}),
        ("config.json", {"mam": "all"}),
        ("config.json", {"eos_token_id": []}),
        ("config.json", {"eos_token_id": ["2"]}),
        ("preprocessor_config.json", {"size": {"shortest_edge": "56"}}),
        ("tokenizer_config.json", {"eos_token": 5}),
        ("tokenizer_config.json", {"eos_token": {"text": "</s>"}}),
        ("tokenizer_config.json", {"eos_token": "\ud800"}),
        ("tokenizer_config.json", {"add_bos_token": "yes"}),
        ("tokenizer_config.json", {"legacy": 0.5}),
        ("generation_config.json", {"eos_token_id": "1"}),
        ("generation_config.json", {"top_p": "0.7"}),
        ("generation_config.json", {"max_new_tokens": 1.5}),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_file_and_field(damage, file, change):
    text = damage(file, lambda whole: json.dumps({**json.loads(whole), **change}).encode())
    (field,) = change
    assert file in text
    assert field in text or str(change[field]) in text


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"visual_config": {"visual_model": []}}, "visual_model"),
        (
            "config.json",
            {"visual_config": {"visual_abstractor": {"num_hidden_layers": "6"}}},
            "num_hidden_layers",
        ),
        ("config.json", {"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
        ("config.json", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
        ("preprocessor_config.json", {"owl2": {"template": None}}, "template is null"),
        ("preprocessor_config.json", {"owl2": {"template": "vicuna"}}, "unknown template 'vicuna'; nearest"),
        ("preprocessor_config.json", {"owl2": {"alpha": "grey"}}, "alpha is 'grey'"),
    ],
)
def test_a_value_inside_of_an_object_is_named_with_its_file(damage, file, change, said):
    text = damage(file, lambda whole: json.dumps({**json.loads(whole), **change}).encode())
    assert file in text
    assert said in text


def test_an_index_that_is_no_index_is_named(damage):
    for content in (
        {"weight_map": []},
        {"weight_map": {"model.norm.weight": 5}},
        {"weight_map": {"a": None}},
    ):
        text = damage("model.safetensors.index.json", json.dumps(content).encode())
        assert "model.safetensors.index.json has no weight_map of tensor names to shards" in text


def test_a_pickle_of_nonsense_is_named(folders, tmp_path):
    folder = folders["tokenizer.model"]
    aside = (folder / "model.safetensors").rename(tmp_path / "aside")
    try:
        for content in (b"nonsense", b"PK\3\4" + bytes(100), b"\x80\x02}q\0X\x05\0\0\0abcde", HTML, LFS):
            (folder / "pytorch_model.bin").write_bytes(content)
            with pytest.raises(owl2.Owl2Error, match=r"pytorch_model\.bin"):
                owl2.load(folder, progress=False)
    finally:
        (folder / "pytorch_model.bin").unlink()
        aside.rename(folder / "model.safetensors")


def test_a_missing_file_and_a_long_value_are_shown_in_short(tmp_path):
    with pytest.raises(owl2.Owl2Error, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json", owl2.Owl2Error)
    assert in_short(list(range(99))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."
    assert in_short({"a": None}) == '{"a": null}'
