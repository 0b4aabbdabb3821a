"""Without an image in the batch the model does what a decoder without MAM does, operation by operation.

Counted with a dispatch mode: op counts are exact where timings are noise. The released code searched for
visual tokens in every module of every layer, also for each decoded token.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from owl2.model import KVCache, Layout, Owl2Model, decode_layout, packed_layout, padded_layout
from tests.model.tiny import IMAGE, NO_MAM, random_samples, tiny_model

INDEXING = ("nonzero", "index", "gather", "scatter", "where", "masked", "_local_scalar_dense", "argsort")


class CountOps(TorchDispatchMode):
    """Counts every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def indexing(counts: Counter[str]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if any(word in name for word in INDEXING)}


def as_plain(model: Owl2Model) -> Owl2Model:
    """The decoder without MAM that has this model's text weights."""
    plain = tiny_model(NO_MAM)
    state = {n.replace(".multiway.0", ""): p for n, p in model.state_dict().items() if ".multiway.1" not in n}
    plain.load_state_dict(state)
    return plain


def run(
    model: Owl2Model, ids: Tensor, layout: Layout, cache: KVCache | None = None
) -> tuple[Tensor, Counter]:
    embeddings = model.embed(ids, layout)
    with torch.no_grad(), CountOps() as ops:
        hidden = model.hidden(embeddings, layout, cache)
    return hidden, ops.counts


@pytest.mark.parametrize("specs", [("9",), ("9", "4", "12")], ids=["one_row", "packed"])
def test_a_text_batch_runs_the_plain_decoders_operations_and_bits(specs: tuple[str, ...]) -> None:
    model = tiny_model()
    samples = random_samples(*specs)
    ids = torch.cat([s.ids for s in samples])
    layout = packed_layout(ids, [len(s.ids) for s in samples], IMAGE)
    ours, our_ops = run(model, ids, layout)
    plain, plain_ops = run(as_plain(model), ids, layout)
    assert torch.equal(ours, plain)
    assert our_ops == plain_ops
    assert indexing(our_ops) == {}


def test_a_decode_step_after_an_image_runs_the_plain_decoders_operations() -> None:
    (sample,) = random_samples("3 I 4")
    counts = []
    for model in (tiny_model(), tiny_model(NO_MAM)):
        layout = padded_layout(sample.ids[None], None, IMAGE)
        cache = KVCache(model.config.decoder, 1, 32, model.device, model.dtype)
        with torch.no_grad():
            model.hidden(model.embed(sample.ids[None], layout, sample.images), layout, cache)
        counts.append(run(model, torch.tensor([5]), decode_layout(cache.lengths, model.device), cache)[1])
    assert counts[0] == counts[1]
    # The step writes its key and value into the cache, one indexed write each a layer, and nothing else.
    assert indexing(counts[0]) == {"index_put_": 2 * 2}


def test_a_batch_with_images_never_asks_where_they_are_inside_the_decoder() -> None:
    model, (sample,) = tiny_model(), random_samples("3 I 4")
    layout = padded_layout(sample.ids[None], None, IMAGE)
    embeddings = model.embed(sample.ids[None], layout, sample.images)
    with torch.no_grad(), CountOps() as ops:
        model.hidden(embeddings, layout)
    layers = model.config.decoder.num_hidden_layers
    # A layer gathers text and visual rows once, reorders keys and values, and selects two norm gains.
    assert indexing(ops.counts) == {"index_select": 4 * layers, "where": 2 * layers}
