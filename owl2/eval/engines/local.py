"""Local inference engine: a checkpoint in this process.

An image that several prompts of a batch show is opened and encoded once. Padding is no token in this model,
so a prompt gets the same answer in any batch; a prompt that leaves less room in the context than its task
allows is answered within it. The adapters for other harnesses use this engine too, one level lower: they make
`Request`s of token ids, with sampling and stop strings.

Shapes: B requests, C requests x choices, T slots, V vocabulary, I images (each once), Q queries, D width.
"""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from owl2.api import Owl2
from owl2.checkpoint.fingerprint import fingerprint
from owl2.data.sample import StoredImage
from owl2.eval.engines.engine import EngineError, Prompt, Reply, describe, images_of
from owl2.eval.hashing import short_hash
from owl2.eval.task import Decoding
from owl2.generate.config import GenerationConfig, end_tokens
from owl2.generate.likelihoods import log_likelihoods
from owl2.generate.text import generate_texts
from owl2.processor import ContextError, Encoding, with_blank_images


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, and what is wanted of it."""

    ids: list[int]
    config: GenerationConfig
    images: Sequence[StoredImage | Image.Image] = ()
    """In the order of their tokens."""
    choices: Mapping[str, list[int]] = field(default_factory=dict)
    """Token ids of texts whose likelihoods are compared; empty to generate."""
    seed: int | None = None
    """Of its sampling, whatever it is batched with; None: that of `config`."""
    error: str = ""
    """Why it cannot be answered."""


@dataclass(frozen=True)
class Batch:
    """Requests with their images opened."""

    requests: list[Request]
    places: list[list[int]]
    """Which of `pixel_values` each request shows, in order."""
    pixel_values: Tensor
    """(I, 3, H, W) float32, each image once."""


class OwlEngine:
    """A loaded model with its processor."""

    has_beams = True

    def __init__(self, owl: Owl2, source: str = ""):
        self.owl = owl
        self.source = source
        self.context = owl.model.config.decoder.max_position_embeddings

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        return identity_of(self.owl)

    def measure(self, prompt: Prompt) -> int:
        try:
            return len(self._encode(prompt).ids)
        except Exception:  # `prepare` says what is wrong with it
            return self.context + 1

    def prepare(self, prompts: Sequence[Prompt]) -> Batch:
        return self.open([self._request(prompt) for prompt in prompts])

    def open(self, requests: Sequence[Request]) -> Batch:
        """Open the images of requests, each once; one that cannot be opened is its requests' error."""
        pixels: list[Tensor] = []
        found: dict[Any, int | str] = {}
        opened, places = [], []
        for request in requests:
            keys = [image if isinstance(image, StoredImage) else id(image) for image in request.images]
            for key, image in zip(keys, request.images, strict=True):
                if key not in found:
                    try:
                        shown = image.open() if isinstance(image, StoredImage) else image
                        pixels.append(self.owl.processor.pixels([shown])[0])
                        found[key] = len(pixels) - 1
                    except Exception as error:  # libraries for images and videos raise what they like
                        found[key] = describe(error)
            errors = [place for key in keys if isinstance(place := found[key], str)]
            if errors and not request.error:
                request = Request(request.ids, request.config, error=errors[0])
            opened.append(request)
            places.append([place for key in keys if isinstance(place := found[key], int)])
        pixel_values = torch.stack(pixels) if pixels else self.owl.processor.pixels([])
        return Batch(opened, places, pixel_values)

    @torch.inference_mode()
    def answer(self, prepared: Batch) -> list[Reply]:
        model = self.owl.model
        replies = [Reply(error=request.error) for request in prepared.requests]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(prepared.requests):
            if not request.error:
                config = _within(request.config, self.context - len(request.ids))
                groups.setdefault((config, bool(request.choices)), []).append(number)
        try:
            images = prepared.pixel_values
            visual_tokens = self.owl.image_cache.encode(model, images) if len(images) else None
            for (config, is_ranked), members in groups.items():
                requests = [prepared.requests[number] for number in members]
                shown = [place for number in members for place in prepared.places[number]]
                batch = self._collate(requests, visual_tokens, shown)
                answered = self._rank(requests, batch) if is_ranked else self._write(requests, batch, config)
                for number, reply in zip(members, answered, strict=True):
                    replies[number] = reply
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{model.device} has no memory left for a batch of {len(replies)} prompts: give a smaller "
                f"--batch-size or --batch-tokens; the same command goes on ({error})"
            ) from error
        return replies

    def _collate(
        self, requests: Sequence[Request], visual_tokens: Tensor | None, shown: Sequence[int]
    ) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of some requests, and the `visual_tokens` that they show if
        any."""
        encodings = [Encoding(request.ids, [False] * len(request.ids)) for request in requests]
        batch = self.owl.processor.collate(encodings)
        del batch["pixel_values"]
        if visual_tokens is not None:
            places = torch.tensor(shown, dtype=torch.int64, device=visual_tokens.device)
            batch["visual_tokens"] = visual_tokens[places]
        return batch

    def _encode(self, prompt: Prompt) -> Encoding:
        """Encode with blank images: all images have as many tokens."""
        closed = with_blank_images(prompt.messages)
        prefix = "" if prompt.choices else prompt.answer_prefix
        return self.owl.processor.encode(closed, generation_prompt=True, answer_prefix=prefix)

    def _request(self, prompt: Prompt) -> Request:
        config, seed = config_of(prompt.decoding, self.owl.generation_config), None
        if config.seed is not None:
            seed = int(short_hash(f"{config.seed}/{prompt.id}"), 16)
            config = config.replace(seed=None)  # so that the prompts of a batch have one configuration
        try:
            ids = self._encode(prompt).ids
            encode = self.owl.processor.tokenizer.encode
            choices = {letter: encode(text, space=True) for letter, text in prompt.choices.items()}
            longest = max((len(choice) for choice in choices.values()), default=1)
            if longest > self.context - len(ids):
                raise ContextError(
                    f"{len(ids):,} tokens leave no room for the answer in a context of {self.context:,}"
                )
        except Exception as error:  # a tokenizer's own error for half a surrogate pair, for example
            return Request([], config, error=describe(error))
        return Request(ids, config, images_of(prompt), choices=choices, seed=seed)

    def _write(
        self, requests: Sequence[Request], batch: Mapping[str, Tensor], config: GenerationConfig
    ) -> list[Reply]:
        """Generate one answer a request."""
        seeds = [request.seed for request in requests]
        written = generate_texts(self.owl.model, self.owl.processor.tokenizer, batch, config, seeds)
        return [
            Reply(text, len(request.ids), count)
            for request, (text, count) in zip(requests, written, strict=True)
        ]

    def _rank(self, requests: Sequence[Request], batch: Mapping[str, Tensor]) -> list[Reply]:
        """Compare the choices by the mean log-likelihood of their tokens after `ASSISTANT:`.

        That is how SEED-Bench's official script ranks; letters of one token are ranked alike by sum and mean.
        """
        flat = [(i, ids) for i, request in enumerate(requests) for ids in request.choices.values()]
        sums = iter(log_likelihoods(self.owl.model, batch, flat))
        replies = []
        for request in requests:
            scores = {letter: (next(sums)[0], len(ids)) for letter, ids in request.choices.items()}
            best = max(scores, key=lambda letter: scores[letter][0] / scores[letter][1])
            num_new = sum(count for _, count in scores.values())
            replies.append(Reply(best, len(request.ids), num_new, log_likelihoods=scores))
        return replies


def identity_of(owl: Owl2) -> dict[str, Any]:
    """Everything that shapes a model's answers besides prompt and decoding.

    The device is left out: it changes the rounding only, as the batch size does on an accelerator.
    """
    model, processor = owl.model, owl.processor
    with tempfile.TemporaryDirectory() as folder:
        processor.tokenizer.save(Path(folder))
        files = sorted(Path(folder).iterdir())
        tokenizer = short_hash("".join(f"{file.name} {file.read_bytes().hex()}\n" for file in files))
    parameters = (
        f"{name} {tuple(parameter.shape)} {fingerprint(parameter.float())}\n"
        for name, parameter in model.named_parameters()
    )
    return {
        "kind": "owl2",
        "weights": short_hash("".join(parameters)),
        "model": model.config.to_dict(),
        "processor": processor.image_transform.to_dict(),
        "tokenizer": tokenizer,
        "conversation": processor.template,
        "end_tokens": sorted(end_tokens(model, owl.generation_config)),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def config_of(decoding: Decoding, checkpoint: GenerationConfig) -> GenerationConfig:
    """A task's decoding with the checkpoint's end tokens; nothing else of the checkpoint's settings."""
    settings: dict[str, Any] = {
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": decoding.min_new_tokens,
    }
    if decoding.num_beams > 1:
        settings |= {"num_beams": decoding.num_beams, "length_penalty": decoding.length_penalty}
    settings |= dict(decoding.more)
    return GenerationConfig(eos_token_id=checkpoint.eos_token_id).replace(**settings)


def _within(config: GenerationConfig, room: int) -> GenerationConfig:
    """The settings with no more new tokens than the context has room for."""
    length = min(config.max_new_tokens, room)
    return config.replace(max_new_tokens=length, min_new_tokens=min(length, config.min_new_tokens))
