"""Inputs that do not fit are errors with numbers; layouts say where the tokens are."""

import pytest
import torch

from owl2.model import build, packed_layout, padded_layout
from tests.model.tiny import IMAGE, lively, pad, random_samples, tiny_config, tiny_model


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("3 I 2", 0, r"5 visual positions in input_ids, but 0 image\(s\) fill 0"),
        ("3 I 2", 2, r"5 visual positions in input_ids, but 2 image\(s\) fill 10 \(5 each\)"),
        ("I I", 1, r"10 visual positions in input_ids, but 1 image\(s\) fill 5"),
        ("4", 1, r"0 visual positions in input_ids, but 1 image\(s\) fill 5"),
    ],
)
def test_more_or_fewer_images_than_places_is_an_error(spec: str, given: int, message: str) -> None:
    (sample,) = random_samples(spec)
    pixels = torch.zeros(given, 3, 56, 56) if given else None
    with pytest.raises(ValueError, match=message):
        tiny_model()(sample.ids[None], pixel_values=pixels)


def test_a_single_mark_instead_of_its_visual_positions_is_an_error() -> None:
    ids = torch.tensor([[1, 5, IMAGE, 7]])
    with pytest.raises(ValueError, match="1 visual positions in input_ids"):
        tiny_model()(ids, pixel_values=torch.zeros(1, 3, 56, 56))


@pytest.mark.parametrize("stray", [-1, -100, -201])
def test_a_negative_id_is_an_error_with_and_without_images_unless_it_is_padding(stray: int) -> None:
    model = tiny_model()
    for spec in ("4", "2 I 2"):
        batch = pad(random_samples(spec), extra=2, pad_id=stray)
        model(batch.input_ids, batch.attention_mask, batch.pixel_values)
        batch.input_ids[0, 1] = stray
        with pytest.raises(ValueError, match=f"id {stray} is neither a token nor the image token, -200"):
            model(batch.input_ids, batch.attention_mask, batch.pixel_values)


@pytest.mark.parametrize("image_token_id", [-1, 5000])
@torch.no_grad()
def test_any_id_outside_the_vocabulary_may_stand_for_images(image_token_id: int) -> None:
    (sample,) = random_samples("2 I 2")
    expected = tiny_model()(sample.ids[None], pixel_values=sample.images)
    model = lively(build(tiny_config().replace(image_token_id=image_token_id)))
    ids = sample.ids.masked_fill(sample.ids == IMAGE, image_token_id)
    assert torch.equal(model(ids[None], pixel_values=sample.images), expected)


def test_shapes_that_do_not_fit_are_errors() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\); got shape \(3,\)"):
        padded_layout(ids[0], None, IMAGE)
    with pytest.raises(ValueError, match=r"attention_mask \(2, 4\) and input_ids \(2, 3\) differ"):
        padded_layout(ids, torch.ones(2, 4), IMAGE)
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        padded_layout(ids, torch.tensor([[1, 1, 0], [0, 0, 0]]), IMAGE)
    for lengths in ([3, 2], [3, 4], [6, 0], []):
        with pytest.raises(ValueError, match="do not divide"):
            packed_layout(ids.flatten(), lengths, IMAGE)
    with pytest.raises(ValueError, match="do not divide"):
        packed_layout(ids, [3, 3], IMAGE)


def test_a_layout_says_where_the_tokens_of_each_modality_are() -> None:
    batch = pad(random_samples("2 I 1", "3"), "left")
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    assert layout.lengths == (8, 3)
    assert layout.num_tokens == 11
    assert layout.num_visual == 5
    assert layout.positions.tolist() == [*range(8), *range(3)]
    assert layout.tokens is not None
    assert layout.tokens.tolist() == [*range(8), 13, 14, 15]
    assert layout.visual_rows.tolist() == [2, 3, 4, 5, 6]
    assert layout.text_rows.tolist() == [0, 1, 7, 8, 9, 10]
    assert torch.cat((layout.text_rows, layout.visual_rows))[layout.unsort].tolist() == [*range(11)]
    assert layout.boundaries.tolist() == [0, 8, 11]
    assert padded_layout(batch.input_ids, None, IMAGE).tokens is None


@torch.no_grad()
def test_encoded_images_may_take_the_place_of_pixels() -> None:
    model, samples = tiny_model(), random_samples("3 I 2", "I")
    batch = pad(samples)
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    assert batch.pixel_values is not None
    tokens = model.encode_images(batch.pixel_values)
    ours = model.embed(batch.input_ids, layout, visual_tokens=tokens)
    assert torch.equal(ours, model.embed(batch.input_ids, layout, batch.pixel_values))


@torch.no_grad()
def test_an_integer_mask_means_the_same_as_a_boolean_one() -> None:
    model, batch = tiny_model(), pad(random_samples("4", "2"))
    as_bool = model(batch.input_ids, batch.attention_mask)
    assert torch.equal(model(batch.input_ids, batch.attention_mask.long()), as_bool)
