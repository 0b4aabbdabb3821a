"""From a function's signature to a command: arguments, help and errors by jsonargparse."""

from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser


def run_function(
    function: Callable[..., None],
    arguments: Sequence[str],
    *,
    command: str,
    positionals: bool = True,
    aliases: dict[str, str] | None = None,
) -> None:
    """Parse `arguments` by the signature of `function` and call it.

    `positionals`: parameters without default are positional. `aliases` are other spellings of options.
    """
    parser = make_parser(function, command=command, positionals=positionals)
    values: Any = parser.parse_args([(aliases or {}).get(argument, argument) for argument in arguments])
    function(**vars(values))


def make_parser(function: Callable[..., None], *, command: str, positionals: bool = True) -> ArgumentParser:
    """The parser of a command."""
    description = (function.__doc__ or "").strip().split("\n")[0]
    parser = ArgumentParser(prog=f"owl2 {command}", description=description)
    parser.add_function_arguments(function, as_positional=positionals)
    return parser
