"""`owl2 chat`: ask a checkpoint about images, once with `-m` or in a dialogue.

Asked once, only the answer goes to standard output, so that a script can read it; notes and errors go to
standard error. What a user types is text: a literal `<|image|>` shows no image. Packages are imported when
the command runs, so that `owl2 --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl2.cli.arguments import run_function

if TYPE_CHECKING:
    from PIL.Image import Image

    from owl2.generate import ChatSession

HELP = "/image PATH shows an image with the next message, /reset starts anew, /quit leaves"


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 chat`."""
    run_function(chat, arguments, command="chat", aliases={"-m": "--message", "--image": "--image+"})


def chat(
    checkpoint: str,
    *,
    image: Path | list[Path] | None = None,
    message: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Chat with a checkpoint about images.

    Args:
        checkpoint: checkpoint folder, released or ours, or a hub id such as owner/name.
        image: image to show with the first message, or a list of them in this order.
        message: ask this once, print the answer and exit; without it a dialogue begins.
        temperature: above 0 draws answers, 0 takes the most probable token; default: the checkpoint's.
        top_p: draw among the most probable tokens that hold this much probability together.
        top_k: draw among this many most probable tokens; 0 among all.
        max_new_tokens: longest answer in tokens; default: the checkpoint's, or what its context has left.
        seed: makes drawn answers repeatable.
        device: cpu, cuda, cuda:1, ...
        dtype: float32, bfloat16 or float16.
    """
    from owl2.errors import Owl2Error

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if settings.keys() & {"temperature", "top_p", "top_k"}:
        settings["do_sample"] = True  # temperature 0 is greedy all the same
    try:
        paths = image if isinstance(image, list) else [image] if image else []
        session, images = _prepare(checkpoint, paths, settings, device, dtype)
        if message is None:
            _converse(session, images, settings)
        else:
            _print_answer(session, images, message, settings)
    except Owl2Error as error:
        print(f"owl2 chat: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _prepare(
    checkpoint: str, paths: list[Path], settings: dict[str, Any], device: str, dtype: str
) -> tuple[ChatSession, list[Image]]:
    """Load what is quick to fail first: settings and images, then the model."""
    from owl2.api import load
    from owl2.generate import GenerationConfig
    from owl2.processor import load_image

    GenerationConfig().replace(**settings)
    images = [load_image(path) for path in paths]
    owl = load(checkpoint, device, dtype, progress=sys.stderr.isatty())
    return owl.session(), images


def _print_answer(
    session: ChatSession, images: list[Image], text: str, settings: dict[str, Any], name: str = ""
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


def _converse(session: ChatSession, images: list[Image], settings: dict[str, Any]) -> None:
    """Answer line by line until the user leaves; a line that cannot be answered changes nothing."""
    from owl2.errors import Owl2Error
    from owl2.processor import load_image

    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history, where the platform has it
    print(f"{HELP}; Ctrl-C stops an answer.")
    while (line := _read_line()) is not None:
        command, _, argument = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                session.reset()
                images = []
            elif command == "/image":
                images = [*images, load_image(Path(argument.strip()).expanduser())]
            elif command.startswith("/") and "/" not in command[1:]:
                print(f"{command} is no command: {HELP}", file=sys.stderr)
            elif line:
                _print_answer(session, images, line, settings, name="Owl2: ")
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
