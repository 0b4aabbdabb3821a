"""Generation: from a batch of prompts to new tokens.

The prefill encodes each image once and sends only the last token of each row to the head; then each step
adds one token to all unfinished rows, with the plain text decoder over a preallocated cache. Padding is not a
token (model/layout.py), so its side and amount cannot matter, and a row gets the same answer alone and in any
batch. (The released code is right only for batches of one.)

Shapes: B rows, T slots, N tokens, I images, Q queries, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from owl2.generate.beams import beam_search
from owl2.generate.config import GenerationConfig, GenerationError, end_tokens
from owl2.generate.repetition import Repetition
from owl2.generate.sampling import Chooser
from owl2.model import KVCache, Layout, Owl2Model, decode_layout, padded_layout

COMPACT_SHARE = 8
"""Ended rows are removed when they are an eighth of the batch: it copies the cache, but saves later steps."""


@torch.inference_mode()
def generate(
    model: Owl2Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    config: GenerationConfig | None = None,
    *,
    visual_tokens: Tensor | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Continue each row of a batch; return the new token ids of each row, without the end token.

    Args:
        model: the model; tensors are brought to its device.
        input_ids: (B, T) int64 with the model's `image_token_id` at every visual position.
        attention_mask: (B, T) bool, True at real tokens; padding may be on either side.
        pixel_values: (I, 3, H, W), images in the order of their places in the batch.
        config: settings; greedy decoding if None.
        visual_tokens: (I, Q + 1, D) instead of `pixel_values`, if the images are encoded already.
        settings: fields of `GenerationConfig`, each overriding `config`.

    Raises:
        GenerationError: impossible settings, a prompt that with `max_new_tokens` exceeds the context, or
            `stop`, which needs text.
        ValueError: images that do not match their places.
        TypeError: an unknown setting.
    """
    config = (config or GenerationConfig()).replace(**settings)
    if config.stop:
        raise GenerationError(f"stop = {config.stop!r:.60} needs text: use chat, stream or complete")
    layout = padded_layout(input_ids, attention_mask, model.config.image_token_id)
    check_room(model, max(layout.lengths), config.max_new_tokens)
    # The last token is returned and never read, so it needs no place in the cache.
    capacity = max(layout.lengths) + config.max_new_tokens - 1
    cache = KVCache(model.config.decoder, len(layout.lengths), capacity, model.device, model.dtype)
    logits = prefill(model, input_ids, layout, cache, pixel_values, visual_tokens=visual_tokens)
    prompts = prompts_of(input_ids, layout)
    if config.num_beams > 1:
        ends = end_tokens(model, config)
        best = beam_search(model, cache, logits, config, prompts)
        return [[token for token in answer.tokens if token not in ends] for answer in best]
    answers: list[list[int]] = [[] for _ in layout.lengths]
    for new_tokens in decode(model, cache, logits, config, prompts):
        for row, token in new_tokens.items():
            answers[row].append(token)
    return answers


def prompts_of(input_ids: Tensor, layout: Layout) -> list[list[int]]:
    """The ids of each row without padding."""
    flat = input_ids.flatten().cpu()
    ids = (flat if layout.tokens is None else flat[layout.tokens.cpu()]).split(list(layout.lengths))
    return [row.tolist() for row in ids]


def check_room(model: Owl2Model, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raise GenerationError if prompt and new tokens together exceed the context."""
    context = model.config.decoder.max_position_embeddings
    total = prompt_tokens + max_new_tokens
    if total > context:
        free = context - prompt_tokens
        remedy = f"at most {free:,} new tokens fit" if free > 0 else "shorten the prompt"
        raise GenerationError(
            f"prompt of {prompt_tokens:,} tokens + max_new_tokens = {max_new_tokens:,} is {total:,}, but the "
            f"model's context has {context:,} tokens: {remedy}"
        )


@torch.inference_mode()
def prefill(
    model: Owl2Model,
    input_ids: Tensor,
    layout: Layout,
    cache: KVCache,
    pixel_values: Tensor | None = None,
    *,
    visual_tokens: Tensor | None = None,
) -> Tensor:
    """Read the new tokens of each row into the cache -> float32 logits (B, V) after each row's last token.

    Args:
        model: the model; tensors are brought to its device.
        input_ids: what `layout` was made of.
        layout: continues `cache`.
        cache: has room for the new tokens.
        pixel_values: (I, 3, H, W), the images among the new tokens.
        visual_tokens: (I, Q + 1, D) instead of `pixel_values`, if the images are encoded already.

    Raises:
        ValueError: images that do not match their places, or a layout that does not continue the cache.
    """
    device = model.device
    layout, input_ids = layout.to(device), input_ids.to(device)
    pixel_values, visual_tokens = (
        None if images is None else images.to(device) for images in (pixel_values, visual_tokens)
    )
    embeddings = model.embed(input_ids, layout, pixel_values, visual_tokens=visual_tokens)
    hidden = model.hidden(embeddings, layout, cache)
    return model.logits(hidden.index_select(0, layout.boundaries[1:] - 1))


@torch.inference_mode()
def decode(
    model: Owl2Model,
    cache: KVCache,
    logits: Tensor,
    config: GenerationConfig,
    prompts: Sequence[Sequence[int]] = (),
    watch: Callable[[list[int], Tensor, Tensor], None] | None = None,
    seeds: Sequence[int | None] = (),
) -> Iterator[dict[int, int]]:
    """Yield in each step the new token of each row that has not ended, by row number; no end tokens.

    Greedy or sampled, one text a row; for beams see beams.py. The cache lacks the token that was yielded
    last, so stopping early costs nothing. Rows are removed from the cache some time after their end.

    Args:
        model: the model.
        cache: holds the prompts; has room for `max_new_tokens - 1` more tokens a row.
        logits: (B, V) float32 after the prompts' last tokens.
        config: settings.
        prompts: ids of each prompt, for the repetition penalty.
        watch: called in each step with the numbers of the rows that are left, the model's logits (b, V) for
            them, and the tokens (b,) chosen.
        seeds: of each row's sampling; default: `config.seed` plus the row's number.
    """
    ends = end_tokens(model, config)
    end_columns = torch.tensor(sorted(ends), device=logits.device)
    choose = Chooser(config, len(logits), seeds)
    repetition = Repetition(config.repetition_penalty, prompts, logits.shape[1], logits.device)
    rows = list(range(len(logits)))
    running = set(rows)
    for step in range(config.max_new_tokens):
        scores = repetition.apply(logits)
        if step < config.min_new_tokens:
            scores = scores.index_fill(1, end_columns, float("-inf"))
        tokens = choose(scores, rows)
        repetition.add(tokens)
        if watch is not None:
            watch(rows, logits, tokens)
        new_tokens = {row: token for row, token in zip(rows, tokens.tolist(), strict=True) if row in running}
        running.difference_update([row for row, token in new_tokens.items() if token in ends])
        yield {row: token for row, token in new_tokens.items() if token not in ends}
        if not running or step + 1 == config.max_new_tokens:
            return
        if COMPACT_SHARE * (len(rows) - len(running)) >= len(rows):
            kept = [i for i, row in enumerate(rows) if row in running]
            cache.keep_rows(kept)
            repetition.take(kept)
            tokens, rows = tokens[kept], [rows[i] for i in kept]
        layout = decode_layout(cache.lengths, tokens.device)
        logits = model.logits(model.hidden(model.embed(tokens, layout), layout, cache))
