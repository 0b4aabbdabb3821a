"""Streaming: whole characters only, never taken back, equal to decoding at once."""

import random
import time

from owl2.processor import StreamDecoder, Tokenizer
from tests.processor.small import ODD_TEXT, random_text


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


def test_what_is_streamed_equals_decoding_at_once_for_any_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for text in ["", " ", "  a", ODD_TEXT, *(random_text(rng) for _ in range(300))]:
        for space in (False, True):
            ids = tokenizer.encode(text, space=space)
            assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_what_is_streamed_equals_decoding_at_once_for_any_ids(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(3000):
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randrange(8))]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_every_prefix_streamed_is_a_prefix_of_the_text_without_half_characters(tokenizer: Tokenizer) -> None:
    text = "naïve 你好 🦙🦙 e\u0301 café"
    shown = ""
    for piece in stream(tokenizer, tokenizer.encode(text)):
        shown += piece
        assert text.startswith(shown)
        assert "\ufffd" not in piece
    assert shown == text


def test_a_character_that_never_completes_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("owl 🦙")[:-1]
    *pushed, last = stream(tokenizer, ids)
    assert "".join(pushed) == "owl "
    assert last == "\ufffd"


def test_special_tokens_between_do_not_disturb(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("你好")
    eos = tokenizer.eos_token_id
    assert (
        "".join(
            stream(tokenizer, [eos, *(i for pair in zip(ids, [eos] * len(ids), strict=True) for i in pair)])
        )
        == "你好"
    )


def test_time_grows_linearly_with_the_answer_even_without_one_whole_character(tokenizer: Tokenizer) -> None:
    last_byte = tokenizer.encode("🦙")[-1]

    def seconds(count: int) -> float:
        start = time.process_time()
        stream(tokenizer, [last_byte] * count)
        return time.process_time() - start

    seconds(1000)
    assert seconds(64_000) < 40 * max(seconds(4_000), 1e-3)
