"""Beam search returns what `transformers` returns, and a row's beams see that row's images."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from owl2.generate import GenerationConfig, GenerationError, generate, prefill
from owl2.generate.beams import Answer, beam_search
from owl2.model import KVCache, Owl2Model, padded_layout, targets_of
from tests.model.tiny import IMAGE, NO_MAM, Sample, pad, random_samples, tiny_model

SPECS = ("9", "3 I 5", "2 I I 4", "I 6 I 2", "1", "30")
ENDS = tuple(range(8, 128, 9))
"""Of all tokens enough to end beams at many lengths."""


@torch.inference_mode()
def search(model: Owl2Model, samples: list[Sample], side: str = "left", **settings: Any) -> list[Answer]:
    """The best answers with their scores."""
    config = GenerationConfig(**settings)
    batch = pad(samples, side, extra=2)
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    capacity = max(layout.lengths) + config.max_new_tokens - 1
    cache = KVCache(model.config.decoder, len(samples), capacity, model.device, model.dtype)
    logits = prefill(model, batch.input_ids, layout, cache, batch.pixel_values)
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    answers = beam_search(model, cache, logits, config)
    assert all(map(torch.equal, before, (*cache.keys, *cache.values))), "the prompts' cache stays as it is"
    return answers


@torch.no_grad()
def log_probability(model: Owl2Model, sample: Sample, tokens: list[int]) -> float:
    """Of an answer in one forward pass over prompt and answer."""
    ids = torch.cat((sample.ids, torch.tensor(tokens)))
    labels = torch.full_like(ids, -100)
    labels[len(sample.ids) :] = ids[len(sample.ids) :]
    layout = padded_layout(ids[None], None, IMAGE)
    return -float(model.token_losses(ids, layout, targets_of(labels, layout), sample.images).sum())


@pytest.fixture(scope="module")
def twins() -> tuple[Owl2Model, Any]:
    """Our plain decoder and a LLaMA of transformers with the same weights, which end now and then."""
    transformers = pytest.importorskip("transformers")
    model = tiny_model(NO_MAM, num_key_value_heads=2)
    with torch.no_grad():  # a sharper head: beams differ in what they say and where they end
        model.lm_head.weight.mul_(2)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_hidden_layers": 2}
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=128, num_key_value_heads=2, rms_norm_eps=1e-6, **sizes)
    ).eval()
    missing = llama.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert not missing
    return model, llama


def theirs(llama: Any, ids: Tensor, mask: Tensor, ends: tuple[int, ...], **settings: Any) -> list[list[int]]:
    """New tokens of transformers' beam search, without end tokens and padding."""
    out = llama.generate(ids, attention_mask=mask.long(), eos_token_id=list(ends), pad_token_id=0, **settings)
    rows = []
    for row in out[:, ids.shape[1] :].tolist():
        rows.append(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])
    return rows


GRID = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": stop, "max_new_tokens": length}
    for beams, penalty, stop, length in itertools.product(
        (2, 5), (0.0, 1.0, 2.5, -1.0), (False, True, "never"), (1, 12)
    )
]


def test_the_ids_are_those_of_transformers(twins: tuple[Owl2Model, Any]) -> None:
    model, llama = twins
    samples = random_samples("9", "4", "13", "6", "21", "2")
    batch = pad(samples, "left")
    free = generate(model, batch.input_ids, batch.attention_mask, num_beams=5, max_new_tokens=12)
    ended_early = 0
    for settings, ends in itertools.product(GRID, [(free[0][3],), ENDS]):
        expected = theirs(llama, batch.input_ids, batch.attention_mask, ends, **settings)
        ours = generate(model, batch.input_ids, batch.attention_mask, eos_token_id=ends, **settings)
        assert ours == expected, settings
        ended_early += sum(len(row) < settings["max_new_tokens"] for row in ours)
    assert ended_early > 100, "end tokens should end many of them"


