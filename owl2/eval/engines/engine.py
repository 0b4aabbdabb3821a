"""The engine protocol: batches of prompts in, replies in the same order out.

The runner calls `prepare` for the next batch in a thread while `answer` works on the current one, so opening
images costs no time of the model. A reply never depends on the other prompts of its batch. Whatever is wrong
with one prompt or one reply is that reply's `error`; `EngineError` is for what stops all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.eval.task import Decoding
from owl2.processor.template import IMAGE_MARK, Message, render
from owl2.processor.template import images_of as images_in


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
    """The answer to a prompt, and its cost."""

    output: str = ""
    """What the model wrote, unchanged; in `rank` mode the letter of the likeliest choice."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    log_likelihoods: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """`rank` mode: letter -> log-likelihood of the choice's text, and its number of tokens."""
    error: str = ""
    """Why there is no answer, such as a prompt longer than the context."""


class EngineError(Owl2Error, RuntimeError):
    """The engine cannot go on; the answers so far are kept.

    `replies` are those of the batch that was not finished, in the order of its prompts: None where there is
    none.
    """

    def __init__(self, message: str, replies: Sequence[Reply | None] = ()):
        super().__init__(message)
        self.replies = replies


class Engine(Protocol):
    """Answers batches of prompts."""

    has_beams: bool
    """Whether it searches with several beams; otherwise `Decoding.num_beams` is recorded as 1."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything about the model that shapes an answer, as JSON; a run folder holds one identity."""
        ...

    @property
    def source(self) -> str:
        """The checkpoint or address as the user gave it."""
        ...

    def measure(self, prompt: Prompt) -> int:
        """Tokens of a prompt, or a number that orders prompts alike; opens no image."""
        ...

    def prepare(self, prompts: Sequence[Prompt]) -> Any:
        """Open the images of a batch and encode it; thread-safe."""
        ...

    def answer(self, prepared: Any) -> list[Reply]:
        """Answer a prepared batch, in order.

        Raises:
            EngineError: no further batch can be answered, for example because a server is down.
        """
        ...


def text_of(prompt: Prompt, conversation: str | None = "mplug_owl2") -> str:
    """All that is asked, with `<|image|>` for each image.

    Args:
        conversation: the processor's template that is laid around it; None for a line a turn.
    """
    if conversation is None:
        turns = [f"{message['role']}: {_text(message)}" for message in prompt.messages]
        return "\n".join([*turns, *([prompt.answer_prefix] if prompt.answer_prefix else [])])
    prefix = prompt.answer_prefix
    chunks = render(prompt.messages, conversation, generation_prompt=True, answer_prefix=prefix)
    marks = {"image": IMAGE_MARK, "eos": "</s>"}
    return "".join(marks.get(chunk.kind, " " * chunk.space + chunk.text) for chunk in chunks)


def _text(message: Message) -> str:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] if part["type"] == "text" else IMAGE_MARK for part in parts)


def images_of(prompt: Prompt) -> tuple[StoredImage, ...]:
    """A prompt's images, in order, still closed."""
    return tuple(images_in(prompt.messages))


def describe(error: Exception) -> str:
    """An error as the reason of one reply: our own message, or the kind and the message of another."""
    return str(error) if isinstance(error, Owl2Error) else f"{type(error).__name__}: {error}"
