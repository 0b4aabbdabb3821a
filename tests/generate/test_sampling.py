"""Samples follow the stated distribution, repeat with their seed and depend on nothing else."""

import pytest
import torch
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from owl2.generate import GenerationConfig, generate
from owl2.generate.sampling import candidates, sample
from tests.model.tiny import pad, random_samples, tiny_model

SAMPLED = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 12, "min_new_tokens": 12}


def config(**settings: object) -> GenerationConfig:
    return GenerationConfig(do_sample=True).replace(**settings)


def distribution(logits: torch.Tensor, settings: GenerationConfig) -> torch.Tensor:
    """Probabilities (B, V) in the order of the vocabulary, summing to 1."""
    probabilities, tokens = candidates(logits, settings)
    if tokens is not None:
        probabilities = torch.zeros_like(logits).scatter(1, tokens, probabilities)
    return probabilities / probabilities.sum(-1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 999])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.9])
def test_the_distribution_is_that_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    settings = config(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(distribution(logits, settings), expected.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"top_k": 6}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.8}])
def test_evenly_spread_numbers_sample_each_token_as_often_as_it_is_probable(
    settings: dict[str, float],
) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(1))
    count = 20000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = sample(logits.expand(count, -1), uniform, config(**settings))
    frequency = tokens.bincount(minlength=20) / count
    torch.testing.assert_close(frequency, distribution(logits, config(**settings))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_extreme_numbers_sample_tokens_that_have_probability(settings: dict[str, float]) -> None:
    logits = torch.full((2, 9), float("-inf"))
    logits[:, 2:5] = torch.tensor([0.3, 0.2, 0.1])
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens = sample(logits, uniform, config(**settings))
    assert all(2 <= token < 5 for token in tokens.tolist())


def test_a_seed_repeats_a_batch_and_another_seed_does_not() -> None:
    model = tiny_model()
    batch = pad(random_samples("9", "3 I 5"))
    inputs = (batch.input_ids, batch.attention_mask, batch.pixel_values)
    first = generate(model, *inputs, seed=7, **SAMPLED)
    assert generate(model, *inputs, seed=7, **SAMPLED) == first
    assert generate(model, *inputs, seed=70, **SAMPLED) != first
    assert generate(model, *inputs, **SAMPLED) != generate(model, *inputs, **SAMPLED)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_sampled_with_its_seed_whatever_the_rest_of_the_batch_is(side: str) -> None:
    model = tiny_model()
    samples = random_samples("9", "3 I 5", "2 I I 4", "5")
    batch = pad(samples, side)
    together = generate(model, batch.input_ids, batch.attention_mask, batch.pixel_values, seed=3, **SAMPLED)
    for row, one in enumerate(samples):
        assert generate(model, one.ids[None], None, one.images, seed=3 + row, **SAMPLED) == [together[row]]


def test_a_row_that_ends_early_does_not_shift_the_samples_of_the_others() -> None:
    model = tiny_model()
    samples = random_samples("9", "4", "6", "5")
    batch = pad(samples)
    settings = {**SAMPLED, "min_new_tokens": 0}
    free = generate(model, batch.input_ids, batch.attention_mask, seed=3, eos_token_id=0, **settings)
    assert [len(row) for row in free] == [12] * 4, "no row should meet the end token here"
    end = free[0][1]
    ended = generate(model, batch.input_ids, batch.attention_mask, seed=3, eos_token_id=end, **settings)
    assert len(ended[0]) < 12
    assert ended == [row[: row.index(end)] if end in row else row for row in free]


def test_rows_with_the_same_prompt_have_different_answers() -> None:
    ids = random_samples("9")[0].ids.expand(6, -1)
    assert len({tuple(row) for row in generate(tiny_model(), ids, seed=0, **SAMPLED)}) == 6


def test_temperature_0_and_top_k_1_are_greedy() -> None:
    model = tiny_model()
    ids = random_samples("9")[0].ids[None]
    greedy = generate(model, ids, max_new_tokens=8)
    assert generate(model, ids, max_new_tokens=8, do_sample=True, temperature=0.0) == greedy
    assert generate(model, ids, max_new_tokens=8, do_sample=True, top_k=1) == greedy


def test_the_end_token_has_no_chance_before_min_new_tokens() -> None:
    model = tiny_model()
    ids = random_samples("9")[0].ids.expand(16, -1)
    ends = tuple(range(100))
    rows = generate(model, ids, eos_token_id=ends, seed=0, do_sample=True, max_new_tokens=9, min_new_tokens=4)
    assert all(len(row) >= 4 and not set(row) & set(ends) for row in rows)
