"""Answers on the terminal: one, or a dialogue line by line.

What a person types is text: a literal `<|image|>` shows no image.
"""

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from PIL.Image import Image

from owl2.cli.values import read
from owl2.errors import Owl2Error
from owl2.generate import ChatSession, Why, explain
from owl2.processor import load_image

HELP = (
    "/image PATH (or URL) shows an image with the next message, /reset starts over, /help helps, /quit leaves"
)


def print_answer(
    session: ChatSession,
    images: Sequence[Image],
    text: str,
    settings: Mapping[str, Any],
    name: str = "",
    why: bool = False,
) -> None:
    """Ask with the images in front of the text, as the release does, and print the answer as it comes.

    With `why`, the probability of each token follows, with the images and with blank ones.
    """
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    with closing(session.say([*content, {"type": "text", "text": text}], **settings)) as pieces:
        for piece in pieces:
            print(name + piece, end="", flush=True)
            name = ""
    print(name, flush=True)
    if session.is_cut:
        print("(cut off: --max_new_tokens N allows a longer answer)", file=sys.stderr)
    if why:
        *asked, answer = session.messages
        fresh = ChatSession(session.model, session.processor, session.config)
        print_why(explain(fresh, asked, str(answer["content"]), **settings))


def print_why(why: Why) -> None:
    """Print the tokens of an answer as a table: with the images, and with blank ones in their place."""
    print(f"\n{'probability of':16}  image   blank")
    for token in why.tokens:
        print(f"{token.text!r:16}  {token.probability:5.1%}   {token.blank_probability:5.1%}")
    print(f"With blank images: {why.blank_answer}", flush=True)


def converse(
    session: ChatSession, images: list[Image], settings: Mapping[str, Any], *, why: bool = False
) -> None:
    """Answer line by line until the user leaves; a line that cannot be answered changes nothing.

    Lines that come from a pipe or a file are answered with the answers alone.
    """
    is_terminal = sys.stdin.isatty()
    name = "Owl2: " if is_terminal else ""
    if is_terminal:
        with suppress(ImportError):
            importlib.import_module("readline")  # line editing and history, where the platform has it
        print(f"{HELP}; Ctrl-C stops an answer.")
    with suppress(AttributeError):
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    while (line := _read_line("You: " if is_terminal else "")) is not None:
        command, _, argument = line.partition(" ")
        try:
            line = read(line, str, "the line")
            if command == "/quit":
                return
            if command == "/help":
                print(HELP)
            elif command == "/reset":
                session.reset()
                images = []
                print("The conversation is empty, no image is shown.", file=sys.stderr)
            elif command == "/image":
                images = [*images, load_image(typed_path(argument))]
                width, height = images[-1].size
                print(f"{width} x {height} pixels; the next message shows {_count(images)}", file=sys.stderr)
            elif command.startswith("/") and "/" not in command[1:]:
                print(f"{command} is no command: {HELP}", file=sys.stderr)
            elif line:
                print_answer(session, images, line, settings, name, why)
                images = []
        except Owl2Error as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            images = []
            print(" (stopped)")


def typed_path(text: str) -> str:
    """Return a path or URL as typed or dropped into a terminal: in quotes, or with `\\ ` for a space."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text if Path(text).exists() else re.sub(r"\\([ '\"()&\[\]])", r"\1", text)


def _count(images: Sequence[Image]) -> str:
    return "1 image" if len(images) == 1 else f"{len(images)} images"


def _read_line(prompt: str) -> str | None:
    """Return the next line without surrounding space; None at the end of input."""
    while True:
        try:
            return input(prompt).strip()
        except EOFError:
            print(end="\n" * bool(prompt))
            return None
        except KeyboardInterrupt:
            print("\n(/quit leaves)")
