"""A sample's numbers do not depend on its batch: padding of either side, packing, company, or static shapes.

Each test compares with the sample alone, to 1e-5, in all-text, all-visual and mixed batches.
"""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from owl2.model import Layout, Owl2Model, build, packed_layout, padded_layout, targets_of
from owl2.model.config import MamConfig
from tests.model.tiny import IMAGE, NO_MAM, Sample, assert_near, images_of, pad, random_samples, tiny_model

BATCHES = {
    "all_text": ("9", "4", "12", "1"),
    "all_visual": ("I", "I I", "I"),
    "all_with_images": ("3 I 5", "I 2", "4 I"),
    "mixed": ("3 I 5", "11", "1 I I 2 I 1", "6", "I"),
    "equal_lengths": ("3 I 2", "10", "I 5"),
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}

batches = pytest.mark.parametrize("specs", BATCHES.values(), ids=BATCHES.keys())
heads = pytest.mark.parametrize("decoder", [{}, GROUPED], ids=["mha", "gqa"])


def alone(model: Owl2Model, samples: list[Sample]) -> list[Tensor]:
    """Logits (T, V) of each sample by itself."""
    return [model(s.ids[None], pixel_values=s.images)[0] for s in samples]


def packed(model: Owl2Model, samples: list[Sample]) -> tuple[Tensor, Layout]:
    ids = torch.cat([s.ids for s in samples])
    return ids, packed_layout(ids, [len(s.ids) for s in samples], IMAGE)


def static(layout: Layout) -> Layout:
    return dataclasses.replace(layout, is_static=True)


def gradients(model: Owl2Model) -> dict[str, Tensor]:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken


