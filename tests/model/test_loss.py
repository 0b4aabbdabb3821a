"""The loss: only labelled rows, chunk by chunk, never across samples, and zero where nothing is labelled."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from owl2.model import Layout, Owl2Model, Targets, packed_layout, padded_layout, targets_of
from owl2.model import owl2 as assembly
from tests.model.tiny import IMAGE, Sample, assert_near, images_of, pad, random_samples, tiny_model

SPECS = ("3 I 5", "9", "1 I 4")


def packed(samples: list[Sample]) -> tuple[Tensor, Tensor, Layout]:
    ids = torch.cat([s.ids for s in samples])
    return (
        ids,
        torch.cat([s.labels for s in samples]),
        packed_layout(ids, [len(s.ids) for s in samples], IMAGE),
    )


def loss_and_gradients(model: Owl2Model, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    ids, labels, layout = packed(samples)
    model.zero_grad()
    loss = model.token_losses(ids, layout, targets_of(labels, layout), images_of(samples)).sum()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_sum_of_cross_entropies_of_the_logits_at_labelled_positions() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    batch = pad(samples)
    logits = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    targets = targets_of(batch.labels, layout)
    loss = model.token_losses(batch.input_ids, layout, targets, batch.pixel_values).sum()
    assert targets.count == (batch.labels[:, 1:] != -100).sum()
    assert_near(loss, expected)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_a_chunked_loss_and_its_gradients_equal_the_unchunked(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    expected, expected_gradients = loss_and_gradients(model, samples)
    monkeypatch.setattr(assembly, "LOSS_CHUNK_ELEMENTS", rows * model.config.decoder.vocab_size)
    loss, gradients = loss_and_gradients(model, samples)
    assert_near(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_near(gradient, expected_gradients[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [None, 2])
def test_only_labelled_rows_reach_the_head_and_never_more_than_a_chunk(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    if chunk is not None:
        monkeypatch.setattr(assembly, "LOSS_CHUNK_ELEMENTS", chunk * model.config.decoder.vocab_size)
    ids, labels, layout = packed(samples)
    labels[:15] = -100
    targets = targets_of(labels, layout)
    seen: list[int] = []
    plain_logits = Owl2Model.logits

    def counting(self: Owl2Model, hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return plain_logits(self, hidden)

    monkeypatch.setattr(Owl2Model, "logits", counting)
    model.token_losses(ids, layout, targets, images_of(samples)).sum()
    assert sum(seen) == targets.count < len(ids) / 2
    assert max(seen) <= (chunk or targets.count)


def test_no_sample_predicts_the_beginning_of_the_next() -> None:
    _, labels, layout = packed(random_samples("3", "4", "2"))
    targets = targets_of(labels, layout)
    assert targets.rows.tolist() == [0, 1, 3, 4, 5, 7]
    assert targets.ids.tolist() == [labels[i].item() for i in (1, 2, 4, 5, 6, 8)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_a_target_nor_predicts_one(side: str) -> None:
    samples = random_samples("3", "5")
    batch = pad(samples, side, extra=2)
    batch.labels[~batch.attention_mask] = 9  # whatever is there must not count
    targets = targets_of(batch.labels, padded_layout(batch.input_ids, batch.attention_mask, IMAGE))
    _, labels, layout = packed(samples)
    expected = targets_of(labels, layout)
    assert targets.rows.tolist() == expected.rows.tolist()
    assert targets.ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize("spec", ["6", "2 I 3"])
def test_without_any_label_the_loss_is_zero_and_so_is_every_gradient(spec: str) -> None:
    model, (sample,) = tiny_model(), random_samples(spec)
    layout = padded_layout(sample.ids[None], None, IMAGE)
    targets = targets_of(torch.full_like(sample.ids[None], -100), layout)
    assert targets.count == 0
    loss = model.token_losses(sample.ids[None], layout, targets, sample.images).sum()
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_the_loss_is_float32_whatever_the_model_is() -> None:
    model, samples = tiny_model(), random_samples(*SPECS)
    exact, _ = loss_and_gradients(model, samples)
    rounded, _ = loss_and_gradients(model.to(torch.bfloat16), samples)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_targets_move_with_their_rows() -> None:
    targets = Targets(torch.tensor([1, 4]), torch.tensor([7, 8])).to("meta")
    assert targets.rows.is_meta
    assert targets.ids.is_meta
    assert targets.count == 2
