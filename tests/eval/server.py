"""A chat server on this machine that follows a script: statuses, garbage and silence included."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Trouble = int | str | bytes | tuple[int, bytes]
Answer = Callable[[dict[str, Any]], Trouble]


@dataclass
class Script:
    """What the server does with its requests, in the order in which they come."""

    answer: Answer
    """Text of a good reply from the request, or any trouble."""
    troubles: list[Trouble] = field(default_factory=list)
    """Done before good replies begin: a status, `garbage`, `silence`, a reply's text, a whole body, or a
    status with its body."""
    retry_after: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_trouble(self, request: dict[str, Any], headers: dict[str, str]) -> Trouble | None:
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            return self.troubles.pop(0) if self.troubles else None


SILENCE_S = 1.5


def body_of(text: Any, model: str = "owl") -> bytes:
    """A whole reply with this content."""
    reply = {
        "model": f"{model}-2026",
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 2},
    }
    return json.dumps(reply).encode()


@contextmanager
def served(answer: Answer, troubles: list[Trouble] | None = None, **settings: Any) -> Iterator[Script]:
    """Serve a script while the block runs."""
    script = Script(answer, troubles or [], **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            trouble = script.next_trouble(request, {k.title(): v for k, v in self.headers.items()})
            if trouble is None:
                trouble = script.answer(request)
            if isinstance(trouble, int):
                self.send(trouble, b'{"error": {"message": "as the script says"}}')
            elif trouble == "garbage":
                self.send(200, b"<html>not what you asked for</html>")
            elif trouble == "silence":
                time.sleep(SILENCE_S)
            elif isinstance(trouble, tuple):
                self.send(*trouble)
            else:
                self.send(200, trouble if isinstance(trouble, bytes) else body_of(trouble, request["model"]))

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if script.retry_after is not None and status != 200:
                self.send_header("Retry-After", script.retry_after)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # with the usual 5, a batch of 32 connections waits for a second

    server = Server(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
