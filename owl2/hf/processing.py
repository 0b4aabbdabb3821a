"""Our processor as one of `transformers`.

Ids come from `Processor.encode`, so a conversation gets the ids that the model was trained on, BOS included,
and nothing that a user types becomes a control token, which no Jinja template can promise. The library's own
tokenizer is there for the tools that look at one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from owl2.checkpoint import read_config, resolve
from owl2.processor import IMAGE_MARK, Processor, render
from owl2.processor.template import END_MARK

JINJA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% elif m.role == 'assistant' %} {% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'user' %} ASSISTANT:{% elif m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
)
"""Shows tools that ask for a template that there is one; `apply_chat_template` does not use it."""


class Owl2HfProcessor(ProcessorMixin):
    """Conversations, prompts and images as inputs of `MPLUGOwl2LlamaForCausalLM`."""

    attributes = ("tokenizer",)
    tokenizer_class = "AutoTokenizer"
    model_input_names = ["input_ids", "attention_mask", "pixel_values"]  # noqa: RUF012  (the library's form)

    def __init__(
        self, tokenizer: Any = None, own: Processor | None = None, image_token_id: int = 0, **_: Any
    ):
        """Wrap a processor; `image_token_id` takes the place of its own in `input_ids`."""
        self.own = own
        self.image_token, self.image_token_id = IMAGE_MARK, image_token_id
        super().__init__(tokenizer)
        self.chat_template = JINJA

    def __repr__(self) -> str:
        return f"Owl2HfProcessor(template={self.own.template!r})" if self.own else "Owl2HfProcessor()"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "Owl2HfProcessor":
        """Read a checkpoint folder or hub repository, released or ours.

        Raises:
            CheckpointError, TokenizerError, ImageError: see `owl2.load`.
        """
        folder = resolve(pretrained_model_name_or_path)
        config = read_config(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.padding_side = kwargs.get("padding_side", "left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(tokenizer, Processor.from_folder(folder, config), config.decoder.vocab_size)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, **_: Any
    ) -> list[str]:
        """Write the tokenizer and `preprocessor_config.json`, as `owl2.load` reads them."""
        assert self.own is not None
        self.own.save(Path(save_directory))
        return [str(path) for path in sorted(Path(save_directory).iterdir())]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> BatchFeature:
        """Encode raw prompts, in which each `<|image|>` marks an image.

        Args:
            images: an image, a list of them in the order of their marks, or a list of lists, one a row.
            text: a prompt or several.
            padding_side: left or right; default: the tokenizer's.
            add_special_tokens: begin rows as the tokenizer says. Without it a row begins so only if its text
                does, as that of `apply_chat_template`; any other is taken for what follows such a row.
        """
        assert self.own is not None
        rows = [text] if isinstance(text, str) else list(text or ())
        has_bos = [bool(self._bos) and row.startswith(self._bos) for row in rows]
        rows = [row.removeprefix(self._bos) for row in rows]
        if not add_special_tokens and self.own.tokenizer.dummy_space:
            rows = [
                row if begins else row.removeprefix(" ") for row, begins in zip(rows, has_bos, strict=True)
            ]
        batch = self.own(
            text=rows,
            images=_by_row(images, rows),
            padding_side=self._side(padding_side),
            add_bos=add_special_tokens or has_bos,
        )
        return self._feature(batch)

    @property
    def _bos(self) -> str:
        """The text of the token at the beginning of a prompt; empty if there is none."""
        assert self.own is not None
        return (self.tokenizer.bos_token or "") if self.own.tokenizer.add_bos else ""

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        padding_side: str | None = None,
        **_: Any,
    ) -> Any:
        """Return the text of a conversation or several, or with `tokenize` their ids and images.

        Args:
            conversation: messages, or a list of conversations; content is text, or parts of `text` and
                `image` with the image under `image`, `url`, `path` or `base64`.
            tokenize: encode, as `Processor.encode` does; the text alone is for people to read.
            add_generation_prompt: end where the answer begins. A conversation that ends with a question does
                so in any case, as the template has no other end for it.
        """
        assert self.own is not None
        is_one = not conversation or isinstance(conversation[0], dict)
        several = [[_message(m) for m in one] for one in ([conversation] if is_one else conversation)]
        if not tokenize:
            texts = [self._text(messages) for messages in several]
            return texts[0] if is_one else texts
        encodings = [self.own.encode(m, generation_prompt=m[-1]["role"] == "user") for m in several]
        return self._feature(self.own.collate(encodings, self._side(padding_side)))

    def decode(self, ids: Any, **_: Any) -> Any:
        assert self.own is not None
        rows = torch.as_tensor(ids)
        if rows.ndim > 1:
            return [self.decode(row) for row in rows]
        hidden = {self.image_token_id, self.own.image_token_id, self.own.tokenizer.pad_token_id}
        return self.own.decode([token for token in rows.tolist() if token not in hidden])

    def batch_decode(self, ids: Any, **_: Any) -> list[str]:
        return [self.decode(row) for row in ids]

    def post_process_image_text_to_text(  # type: ignore[override]
        self, generated_outputs: Any, **_: Any
    ) -> list[str]:
        return self.batch_decode(generated_outputs)

    def _side(self, given: str | None) -> Any:
        return given or getattr(self.tokenizer, "padding_side", "left")

    def _text(self, messages: list[dict[str, Any]]) -> str:
        assert self.own is not None
        chunks = render(messages, self.own.template, generation_prompt=messages[-1]["role"] == "user")
        end = END_MARK  # what raw prompts end a turn with, whatever the tokenizer calls it
        shown = {"image": IMAGE_MARK, "eos": end, "bos": self._bos}
        return "".join(shown.get(c.kind, " " * c.space + c.text) for c in chunks)

    def _feature(self, batch: dict[str, torch.Tensor]) -> BatchFeature:
        assert self.own is not None
        ids, pixels = batch["input_ids"], batch.pop("pixel_values")
        batch["input_ids"] = ids.masked_fill(ids == self.own.image_token_id, self.image_token_id)
        batch["attention_mask"] = batch["attention_mask"].long()
        return BatchFeature(batch | ({"pixel_values": pixels} if len(pixels) else {}))


def _by_row(images: Any, rows: Sequence[str]) -> list[list[Any]]:
    """Images in the rows that mark them."""
    if images is None:
        return [[] for _ in rows]
    found = list(images) if isinstance(images, list | tuple) else [images]
    if found and isinstance(found[0], list | tuple):
        return [list(row) for row in found]
    counts = [row.count(IMAGE_MARK) for row in rows]
    if sum(counts) != len(found):
        raise ValueError(f"{len(found)} images, but the prompts have {sum(counts)} {IMAGE_MARK} marks")
    left = iter(found)
    return [[next(left) for _ in range(count)] for count in counts]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with images where ours has them."""
    content = message["content"]
    if isinstance(content, str):
        return message
    parts = []
    for part in content:
        if part["type"] == "image":
            source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
            if source is None and "base64" in part:
                source = f"data:;base64,{part['base64']}"
            part = {"type": "image", "image": source}
        parts.append(part)
    return {**message, "content": parts}
