"""Stop strings: an answer ends before the first one, and no part of one is ever shown."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl2.generate import ChatSession, GenerationConfig, GenerationError, generate
from owl2.generate.text import TextStream, generate_texts, stream_text, text_of
from owl2.model import Owl2Model
from owl2.processor import Processor, StreamDecoder, Tokenizer
from tests.generate.test_session import ask, image


class Letters:
    """A tokenizer whose tokens are characters."""

    dummy_space = False

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


@given(st.text("abc ", max_size=12), st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3))
def test_a_stream_shows_what_comes_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ends = (i for i in range(len(text) + 1) if any(each in text[:i] for each in stop))
    read = text[: next(ends, len(text))]  # an answer ends as soon as a stop string is complete
    expected = read[: min((read.index(each) for each in stop if each in read), default=len(read))]
    stream = TextStream(Letters(), stop)  # type: ignore[arg-type]
    shown = ""
    for letter in text:
        shown += stream.push(ord(letter))
        assert expected.startswith(shown), "what is shown is never taken back"
        if stream.has_stopped:
            break
    assert shown + stream.finish() == expected
    assert stream.has_stopped == (expected != text)


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    stream = TextStream(Letters(), ["###"])  # type: ignore[arg-type]
    assert [stream.push(ord(letter)) for letter in "a#b##"] == ["a", "", "#b", "", ""]
    assert stream.finish() == "##"


def test_an_answer_of_a_session_ends_before_a_stop_string(model: Owl2Model, processor: Processor) -> None:
    question = [{"role": "user", "content": ask("what is this?", image("red"))}]
    whole = "".join(ChatSession(model, processor).answer(question, max_new_tokens=24, min_new_tokens=24))
    stop = next(
        whole[i : i + 3] for i in range(2, len(whole)) if whole[i : i + 3].strip() == whole[i : i + 3]
    )
    for settings in ({}, {"num_beams": 2}):
        session = ChatSession(model, processor)
        free = "".join(session.answer(question, max_new_tokens=24, min_new_tokens=24, **settings))
        wanted = stop if stop in free else free[2:5]
        answer = "".join(
            session.answer(question, max_new_tokens=24, min_new_tokens=24, stop=[wanted, "never"], **settings)
        )
        assert answer == free[: free.index(wanted)].strip()
        assert not session.is_cut


def test_rows_of_a_batch_end_at_their_own_stop_strings(model: Owl2Model, processor: Processor) -> None:
    asked = [[{"role": "user", "content": text}] for text in ("what?", "why so?", "and the third one?")]
    batch = processor.chat(asked)
    config = GenerationConfig(max_new_tokens=16, min_new_tokens=16)
    tokenizer = processor.tokenizer
    free = [text for text, _ in generate_texts(model, tokenizer, batch, config)]
    assert free == [processor.decode(ids) for ids in generate(model, **batch, config=config)]
    stop = (free[0][3:5], free[2][6:8])
    stopped = generate_texts(model, tokenizer, batch, config.replace(stop=stop))
    for (text, _), whole in zip(stopped, free, strict=True):
        assert text == whole[: min((whole.index(s) for s in stop if s in whole), default=len(whole))]
    assert sum(count < 16 for _, count in stopped) >= 1


def test_ids_have_no_stop_strings(model: Owl2Model, processor: Processor) -> None:
    batch = processor.chat([[{"role": "user", "content": "what?"}]])
    with pytest.raises(GenerationError, match="needs text"):
        generate(model, **batch, stop="x")


@pytest.mark.parametrize("stop", ["", ["a", ""], [3], 3, "a\0"])
def test_a_stop_string_is_text_and_not_empty(stop: object) -> None:
    with pytest.raises(GenerationError, match="stop"):
        GenerationConfig(stop=stop)  # type: ignore[arg-type]
    assert GenerationConfig(stop="\n").stop == ("\n",)


def test_the_text_of_ids_is_that_of_the_stream(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two, three")
    decoder = StreamDecoder(tokenizer)
    whole = "".join(itertools.chain(map(decoder.push, ids), [decoder.finish()]))
    assert text_of(ids, tokenizer) == whole
    assert text_of(ids, tokenizer, ["two"]) == whole[: whole.index("two")]
    assert "".join(stream_text(ids, TextStream(tokenizer, [","]))) == "one two"
