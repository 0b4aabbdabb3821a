"""Who answers: the model in this process. (A server is asked by `owl2/eval/engines/endpoint.py`.)

The runner gives batches of prompts and takes replies. Images become pixels when a batch is prepared, which
the runner does in a thread beside the model. An image that several prompts of a batch show is opened and
encoded once. Padding is no token in this model, so a prompt gets the same answer in any batch; a prompt that
leaves less room in the context than its task would allow is answered within it.

Shapes: B prompts, C prompts x choices, T slots, V vocabulary, I images (each once), Q queries, D width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from owl2.api import Owl2
from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.eval.task import Decoding
from owl2.generate.generate import generate, prefill
from owl2.model import KVCache, Owl2Model, padded_layout
from owl2.processor import ContextError, Encoding, ImageError, Message, Processor
from owl2.processor.template import images_of as images_in
from owl2.processor.video import VideoError


class EngineError(Owl2Error, RuntimeError):
    """The engine cannot go on; what is answered so far is kept."""


@dataclass(frozen=True)
class Prompt:
    """One question as it is asked."""

    id: str
    messages: Sequence[Message]
    """Its images are `StoredImage`s, still closed."""
    answer_prefix: str
    decoding: Decoding
    choices: Mapping[str, str] = field(default_factory=dict)
    """`rank` mode: letter -> text whose likelihood is compared; empty to generate."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    output: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    log_likelihoods: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    error: str = ""


class Engine(Protocol):
    """Answers batches of prompts."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells models apart; part of the hash of a run."""
        ...

    @property
    def source(self) -> str:
        """The checkpoint or address, as it was given."""
        ...

    def measure(self, prompt: Prompt) -> int:
        """Tokens of a prompt, or what orders prompts alike; nothing is opened."""
        ...

    def prepare(self, prompts: Sequence[Prompt]) -> Any:
        """Open the images of a batch and encode it; thread-safe."""
        ...

    def answer(self, prepared: Any) -> list[Reply]:
        """Answer a prepared batch, in order.

        Raises:
            EngineError: going on is useless, as when a server is gone.
        """
        ...


BLANK = Image.new("RGB", (1, 1))
"""Stands for an image while only the length of its prompt is wanted: all images have as many tokens."""


@dataclass
class _Row:
    """One prompt of a prepared batch."""

    prompt: Prompt
    encoding: Encoding | None
    """Ids without images; None if the prompt cannot be asked, and `error` says why."""
    error: str = ""
    images: list[int] = field(default_factory=list)
    """Which of the batch's images it shows, in order."""
    choices: dict[str, list[int]] = field(default_factory=dict)
    """Token ids of each choice's text."""


@dataclass
class _Batch:
    """Prompts that wait for the model."""

    rows: list[_Row]
    pixel_values: Tensor
    """(I, 3, H, W) float32, each image once."""


class _Images:
    """The images of a batch, each opened and transformed once."""

    def __init__(self, processor: Processor):
        self.processor = processor
        self.pixels: list[Tensor] = []
        """(3, H, W) each."""
        self._found: dict[StoredImage, int | ImageError | VideoError] = {}

    def place_of(self, image: StoredImage) -> int:
        """Where its pixels are; raises ImageError or VideoError each time it is asked for in vain."""
        if image not in self._found:
            try:
                self.pixels.append(self.processor.pixels([image.open()])[0])
                self._found[image] = len(self.pixels) - 1
            except (ImageError, VideoError) as error:
                self._found[image] = error
        found = self._found[image]
        if isinstance(found, int):
            return found
        raise found

    def stacked(self) -> Tensor:
        """All of them, (I, 3, H, W)."""
        return torch.stack(self.pixels) if self.pixels else self.processor.pixels([])