@pytest.mark.parametrize("settings", [{"min_new_tokens": 4}, {"num_beams": 9}, {"max_new_tokens": 40}])
def test_least_lengths_many_beams_and_long_answers_are_those_of_transformers(
    settings: dict[str, int], twins: tuple[Owl2Model, Any]
) -> None:
    model, llama = twins
    batch = pad(random_samples("9", "4", "13", "6"), "left")
    settings = {"num_beams": 4, "max_new_tokens": 9, **settings}
    expected = theirs(llama, batch.input_ids, batch.attention_mask, ENDS, **settings)
    assert generate(model, batch.input_ids, batch.attention_mask, eos_token_id=ENDS, **settings) == expected


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(
    num_beams: int, penalty: float, twins: tuple[Owl2Model, Any]
) -> None:
    model, llama = twins
    settings = {"num_beams": num_beams, "repetition_penalty": penalty, "max_new_tokens": 12}
    changed = 0
    for spec in ("9", "4", "13", "6", "21"):  # alone: transformers counts padding as a token of the text
        batch = pad(random_samples(spec), "left")
        expected = theirs(llama, batch.input_ids, batch.attention_mask, ENDS, **settings)
        ours = generate(model, batch.input_ids, batch.attention_mask, eos_token_id=ENDS, **settings)
        assert ours == expected
        plain = {**settings, "repetition_penalty": 1.0}
        changed += ours != generate(model, batch.input_ids, batch.attention_mask, eos_token_id=ENDS, **plain)
    assert changed > 2, "a penalty that changes nothing proves nothing"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_of_a_batch_is_penalised_for_its_own_tokens_alone(num_beams: int, side: str) -> None:
    model, samples = tiny_model(num_key_value_heads=2), random_samples(*SPECS)
    settings = {"num_beams": num_beams, "repetition_penalty": 1.4, "max_new_tokens": 9, "eos_token_id": ENDS}
    batch = pad(samples, side, extra=2)
    together = generate(model, batch.input_ids, batch.attention_mask, batch.pixel_values, **settings)
    for sample, found in zip(samples, together, strict=True):
        one = pad([sample], side)
        assert generate(model, one.input_ids, one.attention_mask, one.pixel_values, **settings) == [found]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stop", [False, True, "never"])
def test_a_row_of_a_batch_has_the_beams_that_it_has_alone_and_they_see_its_images(
    side: str, stop: bool | str
) -> None:
    model, samples = tiny_model(num_key_value_heads=2), random_samples(*SPECS)
    settings: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 14, "early_stopping": stop}
    together = search(model, samples, side, eos_token_id=ENDS, **settings)
    alone = [search(model, [sample], eos_token_id=ENDS, **settings)[0] for sample in samples]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert len({len(answer.tokens) for answer in alone}) > 2, "rows should end at different steps"
    for ours, other in zip(together, alone, strict=True):
        assert ours.score == pytest.approx(other.score, abs=1e-4)


def test_a_score_is_the_log_probability_of_one_pass_over_the_answer_and_no_less_than_that_of_greedy() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    settings: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 10, "eos_token_id": 7}
    answers = search(model, samples, num_beams=6, length_penalty=0.0, early_stopping="never", **settings)
    better = 0
    for sample, answer in zip(samples, answers, strict=True):
        exact = log_probability(model, sample, answer.tokens)
        assert answer.score == answer.log_probability == pytest.approx(exact, abs=1e-3)
        (greedy,) = generate(model, sample.ids[None], None, sample.images, **settings)
        assert exact >= log_probability(model, sample, greedy) - 1e-3
        better += answer.tokens != greedy
    assert better > 1, "beams should find something else now and then"


def test_one_beam_is_exactly_greedy() -> None:
    model = tiny_model()
    batch = pad(random_samples(*SPECS))
    inputs = (batch.input_ids, batch.attention_mask, batch.pixel_values)
    greedy = generate(model, *inputs, max_new_tokens=12, eos_token_id=ENDS)
    assert generate(model, *inputs, max_new_tokens=12, eos_token_id=ENDS, num_beams=1) == greedy
    wide = search(
        model, random_samples(*SPECS), num_beams=1, max_new_tokens=12, eos_token_id=ENDS, early_stopping=True
    )
    assert [[token for token in answer.tokens if token not in ENDS] for answer in wide] == greedy


def test_images_are_encoded_once_and_a_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    encoded: list[int] = []
    read: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    batch = pad(random_samples(*SPECS))
    settings = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    generate(model, batch.input_ids, batch.attention_mask, batch.pixel_values, **settings)
    assert encoded == [5]
    assert read == [int(batch.attention_mask.sum()), *(3 * [3 * len(SPECS)])]


def test_rows_that_are_done_leave_the_cache() -> None:
    model = tiny_model()
    read: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    search(model, random_samples(*SPECS), num_beams=4, max_new_tokens=14, eos_token_id=ENDS)
    steps = read[1:]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 4 * len(SPECS) > steps[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2, "do_sample": True}, "num_beams = 2 with do_sample: beam search does not sample"),
        ({"num_beams": 0}, "num_beams = 0 must be 1 or more"),
        ({"num_beams": 128}, "num_beams = 128 is more than the 127 tokens"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty = nan must be a finite number"),
        ({"num_beams": 2, "length_penalty": 1e9}, "length_penalty = 1000000000.0 must be at most 20"),
        (
            {"num_beams": 2, "early_stopping": "always"},
            "early_stopping = 'always' must be true or false or never",
        ),
    ],
)
def test_what_beams_cannot_do_is_an_error_that_says_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        generate(tiny_model(), torch.tensor([[5, 6]]), **settings)


def test_temperature_0_is_greedy_and_may_have_beams() -> None:
    ids = torch.tensor([[5, 6]])
    wanted = generate(tiny_model(), ids, num_beams=3, max_new_tokens=5)
    assert generate(tiny_model(), ids, num_beams=3, max_new_tokens=5, do_sample=True, temperature=0) == wanted
