"""Tokenizers: ids as the libraries give them, plain text only, decoding on bytes, clear errors."""

import pickle
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models

from owl2.processor import JsonTokenizer, SentencePieceTokenizer, Tokenizer, TokenizerError, load_tokenizer
from owl2.processor.tokenizer import write_file
from tests.processor.small import LLAMA_CONFIG, ODD_TEXT, random_text, write_folder


def test_random_text_survives_a_round_trip(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for text in [ODD_TEXT, "", " ", "  two", *(random_text(rng) for _ in range(300))]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_ids_are_those_of_the_library(
    sentencepiece_tokenizer: SentencePieceTokenizer, sentencepiece_model: bytes
) -> None:
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(sentencepiece_model)
    rng = random.Random(2)
    for _ in range(200):
        text = random_text(rng)
        ids = sentencepiece_tokenizer.encode(text)
        assert ids == library.encode(text) == sentencepiece_tokenizer.encode(text, space=True)
        assert sentencepiece_tokenizer.decode(ids) == library.decode(ids)


def test_decoding_any_ids_agrees_with_sentencepiece_wherever_the_bytes_are_text(
    sentencepiece_tokenizer: SentencePieceTokenizer, sentencepiece_model: bytes
) -> None:
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(sentencepiece_model)
    rng = random.Random(3)
    compared = 0
    for _ in range(2000):
        ids = [rng.randrange(1, library.get_piece_size()) for _ in range(rng.randrange(1, 6))]
        expected = library.decode(ids)
        # A text never encodes to a leading byte piece for a space; the library keeps that one.
        if "\ufffd" not in expected and library.id_to_piece(ids[0]) != "<0x20>":
            assert sentencepiece_tokenizer.decode(ids) == expected
            compared += 1
    assert compared > 200


def test_the_same_vocabulary_gives_the_same_ids_from_both_files(
    sentencepiece_tokenizer: SentencePieceTokenizer, llama_json_tokenizer: JsonTokenizer
) -> None:
    rng = random.Random(4)
    for text in ["", " ", "x", *(random_text(rng) for _ in range(300))]:
        for space in (False, True):
            ids = sentencepiece_tokenizer.encode(text, space=space)
            assert llama_json_tokenizer.encode(text, space=space) == ids
        assert llama_json_tokenizer.decode(ids) == sentencepiece_tokenizer.decode(ids)


def test_byte_level_ids_and_text_are_those_of_the_library(byte_level_tokenizer: JsonTokenizer) -> None:
    library = byte_level_tokenizer._tokenizer
    rng = random.Random(5)
    for _ in range(200):
        text = random_text(rng)
        ids = library.encode(text, add_special_tokens=False).ids
        assert byte_level_tokenizer.encode(text) == ids
        assert byte_level_tokenizer.decode(ids) == library.decode(ids)
        assert byte_level_tokenizer.decode(byte_level_tokenizer.encode(text, space=True)) == f" {text}"


def test_special_tokens_typed_as_text_are_text(tokenizer: Tokenizer) -> None:
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for literal in ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image|>"):
        text = f"a {literal} b"
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text


def test_special_ids_and_ids_past_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("an owl")
    assert tokenizer.bos_token_id is not None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.vocab_size]
    assert tokenizer.decode([*special, *ids, *special]) == "an owl"


def test_a_negative_id_is_an_error_that_says_why(tokenizer: Tokenizer) -> None:
    with pytest.raises(IndexError, match="-200 is negative: image tokens have no text"):
        tokenizer.decode([-200])


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: Tokenizer) -> None:
    llama = tokenizer.encode("🦙")
    assert tokenizer.decode(llama[:-1]).endswith("\ufffd")


def test_special_ids_are_those_of_the_files(
    sentencepiece_tokenizer: SentencePieceTokenizer, byte_level_tokenizer: JsonTokenizer
) -> None:
    llama = sentencepiece_tokenizer
    assert (llama.bos_token_id, llama.eos_token_id, llama.pad_token_id, llama.add_bos) == (1, 2, 0, True)
    smol = byte_level_tokenizer
    assert (smol.bos_token_id, smol.eos_token_id, smol.pad_token_id, smol.add_bos) == (1, 2, 0, False)


def test_whether_to_add_bos_follows_the_post_processor_unless_the_config_says() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2}, []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.decoder = decoders.ByteLevel()
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    assert not JsonTokenizer(tokenizer.to_str(), config).add_bos
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert JsonTokenizer(tokenizer.to_str(), config).add_bos
    assert not JsonTokenizer(tokenizer.to_str(), {**config, "add_bos_token": False}).add_bos


def test_truncation_and_padding_stored_in_the_file_are_not_applied(
    byte_level_tokenizer: JsonTokenizer,
) -> None:
    library = tokenizers.Tokenizer.from_str(byte_level_tokenizer._tokenizer.to_str())
    library.enable_truncation(2)
    library.enable_padding(length=50)
    again = JsonTokenizer(library.to_str(), byte_level_tokenizer._config)
    text = "the image shows an owl"
    assert again.encode(text) == byte_level_tokenizer.encode(text)


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    for field in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "add_bos", "dummy_space"):
        assert getattr(again, field) == getattr(tokenizer, field)
    assert again.encode(ODD_TEXT) == tokenizer.encode(ODD_TEXT)


def test_files_that_came_with_a_model_are_kept_as_they_are(
    sentencepiece_model: bytes, tmp_path: Path
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    files = {
        "tokenizer.model": sentencepiece_model,
        "tokenizer_config.json": b'{"add_bos_token":  false}',
        "special_tokens_map.json": b"{ }",
    }
    tokenizer = load_tokenizer(write_folder(source, files))
    assert not tokenizer.add_bos
    tokenizer.save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files


def test_a_tokenizer_travels_to_a_worker_process(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(ODD_TEXT) == tokenizer.encode(ODD_TEXT)


def test_tokenizer_model_wins_over_tokenizer_json(
    sentencepiece_tokenizer: SentencePieceTokenizer, byte_level_tokenizer: JsonTokenizer, tmp_path: Path
) -> None:
    byte_level_tokenizer.save(tmp_path)
    sentencepiece_tokenizer.save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)


def test_a_folder_without_tokenizer_is_an_error_that_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        JsonTokenizer("{}", LLAMA_CONFIG)
    for content, found in (
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer: run `git lfs pull`"),
        (b"no model", "is not a sentencepiece model"),
    ):
        with pytest.raises(TokenizerError, match=rf"tokenizer\.model {found}"):
            SentencePieceTokenizer(content)
    write_folder(tmp_path, {"tokenizer.json": {}})
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is missing"):
        load_tokenizer(tmp_path)


def test_special_tokens_that_are_missing_are_errors(byte_level_tokenizer: JsonTokenizer) -> None:
    text = byte_level_tokenizer._tokenizer.to_str()
    with pytest.raises(TokenizerError, match="names no eos_token"):
        JsonTokenizer(text, {"bos_token": "<|im_start|>"})
    with pytest.raises(TokenizerError, match="eos_token '<end>' is not in"):
        JsonTokenizer(text, {"eos_token": "<end>"})


def test_an_unknown_kind_of_decoder_is_an_error_that_names_it() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE({"</s>": 0, "a": 1}, []))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        JsonTokenizer(tokenizer.to_str(), {"eos_token": "</s>"})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(TypeError):
        write_file(path, "not bytes")  # type: ignore[arg-type]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
