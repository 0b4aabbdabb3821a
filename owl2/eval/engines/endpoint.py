"""Evaluating a model behind a server: the same prompts, sent as chat completions with the images inside.

The server's own chat template makes the prompt, so what stands behind `ASSISTANT:` is not ours to choose, and
likelihoods of given texts are not part of the API. Both are said: the first in the run's identity, the second
as an error.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from owl2.eval.engines.chat_client import ChatClient, EndpointError, RefusedError
from owl2.eval.engines.local import EngineError, Prompt, Reply
from owl2.processor import ImageError
from owl2.processor.video import VideoError


@dataclass(frozen=True)
class _Request:
    body: dict[str, Any] | None
    error: str = ""


class EndpointEngine:
    """A served model. The requests of a batch are sent at once; the server makes its own batches."""

    def __init__(self, client: ChatClient):
        self.client = client
        self.source = client.url
        self.identity: dict[str, Any] = {
            "kind": "endpoint",
            "model": client.model,
            "conversation": "the server's",
        }

    def measure(self, prompt: Prompt) -> int:
        """Characters over four and 65 tokens an image: an order, not a count."""
        text = sum(len(message["content"]) for message in _text_only(prompt))
        return text // 4 + 65 * sum(
            part["type"] == "image"
            for message in prompt.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
        )

    def prepare(self, prompts: Sequence[Prompt]) -> list[_Request]:
        return [_request_of(prompt) for prompt in prompts]

    def answer(self, prepared: list[_Request]) -> list[Reply]:
        with ThreadPoolExecutor(max(1, len(prepared))) as senders:
            return list(senders.map(self._send, prepared))

    def _send(self, request: _Request) -> Reply:
        if request.body is None:
            return Reply(error=request.error)
        try:
            completion = self.client.complete(**request.body)
        except RefusedError as error:
            return Reply(error=str(error))
        except EndpointError as error:
            raise EngineError(f"{error}; what is answered is kept, the same command goes on") from error
        return Reply(completion.text, completion.prompt_tokens, completion.new_tokens)


def _request_of(prompt: Prompt) -> _Request:
    if prompt.choices:
        raise EngineError(
            "a server's chat API does not tell the likelihood of given texts, which tasks in mode `rank` "
            "compare: leave those tasks out of --tasks, or run the checkpoint itself"
        )
    try:
        messages = [{"role": m["role"], "content": _content(m["content"])} for m in prompt.messages]
    except (ImageError, VideoError) as error:
        return _Request(None, str(error))
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


def _text_only(prompt: Prompt) -> list[dict[str, str]]:
    texts = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        texts.append({"content": content})
    return texts
