"""Several answers to one prompt, read once, with the probabilities of their tokens."""

import pytest
import torch

from owl2.api import Owl2
from owl2.generate import GenerationError, generate
from owl2.model import Owl2Model
from owl2.processor import Processor
from tests.generate.test_session import ask, image, tokens_read

SAMPLED = {"do_sample": True, "temperature": 1.5, "seed": 3, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture
def owl(model: Owl2Model, processor: Processor) -> Owl2:
    return Owl2(model, processor)


def test_answers_are_those_of_their_seeds_and_the_prompt_is_read_once(owl: Owl2) -> None:
    messages = [{"role": "user", "content": ask("what is this?", image("red"))}]
    batch = owl.processor.chat([messages])
    read = tokens_read(owl.model)
    answers = owl.complete(messages, n=3, **SAMPLED)
    assert read == [batch["input_ids"].shape[1], *[3] * 7]
    assert len({answer.text for answer in answers}) == 3
    for number, answer in enumerate(answers):
        settings = {**SAMPLED, "seed": SAMPLED["seed"] + number}
        assert [answer.ids] == generate(
            owl.model, **batch, **settings, eos_token_id=owl.generation_config.eos_token_id
        )
        assert answer.text == owl.processor.decode(answer.ids).strip()
        assert answer.ended_by == "length"


def test_probabilities_are_the_models_own_whatever_the_settings(owl: Owl2) -> None:
    messages = [{"role": "user", "content": ask("what is this?", image("red"))}]
    settings = {**SAMPLED, "top_p": 0.9, "repetition_penalty": 1.3}
    (answer,) = owl.complete(messages, num_most_probable=2, **settings)
    batch = owl.processor.chat([messages])
    ids = torch.cat((batch["input_ids"][0], torch.tensor(answer.ids)))[None]
    with torch.no_grad():
        found = owl.model(ids, None, batch["pixel_values"])[0, -len(answer.ids) - 1 : -1].log_softmax(-1)
    expected = found[range(len(answer.ids)), answer.ids].tolist()
    assert answer.log_probabilities == pytest.approx(expected, abs=1e-4)
    for row, best in zip(found, answer.most_probable, strict=True):
        assert list(best) == row.topk(2).indices.tolist()
        assert list(best.values()) == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_an_answer_says_what_ended_it(owl: Owl2) -> None:
    (whole,) = owl.complete("what?", max_new_tokens=12, min_new_tokens=12)
    assert whole.text == owl.chat("what?", max_new_tokens=12, min_new_tokens=12)
    assert (whole.ended_by, len(whole.ids)) == ("length", 12)
    (stopped,) = owl.complete("what?", max_new_tokens=12, min_new_tokens=12, stop=whole.text[3:5])
    assert (stopped.ended_by, stopped.text) == (
        "stop",
        whole.text[: whole.text.index(whole.text[3:5])].strip(),
    )
    assert len(stopped.ids) == len(stopped.log_probabilities) <= 12
    (ended,) = owl.complete("what?", max_new_tokens=12, eos_token_id=whole.ids[4])
    assert ended.ended_by == "end"
    assert ended.ids == whole.ids[: whole.ids.index(whole.ids[4])]
    assert len(ended.log_probabilities) == len(ended.most_probable) == len(ended.ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": 2}, "do_sample=True"),
        ({"num_beams": 2}, "num_beams = 2"),
        ({"num_most_probable": -1}, "-1 most probable"),
        ({"max_new_tokens": 10_000}, "context has 256"),
    ],
)
def test_what_cannot_be_asked_for_is_an_error(owl: Owl2, settings: dict[str, int], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        owl.complete("what?", **settings)
