"""What both harnesses ask of a model: text up to a stop string, and the likelihood of given tokens.

Stop strings are looked for in the text while it comes, so a batch ends when its last answer does. A
continuation is read together with its context in one pass; those that read the same tokens, such as the
letters A to D behind a question, share it. Padding is no token in this model, so answers do not depend on
what else is in a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from owl2.api import Owl2, load
from owl2.generate.config import GenerationConfig, GenerationError
from owl2.generate.generate import check_room, decode, prefill
from owl2.model import KVCache, Owl2Model, packed_layout, padded_layout
from owl2.processor import Encoding, StreamDecoder

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens")
SAMPLING_NAMES = ("temperature", "top_k", "top_p")
OTHER_NAMES = ("until", "do_sample", "num_beams", "image_aspect_ratio")
"""`image_aspect_ratio` tells LLaVA how to pad images; ours are always squeezed into the square."""


@dataclass(frozen=True)
class Wish:
    """How one answer is to be made."""

    config: GenerationConfig
    until: tuple[str, ...] = ()
    """The answer ends before the first of these."""


def read_batch_size(batch_size: int | str) -> int:
    """Raises ValueError for what is no number from 1, such as the harness's `auto`."""
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ValueError(
            f"batch_size is {batch_size!r}, expected a number from 1: owl2 does not probe memory"
        )
    return int(batch_size)


def load_once(pretrained: str | Path | Owl2, device: str, dtype: str) -> Owl2:
    """Load a checkpoint (folder or hub id), or take a loaded model as it is."""
    return pretrained if isinstance(pretrained, Owl2) else load(pretrained, device, dtype, progress=False)


def read_wish(asked: Mapping[str, Any], defaults: GenerationConfig, task: str) -> Wish:
    """Translate a harness's generation arguments.

    A temperature above 0 draws unless `do_sample` forbids it; greedy answers ignore `top_k` and `top_p`.

    Raises:
        GenerationError: an argument that this model does not have, or an impossible value; names the task.
    """
    unknown = asked.keys() - {*LENGTH_NAMES, *SAMPLING_NAMES, *OTHER_NAMES}
    if unknown:
        raise GenerationError(f"task {task} asks for {sorted(unknown)}, which owl2 does not have")
    if asked.get("num_beams") not in (None, 1):
        raise GenerationError(
            f"task {task} asks for num_beams = {asked['num_beams']}; owl2 has no beams: set it to 1"
        )
    lengths = [asked[name] for name in LENGTH_NAMES if asked.get(name) is not None]
    settings: dict[str, Any] = {"max_new_tokens": int(lengths[0])} if lengths else {}
    temperature = asked.get("temperature")
    settings["do_sample"] = bool(asked.get("do_sample", temperature)) and temperature != 0
    if settings["do_sample"]:
        settings |= {name: asked[name] for name in SAMPLING_NAMES if asked.get(name) is not None}
    until = asked.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    try:
        return Wish(defaults.replace(**settings), tuple(stop for stop in stops if stop))
    except GenerationError as error:
        raise GenerationError(f"task {task}: {error}") from error


def answer_all(owl: Owl2, rows: Sequence[tuple[Encoding, Wish]], batch_size: int) -> list[str]:
    """Answer prompts, those alike in length and settings together; the answers are in the order of `rows`.

    A prompt that leaves less room in the context than its task allows is answered within it.

    Raises:
        GenerationError: a prompt leaves no room at all; says how long it is.
    """
    answers = [""] * len(rows)
    groups: dict[Wish, list[int]] = {}
    for i, (encoding, wish) in enumerate(rows):
        room = owl.model.config.decoder.max_position_embeddings - len(encoding.ids)
        check_room(owl.model, len(encoding.ids), 1)
        length = min(wish.config.max_new_tokens, room)
        config = wish.config.replace(
            max_new_tokens=length, min_new_tokens=min(length, wish.config.min_new_tokens)
        )
        groups.setdefault(Wish(config, wish.until), []).append(i)
    for wish, members in groups.items():
        members.sort(key=lambda i: len(rows[i][0].ids), reverse=True)
        for begin in range(0, len(members), batch_size):
            batch = members[begin : begin + batch_size]
            for i, text in zip(batch, answer_batch(owl, [rows[i][0] for i in batch], wish), strict=True):
                answers[i] = text
    return answers


@torch.inference_mode()
def answer_batch(owl: Owl2, encodings: Sequence[Encoding], wish: Wish) -> list[str]:
    """Answer prompts that have room for the answer; each text ends before the first stop string."""
    model, inputs = owl.model, owl.processor.collate(encodings)
    layout = padded_layout(inputs["input_ids"], inputs["attention_mask"], model.config.image_token_id)
    capacity = max(layout.lengths) + wish.config.max_new_tokens - 1
    cache = KVCache(model.config.decoder, len(encodings), capacity, model.device, model.dtype)
    logits = prefill(model, inputs["input_ids"], layout, cache, inputs["pixel_values"])
    texts = [""] * len(encodings)
    decoders = [StreamDecoder(owl.processor.tokenizer) for _ in encodings]
    running = set(range(len(encodings)))
    for new_tokens in decode(model, cache, logits, wish.config):
        running &= new_tokens.keys()
        for row in running:
            texts[row] += decoders[row].push(new_tokens[row])
        running = {row for row in running if not any(stop in texts[row] for stop in wish.until)}
        if not running:
            break
    whole = [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]
    return [cut(text, wish.until) for text in whole]


def cut(text: str, until: Sequence[str]) -> str:
    """Return what stands before the first of the stop strings."""
    return text[: min((text.index(stop) for stop in until if stop in text), default=len(text))]


@torch.inference_mode()
def score_continuations(
    model: Owl2Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[tuple[float, bool]]:
    """Return the sum of each continuation's log-probabilities, and whether greedy decoding would write it.

    Args:
        model: the model.
        pairs: token ids of context and continuation, at least one each; text only.
        batch_size: sequences that are read together.
    """
    scores: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    readings: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        readings.setdefault((*context, *continuation[:-1]), []).append(i)
    ordered = sorted(readings, key=len, reverse=True)
    for begin in range(0, len(ordered), batch_size):
        batch = ordered[begin : begin + batch_size]
        ids = torch.tensor([token for reading in batch for token in reading])
        layout = packed_layout(ids, [len(reading) for reading in batch], model.config.image_token_id)
        layout = layout.to(model.device)
        hidden = model.hidden(model.embed(ids.to(model.device), layout), layout)
        end = 0
        for reading in batch:
            end += len(reading)
            for i in readings[reading]:
                wanted = torch.tensor(pairs[i][1], device=model.device)
                found = model.logits(hidden[end - len(wanted) : end]).log_softmax(-1)
                total = float(found.gather(1, wanted[:, None]).sum())
                scores[i] = (total, bool((found.argmax(-1) == wanted).all()))
    return scores
