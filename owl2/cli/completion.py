"""Completion of commands, options, choices and files by the shell, as a script that `shtab` writes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from owl2.cli.parser import Function, Parser, summary
from owl2.cli.values import UsageError, nearest


def print_script(shell: str, modules: Mapping[str, Mapping[str, Function]]) -> None:
    """Print the script for a shell.

    Args:
        shell: `bash`, `zsh` or another that `shtab` knows.
        modules: the functions of each command by their sub-command, "" if it has none.

    Raises:
        UsageError: it does not know the shell.
        ImportError: `shtab` is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install shtab") from error
    shells = shtab.SUPPORTED_SHELLS
    if shell not in shells:
        raise UsageError(
            f"--print-completion: {shell!r} is not one of {', '.join(shells)}; "
            f"the nearest is {nearest(shell, shells)!r}"
        )
    print(shtab.complete(_program(modules, shtab.FILE), shell))


def _program(modules: Mapping[str, Mapping[str, Function]], file: Any) -> Parser:
    """The parser of the whole program."""
    program = Parser(prog="owl2")
    program.add_argument("--version", action="store_true", help="print the version")
    commands = program.add_subparsers()
    for module, functions in modules.items():
        if "" in functions:
            _complete(commands.add_parser(module, function=functions[""], help=summary(functions[""])), file)
            continue
        subcommands = commands.add_parser(module, help=", ".join(functions)).add_subparsers()
        for name, function in functions.items():
            _complete(subcommands.add_parser(name, function=function, help=summary(function)), file)
    return program


def _members(kind: Any) -> Iterator[Any]:
    """A type, and those inside of it."""
    yield kind
    for member in get_args(kind):
        yield from _members(member)


def _complete(parser: Parser, file: Any) -> None:
    """Say what each value of a command is completed with."""
    for action, kind in parser.kinds:
        kinds = list(_members(kind))
        if kind is bool and action.metavar == "":
            action.nargs = 0
        elif bool in kinds:
            action.choices = ["true", "false"]
        elif get_origin(kind) is Literal:
            action.choices = list(get_args(kind))
        elif Path in kinds or not action.option_strings:
            action.complete = file  # type: ignore[attr-defined]
