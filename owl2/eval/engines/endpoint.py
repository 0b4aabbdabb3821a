"""Endpoint engine: a model behind a server, asked the same prompts as chat completions with images inside.

The server's own chat template makes the prompt, so the text after `ASSISTANT:` is not ours to choose. Its API
knows no beam search, and no likelihoods of given texts. The run's identity records the first two; the third
is an error.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from owl2.eval.engines.chat_client import ChatClient, EndpointError, NoAnswerError, UnreadableError
from owl2.eval.engines.engine import EngineError, Prompt, Reply, describe, images_of

MAX_UNREADABLE = 10
"""Unreadable replies without any readable one, after which the address is taken to be wrong."""


@dataclass(frozen=True)
class _Request:
    body: dict[str, Any] | None
    error: str = ""


class EndpointEngine:
    """A served model. The requests of a batch are sent at once; the server makes its own batches."""

    has_beams = False

    def __init__(self, client: ChatClient):
        self.client = client
        self.source = client.address
        self.identity: dict[str, Any] = {
            "kind": "endpoint",
            "model": client.model,
            "conversation": "the server's",
        }
        self._num_readable = 0
        self._num_unreadable = 0

    def measure(self, prompt: Prompt) -> int:
        """Characters over four and 65 tokens an image: an order, not a count."""
        contents = [message["content"] for message in prompt.messages]
        parts = [[{"text": c}] if isinstance(c, str) else c for c in contents]
        text = sum(len(part.get("text", "")) for message in parts for part in message)
        return text // 4 + 65 * len(images_of(prompt))

    def prepare(self, prompts: Sequence[Prompt]) -> list[_Request]:
        return [_request_of(prompt) for prompt in prompts]

    def answer(self, prepared: list[_Request]) -> list[Reply]:
        with ThreadPoolExecutor(max(1, len(prepared))) as senders:
            found = list(senders.map(self._send, prepared))
        replies = [reply if isinstance(reply, Reply) else None for reply in found]
        failures = [reply for reply in found if isinstance(reply, EndpointError)]
        if failures:
            raise EngineError(f"{failures[0]}; the answers are kept, the same command goes on", replies)
        if not self._num_readable and self._num_unreadable >= MAX_UNREADABLE:
            raise EngineError(
                f"{self.source}: none of the first {self._num_unreadable} replies could be read; does an "
                f"OpenAI-compatible server listen there?",
                replies,
            )
        return [reply for reply in replies if reply is not None]

    def _send(self, request: _Request) -> Reply | EndpointError:
        if request.body is None:
            return Reply(error=request.error)
        try:
            completion = self.client.complete(**request.body)
        except NoAnswerError as error:
            self._num_unreadable += isinstance(error, UnreadableError)
            return Reply(error=str(error))
        except EndpointError as error:
            return error
        self._num_readable += 1
        return Reply(completion.text, completion.prompt_tokens, completion.new_tokens)


def _request_of(prompt: Prompt) -> _Request:
    if prompt.choices:
        raise EngineError(
            "a server's chat API does not give the likelihood of a text, which tasks in mode `rank` compare: "
            "leave those tasks out of --tasks, or run the checkpoint itself"
        )
    try:
        messages = [{"role": m["role"], "content": _content(m["content"])} for m in prompt.messages]
    except Exception as error:  # libraries for images and videos raise what they like
        return _Request(None, describe(error))
    settings: dict[str, Any] = {"max_tokens": prompt.decoding.max_new_tokens, "temperature": 0}
    if prompt.decoding.min_new_tokens > 1:  # vLLM's name; a server without it may refuse, which is counted
        settings["min_tokens"] = prompt.decoding.min_new_tokens
    return _Request({"messages": messages, **settings})


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": data_url(part["image"].open())}}
        if part["type"] == "image"
        else {"type": "text", "text": part["text"]}
        for part in content
    ]


def data_url(image: Image.Image) -> str:
    """An image as text, without loss."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
