"""A row of a batch says what it says alone, and stops when it should."""

import pytest
import torch

from owl2.generate import GenerationError, generate
from owl2.model import Owl2Model
from tests.conftest import GoldenCase
from tests.model.tiny import pad, random_samples, tiny_model

SPECS = ("9", "3 I 5", "2 I I 4", "I 6 I 2", "1", "30")


def alone(model: Owl2Model, *specs: str, **settings: object) -> list[list[int]]:
    rows = [generate(model, s.ids[None], None, s.images, **settings) for s in random_samples(*specs)]
    return [row for (row,) in rows]


@pytest.mark.golden_with("greedy_ids")
def test_greedy_ids_are_those_of_the_released_code(golden_model: Owl2Model, golden_case: GoldenCase) -> None:
    ids = generate(
        golden_model,
        golden_case.input_ids,
        golden_case.attention_mask,
        golden_case.pixel_values,
        max_new_tokens=16,
        min_new_tokens=16,
        visual_tokens=golden_case.encoded,
    )
    assert ids == [golden_case.expected["greedy_ids"].tolist()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 7])
def test_rows_of_a_batch_with_any_padding_say_what_they_say_alone(side: str, extra: int) -> None:
    model = tiny_model(num_key_value_heads=2)
    batch = pad(random_samples(*SPECS), side, extra)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12}
    together = generate(model, batch.input_ids, batch.attention_mask, batch.pixel_values, **settings)
    assert together == alone(model, *SPECS, **settings)


def test_a_text_only_batch_needs_no_pixels_and_takes_empty_ones() -> None:
    model = tiny_model()
    batch = pad(random_samples("9", "4"))
    without = generate(model, batch.input_ids, batch.attention_mask, max_new_tokens=5)
    none = torch.zeros(0, 3, 56, 56)
    assert generate(model, batch.input_ids, batch.attention_mask, none, max_new_tokens=5) == without


def test_the_end_token_stops_a_row_and_is_not_returned() -> None:
    model = tiny_model()
    (free,) = alone(model, "3 I 5", max_new_tokens=10, min_new_tokens=10)
    end = free[4]
    stop = free.index(end)
    assert alone(model, "3 I 5", max_new_tokens=10, eos_token_id=end) == [free[:stop]]
    assert alone(model, "3 I 5", max_new_tokens=10, eos_token_id=(end, free[9])) == [free[:stop]]


def test_the_models_own_end_token_is_the_default() -> None:
    (free,) = alone(tiny_model(), "3 I 5", max_new_tokens=10, min_new_tokens=10)
    model = tiny_model(eos_token_id=free[4])
    assert alone(model, "3 I 5", max_new_tokens=10) == [free[: free.index(free[4])]]


def test_rows_that_ended_change_nothing_for_the_others() -> None:
    model = tiny_model()
    specs = [f"{n} I {n % 3 + 1}" for n in range(3, 23)]
    free = alone(model, *specs, max_new_tokens=20, min_new_tokens=20)
    ends = (free[0][0], free[3][5], free[7][9])
    expected = [row[: min([20, *(i for i, t in enumerate(row) if t in ends)])] for row in free]
    lengths = {len(row) for row in expected}
    assert len(lengths) > 4, "the rows should end at different steps"
    batch = pad(random_samples(*specs), "left")
    together = generate(
        model,
        batch.input_ids,
        batch.attention_mask,
        batch.pixel_values,
        max_new_tokens=20,
        eos_token_id=ends,
    )
    assert together == expected


def test_min_new_tokens_keeps_the_end_token_away_until_then() -> None:
    (free,) = alone(tiny_model(), "7", max_new_tokens=1)
    model = tiny_model(eos_token_id=free[0])
    assert alone(model, "7", max_new_tokens=8) == [[]]
    (row,) = alone(model, "7", max_new_tokens=8, min_new_tokens=3)
    assert len(row) >= 3
    assert free[0] not in row


def test_the_prefill_asks_the_head_for_one_token_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    rows: list[int] = []
    project = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(len(hidden)) or project(hidden))
    batch = pad(random_samples(*SPECS))
    generate(
        model,
        batch.input_ids,
        batch.attention_mask,
        batch.pixel_values,
        max_new_tokens=2,
        min_new_tokens=2,
    )
    assert rows == [len(SPECS), len(SPECS)]


def test_images_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    calls: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    batch = pad(random_samples(*SPECS))
    generate(model, batch.input_ids, batch.attention_mask, batch.pixel_values, max_new_tokens=6)
    assert calls == [5]


def test_more_than_the_context_is_an_error_with_the_counts() -> None:
    model = tiny_model(max_position_embeddings=32)
    (sample,) = random_samples("30")
    assert len(generate(model, sample.ids[None], max_new_tokens=2, min_new_tokens=2)[0]) == 2
    with pytest.raises(
        GenerationError, match=r"prompt of 30 tokens .* = 3 is 33, .* 32 tokens: at most 2 new"
    ):
        generate(model, sample.ids[None], max_new_tokens=3)
    with pytest.raises(GenerationError, match="shorten the prompt"):
        generate(model, torch.full((1, 32), 5), max_new_tokens=1)


def test_garbage_in_fresh_memory_does_not_reach_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    settings = {"max_new_tokens": 4, "min_new_tokens": 4}
    expected = alone(model, "3", "20", **settings)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))
    batch = pad(random_samples("3", "20"))
    assert generate(model, batch.input_ids, batch.attention_mask, **settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens = 4 .* 3"),
        ({"temperature": -1.0}, "temperature = -1"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_k": -2}, "top_k = -2"),
        ({"eos_token_id": 999}, r"eos_token_id \[999\] .* vocabulary of 128"),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_it(settings: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        generate(tiny_model(), torch.tensor([[5, 6]]), **settings)


def test_an_unknown_setting_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="'max_tokens'; nearest is 'max_new_tokens'"):
        generate(tiny_model(), torch.tensor([[5, 6]]), max_tokens=3)
