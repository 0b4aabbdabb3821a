"""Answers on the terminal: one, or a dialogue line by line.

What a person types is text: a literal `<|image|>` shows no image.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from PIL.Image import Image

from owl2.cli.values import read
from owl2.errors import Owl2Error
from owl2.generate import ChatSession
from owl2.processor import load_image

HELP = (
    "/image PATH shows an image with the next message, /reset starts over, /help repeats this, /quit leaves"
)


def print_answer(
    session: ChatSession, images: Sequence[Image], text: str, settings: Mapping[str, Any], name: str = ""
) -> None:
    """Ask with the images in front of the text, as the release does, and print the answer as it comes."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    with closing(session.say([*content, {"type": "text", "text": text}], **settings)) as pieces:
        for piece in pieces:
            print(name + piece, end="", flush=True)
            name = ""
    print(name, flush=True)
    if session.is_cut:
        print("(cut off: --max_new_tokens N allows a longer answer)", file=sys.stderr)


def converse(session: ChatSession, images: list[Image], settings: Mapping[str, Any]) -> None:
    """Answer line by line until the user leaves; a line that cannot be answered changes nothing."""
    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history, where the platform has it
    with suppress(AttributeError):
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    print(f"{HELP}; Ctrl-C stops an answer.")
    while (line := _read_line()) is not None:
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
            elif command == "/image":
                images = [*images, load_image(Path(argument.strip()).expanduser())]
            elif command.startswith("/") and "/" not in command[1:]:
                print(f"{command} is no command: {HELP}", file=sys.stderr)
            elif line:
                print_answer(session, images, line, settings, name="Owl2: ")
                images = []
        except Owl2Error as error:
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            images = []
            print(" (stopped)")


def _read_line() -> str | None:
    """Return the next line without surrounding space; None at the end of input."""
    while True:
        try:
            return input("You: ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(/quit leaves)")
