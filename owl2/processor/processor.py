"""Conversations and images as model inputs, for training, chat, evaluation and serving alike.

There are two entry points. `encode` and `chat` take messages: marks typed by a user mean nothing, and the
label mask comes with the ids. `processor(text=...)` takes raw prompts, as the released evaluation scripts
write them: each `<|image|>` is a placeholder and `</s>` is the end token. Both give the ids of the release's
`tokenizer_image_token` (official mm_utils.py:181), each image expanded to its visual tokens.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from owl2.errors import Owl2Error
from owl2.files import read_json, write_file
from owl2.model.config import Owl2Config
from owl2.processor.images import ImageError, ImageSource, load_image
from owl2.processor.template import (
    END_MARK,
    IMAGE_MARK,
    Chunk,
    Message,
    TemplateError,
    find_template,
    images_of,
    render,
)
from owl2.processor.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from owl2.processor.transform import CONFIG_NAME, ImageTransform, Resize, own_settings

PaddingSide = Literal["left", "right"]


class ContextError(Owl2Error, ValueError):
    """A prompt that is longer than the decoder's context."""


class ImageCountError(Owl2Error, ValueError):
    """A raw prompt with more or fewer images than `<|image|>` marks."""


@dataclass
class Encoding:
    """One conversation as ids."""

    ids: list[int]
    """Image tokens included, `tokens_per_image` of them an image."""
    is_target: list[bool]
    """Which ids training predicts: each answer and its end token."""
    images: list[Image.Image] = field(default_factory=list)
    """RGB images in the order of their tokens."""
    rows: tuple[int, ...] | None = None
    """The number of ids of each row, if the sample is several rows that share `images` and do not attend to
    each other."""
    blank: tuple[int, ...] = ()
    """Numbers from 1 of questions that a training sample lost because their answers are blank."""


