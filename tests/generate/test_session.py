"""A session answers as a fresh reading of the whole dialogue would, but reads each turn once."""

import itertools

import pytest
import torch
from PIL import Image

from owl2.generate import ChatSession, GenerationConfig, GenerationError, generate
from owl2.generate.text import TextStream, stream_text
from owl2.model import Owl2Model
from owl2.processor import ImageError, Processor, Tokenizer

LENGTH = {"max_new_tokens": 9}


def image(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return (
        Image.effect_noise(size, 90).convert("RGB") if colour == "noise" else Image.new("RGB", size, colour)
    )


def ask(text: str, *images: Image.Image) -> list[dict[str, object]]:
    return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]


QUESTIONS = [
    ask("what is this?", image("red")),
    "and this?",
    ask("or these?", image("blue"), image("noise")),
    "why <|image|> so?",
]


def fresh(model: Owl2Model, processor: Processor, messages: list[dict[str, object]]) -> str:
    return "".join(ChatSession(model, processor).answer(messages, **LENGTH))


def tokens_read(model: Owl2Model) -> list[int]:
    """How many tokens each forward pass from now on reads."""
    read: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    return read


def test_each_answer_is_that_of_a_fresh_prefill_of_the_whole_dialogue(
    model: Owl2Model, processor: Processor
) -> None:
    session = ChatSession(model, processor)
    for question in QUESTIONS:
        messages = [*session.messages, {"role": "user", "content": question}]
        answer = "".join(session.say(question, **LENGTH))
        assert answer == fresh(model, processor, messages)
        assert session.messages == [*messages, {"role": "assistant", "content": answer}]
        batch = processor.chat([messages])
        ends = (model.config.decoder.eos_token_id, processor.tokenizer.eos_token_id)
        (ids,) = generate(model, **batch, **LENGTH, eos_token_id=ends)
        assert answer == processor.decode(ids).strip()


def test_the_cache_after_many_turns_holds_what_a_fresh_prefill_writes(
    model: Owl2Model, processor: Processor
) -> None:
    session = ChatSession(model, processor)
    for question in QUESTIONS:
        messages = [*session.messages, {"role": "user", "content": question}]
        list(session.say(question, **LENGTH))
    other = ChatSession(model, processor)
    list(other.answer(messages, **LENGTH))
    assert session._cache is not None
    assert other._cache is not None
    filled = other._cache.lengths[0]
    assert session._cache.lengths == [filled]
    for ours, theirs in zip(session._cache.keys, other._cache.keys, strict=True):
        torch.testing.assert_close(ours[:, :filled], theirs[:, :filled], rtol=0, atol=1e-5)


def test_a_turn_reads_only_what_is_new(
    model: Owl2Model, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    session = ChatSession(model, processor)
    read = tokens_read(model)
    list(session.say(QUESTIONS[0], **LENGTH))
    first, *steps = read
    assert set(steps) == {1}
    read.clear()
    list(session.say("and?", **LENGTH))
    whole = len(processor.encode([*session.messages[:3]], generation_prompt=True).ids)
    assert read[0] <= whole - first
    list(session.say(QUESTIONS[2], **LENGTH))
    assert encoded == [1, 2], "each image is encoded in the turn that shows it"


def test_another_image_in_the_same_place_is_prefilled_again(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    red, blue = ([{"role": "user", "content": ask("what?", image(c))}] for c in ("red", "blue"))
    list(session.answer(red, **LENGTH))
    assert "".join(session.answer(blue, **LENGTH)) == fresh(model, processor, blue)
    read = tokens_read(model)
    list(session.answer(blue, **LENGTH))
    assert set(read) == {1}, "the same question again needs its last token only"


def test_an_edited_turn_is_read_from_the_edit_on(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    for question in QUESTIONS:
        list(session.say(question, **LENGTH))
    edited = [*session.messages[:2], {"role": "user", "content": "quite another one"}]
    assert "".join(session.answer(edited, **LENGTH)) == fresh(model, processor, edited)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    pieces = session.say("tell me all", min_new_tokens=9, **LENGTH)
    seen = list(itertools.islice(pieces, 2))
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": "".join(seen)}
    messages = [*session.messages, {"role": "user", "content": "go on"}]
    assert "".join(session.say("go on", **LENGTH)) == fresh(model, processor, messages)


def test_a_question_that_fails_leaves_the_dialogue_as_it_was(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    list(session.say("hello", **LENGTH))
    before = list(session.messages)
    with pytest.raises(ImageError):
        list(session.say([{"type": "image", "image": "no-such.png"}], **LENGTH))
    with pytest.raises(GenerationError):
        list(session.say("hello", max_new_tokens=1000))
    assert session.messages == before
    messages = [*before, {"role": "user", "content": "still there?"}]
    assert "".join(session.say("still there?", **LENGTH)) == fresh(model, processor, messages)


def test_reset_forgets_everything(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    list(session.say(QUESTIONS[0], **LENGTH))
    session.reset()
    question = [{"role": "user", "content": "hello"}]
    assert "".join(session.say("hello", **LENGTH)) == fresh(model, processor, question)
    assert len(session.messages) == 2


def test_the_cache_grows_beyond_its_first_size(model: Owl2Model, processor: Processor) -> None:
    session = ChatSession(model, processor)
    short = [{"role": "user", "content": "hi"}]
    list(session.answer(short, max_new_tokens=2))
    assert session._cache is not None
    session._cache.capacity = 0  # as if nothing more fitted
    longer = [{"role": "user", "content": "hi there"}]
    assert "".join(session.answer(longer, **LENGTH)) == fresh(model, processor, longer)


def test_without_a_stated_length_an_answer_takes_what_the_context_has_left(
    model: Owl2Model, processor: Processor
) -> None:
    session = ChatSession(model, processor, GenerationConfig(max_new_tokens=512))
    question = [{"role": "user", "content": "x"}]
    prompt = len(processor.encode(question, generation_prompt=True).ids)
    list(session.answer(question))
    assert session._cache is not None
    assert len(session._ids) <= model.config.decoder.max_position_embeddings
    list(session.answer(question, max_new_tokens=5, min_new_tokens=5))
    assert session.is_cut
    assert len(session._ids) == prompt + 5


def test_streamed_pieces_are_the_stripped_text(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, tokenizer.vocab_size, (12,), generator=generator).tolist()
        pieces = list(stream_text(ids, TextStream(tokenizer)))
        assert "".join(pieces) == tokenizer.decode(ids).strip()
        assert all(pieces)


def test_white_space_around_an_answer_is_dropped_and_inside_it_kept(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("  \n a  \n b ")
    assert "".join(stream_text(ids, TextStream(tokenizer))) == "a  \n b"
    assert list(stream_text(tokenizer.encode("   "), TextStream(tokenizer))) == []
