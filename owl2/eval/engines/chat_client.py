"""Chat client for any server with OpenAI's API: vLLM, llama.cpp, OpenAI itself.

The package `openai` sends the requests; the retries are ours, so that their number is exact and a broken
reply counts as one. Overload (429), server errors, time-outs and replies that are not JSON are tried again, a
bounded number of times and no sooner than `Retry-After` asks. Faults that no retry can mend (wrong key,
model or address) stop at once. A reply that is whole but has no text costs that request only.
"""

import email.utils
import functools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from owl2.errors import Owl2Error

API_KEY = "OPENAI_API_KEY"
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
HOPELESS = (401, 402, 403, 404, 405, 407)
EXAMPLE = "http://localhost:8000/v1"


class EndpointError(Owl2Error, RuntimeError):
    """A server that cannot be used; the message has its address and last words."""


class NoAnswerError(Owl2Error, RuntimeError):
    """One request without a usable answer: refused as it is, or a reply without text."""


class UnreadableError(NoAnswerError):
    """A request whose replies were not even JSON, in every try."""


@dataclass(frozen=True)
class Completion:
    """An answer and its cost."""

    text: str
    model: str
    """As the server names it, with its version."""
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class ChatClient:
    """Asks one model of one server; for use by several threads."""

    url: str
    """Up to and including the version, such as `http://localhost:8000/v1`."""
    model: str
    timeout_s: float = 120.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    """Doubles with every try, up to `longest_wait_s`."""
    longest_wait_s: float = 60.0

    def __post_init__(self) -> None:
        """Raise EndpointError if address or key cannot be right or `openai` is missing, before any
        request."""
        check_address(self.url)
        api_key()
        _import_openai()

    @property
    def address(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url.strip())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def complete(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Completion:
        """Send one conversation and wait for the answer.

        Args:
            settings: further fields of the request, such as `max_tokens` and `temperature`.

        Raises:
            NoAnswerError: the server refuses this request (400, 413, 422), or its reply has no text.
            UnreadableError: the last of `max_tries` replies is no JSON object.
            EndpointError: wrong address, model or key, or no reply in `max_tries` tries.
        """
        openai = _import_openai()
        error: Exception = EndpointError("no tries")
        for attempt in range(self.max_tries):
            asked = None
            try:
                return read_completion(self._send(messages, settings))
            except UnreadableError as unreadable:
                error = UnreadableError(self._said(str(unreadable)))
            except NoAnswerError as refused:
                raise NoAnswerError(self._said(str(refused))) from None
            except openai.APIStatusError as status:
                error, asked = self._of_status(status), status.response.headers.get("Retry-After")
            except openai.APIConnectionError as lost:
                if any(_is_unknown_host(cause) for cause in _causes(lost)):
                    raise EndpointError(self._said("no such host; check the address")) from None
                error = self._failure(_words(lost))
            except openai.OpenAIError as other:
                raise EndpointError(self._said(_words(other))) from None
            except ValueError as unsendable:  # half a surrogate pair in the question, for example
                raise NoAnswerError(self._said(f"the request cannot be sent: {unsendable}")) from None
            if attempt + 1 < self.max_tries:
                time.sleep(self._wait_s(attempt, asked))
        raise error from None

    def _send(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> bytes:
        reply = self._client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=list(messages),
            extra_body=dict(settings),
            extra_headers={} if api_key() else {"Authorization": _import_openai().Omit()},
        )
        content: bytes = reply.http_response.content
        return content

    @functools.cached_property
    def _client(self) -> Any:
        return _import_openai().OpenAI(
            api_key=api_key() or "none",
            base_url=self.url.strip(),
            max_retries=0,
            timeout=self.timeout_s,
        )

    def _of_status(self, error: Any) -> Exception:
        """The error to raise if no later try succeeds; raises at once where none can."""
        status = error.status_code
        reason = f"status {status} ({error.response.text[:400].strip()})"
        if status in RETRIED:
            return self._failure(reason)
        if status in HOPELESS:
            hint = f"; is {API_KEY} set?" if status in (401, 403) else f"; is {self.model!r} served there?"
            raise EndpointError(self._said(reason + hint)) from None
        raise NoAnswerError(self._said(reason)) from None

    def _failure(self, reason: str) -> EndpointError:
        return EndpointError(self._said(f"no answer in {self.max_tries} tries; the last: {reason}"))

    def _said(self, reason: str) -> str:
        """A message with the address, and without the key, which a server may repeat."""
        key = api_key()
        return f"{self.address}: {reason.replace(key, '***') if key else reason}"

    def _wait_s(self, attempt: int, asked: str | None) -> float:
        wait = self.first_wait_s * 2.0**attempt
        return min(self.longest_wait_s, max(wait, _seconds_until(asked)))


def check_address(url: str) -> None:
    """Raise EndpointError for an address that no server can have."""
    try:
        parts = urlsplit(url.strip())
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_good = False
    if not is_good or any(character.isspace() for character in url.strip()):
        raise EndpointError(f"{url!r} is no address of a server: give one such as {EXAMPLE}")


def api_key() -> str:
    """The key of the environment, without white space around it; "" without one.

    Raises:
        EndpointError: it holds characters that cannot be sent; the message does not show it.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(
            f"{API_KEY} holds a line break or a character that is not ASCII, which no key has: set it again"
        )
    return key


def read_completion(body: bytes) -> Completion:
    """Read a server's reply.

    Raises:
        UnreadableError: it is no JSON object.
        NoAnswerError: it has no text, or text that is not Unicode.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the reply is not JSON ({error}): {_start(body)}") from None
    if not isinstance(raw, dict):
        raise UnreadableError(f"the reply is no chat completion: {_start(body)}")
    choices = raw.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise NoAnswerError(f"the reply has no message: {_start(body)}")
    text = message.get("content")
    if not isinstance(text, str):
        shown = {"refusal": message.get("refusal"), "finish_reason": choice.get("finish_reason")}
        known = ", ".join(f"{name} {value!r:.200}" for name, value in shown.items() if value is not None)
        raise NoAnswerError(f"the reply has no text: content is {text!r:.80}{known and f', {known}'}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoAnswerError(f"the reply's text holds half a surrogate pair: {text!a:.200}") from None
    usage = raw.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    model = raw.get("model")
    return Completion(text, model if isinstance(model, str) and model.isprintable() else "", *counts)


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the server gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _start(body: bytes) -> str:
    return ascii(body[:200].decode(errors="replace"))


def _import_openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise EndpointError(
            "asking a server needs the package openai: pip install 'owl2[endpoint]'"
        ) from error
    return openai


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_unknown_host(error: BaseException) -> bool:
    return isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)


def _words(error: BaseException) -> str:
    """The first cause says more than the package's own `Connection error.`"""
    *_, first = _causes(error)
    return f"{type(first).__name__}: {first}"


def _seconds_until(asked: str | None) -> float:
    """The wait that `Retry-After` asks for: seconds, or a date."""
    if not asked:
        return 0.0
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
