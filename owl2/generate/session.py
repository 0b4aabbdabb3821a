"""Chat sessions: the cache is kept between the turns of a dialogue, and only new tokens are prefilled.

In each turn the template renders the whole conversation, and the session keeps the longest prefix of its
cache that has the same ids and the same images. So an answer is always what a fresh prefill of the template's
ids would give (as in training), whatever happened before: an answer cut short, an edited turn, or generated
tokens that differ from how the tokenizer would encode their text.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from owl2.generate.beams import beam_search
from owl2.generate.config import GenerationConfig, end_tokens
from owl2.generate.generate import check_room, decode, prefill
from owl2.generate.image_cache import ImageCache
from owl2.generate.text import TextStream, stream_text
from owl2.model import KVCache, Owl2Model, padded_layout
from owl2.processor import Encoding, Message, Processor

CACHE_STEP = 256
"""The capacity of a session's cache is a multiple of this many tokens."""


class ChatSession:
    """One conversation with a model. Not thread-safe."""

    def __init__(
        self,
        model: Owl2Model,
        processor: Processor,
        config: GenerationConfig | None = None,
        image_cache: ImageCache | None = None,
        system: str = "",
    ):
        """Begin a conversation.

        Args:
            config: the defaults of its answers.
            image_cache: what is known of images that other sessions have shown; default: its own.
            system: the system prompt; empty for none.
        """
        self.model = model
        self.processor = processor
        self.config = config or GenerationConfig()
        self.image_cache = ImageCache() if image_cache is None else image_cache
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = [*self._opening]
        """The system prompt, if any, and the turns so far, as added by `say`."""
        self.is_cut = False
        """Whether the last answer stopped at `max_new_tokens` instead of an end token."""
        self._cache: KVCache | None = None
        self._ids: list[int] = []
        self._images: list[Image] = []

    def say(self, content: str | Sequence[Any], **settings: Any) -> Generator[str, None, None]:
        """Add a user's turn and stream its answer; both are added to `messages` when the answer ends.

        If the caller stops reading, or Ctrl-C stops the answer, what was generated so far is kept. After any
        other error the conversation is as before.

        Args:
            content: text, or a list of parts as in `owl2.processor.Message`.
            settings: see `answer`.
        """
        question: Message = {"role": "user", "content": content}
        pieces: list[str] = []
        try:
            for piece in self.answer([*self.messages, question], **settings):
                pieces.append(piece)
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._record(question, pieces)
            raise
        self._record(question, pieces)

    def answer(self, messages: Sequence[Message], **settings: Any) -> Iterator[str]:
        """Stream the answer to a conversation; only tokens that are not in the cache yet are prefilled.

        Args:
            messages: turns that alternate, the last a user's.
            settings: fields of `GenerationConfig`. Without `max_new_tokens`, the session's default is used,
                or what the context has left if that is less.

        Yields:
            Text, without white space around the whole answer. A piece is never taken back, so with
            `num_beams` above 1 the first one comes when the search has ended.

        Raises:
            GenerationError: impossible settings, or no room for the answer.
            TemplateError, ImageError, ContextError: see `Processor.encode`.
        """
        encoding = self.processor.encode(messages, generation_prompt=True)
        config = self.settle(len(encoding.ids), settings)
        stream = TextStream(self.processor.tokenizer, config.stop)
        yield from stream_text(self._tokens(encoding, config), stream)
        self.is_cut = self.is_cut and not stream.has_stopped

    def reset(self) -> None:
        """Forget the conversation but its system prompt, and free the cache."""
        self.messages, self._ids, self._images, self._cache = [*self._opening], [], [], None

    def _record(self, question: Message, pieces: list[str]) -> None:
        self.messages += [question, {"role": "assistant", "content": "".join(pieces)}]

    def settle(self, prompt_tokens: int, settings: dict[str, Any]) -> GenerationConfig:
        """Return the settings of an answer to a prompt of this length.

        Raises:
            GenerationError: impossible settings, or no room for the answer.
        """
        config = self.config.replace(**settings)
        if "max_new_tokens" not in settings:
            free = self.model.config.decoder.max_position_embeddings - prompt_tokens
            config = config.replace(max_new_tokens=max(1, min(config.max_new_tokens, free)))
        check_room(self.model, prompt_tokens, config.max_new_tokens)
        # The template ends answers with the tokenizer's end token, whichever others there are.
        ends = end_tokens(self.model, config) | {self.processor.tokenizer.eos_token_id}
        return config.replace(eos_token_id=tuple(sorted(ends)))

    @torch.inference_mode()
    def _tokens(self, encoding: Encoding, config: GenerationConfig) -> Iterator[int]:
        ids, images = encoding.ids, encoding.images
        kept, images_kept = self._shared_prefix(encoding)
        cache = self._room(len(ids) + config.max_new_tokens - 1)
        cache.lengths = [kept]
        self._ids, self._images = list(ids), images
        new_ids = torch.tensor([ids[kept:]])
        layout = padded_layout(new_ids, None, self.processor.image_token_id, past=[kept])
        shown = images[images_kept:]
        tokens = self.image_cache.encode(self.model, self.processor.pixels(shown)) if shown else None
        logits = prefill(self.model, new_ids, layout, cache, visual_tokens=tokens)
        self.is_cut = False
        for num_new, token in enumerate(self._new_tokens(cache, logits, config), start=1):
            self._ids.append(token)
            self.is_cut = num_new == config.max_new_tokens
            yield token

    def _new_tokens(self, cache: KVCache, logits: Tensor, config: GenerationConfig) -> Iterator[int]:
        prompts = [list(self._ids)]
        if config.num_beams > 1:
            ends = end_tokens(self.model, config)
            (answer,) = beam_search(self.model, cache, logits, config, prompts)
            yield from (token for token in answer.tokens if token not in ends)
        else:
            for new_token in decode(self.model, cache, logits, config, prompts):
                yield from new_token.values()

    def _shared_prefix(self, encoding: Encoding) -> tuple[int, int]:
        """Return how many tokens of this prompt the cache holds, and how many whole images are in them.

        At least the last token is not counted, as its logits are needed.
        """
        cached = self._ids[: self._cache.lengths[0]] if self._cache is not None else []
        limit = min(len(cached), len(encoding.ids) - 1)
        kept = next((i for i in range(limit) if cached[i] != encoding.ids[i]), limit)
        per_image, image_token = self.processor.tokens_per_image, self.processor.image_token_id
        starts = [i for i, token in enumerate(encoding.ids) if token == image_token][::per_image]
        for number, start in enumerate(starts):
            if start + per_image > kept or self._images[number] != encoding.images[number]:
                return min(kept, start), number
        return kept, len(starts)

    def _room(self, needed: int) -> KVCache:
        """Return the session's cache with room for `needed` tokens."""
        capacity = -(-needed // CACHE_STEP) * CACHE_STEP
        if self._cache is None:
            model = self.model
            self._cache = KVCache(model.config.decoder, 1, capacity, model.device, model.dtype)
        elif self._cache.capacity < needed:
            self._cache.grow(capacity)
        return self._cache
