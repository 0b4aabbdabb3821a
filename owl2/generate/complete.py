"""Several answers to one prompt, with the probabilities of their tokens.

The prompt is read once; its row of the cache is copied for every answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from owl2.generate.config import GenerationConfig, GenerationError
from owl2.generate.generate import check_room, decode, prefill
from owl2.generate.text import TextStream
from owl2.model import KVCache, Owl2Model, padded_layout
from owl2.processor import Processor


@dataclass
class Completion:
    """An answer with its tokens."""

    text: str = ""
    """Without white space around it, and without the stop string that ended it."""
    ids: list[int] = field(default_factory=list)
    """New token ids, without an end token; those of a stop string are here."""
    log_probabilities: list[float] = field(default_factory=list)
    """Of each id under the model itself, before temperature, penalties and top-p."""
    most_probable: list[dict[int, float]] = field(default_factory=list)
    """For each place, the ids that were most probable and their log-probabilities, the best first."""
    ended_by: Literal["end", "stop", "length"] = "length"
    """An end token, a stop string, or `max_new_tokens`."""


@torch.inference_mode()
def complete(
    model: Owl2Model,
    processor: Processor,
    batch: Mapping[str, Tensor],
    config: GenerationConfig,
    *,
    n: int = 1,
    num_most_probable: int = 0,
) -> list[Completion]:
    """Return `n` answers to one prompt; answer i samples with the seed `config.seed` + i.

    Args:
        batch: `input_ids` (1, T), `attention_mask`, and `pixel_values` or `visual_tokens` of its images.
        n: number of answers; more than one needs `do_sample`, as greedy answers are all the same.
        num_most_probable: how many ids to record for each place.

    Raises:
        GenerationError: no room for the answer, `n` below 1, several greedy answers, or beams.
    """
    if n < 1 or (n > 1 and config.is_greedy):
        raise GenerationError(f"n = {n}: give 1 or more, and do_sample=True for more than 1")
    if config.num_beams > 1:
        raise GenerationError(f"num_beams = {config.num_beams}: beams have no tokens to record; set it to 1")
    vocab_size = model.config.decoder.vocab_size
    if not 0 <= num_most_probable <= vocab_size:
        raise GenerationError(f"{num_most_probable} most probable tokens of a vocabulary of {vocab_size}")
    layout = padded_layout(batch["input_ids"], batch["attention_mask"], model.config.image_token_id)
    check_room(model, layout.lengths[0], config.max_new_tokens)
    capacity = layout.lengths[0] + config.max_new_tokens - 1
    cache = KVCache(model.config.decoder, 1, capacity, model.device, model.dtype)
    images = {name: batch[name] for name in ("pixel_values", "visual_tokens") if name in batch}
    logits = prefill(model, batch["input_ids"], layout, cache, **images)
    prompt = batch["input_ids"][batch["attention_mask"]].tolist()
    answers = [Completion() for _ in range(n)]
    streams = [TextStream(processor.tokenizer, config.stop) for _ in answers]

    def record(rows: list[int], logits: Tensor, tokens: Tensor) -> None:
        found = logits.log_softmax(-1)
        chosen = found.gather(1, tokens[:, None])[:, 0].tolist()
        best = found.topk(num_most_probable, dim=-1)
        places = zip(rows, chosen, best.indices.tolist(), best.values.tolist(), strict=True)
        for row, value, ids, values in places:
            answers[row].log_probabilities.append(value)
            answers[row].most_probable.append(dict(zip(ids, values, strict=True)))

    running = set(range(n))
    steps = decode(model, cache.copy_rows([0] * n), logits.repeat(n, 1), config, [prompt] * n, watch=record)
    for new_tokens in steps:
        for row in running - new_tokens.keys():
            answers[row].ended_by = "end"
        running &= new_tokens.keys()
        for row in sorted(running):
            answers[row].ids.append(new_tokens[row])
            answers[row].text += streams[row].push(new_tokens[row])
            if streams[row].has_stopped:
                answers[row].ended_by = "stop"
                running.discard(row)
        if not running:
            break
    for answer, stream in zip(answers, streams, strict=True):
        answer.text = (answer.text + stream.finish()).strip()
        del answer.log_probabilities[len(answer.ids) :], answer.most_probable[len(answer.ids) :]
    return answers
