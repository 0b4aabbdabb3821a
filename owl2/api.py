"""The library's entry point: a model with its processor, ready to answer.

Everything here is two or three calls into the packages below; evaluation, training and serving make the same
calls themselves.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl2.checkpoint import load_model, resolve
from owl2.checkpoint.tensors import dtype_of
from owl2.devices import find_device
from owl2.generate import (
    ChatSession,
    Completion,
    GenerationConfig,
    GenerationError,
    ImageCache,
    Why,
    complete,
    end_tokens,
    explain,
    generate,
    log_likelihoods,
)
from owl2.model import Owl2Model
from owl2.processor import ImageSource, Message, Processor


class Owl2:
    """A model and the processor it was trained with."""

    def __init__(
        self, model: Owl2Model, processor: Processor, generation_config: GenerationConfig | None = None
    ):
        self.model = model
        self.processor = processor
        config = generation_config or GenerationConfig()
        ends = (
            end_tokens(model, config) | model.config.decoder.end_tokens | {processor.tokenizer.eos_token_id}
        )
        self.generation_config = config.replace(eos_token_id=tuple(sorted(ends)))
        """Defaults of every call that generates. An answer ends with any end token of this configuration, the
        model and the tokenizer."""
        self.image_cache = ImageCache()
        """Visual tokens of the images that were shown last, for every call; `max_bytes` bounds them."""

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """Continue each row of a processor's batch; return each row's new token ids without the end token.

        Args:
            input_ids: (B, T) int64 with the model's `image_token_id` at every visual position.
            attention_mask: (B, T) bool, True at real tokens; padding may be on either side.
            pixel_values: (I, 3, H, W), images in the order of their places in the batch.
            settings: fields of `GenerationConfig`: `max_new_tokens`, `min_new_tokens`, `do_sample`,
                `temperature`, `top_k`, `top_p`, `min_p`, `seed`, `repetition_penalty`, `num_beams`,
                `length_penalty`, `early_stopping`, `eos_token_id`. Others are the checkpoint's.

        Raises:
            GenerationError: impossible settings, or a prompt that with `max_new_tokens` exceeds the context.
            ValueError: images that do not match their places.
            TypeError: an unknown setting.
        """
        config, images = self.generation_config.replace(**settings), None
        if pixel_values is not None and len(pixel_values):
            images = self.image_cache.encode(self.model, pixel_values)
        return generate(self.model, input_ids, attention_mask, config=config, visual_tokens=images)

    def chat(
        self, messages: str | Sequence[Message], *, images: Sequence[ImageSource] = (), **settings: Any
    ) -> str:
        """Return the answer to a question, or to a conversation whose last turn is the user's.

        Args:
            messages: a question as text, or `{"role": "user" | "assistant", "content": ...}`; content is
                text, or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` with
                anything that `owl2.processor.load_image` reads: a path, URL, PIL image, array, ... A first
                message of the role `system` is a system prompt (`owl2/processor/template.py`).
            images: images in front of a question that is given as text.
            settings: see `generate`, and `stop`: a text or several, before the first of which the answer
                ends. Without `max_new_tokens`, the answer may take what the context has left, but no more
                than the checkpoint's default.

        Raises:
            GenerationError: impossible settings, or no room for the answer.
            TemplateError, ImageError, ContextError: a conversation that cannot be encoded.
            TypeError: an unknown setting, or `images` with a conversation, whose turns have their own.
        """
        return "".join(self.stream(messages, images=images, **settings))

    def stream(
        self, messages: str | Sequence[Message], *, images: Sequence[ImageSource] = (), **settings: Any
    ) -> Iterator[str]:
        """Yield the answer of `chat` piece by piece as it is generated; errors come with the first piece.

        With `num_beams` above 1 the first piece comes when the search has ended.
        """
        return self.session().answer(_conversation(messages, images), **settings)

    def complete(
        self,
        messages: str | Sequence[Message],
        *,
        images: Sequence[ImageSource] = (),
        n: int = 1,
        num_most_probable: int = 0,
        **settings: Any,
    ) -> list[Completion]:
        """Return `n` answers with their tokens' log-probabilities; the prompt is read once.

        Args:
            messages, images: see `chat`.
            n: number of answers; more than one needs `do_sample=True`. Answer i has the seed `seed` + i.
            num_most_probable: for each token, how many of the most probable ones to give as well.
            settings: see `chat`.

        Raises:
            GenerationError, TemplateError, ImageError, ContextError, TypeError: see `chat`.
        """
        batch = self._prompt(_conversation(messages, images))
        config = self.session().settle(batch["input_ids"].shape[1], settings)
        return complete(self.model, self.processor, batch, config, n=n, num_most_probable=num_most_probable)

    def score(
        self,
        messages: str | Sequence[Message],
        answers: Sequence[str],
        *,
        images: Sequence[ImageSource] = (),
    ) -> list[float]:
        """Return the log-probability of each answer to a question or conversation.

        The sum over the answer's tokens without an end token, so longer answers are less probable.

        Args:
            messages, images: see `chat`. They are read once for all answers.
            answers: texts, none of them empty.

        Raises:
            GenerationError: no answer, an empty one, or one that exceeds the context.
            TemplateError, ImageError, ContextError: a conversation that cannot be encoded.
        """
        if not answers or not all(answers):
            raise GenerationError(f"answers {list(answers)!r:.80}: give at least one, and none that is empty")
        encode = self.processor.tokenizer.encode
        continuations = [(0, encode(answer, space=True)) for answer in answers]
        batch = self._prompt(_conversation(messages, images))
        return [score for score, _ in log_likelihoods(self.model, batch, continuations)]

    def why(
        self,
        messages: str | Sequence[Message],
        *,
        images: Sequence[ImageSource] = (),
        answer: str | None = None,
        **settings: Any,
    ) -> Why:
        """Return the probability of each token of an answer, with the images and with blank ones.

        Args:
            messages, images: see `chat`.
            answer: the text to explain; default: what `chat` answers with these settings.
            settings: see `generate`.

        Raises:
            GenerationError, TemplateError, ImageError, ContextError: see `chat`.
        """
        conversation = _conversation(messages, images)
        if answer is None:
            answer = self.chat(conversation, **settings)
        return explain(self.session(), conversation, answer, **settings)

    def session(self, system: str = "") -> ChatSession:
        """Begin a dialogue that reads each turn once: `for piece in session.say("What is this?"): ...`.

        Args:
            system: its system prompt.
        """
        return ChatSession(self.model, self.processor, self.generation_config, self.image_cache, system)

    def _prompt(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        """A conversation as a batch of one, its images encoded."""
        batch = self.processor.collate([self.processor.encode(messages, generation_prompt=True)])
        pixels = batch.pop("pixel_values")
        return batch | ({"visual_tokens": self.image_cache.encode(self.model, pixels)} if len(pixels) else {})


def _conversation(messages: str | Sequence[Message], images: Sequence[ImageSource]) -> Sequence[Message]:
    """Return a question with its images as a conversation; a conversation stays."""
    if isinstance(messages, str):
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            raise TypeError(f"images is a single {type(images).__name__}, expected a list of images")
        shown = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": messages}]}]
    if images:
        raise TypeError("images belong to a question given as text; a conversation has them in its turns")
    return messages


def load(
    folder_or_hub_id: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    progress: bool = True,
) -> Owl2:
    """Load a checkpoint, released or ours, or the adapters of a run with the checkpoint that they belong to.

    Args:
        folder_or_hub_id: a folder, or a Hugging Face hub id such as `owner/name`. An adapter's folder names
            its checkpoint in `adapter_config.json`; the adapters are merged into it.
        device: where the model runs: `cpu`, `cuda`, `cuda:1`, `mps`, ...
        dtype: `float32`, `bfloat16` or `float16`.
        progress: show a bar on standard error while the weights load.

    Raises:
        CheckpointError, TokenizerError, ImageError, TemplateError, GenerationError: a file of the folder is
            missing or damaged; the message names it. Or an unknown dtype.
        DeviceError: this machine has no such device.
        TrainConfigError: a folder of adapters, and `peft` is missing.

    Warns:
        Owl2Warning: the folder has settings that are ignored; names them.
    """
    device, dtype = find_device(device), dtype_of(dtype)
    adapter, folder = None, resolve(folder_or_hub_id)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        from owl2.train.adapters.lora import base_of, load_adapter, merge_adapters

        adapter, folder = folder, base_of(folder)
    config = GenerationConfig.read(folder)
    model = load_model(folder, device=device, dtype=dtype, progress=progress)
    if adapter is not None:
        load_adapter(model, adapter)
        merge_adapters(model, dtype, device)
    return Owl2(model, Processor.from_folder(folder, model.config), config)
