"""Likelihoods: how probable given continuations of prompts are.

Each prompt is read once; its continuations share its cache. Only their tokens reach the head.

Shapes: B prompts, T slots, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from owl2.generate.generate import check_room, prefill
from owl2.model import KVCache, Owl2Model, padded_layout


def log_likelihoods(
    model: Owl2Model, batch: Mapping[str, Tensor], continuations: Sequence[tuple[int, Sequence[int]]]
) -> list[tuple[float, bool]]:
    """For each continuation, the sum of its tokens' log-probabilities, and whether greedy decoding writes it.

    Arguments and errors are those of `token_log_likelihoods`.
    """
    found = token_log_likelihoods(model, batch, continuations)
    return [(math.fsum(tokens), is_greedy) for tokens, is_greedy in found]


@torch.inference_mode()
def token_log_likelihoods(
    model: Owl2Model, batch: Mapping[str, Tensor], continuations: Sequence[tuple[int, Sequence[int]]]
) -> list[tuple[list[float], bool]]:
    """For each continuation, its tokens' log-probabilities, and whether greedy decoding writes it.

    Args:
        model: the model.
        batch: `input_ids` (B, T) and `attention_mask` of the prompts; `pixel_values` or `visual_tokens` of
            their images.
        continuations: row of the batch and token ids, at least one; in any order.

    Raises:
        GenerationError: a prompt and a continuation that together exceed the context.
    """
    layout = padded_layout(batch["input_ids"], batch["attention_mask"], model.config.image_token_id)
    longest = max(len(ids) for _, ids in continuations)
    check_room(model, max(layout.lengths), longest)
    capacity = max(layout.lengths) + longest - 1
    cache = KVCache(model.config.decoder, len(layout.lengths), capacity, model.device, model.dtype)
    images = {name: batch[name] for name in ("pixel_values", "visual_tokens") if name in batch}
    first = prefill(model, batch["input_ids"], layout, cache, **images).log_softmax(-1)
    likeliest = first.argmax(-1).tolist()
    tokens = [[float(first[row, ids[0]])] for row, ids in continuations]
    is_greedy = [likeliest[row] == ids[0] for row, ids in continuations]
    longer = [i for i, (_, ids) in enumerate(continuations) if len(ids) > 1]
    if not longer:
        return list(zip(tokens, is_greedy, strict=True))
    cache.keep_rows([continuations[i][0] for i in longer])
    read = [list(continuations[i][1][:-1]) for i in longer]  # nothing follows the last token
    width = max(len(ids) for ids in read)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in read])
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in read])[:, None]
    rest = padded_layout(input_ids, mask, model.config.image_token_id, past=cache.lengths).to(model.device)
    hidden = model.hidden(model.embed(input_ids.to(model.device), rest), rest, cache)
    begin = 0
    for i, ids in zip(longer, read, strict=True):  # row by row: logits of all of them would be large
        following = torch.tensor(continuations[i][1][1:], device=hidden.device)
        found = model.logits(hidden[begin : begin + len(ids)]).log_softmax(-1)
        tokens[i] += found.gather(1, following[:, None])[:, 0].tolist()
        is_greedy[i] &= bool((found.argmax(-1) == following).all())
        begin += len(ids)
    return list(zip(tokens, is_greedy, strict=True))
