"""The command line: `owl2 COMMAND ...` runs the function of that name in `owl2/cli/`.

Only the chosen command is imported, and that without torch, so help comes at once. This is also the one place
where errors become messages: what a user can put right is a sentence on standard error and exit code 1, and 2
for a command, option or value that does not exist. Any other exception is a defect and keeps its traceback.
"""

import os
import signal
import sys

if sys.argv[1:2] in (["demo"], ["train"]):  # what follows takes a twentieth of a second
    for _number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(_number, lambda *_: os._exit(75))

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress

import owl2
from owl2.cli.parser import STOPPABLE, Function, Parser, summary
from owl2.cli.values import UsageError, at_home, nearest
from owl2.errors import Owl2Warning, sentence
from owl2.registry import include
from owl2.train.signals import EXIT_STOPPED, STOPPED, Interrupted, stop_at_start

COMMANDS = {
    "Try it": ("demo",),
    "Use a model": ("chat", "generate", "convert"),
    "Prepare data": ("data",),
    "Train": ("init", "config", "plan", "train", "report"),
    "Evaluate": ("eval",),
}
"""Modules of `owl2/cli/` by what people do. Each has a function of its name, or `COMMANDS` with several."""

OPTIONS = ("--help", "--version", "--print-completion")
NOTES = """
In every option, --batch-size and --batch_size are the same. --version prints the version.
--include FILE.py adds tasks, recipes, sources and metrics of your own to data, eval, plan and train.
Completion: eval "$(owl2 --print-completion bash)" in ~/.bashrc, or the same with zsh."""

CONTINUED = ("demo", "train", "data convert", "eval run", "generate")
"""Commands that, started again, go on where they were stopped."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; `argv` defaults to the program's arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # an ASCII terminal shows what it lacks as escapes
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command = ["owl2"]
    try:
        with _short_warnings():
            function = _find(words, command)
            if function is not None:
                with stop_at_start() if command[1] in STOPPABLE else nullcontext():
                    values = Parser(prog=" ".join(command), function=function).parse(words)
                    values = {name: at_home(value) for name, value in values.items()}
                    for file in values.pop("include", []):
                        include(file)
                    function(**values)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        explained = _explain(error, can_continue=" ".join(command[1:]) in CONTINUED)
        if explained is None:
            raise
        message, code = explained
        if message:
            print(f"{' '.join(command)}: {message}", file=sys.stderr)
        _finish_output()
        raise SystemExit(code) from None


def _find(words: list[str], command: list[str]) -> Function | None:
    """Move the words that name a command from `words` to `command`; None if they only asked for help."""
    modules = [module for group in COMMANDS.values() for module in group]
    if not words or words[0] in ("-h", "--help"):
        print(overview(COMMANDS, "owl2"))
        print(NOTES)
        return None
    if words[0] == "--version":
        print(f"owl2 {owl2.__version__}")
        return None
    if words[0].replace("_", "-").split("=")[0] == "--print-completion":
        from owl2.cli.completion import print_script

        shell = words[0].partition("=")[2] or "".join(words[1:2])
        print_script(shell, {module: functions_of(module) for module in modules})
        return None
    if words[0].startswith("-"):
        raise UsageError(f"no option {words[0]!r}; the nearest is {nearest(words[0], OPTIONS)!r}")
    module = _take(words, command, modules)
    functions = functions_of(module)
    if "" in functions:
        return functions[""]
    if not words or words[0] in ("-h", "--help"):
        print(overview({"Commands": [module]}, f"owl2 {module}"))
        return None
    return functions[_take(words, command, list(functions))]


def _take(words: list[str], command: list[str], known: list[str]) -> str:
    word = words.pop(0)
    if word not in known:
        raise UsageError(
            f"no command {word!r}; the nearest is {nearest(word, known)!r} of {', '.join(known)}"
        )
    command.append(word)
    return word


def functions_of(module: str) -> dict[str, Function]:
    """The functions of a module by their sub-command; "" if it has one of its own name only."""
    found = importlib.import_module(f"owl2.cli.{module}")
    return getattr(found, "COMMANDS", None) or {"": getattr(found, module)}


def overview(groups: Mapping[str, Sequence[str]], program: str) -> str:
    """Every command of the modules with a line."""
    lines = [f"usage: {program} COMMAND [options]      {program} COMMAND --help lists them"]
    for title, modules in groups.items():
        lines += ["", f"{title}:"]
        for module in modules:
            for name, function in functions_of(module).items():
                lines.append(f"  {f'{module} {name}':14} {summary(function)}")
    return "\n".join(lines)


def _explain(error: BaseException, *, can_continue: bool) -> tuple[str, int] | None:
    """The message and exit code of an exception; None for a defect, whose traceback is shown."""
    if isinstance(error, SystemExit):
        speaks = os.environ.get("RANK", "0") == "0"  # of the processes of a run, one
        return (str(error) * speaks, EXIT_STOPPED) if isinstance(error, Interrupted) else None
    if isinstance(error, KeyboardInterrupt):
        return STOPPED if can_continue else "stopped", 130
    if isinstance(error, UsageError):
        return str(error), 2
    if isinstance(error, BrokenPipeError):
        return "", 141  # as a program that the signal ends
    if (said := sentence(error)) is not None:
        return said, 1
    if isinstance(error, Exception):
        error.add_note(f"\nThis is a defect of owl2 {owl2.__version__}; please report it with these lines.")
    return None


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings to users are a line, without the place in our code."""
    python_format = warnings.formatwarning

    def short(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, Owl2Warning):
            return f"warning: {message}\n"
        return python_format(message, category, filename, lineno, line)

    warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = python_format


def _finish_output() -> None:
    """Write what is left of standard output, or give it up, so that Python does not complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
