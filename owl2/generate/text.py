"""Text of an answer as its tokens come, up to the first stop string.

A piece is never taken back: what may turn out to be the beginning of a stop string, or white space at the end
of the answer, is held until it is clear that it is not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from owl2.generate.config import GenerationConfig
from owl2.generate.generate import check_room, decode, generate, prefill, prompts_of
from owl2.model import KVCache, Owl2Model, padded_layout
from owl2.processor import StreamDecoder, Tokenizer


class TextStream:
    """The text of one answer, token by token."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        self.has_stopped = False
        """Whether a stop string has come; what follows is dropped."""

    def push(self, token: int) -> str:
        """Return the text that is certain with this token, possibly none."""
        return self._release(self._decoder.push(token))

    def finish(self) -> str:
        """Return what is left when no more tokens come."""
        text = self._release(self._decoder.finish()) + self._held
        self._held = ""
        return text

    def _release(self, piece: str) -> str:
        if self.has_stopped:
            return ""
        text = self._held + piece
        ends = [text.index(stop) for stop in self._stop if stop in text]
        if ends:
            self.has_stopped, self._held = True, ""
            return text[: min(ends)]
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        certain = len(text) - max(lengths, default=0)
        self._held = text[certain:]
        return text[:certain]


def text_of(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> str:
    """The text of ids up to the first stop string, with the white space around it."""
    stream = TextStream(tokenizer, stop)
    return "".join(map(stream.push, ids)) + stream.finish()


@torch.inference_mode()
def generate_texts(
    model: Owl2Model,
    tokenizer: Tokenizer,
    batch: Mapping[str, Tensor],
    config: GenerationConfig,
    seeds: Sequence[int | None] = (),
) -> list[tuple[str, int]]:
    """Return the text of each row's answer, with the white space around it, and its number of new tokens.

    Stop strings are looked for as the text comes, so a batch ends when its last answer does; beams are cut
    when the search has ended.

    Args:
        batch: `input_ids` (B, T), `attention_mask`, and `pixel_values` or `visual_tokens` of its images.
        seeds: of each row's sampling; default: `config.seed` plus the row's number.

    Raises:
        GenerationError, ValueError: see `generate`.
    """
    stop, config = tuple(config.stop), config.replace(stop=())
    if config.num_beams > 1:
        rows = generate(model, **batch, config=config)
        return [(text_of(ids, tokenizer, stop), len(ids)) for ids in rows]
    layout = padded_layout(batch["input_ids"], batch["attention_mask"], model.config.image_token_id)
    check_room(model, max(layout.lengths), config.max_new_tokens)
    capacity = max(layout.lengths) + config.max_new_tokens - 1
    cache = KVCache(model.config.decoder, len(layout.lengths), capacity, model.device, model.dtype)
    images = {name: batch[name] for name in ("pixel_values", "visual_tokens") if name in batch}
    logits = prefill(model, batch["input_ids"], layout, cache, **images)
    streams = [TextStream(tokenizer, stop) for _ in layout.lengths]
    texts, counts = [""] * len(streams), [0] * len(streams)
    running = set(range(len(streams)))
    prompts = prompts_of(batch["input_ids"], layout)
    for new_tokens in decode(model, cache, logits, config, prompts, seeds=seeds):
        running &= new_tokens.keys()
        for row in running:
            texts[row] += streams[row].push(new_tokens[row])
            counts[row] += 1
        running = {row for row in running if not streams[row].has_stopped}
        if not running:
            break
    whole = [text + stream.finish() for text, stream in zip(texts, streams, strict=True)]
    return list(zip(whole, counts, strict=True))


def stream_text(tokens: Iterable[int], stream: TextStream) -> Iterator[str]:
    """Yield an answer's text as its tokens come, without white space around the whole; ends with its stop."""
    held, has_begun = "", False

    def pieces() -> Iterator[str]:
        for token in tokens:
            yield stream.push(token)
            if stream.has_stopped:
                break
        yield stream.finish()

    for piece in pieces():
        text = held + (piece if has_begun else piece.lstrip())
        shown = text.rstrip()
        held = text[len(shown) :]
        if shown:
            has_begun = True
            yield shown