class Processor:
    """Tokenizer, template and image transform of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_transform: ImageTransform,
        *,
        image_token_id: int,
        tokens_per_image: int,
        template: str = "mplug_owl2",
        max_tokens: int | None = None,
    ) -> None:
        """Create a processor.

        Args:
            image_token_id: the id in `input_ids` at every visual position.
            tokens_per_image: visual tokens of an image, the end-of-image vector included.
            template: a name in `TEMPLATES`.
            max_tokens: the decoder's context, visual tokens included; None means no limit.

        Raises:
            TemplateError: unknown template.
        """
        find_template(template)
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.template = template
        self.max_tokens = max_tokens

    def __call__(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[ImageSource]] | None = None,
        padding_side: PaddingSide = "right",
        *,
        add_bos: bool | Sequence[bool] = True,
    ) -> dict[str, torch.Tensor]:
        """Encode raw prompts, in which each `<|image|>` marks an image and `</s>` ends a turn.

        Args:
            text: one prompt for each row.
            images: the images of each row in the order of its marks; None if no row has any.
            add_bos: whether rows begin as the tokenizer says, for all rows or each; a row that goes on with
                another one does not.

        Returns:
            See `collate`.

        Raises:
            ImageCountError: marks and images do not match; names the row and both counts.
            ContextError: a prompt is too long; names the row.
        """
        if isinstance(text, str):
            raise TypeError("text is one string, expected a list with one prompt a row")
        rows: Sequence[Sequence[ImageSource]] = images if images is not None else [()] * len(text)
        if len(rows) != len(text):
            raise ImageCountError(f"{len(text)} prompts but {len(rows)} lists of images; rows without get []")
        return self.collate(
            [
                self._encode_prompt(
                    row, prompt, shown, add_bos if isinstance(add_bos, bool) else add_bos[row]
                )
                for row, (prompt, shown) in enumerate(zip(text, rows, strict=True))
            ],
            padding_side,
        )

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        padding_side: PaddingSide = "right",
        *,
        answer_prefix: str = "",
    ) -> dict[str, torch.Tensor]:
        """Encode conversations whose last turn is the user's, ready to be answered; see `collate`.

        `answer_prefix` follows `ASSISTANT:`; prompts of the release's later evaluation end in a space.
        """
        return self.collate(
            [self.encode(c, generation_prompt=True, answer_prefix=answer_prefix) for c in conversations],
            padding_side,
        )

    def encode(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, answer_prefix: str = ""
    ) -> Encoding:
        """Encode one conversation; `is_target` marks each answer and its end token.

        Raises:
            TemplateError: turns that do not alternate or content that is not understood.
            ImageError: an image cannot be read.
            ContextError: longer than the decoder's context.
        """
        encoding = Encoding([], [])
        chunks = render(
            messages, self.template, generation_prompt=generation_prompt, answer_prefix=answer_prefix
        )
        is_end = [False, *(chunk.kind == "eos" for chunk in chunks), False]
        for number, chunk in enumerate(chunks):
            ids = self._chunk_ids(chunk, after_end=is_end[number], before_end=is_end[number + 2])
            encoding.ids += ids
            encoding.is_target += [chunk.is_target] * len(ids)
        encoding.images = [self.load_image(image) for image in images_of(messages)]
        self._check_length(encoding, "the conversation")
        return encoding

    def collate(
        self, encodings: Sequence[Encoding], padding_side: PaddingSide = "right"
    ) -> dict[str, torch.Tensor]:
        """Pad encodings to the longest and transform their images.

        Returns:
            `input_ids` (B, T) int64, `attention_mask` (B, T) bool, `pixel_values` (N, 3, H, W) float32 with
            the images of all rows in order; N may be 0.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
        if not encodings:
            raise ValueError("a batch needs at least one row")
        length = max(len(encoding.ids) for encoding in encodings)
        input_ids = torch.full((len(encodings), length), self.tokenizer.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(encodings), length), dtype=torch.bool)
        for row, encoding in enumerate(encodings):
            count = len(encoding.ids)
            columns = slice(0, count) if padding_side == "right" else slice(length - count, length)
            input_ids[row, columns] = torch.tensor(encoding.ids, dtype=torch.int64)
            attention_mask[row, columns] = True
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": self.pixels([image for encoding in encodings for image in encoding.images]),
        }

    def load_image(self, source: ImageSource) -> Image.Image:
        """Return an image as RGB, its transparency treated as the checkpoint's images are.

        Raises:
            ImageError: see `owl2.processor.load_image`.
        """
        return load_image(source, self.image_transform.alpha)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Transform images to (N, 3, H, W) float32; N may be 0."""
        side = self.image_transform.size
        pixels = torch.empty((len(images), 3, side, side), dtype=torch.float32)
        for image, out in zip(images, pixels, strict=True):
            self.image_transform(image, out)
        return pixels

    def replace(
        self,
        *,
        template: str | None = None,
        image_size: int | None = None,
        resize: Resize | None = None,
        max_tokens: int | None = None,
    ) -> "Processor":
        """Return a processor with the given parts changed; what is not given stays."""
        changed = copy.copy(self)
        if template is not None:
            find_template(template)
            changed.template = template
        given = {"size": image_size, "resize": resize}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        changed.image_transform = dataclasses.replace(self.image_transform, **changes)
        changed.max_tokens = self.max_tokens if max_tokens is None else max_tokens
        return changed

    def without_limit(self) -> "Processor":
        """Return a processor that encodes conversations of any length, as `max_tokens=None` does."""
        unlimited = copy.copy(self)
        unlimited.max_tokens = None
        return unlimited

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without image and special tokens."""
        return self.tokenizer.decode([token_id for token_id in ids if token_id != self.image_token_id])

    def save(self, folder: Path) -> None:
        """Write tokenizer files and `preprocessor_config.json` (with the template's name) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        config = self.image_transform.to_dict()
        config["owl2"]["template"] = self.template
        write_file(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def from_folder(cls, folder: Path, config: Owl2Config) -> "Processor":
        """Read a checkpoint folder, released or ours.

        Raises:
            TokenizerError: no tokenizer, or one with more tokens than the model has embeddings.
            ImageError: `preprocessor_config.json` is missing, damaged, or describes other steps than ours.
            TemplateError: it names an unknown template.
        """
        folder = Path(folder)
        tokenizer = load_tokenizer(folder)
        if tokenizer.vocab_size > config.decoder.vocab_size:
            raise TokenizerError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the model embeds only "
                f"{config.decoder.vocab_size}; they do not belong together"
            )
        path = folder / CONFIG_NAME
        if not path.exists():
            raise ImageError(f"{path} is missing: it says how images become pixels")
        raw = read_json(path, ImageError)
        try:
            transform = ImageTransform.from_dict(raw, _released_resize(folder / "config.json"))
            template = own_settings(raw).get("template", "mplug_owl2")
            find_template(template)
        except (ImageError, TemplateError) as error:
            raise type(error)(f"{path}: {error}") from error
        if transform.size % config.vision.patch_size:
            raise ImageError(
                f"{path}: images of {transform.size} px cannot be cut into patches of "
                f"{config.vision.patch_size} px"
            )
        return cls(
            tokenizer,
            transform,
            image_token_id=config.image_token_id,
            tokens_per_image=config.tokens_per_image,
            template=template,
            max_tokens=config.decoder.max_position_embeddings,
        )

    def _encode_prompt(self, row: int, prompt: str, images: Sequence[ImageSource], add_bos: bool) -> Encoding:
        if isinstance(images, Image.Image):
            raise TypeError(f"images of row {row} are one image, expected a list of images")
        chunks = prompt.split(IMAGE_MARK)
        if len(images) != len(chunks) - 1:
            raise ImageCountError(
                f"row {row} has {len(chunks) - 1} {IMAGE_MARK} marks but {len(images)} images; give one "
                f"for each mark (in chat, text typed by a user is never a mark)"
            )
        if not prompt:
            raise ValueError(f"row {row} is empty: there is nothing to continue")
        ids: list[int] = []
        for number, chunk in enumerate(chunks):
            if number:
                ids += self._image_ids()
            # The release puts BOS before each piece and keeps the first; after a leading image it keeps all.
            if add_bos and chunk and (number == 0 or not chunks[0]):
                ids += self._bos_ids()
            ids += self._raw_ids(chunk)
        encoding = Encoding(ids, [False] * len(ids), [self.load_image(image) for image in images])
        self._check_length(encoding, f"row {row}")
        return encoding

    def _chunk_ids(self, chunk: Chunk, *, after_end: bool, before_end: bool) -> list[int]:
        match chunk.kind:
            case "bos":
                return self._bos_ids()
            case "eos":
                return [self.tokenizer.eos_token_id]
            case "image":
                return self._image_ids()
            case "text":
                return self._text_ids(
                    chunk.text, space=chunk.space, after_end=after_end, before_end=before_end
                )

    def _raw_ids(self, text: str) -> list[int]:
        """Return the ids of a raw piece, split at end tokens as the slow LLaMA tokenizer does."""
        pieces = text.split(END_MARK)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            ids += [self.tokenizer.eos_token_id] if number else []
            ids += self._text_ids(piece, after_end=number > 0, before_end=number < len(pieces) - 1)
        return ids

    def _text_ids(
        self, text: str, *, space: bool = False, after_end: bool = False, before_end: bool = False
    ) -> list[int]:
        """Return the ids of text, which some tokenizers read otherwise next to an end token."""
        strips_before, strips_after = self.tokenizer.end_strips
        if after_end and strips_after:
            text = text.lstrip()
        if before_end and strips_before:
            text = text.rstrip()
            space = space and bool(text)  # the space in front belongs to white space that is stripped
        return self.tokenizer.encode(text, space=space, after_end=after_end)

    def _bos_ids(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos] if self.tokenizer.add_bos and bos is not None else []

    def _image_ids(self) -> list[int]:
        return [self.image_token_id] * self.tokens_per_image

    def _check_length(self, encoding: Encoding, what: str) -> None:
        count, limit = len(encoding.ids), self.max_tokens
        if limit is not None and count > limit:
            visual = len(encoding.images) * self.tokens_per_image
            raise ContextError(
                f"{what} has {count:,} tokens ({len(encoding.images)} images are {visual:,} of them), but "
                f"the context is {limit:,}: shorten the text, drop earlier turns or show fewer images"
            )


def _released_resize(config_file: Path) -> Resize:
    """Return how the release resizes images of a folder: `pad` if its fine-tuning did, else `square`."""
    aspect = read_json(config_file, ImageError).get("image_aspect_ratio") if config_file.exists() else None
    return "pad" if aspect == "pad" else "square"
