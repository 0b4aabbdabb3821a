"""Decoding with the cache gives the numbers of a forward pass over everything, for any mix of rows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from owl2.model import KVCache, Owl2Model, decode_layout, padded_layout
from tests.model.tiny import IMAGE, Sample, assert_near, pad, random_samples, tiny_model

SPECS = ("3 I 5", "11", "1 I 2 I 1", "2")
NEW_TOKENS = 5


def new_cache(model: Owl2Model, rows: int, capacity: int = 64) -> KVCache:
    return KVCache(model.config.decoder, rows, capacity, model.device, model.dtype)


def prefill(model: Owl2Model, samples: list[Sample], cache: KVCache, side: str = "right") -> Tensor:
    batch = pad(samples, side)
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    embeddings = model.embed(batch.input_ids, layout, batch.pixel_values)
    return model.logits(model.hidden(embeddings, layout, cache))


def step(model: Owl2Model, ids: Tensor, cache: KVCache) -> Tensor:
    layout = decode_layout(cache.lengths, model.device)
    return model.logits(model.hidden(model.embed(ids, layout), layout, cache))


@pytest.mark.parametrize("decoder", [{}, {"num_key_value_heads": 1}], ids=["mha", "mqa"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_decoded_rows_equal_a_forward_pass_over_all_tokens(side: str, decoder: dict[str, Any]) -> None:
    model, samples = tiny_model(**decoder), random_samples(*SPECS)
    following = torch.stack([s.ids for s in random_samples(*[str(NEW_TOKENS)] * len(SPECS), seed=9)])
    cache = new_cache(model, len(samples))
    prefill(model, samples, cache, side)
    steps = torch.stack([step(model, following[:, i], cache) for i in range(NEW_TOKENS)], dim=1)
    for row, sample in enumerate(samples):
        ids = torch.cat((sample.ids, following[row]))
        expected = model(ids[None], pixel_values=sample.images)[0, -NEW_TOKENS:]
        assert_near(steps[row], expected)
    assert cache.lengths == [len(s.ids) + NEW_TOKENS for s in samples]


@torch.no_grad()
def test_a_prefill_through_the_cache_equals_one_without() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    batch = pad(samples)
    expected = model(batch.input_ids, batch.attention_mask, batch.pixel_values)[batch.attention_mask]
    assert_near(prefill(model, samples, new_cache(model, 4)), expected)


@torch.no_grad()
def test_a_second_turn_with_an_image_continues_each_row_at_its_own_length() -> None:
    model = tiny_model()
    first, second = random_samples("3 I 5", "4"), random_samples("2 I 1", "6", seed=5)
    cache = new_cache(model, 2)
    prefill(model, first, cache)
    batch = pad(second)
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE, past=cache.lengths)
    logits = model.logits(
        model.hidden(model.embed(batch.input_ids, layout, batch.pixel_values), layout, cache)
    )
    for row, ours in enumerate(logits.split(layout.lengths)):
        ids = torch.cat((first[row].ids, second[row].ids))
        pixels = torch.cat((first[row].pixels, second[row].pixels))
        expected = model(ids[None], pixel_values=pixels if len(pixels) else None)[0, -len(second[row].ids) :]
        assert_near(ours, expected)


@torch.no_grad()
def test_a_prompt_fed_token_by_token_equals_one_forward_pass() -> None:
    model, (sample,) = tiny_model(), random_samples("7")
    cache = new_cache(model, 1)
    layout = padded_layout(sample.ids[None, :1], None, IMAGE)
    logits = [model.logits(model.hidden(model.embed(sample.ids[:1], layout), layout, cache))]
    logits += [step(model, sample.ids[i : i + 1], cache) for i in range(1, 7)]
    assert_near(torch.cat(logits), model(sample.ids[None])[0])


@torch.no_grad()
def test_what_lies_beyond_a_rows_length_changes_no_bit() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    results = []
    for filler in (0.0, 1e4):
        cache = new_cache(model, len(samples))
        for buffer in cache.keys + cache.values:
            buffer.fill_(filler)
        prefill(model, samples, cache)
        results.append(step(model, torch.tensor([5, 6, 7, 8]), cache))
    assert torch.equal(*results)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
@torch.no_grad()
def test_uninitialised_memory_never_reaches_a_result() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    cache = new_cache(model, len(samples))
    assert prefill(model, samples, cache).isfinite().all()
    assert step(model, torch.tensor([5, 6, 7, 8]), cache).isfinite().all()


@torch.no_grad()
def test_rows_that_remain_are_not_changed_by_dropping_others() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    whole, kept = new_cache(model, 4), new_cache(model, 4)
    for cache in (whole, kept):
        prefill(model, samples, cache)
    kept.keep_rows([3, 1, 2])
    expected = step(model, torch.tensor([5, 6, 7, 8]), whole)
    assert_near(step(model, torch.tensor([8, 6, 7]), kept), expected[[3, 1, 2]])
    assert kept.lengths == [whole.lengths[row] for row in (3, 1, 2)] == [3, 12, 15]


@torch.no_grad()
def test_a_full_cache_is_an_error_with_both_numbers() -> None:
    model, samples = tiny_model(), random_samples("6")
    with pytest.raises(ValueError, match="room for 5 tokens a row, but 6 are needed"):
        prefill(model, samples, new_cache(model, 1, capacity=5))
    cache = new_cache(model, 1, capacity=6)
    prefill(model, samples, cache)
    with pytest.raises(ValueError, match="room for 6 tokens a row, but 7 are needed"):
        step(model, torch.tensor([4]), cache)


@torch.no_grad()
def test_a_batch_that_does_not_continue_the_cache_is_an_error() -> None:
    model, samples = tiny_model(), random_samples("6", "4")
    cache = new_cache(model, 2)
    prefill(model, samples, cache)
    with pytest.raises(
        ValueError, match=r"cache holds \[6, 4\] tokens a row, but the batch continues \(0, 0\)"
    ):
        prefill(model, samples, cache)
