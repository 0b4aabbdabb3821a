"""Prompt templates: a conversation as a list of chunks of text and images, some of them targets.

A chunk is tokenised in one piece, so that training, chat and the released code's own splitting agree on ids,
and the label mask follows from the chunk's kind instead of from counting tokens afterwards. A user's text is
only text: marks and special tokens typed in it mean nothing. Layouts are the release's (official
conversation.py, train.py:286-289 and 297-376): `USER: {q} ASSISTANT: {a}</s>USER: ...`.

A system prompt is a first message of the role `system`. Where a layout has system text, as `vicuna_v1`, it
takes the place of that text; where it has none, as `mplug_owl2`, it is a line of its own above the first
question and its images.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from owl2.errors import Owl2Error
from owl2.processor.images import BLANK

IMAGE_MARK = "<|image|>"
END_MARK = "</s>"

Message = Mapping[str, Any]
"""`{"role": "user" | "assistant", "content": ...}`; content is text, or a list of
`{"type": "text", "text": str}` and `{"type": "image", "image": PIL image or path}`. The first may have the
role `system`; its content is text."""


class TemplateError(Owl2Error, ValueError):
    """A conversation that no template can render; the message names the turn."""


@dataclass(frozen=True)
class Chunk:
    """A piece of the prompt that is tokenised on its own."""

    kind: Literal["text", "image", "bos", "eos"]
    text: str = ""
    is_target: bool = False
    """An answer or its end token: what training predicts."""
    space: bool = False
    """Whether a space separates the text from the chunk before it."""


@dataclass(frozen=True)
class Template:
    """The text around turns."""

    system: str = ""
    """Text before the first turn, unless the conversation has its own; empty: there is no place for any."""
    images_first: bool = False
    """Whether a turn's images move to its front, followed by a newline."""


TEMPLATES: dict[str, Template] = {
    # The release's chat, demo and evaluation; its system sentence is never emitted.
    "mplug_owl2": Template(),
    # The release's training scripts (`--version v1`). They keep one image in a turn, this keeps all.
    "vicuna_v1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
        images_first=True,
    ),
}


def find_template(name: str) -> Template:
    """Return a template by name.

    Raises:
        TemplateError: unknown name; the message has the nearest one.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0)
        raise TemplateError(f"unknown template {name!r}; nearest is {near[0]!r} of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def render(
    messages: Sequence[Message],
    template: str = "mplug_owl2",
    *,
    generation_prompt: bool = False,
    answer_prefix: str = "",
) -> list[Chunk]:
    """Return the chunks of a conversation; image chunks are in the order of `images_of(messages)`.

    Args:
        messages: turns that start with the user and alternate, after a system prompt if there is one.
        generation_prompt: end with `ASSISTANT:`, for which the last turn must be the user's.
        answer_prefix: follows that and is tokenised with it. The release's later evaluation has a space here.

    Raises:
        TemplateError: the roles do not alternate or a turn's content is not understood; names the turn.
    """
    layout = find_template(template)
    prompt, said = _split_system(messages)
    _check_roles(said, len(messages), generation_prompt)
    before = f"{prompt.strip()} USER: " if prompt and layout.system else f"{layout.system}USER: "
    above = f"{prompt}\n" if prompt and not layout.system else ""
    chunks = [Chunk("bos")]
    for turn, message in said:
        parts = _parts(turn, message)
        if message["role"] == "assistant":
            answer = "".join(part for part in parts if isinstance(part, str))
            chunks += [Chunk("text", answer, is_target=True, space=True), Chunk("eos", is_target=True)]
            continue
        is_last = turn == len(messages)
        is_answered = not is_last or generation_prompt
        opening = f"{before}{above}" if turn == said[0][0] else "USER: "
        closing = f" ASSISTANT:{answer_prefix if is_last else ''}" if is_answered else ""
        chunks += _merge([opening, *(_images_to_front(parts) if layout.images_first else parts), closing])
    return chunks


def images_of(messages: Sequence[Message]) -> list[Any]:
    """Return every image of a conversation, as given (a PIL image or a path), in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def with_blank_images(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with a blank image in place of each image; the prompt is as long as before."""
    return [
        message
        if isinstance(content := message["content"], str)
        else {**message, "content": [p | {"image": BLANK} if p["type"] == "image" else p for p in content]}
        for message in messages
    ]


Turns = list[tuple[int, Message]]
"""Messages with their places in the conversation, from 1."""


def _split_system(messages: Sequence[Message]) -> tuple[str, Turns]:
    """Return the system prompt, empty if there is none, and the turns."""
    turns = [*enumerate(messages, start=1)]
    if not messages or messages[0].get("role") != "system":
        return "", turns
    return "".join(_parts(1, messages[0])), turns[1:]


def _check_roles(turns: Turns, count: int, generation_prompt: bool) -> None:
    if not turns:
        raise TemplateError(f"the conversation has no turns{' but its system prompt' if count else ''}")
    for number, (turn, message) in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        role = message.get("role")
        if role != expected:
            raise TemplateError(
                f"turn {turn} of {count} has the role {role!r}, expected {expected!r}: conversations start "
                f"with the user, after a system prompt if there is one, and alternate"
            )
    if generation_prompt and len(turns) % 2 == 0:
        raise TemplateError(f"turn {count} is the assistant's: there is no question left to answer")


_IMAGE = object()


def _parts(turn: int, message: Message) -> list[Any]:
    """Return a turn's text (str) and images (`_IMAGE`), in order."""
    content = message.get("content")
    where = f"turn {turn} ({message['role']})"
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence):
        raise TemplateError(f"{where}: content is {type(content).__name__}, expected text or a list of parts")
    parts: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "image" and part.get("image") is not None and message["role"] == "user":
            parts.append(_IMAGE)
        elif kind == "image" and message["role"] != "user":
            holder = "an answer" if message["role"] == "assistant" else "a system prompt"
            raise TemplateError(f"{where}: {holder} cannot hold an image")
        else:
            raise TemplateError(
                f'{where}: {part!r:.80} is not a part; expected {{"type": "text", "text": str}} or '
                f'{{"type": "image", "image": image or path}}'
            )
    return parts


def _images_to_front(parts: list[Any]) -> list[Any]:
    """Return `<image>\\n{text}`, the text stripped, as train.py:286-289; turns without images stay as is."""
    images = [part for part in parts if part is _IMAGE]
    if not images:
        return parts
    text = "".join(part for part in parts if part is not _IMAGE).strip()
    return [*images, f"\n{text}" if text else ""]


def _merge(parts: list[Any]) -> list[Chunk]:
    """Join neighbouring text into one chunk each, around the images."""
    chunks: list[Chunk] = []
    for part in parts:
        if part is _IMAGE:
            chunks.append(Chunk("image"))
        elif part and chunks and chunks[-1].kind == "text":
            chunks[-1] = dataclasses.replace(chunks[-1], text=chunks[-1].text + part)
        elif part:
            chunks.append(Chunk("text", part))
    return chunks
