"""No number of a sample comes from another sample or from padding: shown by exact zeros, not tolerances."""

import pytest
import torch
from torch import Tensor

from owl2.model import Layout, Owl2Model, packed_layout, padded_layout
from tests.model.tiny import IMAGE, images_of, pad, random_samples, tiny_model

SPECS = ("4 I 3", "7", "2 I 1 I 2", "5")


def reached(model: Owl2Model, embeddings: Tensor, layout: Layout, segment: int) -> Tensor:
    """Which packed embeddings (N,) the logits of one segment have any gradient to."""
    embeddings = embeddings.detach().requires_grad_()
    logits = model.logits(model.hidden(embeddings, layout)).split(layout.lengths)
    (gradient,) = torch.autograd.grad(logits[segment].square().sum(), embeddings)
    return gradient.ne(0).any(dim=1)


@pytest.mark.parametrize("specs", [SPECS, ("6", "1 I", "6")], ids=["ragged", "equal_lengths"])
@pytest.mark.parametrize("form", ["packed", "left", "right"])
def test_logits_of_a_sample_depend_on_that_sample_alone(specs: tuple[str, ...], form: str) -> None:
    model, samples = tiny_model(), random_samples(*specs)
    if form == "packed":
        ids = torch.cat([s.ids for s in samples])
        layout = packed_layout(ids, [len(s.ids) for s in samples], IMAGE)
    else:
        batch = pad(samples, form, extra=3)
        ids, layout = batch.input_ids, padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    embeddings = model.embed(ids, layout, images_of(samples))
    owners = torch.arange(len(samples)).repeat_interleave(torch.tensor(layout.lengths))
    for segment in range(len(samples)):
        assert torch.equal(reached(model, embeddings, layout, segment), owners == segment)


def test_a_token_sees_itself_and_its_past_and_never_its_future() -> None:
    model, (sample,) = tiny_model(), random_samples("3 I 4")
    layout = padded_layout(sample.ids[None], None, IMAGE)
    embeddings = model.embed(sample.ids[None], layout, sample.images).detach().requires_grad_()
    logits = model.logits(model.hidden(embeddings, layout))
    for position in range(len(sample.ids)):
        (gradient,) = torch.autograd.grad(logits[position].square().sum(), embeddings, retain_graph=True)
        expected = torch.arange(len(sample.ids)) <= position
        assert torch.equal(gradient.ne(0).any(dim=1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_what_stands_in_masked_slots_changes_no_bit(side: str) -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    outputs = []
    for pad_id in (0, 77, IMAGE):
        batch = pad(samples, side, extra=2, pad_id=pad_id)
        outputs.append(model(batch.input_ids, batch.attention_mask, batch.pixel_values))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@torch.no_grad()
def test_the_amount_and_side_of_padding_change_no_bit() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    packed = []
    for side, extra in (("right", 0), ("right", 9), ("left", 0), ("left", 4)):
        batch = pad(samples, side, extra)
        logits = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
        assert not logits[~batch.attention_mask].any()
        packed.append(logits[batch.attention_mask])
    assert all(torch.equal(logits, packed[0]) for logits in packed)


@torch.no_grad()
def test_another_sample_in_the_batch_may_hold_infinities() -> None:
    model, samples = tiny_model(), random_samples("4 I 3", "2 I 2")
    samples[1].pixels.fill_(float("inf"))
    batch = pad(samples)
    logits = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    assert logits[0].isfinite().all()
    assert not logits[1].isfinite().all()
