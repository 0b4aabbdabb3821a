"""A client for any server that speaks OpenAI's chat completions: vLLM, llama.cpp, the real one.

The standard library in place of a package, so that what is repeated, and how often, is plain to see: overload
(429), server errors, broken replies and time-outs are tried again, a bounded number of times and as late as
`Retry-After` asks; what another try cannot mend (a wrong key, model or address) stops at once.
"""

import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from owl2.errors import Owl2Error

API_KEY = "OPENAI_API_KEY"
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
HOPELESS = (401, 403, 404, 405)


class EndpointError(Owl2Error, RuntimeError):
    """A server that cannot be used; the message has its address and last words."""


class RefusedError(EndpointError):
    """A request that the server will not answer as it is, such as a prompt longer than its context."""


@dataclass(frozen=True)
class Completion:
    """An answer and what it cost."""

    text: str
    model: str
    """As the server names it, with its version."""
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class ChatClient:
    """Asks one model of one server."""

    url: str
    """Up to and with the version, as `http://localhost:8000/v1`."""
    model: str
    timeout_s: float = 120.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    """Doubles with every try, up to `longest_wait_s`."""
    longest_wait_s: float = 60.0

    def complete(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Completion:
        """Send one conversation and wait for the answer.

        Args:
            settings: further fields of the request, such as `max_tokens` and `temperature`.

        Raises:
            RefusedError: the request itself is at fault (400, 413, 422).
            EndpointError: wrong address, model or key, or no good answer in `max_tries` tries.
        """
        body = json.dumps({"model": self.model, "messages": messages, **settings}).encode()
        reason = ""
        for attempt in range(self.max_tries):
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                reason, asked = self._judge_status(error), error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, asked = f"{type(error).__name__}: {error}", None
            if attempt + 1 < self.max_tries:
                time.sleep(self._wait_s(attempt, asked))
        raise EndpointError(f"{self.url}: no answer in {self.max_tries} tries; the last: {reason}")

    def _once(self, body: bytes) -> Completion:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            return read_completion(json.loads(response.read()))

    def _judge_status(self, error: urllib.error.HTTPError) -> str:
        """Say what a status means if another try may help, else raise."""
        words = error.read(400).decode(errors="replace").strip()
        reason = f"status {error.code} ({words})"
        if error.code in RETRIED:
            return reason
        if error.code in HOPELESS:
            hint = (
                f"; is {API_KEY} set?" if error.code in (401, 403) else f"; is {self.model!r} served there?"
            )
            raise EndpointError(f"{self.url}: {reason}{hint}") from error
        raise RefusedError(f"{self.url}: {reason}") from error

    def _wait_s(self, attempt: int, asked: str | None) -> float:
        wait = self.first_wait_s * 2.0**attempt
        return min(self.longest_wait_s, max(wait, _seconds_until(asked)))


def read_completion(raw: Any) -> Completion:
    """Read a server's reply.

    Raises:
        ValueError: it is not one of the chat API.
    """
    try:
        text = raw["choices"][0]["message"]["content"]
        usage = raw.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("no text")
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Completion(text, str(raw.get("model", "")), *counts)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no chat completion: {json.dumps(raw)[:200]}") from error


def _seconds_until(asked: str | None) -> float:
    """What `Retry-After` asks for: seconds, or a date."""
    if not asked:
        return 0.0
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
