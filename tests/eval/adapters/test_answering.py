"""What adapters ask of the model, on a tiny real one; no harness is needed here."""

import pytest
import torch
from PIL import Image

from owl2.api import Owl2
from owl2.eval.adapters.answering import answer_all, read_settings, score_continuations
from owl2.eval.adapters.lmms_eval import read_turns
from owl2.eval.engines.local import OwlEngine, log_likelihoods
from owl2.generate import GenerationConfig, GenerationError
from owl2.processor import Encoding, TemplateError

QUESTIONS = ("what bird is on the tree", "is the owl red", "two green owls on the left of a tree")


def encodings(owl: Owl2) -> list[Encoding]:
    """One question with an image, the others without."""
    found = []
    for number, question in enumerate(QUESTIONS):
        image = [{"type": "image", "image": Image.new("RGB", (40, 30), "red")}] if number == 1 else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": question}]}]
        found.append(owl.processor.encode(messages, generation_prompt=True))
    return found


def test_answers_are_those_of_generate_in_any_batch(owl: Owl2, engine: OwlEngine) -> None:
    rows = [(e, GenerationConfig(max_new_tokens=9 + i)) for i, e in enumerate(encodings(owl))]
    expected = []
    for encoding, config in rows:
        (ids,) = owl.generate(**owl.processor.collate([encoding]), max_new_tokens=config.max_new_tokens)
        expected.append(owl.processor.decode(ids))
    assert answer_all(engine, rows, batch_size=1) == expected
    same = [(encoding, GenerationConfig(max_new_tokens=9)) for encoding, _ in rows]
    assert answer_all(engine, same, batch_size=3) == answer_all(engine, same, batch_size=1)


def test_an_answer_ends_before_its_first_stop_string(owl: Owl2, engine: OwlEngine) -> None:
    encoding = encodings(owl)[0]
    config = GenerationConfig(max_new_tokens=12)
    (whole,) = answer_all(engine, [(encoding, config)], 1)
    for beams in ({}, {"num_beams": 2}):
        (text,) = answer_all(engine, [(encoding, config.replace(**beams))], 1)
        stopped = config.replace(stop=(text[3:5], "never"), **beams)
        assert answer_all(engine, [(encoding, stopped)], 1) == [text[: text.index(text[3:5])]]
    assert answer_all(engine, [(encoding, config.replace(stop="never"))], 1) == [whole]


def test_likelihoods_are_those_of_the_engine_and_greedy_text_is_known_as_greedy(
    owl: Owl2, engine: OwlEngine
) -> None:
    encoding = encodings(owl)[0]
    batch = owl.processor.collate([encoding])
    (greedy,) = owl.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    choices = [greedy, greedy[:1], [*greedy[:3], (greedy[3] + 1) % 300], [7], [8, 9]]
    expected = [log_likelihoods(owl.model, batch, [(0, ids)])[0][0] for ids in choices]
    for batch_size in (1, 4):
        scores = score_continuations(engine, [(encoding.ids, ids) for ids in choices], batch_size)
        torch.testing.assert_close([total for total, _ in scores], expected, rtol=0, atol=1e-4)
    assert [is_greedy for _, is_greedy in scores] == [True, True, False, greedy[0] == 7, False]


def test_generation_arguments_become_settings() -> None:
    defaults = GenerationConfig(max_new_tokens=256)
    greedy = read_settings({"until": "\n", "do_sample": False, "temperature": 0, "top_p": 1.0}, defaults, "t")
    assert greedy == defaults.replace(stop="\n")
    sampled = read_settings(
        {"max_gen_toks": 5, "temperature": 0.7, "top_p": None, "until": None}, defaults, "t"
    )
    assert sampled == GenerationConfig(max_new_tokens=5, do_sample=True, temperature=0.7)
    assert read_settings({"do_sample": True, "temperature": 0.0}, defaults, "t").is_greedy


def test_beams_answer_as_generate_and_end_before_a_stop_string(owl: Owl2, engine: OwlEngine) -> None:
    encoding = encodings(owl)[1]
    config = read_settings({"num_beams": 3, "max_new_tokens": 9}, GenerationConfig(), "t")
    (ids,) = owl.generate(**owl.processor.collate([encoding]), max_new_tokens=9, num_beams=3)
    whole = owl.processor.decode(ids)
    assert answer_all(engine, [(encoding, config)], 1) == [whole]
    stop = whole[2:4]
    assert answer_all(engine, [(encoding, config.replace(stop=stop))], 1) == [whole[: whole.index(stop)]]


@pytest.mark.parametrize(
    "asked",
    [{"num_beams": 3, "temperature": 0.5}, {"num_beams": -1}, {"penalty_alpha": 1}, {"max_gen_toks": 0}],
)
def test_arguments_that_cannot_be_met_name_the_task(asked: dict[str, float]) -> None:
    with pytest.raises(GenerationError, match="task mmlu"):
        read_settings(asked, GenerationConfig(), "mmlu")


def test_a_prompt_that_fills_the_context_says_how_long_it_is(engine: OwlEngine) -> None:
    context = engine.owl.model.config.decoder.max_position_embeddings
    full = Encoding([5] * context, [False] * context)
    with pytest.raises(GenerationError, match=f"prompt of {context:,} tokens"):
        answer_all(engine, [(full, (GenerationConfig(), ()))], 1)


def test_turns_of_the_harness_become_messages_with_images_in_their_places() -> None:
    image = Image.new("RGB", (4, 4))
    content = [
        {"type": "text", "text": "a"},
        {"type": "image", "url": image},
        {"type": "text", "text": "b"},
    ]
    (message,) = read_turns([{"role": "user", "content": content}], "task t, document 3")
    assert [part.get("text", part.get("image")) for part in message["content"]] == ["a", image, "b"]
    system = read_turns([{"role": "system", "content": "Be brief."}], "task t, document 3")
    assert system == [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    with pytest.raises(TemplateError, match="task t, document 3"):
        read_turns([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "task t, document 3")
