"""Decoding over the cache equals computing the whole sequence, without the costs of its prefill."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from owl2.generate import prefill
from owl2.model import KVCache, Owl2Model, decode_layout, padded_layout
from tests.model.tiny import IMAGE, NO_MAM, pad, random_samples, tiny_model


def empty_cache(model: Owl2Model, batch: int, capacity: int) -> KVCache:
    return KVCache(model.config.decoder, batch, capacity, model.device, model.dtype)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_logits_of_each_step_are_those_of_the_whole_sequence(side: str) -> None:
    model = tiny_model(num_key_value_heads=2)
    samples = random_samples("9", "3 I 5", "I I 4", "1")
    batch = pad(samples, side, extra=2)
    layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
    cache = empty_cache(model, len(samples), max(layout.lengths) + 6)
    logits = prefill(model, batch.input_ids, layout, cache, batch.pixel_values)
    rows = [sample.ids for sample in samples]
    for _ in range(6):
        whole = [model(ids[None], None, s.images)[0, -1] for ids, s in zip(rows, samples, strict=True)]
        torch.testing.assert_close(logits, torch.stack(whole), rtol=0, atol=1e-5)
        tokens = logits.argmax(-1)
        rows = [torch.cat((ids, token[None])) for ids, token in zip(rows, tokens, strict=True)]
        step = decode_layout(cache.lengths, torch.device("cpu"))
        logits = model.logits(model.hidden(model.embed(tokens, step), step, cache))


class OperationNames(TorchDispatchMode):
    """Records the name of every operation that reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


SYNCHRONISING = {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "is_nonzero"}
BY_MODALITY = {"index_select", "gather", "index_copy", "where", "index"}


@torch.inference_mode()
def test_a_decode_step_of_a_model_with_mam_is_the_plain_decoders_without_any_host_synchronisation() -> None:
    names = {}
    for mam in (True, False):
        model = tiny_model(None if mam else NO_MAM)
        batch = pad(random_samples("9", "5", "7"))
        layout = padded_layout(batch.input_ids, batch.attention_mask, IMAGE)
        cache = empty_cache(model, 3, 16)
        tokens = prefill(model, batch.input_ids, layout, cache).argmax(-1)
        with OperationNames() as operations:
            step = decode_layout(cache.lengths, torch.device("cpu"))
            model.logits(model.hidden(model.embed(tokens, step), step, cache))
        names[mam] = operations.names
    assert names[True] == names[False]
    assert not set(names[True]) & (SYNCHRONISING | BY_MODALITY)