def gradients_alone(model: Owl2Model, samples: list[Sample]) -> dict[str, Tensor]:
    """Gradients of the summed loss, one backward pass a sample."""
    for sample in samples:
        layout = padded_layout(sample.ids[None], None, IMAGE)
        targets = targets_of(sample.labels[None], layout)
        model.token_losses(sample.ids[None], layout, targets, sample.images).sum().backward()
    return gradients(model)


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to float32 rounding of each tensor; a parameter without a gradient counts as zero."""
    scale = max(float(g.abs().max()) for g in expected.values())
    for name in ours.keys() | expected.keys():
        a, b = torch.broadcast_tensors(*(side.get(name, torch.zeros(())) for side in (ours, expected)))
        assert_near(a, b, rtol=1e-4, atol=1e-5 * scale, name=name)


@heads
@pytest.mark.parametrize("side", ["left", "right"])
@batches
@torch.no_grad()
def test_a_row_of_a_padded_batch_equals_the_row_alone(
    specs: tuple[str, ...], side: str, decoder: dict[str, Any]
) -> None:
    model, samples = tiny_model(**decoder), random_samples(*specs)
    batch = pad(samples, side, extra=2)
    logits = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    for row, expected in enumerate(alone(model, samples)):
        assert_near(logits[row, batch.attention_mask[row]], expected)


@heads
@batches
@torch.no_grad()
def test_packed_samples_equal_separate_rows(specs: tuple[str, ...], decoder: dict[str, Any]) -> None:
    model, samples = tiny_model(**decoder), random_samples(*specs)
    ids, layout = packed(model, samples)
    logits = model.logits(model.hidden(model.embed(ids, layout, images_of(samples)), layout))
    assert_near(logits, torch.cat(alone(model, samples)))


@heads
@batches
@torch.no_grad()
def test_static_shapes_give_the_numbers_of_the_split(specs: tuple[str, ...], decoder: dict[str, Any]) -> None:
    model, samples = tiny_model(**decoder), random_samples(*specs)
    ids, layout = packed(model, samples)
    embeddings = model.embed(ids, layout, images_of(samples))
    assert_near(model.hidden(embeddings, static(layout)), model.hidden(embeddings, layout))


@batches
def test_gradients_of_padded_packed_and_static_batches_equal_those_of_separate_rows(
    specs: tuple[str, ...],
) -> None:
    model, samples = tiny_model(), random_samples(*specs)
    if all(s.ids.eq(IMAGE).all() for s in samples):
        samples = [dataclasses.replace(s, labels=torch.full_like(s.ids, 7)) for s in samples]
    expected = gradients_alone(model, samples)
    for side in ("left", "right"):
        batch = pad(samples, side, extra=1)
        layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
        targets = targets_of(batch.labels, layout)
        model.token_losses(batch.input_ids, layout, targets, batch.pixel_values).sum().backward()
        assert_same_gradients(gradients(model), expected)
    ids, layout = packed(model, samples)
    targets = targets_of(torch.cat([s.labels for s in samples]), layout)
    for each in (layout, static(layout)):
        model.token_losses(ids, each, targets, images_of(samples)).sum().backward()
        assert_same_gradients(gradients(model), expected)


@torch.no_grad()
def test_logits_do_not_depend_on_the_order_of_the_rows() -> None:
    model, samples = tiny_model(), random_samples(*BATCHES["mixed"])
    forward, backward = pad(samples), pad(samples[::-1])
    logits = model(forward.input_ids, forward.attention_mask, forward.pixel_values)
    mirrored = model(backward.input_ids, backward.attention_mask, backward.pixel_values)
    assert_near(mirrored.flip(0), logits)


@torch.no_grad()
def test_images_encoded_together_equal_images_encoded_alone() -> None:
    model = tiny_model()
    pixels = random_samples("I I I")[0].pixels
    each = torch.cat([model.encode_images(image[None]) for image in pixels])
    assert_near(model.encode_images(pixels), each)


OFF_ON = (False, True)
SWITCHES = [MamConfig(norm=n, key=k, value=v) for n in OFF_ON for k in OFF_ON for v in OFF_ON]


@pytest.mark.parametrize("mam", SWITCHES, ids=lambda m: f"norm{m.norm:d}key{m.key:d}value{m.value:d}")
@torch.no_grad()
def test_mam_with_equal_branches_is_the_plain_decoder(mam: MamConfig) -> None:
    plain = tiny_model(NO_MAM)
    model = tiny_model(mam)
    shared = plain.state_dict()
    names = {name: re.sub(r"\.multiway\.[01]", "", name) for name in model.state_dict()}
    model.load_state_dict({name: shared[source] for name, source in names.items()})
    batch = pad(random_samples(*BATCHES["mixed"]))
    ours = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    expected = plain(batch.input_ids, batch.attention_mask, batch.pixel_values)
    # Splitting a product by rows, or taking the gain out of the norm, rounds differently.
    assert_near(ours, expected)


@pytest.mark.parametrize("part", ["norm", "key", "value"])
@torch.no_grad()
def test_each_part_of_mam_changes_batches_with_images_and_no_others(part: str) -> None:
    model = tiny_model(MamConfig(**{name: name == part for name in ("norm", "key", "value")}))
    with_image, text = random_samples("3 I 5", "8")
    before = [model(s.ids[None], pixel_values=s.images) for s in (with_image, text)]
    for name, parameter in model.named_parameters():
        if ".multiway.1." in name:
            parameter.mul_(1.5)
    after = [model(s.ids[None], pixel_values=s.images) for s in (with_image, text)]
    assert (after[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(after[1], before[1])


def test_visual_weights_start_as_copies_of_the_text_weights_and_share_nothing() -> None:
    model = build("tiny")
    state = model.state_dict()
    visual = [name for name in state if ".multiway.1." in name]
    assert len(visual) == 4 * model.config.decoder.num_hidden_layers
    assert all(torch.equal(state[name], state[name.replace("way.1", "way.0")]) for name in visual)
    with torch.no_grad():
        model.get_parameter(visual[0]).add_(1.0)
    assert not torch.equal(state[visual[0]], state[visual[0].replace("way.1", "way.0")])
    model.copy_text_to_vision()
    assert torch.equal(state[visual[0]], state[visual[0].replace("way.1", "way.0")])
