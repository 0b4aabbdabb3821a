"""What follows an end token: the ids of the slow LLaMA tokenizer for each setting of a folder.

With `"legacy": false` the dummy space is taken away from the first piece behind an end token; a special token
that `special_tokens_map.json` states as plain text takes the white space around it away. The released ids
with LLaMA's own vocabulary are in test_llama_ids.py.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from owl2.processor import JsonTokenizer, Processor, SentencePieceTokenizer, TokenizerError, load_tokenizer
from tests.processor.small import make_processor
from tests.processor.test_processor import VISUAL, assistant, image_part, prompt_ids, text_part, user

PLAIN = {"eos_token": "</s>"}
OBJECT = {"eos_token": {"content": "</s>", "lstrip": False, "rstrip": False}}


def with_files(model: bytes, special: dict[str, Any] | None = None, **config: Any) -> Processor:
    companions = {"tokenizer_config.json": json.dumps(config).encode()}
    if special is not None:
        companions["special_tokens_map.json"] = json.dumps(special).encode()
    return make_processor(SentencePieceTokenizer(model, companions))


def without_dummy_space(tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    """What text is behind a character of its own, here a line break of one token."""
    space, line_break, *ids = tokenizer.encode("\n" + text)
    assert tokenizer.decode([space, line_break]) == "\n"
    return ids


DIALOGUE = [
    user(image_part(), text_part("what is in the image? ")),
    assistant("an owl "),
    user("how many apples?"),
    assistant("two"),
    user("yes"),
]
PROMPT = (
    "USER: <|image|>what is in the image?  ASSISTANT: an owl </s>USER: how many apples? ASSISTANT: two</s>"
    "USER: yes ASSISTANT:"
)


@pytest.mark.parametrize("special", [None, PLAIN, OBJECT])
@pytest.mark.parametrize("legacy", [{}, {"legacy": True}, {"legacy": False}, {"legacy": None}])
def test_a_conversation_has_the_ids_of_its_raw_prompt_under_every_setting(
    sentencepiece_model: bytes, special: dict[str, Any] | None, legacy: dict[str, Any]
) -> None:
    processor = with_files(sentencepiece_model, special, **legacy)
    ids = processor.chat([DIALOGUE])["input_ids"][0].tolist()
    assert ids == prompt_ids(processor, PROMPT)
    encoding = processor.encode(DIALOGUE[:4])
    assert ids[: len(encoding.ids)] == encoding.ids  # a longer dialogue continues the shorter one


@pytest.mark.parametrize("legacy", [{}, {"legacy": True}, {"legacy": False}, {"legacy": None}])
def test_turns_after_the_first_begin_with_a_dummy_space_or_without(
    sentencepiece_model: bytes, legacy: dict[str, Any]
) -> None:
    plain = SentencePieceTokenizer(sentencepiece_model)
    ids = prompt_ids(with_files(sentencepiece_model, **legacy), "USER: two</s>USER: owl</s>")
    is_legacy = legacy.get("legacy", True)
    second = plain.encode("USER: owl") if is_legacy else without_dummy_space(plain, "USER: owl")
    assert ids == [1, *plain.encode("USER: two"), 2, *second, 2]
    assert plain.encode("USER: owl") != without_dummy_space(plain, "USER: owl")


def test_without_the_dummy_space_the_first_piece_stays_the_same_piece(sentencepiece_model: bytes) -> None:
    """Not the pieces of the text alone: `▁US ER` becomes `US ER`, though there may be a piece `USER`."""
    tokenizer = SentencePieceTokenizer(sentencepiece_model, {"tokenizer_config.json": b'{"legacy": false}'})
    pieces = tokenizer._pieces
    known = {pieces.id_to_piece(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    compared = 0
    for word in (*known, *(f"{piece}?" for piece in known)):
        ids = tokenizer.encode(word)
        first = pieces.id_to_piece(ids[0])
        if len(first) > 1 and first[0] == "▁" and first[1:] in known and not word.startswith("▁"):
            assert tokenizer.encode(word, after_end=True) == [known[first[1:]], *ids[1:]]
            compared += 1
    assert compared > 20
    assert tokenizer.encode("🦙", after_end=True) == tokenizer.encode("🦙")[1:]  # a lone dummy space goes
    assert tokenizer.encode(" two", after_end=True) == tokenizer.encode(" two")
    assert tokenizer.encode("", after_end=True) == []


def test_pieces_around_an_image_begin_with_a_dummy_space_whatever_legacy_says(
    sentencepiece_model: bytes,
) -> None:
    prompt = "USER: an <|image|>owl<|image|> two"
    ids = [prompt_ids(with_files(sentencepiece_model, legacy=legacy), prompt) for legacy in (True, False)]
    assert ids[0] == ids[1]
    encode = SentencePieceTokenizer(sentencepiece_model).encode
    assert ids[0] == [1, *encode("USER: an "), *VISUAL, *encode("owl"), *VISUAL, *encode(" two")]


def test_only_the_first_piece_behind_an_end_token_lacks_the_dummy_space(sentencepiece_model: bytes) -> None:
    plain = SentencePieceTokenizer(sentencepiece_model)
    prompt = "two</s>USER: <|image|>owl</s>"
    expected = [
        1,
        *plain.encode("two"),
        2,
        *without_dummy_space(plain, "USER: "),
        *VISUAL,
        *plain.encode("owl"),
        2,
    ]
    assert prompt_ids(with_files(sentencepiece_model, legacy=False), prompt) == expected


def test_an_end_token_of_plain_text_takes_white_space_around_it_away(sentencepiece_model: bytes) -> None:
    encode = SentencePieceTokenizer(sentencepiece_model).encode
    prompt = "an owl \n</s>  two </s> "
    stripped = [1, *encode("an owl"), 2, *encode("two"), 2]
    kept = [1, *encode("an owl \n"), 2, *encode("  two "), 2, *encode(" ")]
    assert prompt_ids(with_files(sentencepiece_model, PLAIN), prompt) == stripped
    assert prompt_ids(with_files(sentencepiece_model, OBJECT), prompt) == kept
    assert prompt_ids(with_files(sentencepiece_model, eos_token="</s>"), prompt) == kept
    one_side = {"eos_token": {"content": "</s>", "lstrip": True, "rstrip": False}}
    before = [1, *encode("an owl"), 2, *encode("  two"), 2, *encode(" ")]
    assert prompt_ids(with_files(sentencepiece_model, one_side), prompt) == before


@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_a_blank_answer_before_a_stripping_end_token_has_no_ids(
    sentencepiece_model: bytes, answer: str
) -> None:
    processor = with_files(sentencepiece_model, PLAIN)
    encoding = processor.encode([user("owl"), assistant(answer)])
    assert encoding.ids == prompt_ids(processor, f"USER: owl ASSISTANT: {answer}</s>")
    assert sum(encoding.is_target) == 1  # the end token


def test_the_settings_travel_to_worker_processes_and_through_saved_folders(
    sentencepiece_model: bytes, tmp_path: Path
) -> None:
    processor = with_files(sentencepiece_model, PLAIN, legacy=False)
    processor.tokenizer.save(tmp_path)
    for tokenizer in (pickle.loads(pickle.dumps(processor.tokenizer)), load_tokenizer(tmp_path)):
        assert prompt_ids(make_processor(tokenizer), PROMPT) == prompt_ids(processor, PROMPT)


def test_a_folder_of_ours_says_what_it_was_trained_with(sentencepiece_model: bytes, tmp_path: Path) -> None:
    SentencePieceTokenizer(sentencepiece_model).save(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["legacy"] is True
    assert (written["bos_token"], written["eos_token"], written["pad_token"]) == ("<s>", "</s>", "<unk>")


def test_a_tokenizer_json_does_not_depend_on_legacy(llama_json_tokenizer: JsonTokenizer) -> None:
    config = {**llama_json_tokenizer._config, "legacy": False}
    again = JsonTokenizer(llama_json_tokenizer._json, config)
    assert prompt_ids(make_processor(again), PROMPT) == prompt_ids(
        make_processor(llama_json_tokenizer), PROMPT
    )


@pytest.mark.parametrize(("field", "value"), [("legacy", "false"), ("legacy", 0), ("add_bos_token", "yes")])
def test_a_setting_that_is_neither_true_nor_false_is_an_error(
    sentencepiece_model: bytes, field: str, value: object
) -> None:
    with pytest.raises(
        TokenizerError, match=rf"tokenizer_config\.json: {field} is .*, expected true or false"
    ):
        with_files(sentencepiece_model, **{field: value})