class OwlEngine:
    """A loaded model with its processor."""

    def __init__(self, owl: Owl2, source: str = ""):
        self.owl = owl
        self.source = source
        self.identity: dict[str, Any] = {
            "kind": "owl2",
            "weights": fingerprint(owl.model),
            "dtype": str(owl.model.dtype).removeprefix("torch."),
            "image_size": owl.processor.image_transform.size,
            "conversation": owl.processor.template,
        }

    def measure(self, prompt: Prompt) -> int:
        try:
            return len(self._encode(prompt).ids)
        except ContextError:
            return self.owl.model.config.decoder.max_position_embeddings + 1

    def prepare(self, prompts: Sequence[Prompt]) -> _Batch:
        images = _Images(self.owl.processor)
        rows = [self._prepare(prompt, images) for prompt in prompts]
        return _Batch(rows, images.stacked())

    @torch.inference_mode()
    def answer(self, prepared: _Batch) -> list[Reply]:
        replies = {id(row): Reply(error=row.error) for row in prepared.rows}
        groups: dict[tuple[bool, int, int], list[_Row]] = {}
        for row in prepared.rows:
            if row.encoding is not None:
                decoding = row.prompt.decoding
                room = min(decoding.max_new_tokens, self._room(row.encoding))
                key = (bool(row.choices), room, min(room, decoding.min_new_tokens))
                groups.setdefault(key, []).append(row)
        images = self._encode_images(prepared.pixel_values)
        for (is_ranked, room, least), rows in groups.items():
            batch = self._collate(rows, images)
            answered = self._rank(rows, batch) if is_ranked else self._generate(rows, batch, room, least)
            replies.update({id(row): reply for row, reply in zip(rows, answered, strict=True)})
        return [replies[id(row)] for row in prepared.rows]

    def _encode_images(self, pixel_values: Tensor) -> Tensor | None:
        """(I, 3, H, W) -> visual tokens (I, Q + 1, D) on the model's device; None without images."""
        model = self.owl.model
        return model.encode_images(pixel_values.to(model.device)) if len(pixel_values) else None

    def _collate(self, rows: Sequence[_Row], images: Tensor | None) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of some rows, and the `visual_tokens` that they show if any."""
        batch = self.owl.processor.collate([row.encoding for row in rows if row.encoding is not None])
        del batch["pixel_values"]
        if images is not None:
            shown = [place for row in rows for place in row.images]
            batch["visual_tokens"] = images[torch.tensor(shown, dtype=torch.int64, device=images.device)]
        return batch

    def _room(self, encoding: Encoding) -> int:
        return self.owl.model.config.decoder.max_position_embeddings - len(encoding.ids)

    def _encode(self, prompt: Prompt) -> Encoding:
        """Encode with blank images."""
        closed = [_with_blanks(message) for message in prompt.messages]
        return self.owl.processor.encode(
            closed, generation_prompt=True, answer_prefix="" if prompt.choices else prompt.answer_prefix
        )

    def _prepare(self, prompt: Prompt, images: _Images) -> _Row:
        try:
            encoding = self._encode(prompt)
            encoding.images = []
            choices = {
                letter: self.owl.processor.tokenizer.encode(text, space=True)
                for letter, text in prompt.choices.items()
            }
            longest = max((len(ids) for ids in choices.values()), default=1)
            if longest > self._room(encoding):
                raise ContextError(
                    f"{len(encoding.ids):,} tokens leave no room for the answer in a context of "
                    f"{self.owl.model.config.decoder.max_position_embeddings:,}"
                )
            shown = [images.place_of(image) for image in images_of(prompt)]
        except (ContextError, ImageError, VideoError) as error:
            return _Row(prompt, None, error=str(error))
        return _Row(prompt, encoding, images=shown, choices=choices)

    def _generate(
        self, rows: Sequence[_Row], batch: Mapping[str, Tensor], room: int, least: int
    ) -> list[Reply]:
        config = self.owl.generation_config.replace(
            max_new_tokens=room, min_new_tokens=least, do_sample=False
        )
        answers = generate(self.owl.model, **batch, config=config)
        return [
            Reply(self.owl.processor.decode(ids), _num_tokens(row), len(ids))
            for row, ids in zip(rows, answers, strict=True)
        ]

    def _rank(self, rows: Sequence[_Row], batch: Mapping[str, Tensor]) -> list[Reply]:
        """Compare the choices by the mean log-likelihood of their tokens behind `ASSISTANT:`.

        That is how SEED-Bench's official script ranks; letters of one token are ranked alike by sum and mean.
        """
        flat = [(i, ids) for i, row in enumerate(rows) for ids in row.choices.values()]
        sums = iter(log_likelihoods(self.owl.model, batch, flat))
        replies = []
        for row in rows:
            scores = {letter: (next(sums), len(ids)) for letter, ids in row.choices.items()}
            best = max(scores, key=lambda letter: scores[letter][0] / scores[letter][1])
            num_new = sum(count for _, count in scores.values())
            replies.append(Reply(best, _num_tokens(row), num_new, log_likelihoods=scores))
        return replies


@torch.inference_mode()
def log_likelihoods(
    model: Owl2Model, batch: Mapping[str, Tensor], continuations: Sequence[tuple[int, Sequence[int]]]
) -> list[float]:
    """Sum of log-probabilities of each continuation's tokens behind its row of the batch.

    Each row is read once; its continuations share what the cache holds of it.

    Args:
        batch: `input_ids` and `attention_mask` of B prompts; `pixel_values` or `visual_tokens` of their
            images.
        continuations: row of the batch and token ids, at least one; rows in order.
    """
    layout = padded_layout(batch["input_ids"], batch["attention_mask"], model.config.image_token_id)
    longest = max(len(ids) for _, ids in continuations)
    capacity = max(layout.lengths) + longest
    cache = KVCache(model.config.decoder, len(layout.lengths), capacity, model.device, model.dtype)
    images = {name: batch[name] for name in ("pixel_values", "visual_tokens") if name in batch}
    first = prefill(model, batch["input_ids"], layout, cache, **images).log_softmax(-1)
    sums = [float(first[row, ids[0]]) for row, ids in continuations]
    longer = [i for i, (_, ids) in enumerate(continuations) if len(ids) > 1]
    if not longer:
        return sums
    cache.keep_rows([continuations[i][0] for i in longer])
    read = [list(continuations[i][1][:-1]) for i in longer]
    width = max(len(ids) for ids in read)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in read])
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in read])[:, None]
    rest = padded_layout(input_ids, mask, model.config.image_token_id, past=cache.lengths).to(model.device)
    hidden = model.hidden(model.embed(input_ids.to(model.device), rest), rest, cache)
    following = torch.tensor([token for i in longer for token in continuations[i][1][1:]])
    begin = 0
    for i, ids in zip(longer, read, strict=True):  # a row at a time: logits of all would be large
        rows = slice(begin, begin + len(ids))
        found = model.logits(hidden[rows]).log_softmax(-1)
        sums[i] += float(found.gather(1, following[rows, None].to(found.device)).sum())
        begin += len(ids)
    return sums


@torch.inference_mode()
def fingerprint(model: Owl2Model) -> str:
    """Tell models apart by their weights: integer sums over the bits, so exact on any device."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        bits = parameter.view({4: torch.int32, 2: torch.int16}[parameter.element_size()])
        digest.update(f"{name} {tuple(parameter.shape)} {int(bits.sum(dtype=torch.int64))}\n".encode())
    return digest.hexdigest()[:16]


def _num_tokens(row: _Row) -> int:
    assert row.encoding is not None, "only rows that can be asked are answered"
    return len(row.encoding.ids)


def _with_blanks(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {
        **message,
        "content": [{**part, "image": BLANK} if part["type"] == "image" else part for part in content],
    }


def images_of(prompt: Prompt) -> tuple[StoredImage, ...]:
    """A prompt's images, in order, still closed."""
    return tuple(images_in(prompt.messages))
