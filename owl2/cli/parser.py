"""From a function to a command: its signature gives the options, its docstring the help.

Parameters before `*` are words in their order (and may be given by name as well), keyword-only parameters are
options, and those without a default are required. A list is repeated, a bool is a switch. A parameter of type
`Settings` takes every key of a stage configuration. `owl2.cli.values` reads the values.
"""

import argparse
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from owl2.cli.settings import Key, Settings, keys_of
from owl2.cli.values import UsageError, nearest, read
from owl2.errors import Faults

INCLUDING = ("owl2 data", "owl2 eval", "owl2 plan", "owl2 train")
"""Beginnings of the commands that look names up, and so have `--include`."""
SHORT = {"message": "-m"}
"""Options that have a letter."""

ITEM = "keys of an item of "
"""Begins the title of a section on a list."""

_AS_WORD = "\0"
"""Put before a word that follows `--`, so that argparse takes it for no option; no argument can have it."""

Function = Callable[..., None]


@dataclass(frozen=True)
class Parameter(Key):
    """A word or an option of a command."""

    is_word: bool

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return self.name.upper() if self.is_word else f"--{self.name}"

    def read(self, typed: Any) -> Any:
        """The value of what was typed: a text, or the texts of a list."""
        if self.item is not None:
            return [read(text.removeprefix(_AS_WORD), self.item, self.label) for text in typed]
        return read(typed.removeprefix(_AS_WORD), self.kind, self.label)


INCLUDE = Parameter(
    "include",
    list[Path],
    "Python file with tasks, recipes, sources or metrics of your own; may be repeated.",
    [],
    bounds="",
    is_word=False,
)


def parameters(function: Function) -> list[Parameter]:
    """The parameters of a command."""
    kinds = get_type_hints(function, include_extras=True)
    _, _, args = _doc(function).partition("\nArgs:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", args, re.MULTILINE)
    docs = {name: " ".join(text.split()) for name, text in found}
    return [
        Parameter(
            name,
            kinds[name],
            docs.get(name, ""),
            MISSING if parameter.default is parameter.empty else parameter.default,
            _bounds(kinds[name]),
            parameter.kind is not parameter.KEYWORD_ONLY,
        )
        for name, parameter in inspect.signature(function).parameters.items()
    ]


def _bounds(kind: Any) -> str:
    """Those of an `Annotated` number, in words."""
    members = get_args(kind)
    if get_origin(kind) is Annotated:
        return str(members[1])
    return next((found for member in members if (found := _bounds(member))), "")


STOPPABLE = ("demo", "train")
"""Commands that a scheduler may stop and start again."""


def exit_codes(program: str) -> dict[int, str]:
    """How a command, as `owl2 train`, ends."""
    is_stoppable = program.removeprefix("owl2 ") in STOPPABLE
    return {
        0: "done",
        1: "an error that the message explains",
        2: "a command, option or value that does not exist",
        **({75: "stopped on request, the same command continues it"} if is_stoppable else {}),
        130: "stopped by Ctrl-C",
        141: "the reader of its output is gone",
    }


def summary(function: Function) -> str:
    """What a command does, in a line."""
    return _doc(function).partition("\n")[0]


def _doc(documented: Any) -> str:
    return inspect.getdoc(documented) or ""


class Parser(argparse.ArgumentParser):
    """The parser of a command; without a function, that of a group of commands."""

    def __init__(self, *, prog: str, function: Function | None = None, **settings: Any) -> None:
        super().__init__(prog, add_help=False, allow_abbrev=False, formatter_class=_Formatter, **settings)
        self.kinds: list[tuple[argparse.Action, Any]] = []
        """What each word and option takes, for completion."""
        self._names = ["--help"]
        self._sections: list[str] = []
        """Groups of settings, for `--help SECTION`."""
        self._parameters = [] if function is None else parameters(function)
        self._parameters += [INCLUDE] * prog.startswith(INCLUDING)
        if function is not None:
            self.description = _doc(function).partition("\n\nArgs:\n")[0]
            self.usage = self._usage()
            codes = ", ".join(f"{code} {meaning}" for code, meaning in exit_codes(prog).items())
            self.epilog = f"Exit codes: {codes}."
            self._add_parameters()

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of the function.

        Raises:
            UsageError: words that are not those of the command.
            SystemExit: after `--help`.
        """
        self._show_section(words)
        typed, rest = self.parse_known_intermixed_args(self._spelled(words), argparse.Namespace())
        if rest:
            if rest[0].startswith("-"):
                raise UsageError(f"no option {rest[0]!r}; see {self.prog} --help")
            raise UsageError(f"one word too many: {rest[0].removeprefix(_AS_WORD)!r}; usage: {self.usage}")
        values: dict[str, Any] = {}
        for parameter in self._parameters:
            if parameter.kind is Settings:
                values[parameter.name] = Settings(getattr(typed, "settings", []))
            elif hasattr(typed, parameter.name):
                values[parameter.name] = parameter.read(getattr(typed, parameter.name))
        missing = [p.label for p in self._parameters if p.default is MISSING and p.name not in values]
        if missing:
            raise UsageError(f"missing: {', '.join(missing)}; usage: {self.usage}")
        return values

    def _show_section(self, words: Sequence[str]) -> None:
        """Show the keys of `--help SECTION`, or the one of that name, and exit.

        Raises:
            UsageError: there are sections, but none of this name.
            SystemExit: behind the help.
        """
        asked = [word for help_, word in itertools.pairwise(words) if help_ in ("-h", "--help")]
        if not asked or not self._sections or asked[0].startswith("-"):
            return
        name, formatter = asked[0], self._get_formatter()
        for group in self._action_groups:
            title = str(group.title).removeprefix(ITEM)
            is_asked = name == title or title.startswith((f"{name}.", f"{name} "))
            actions = [a for a in group._group_actions if is_asked or f"--{name}" in a.option_strings]
            if actions or is_asked:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(actions)
                formatter.end_section()
        shown = formatter.format_help()
        if not shown:
            known = [*self._sections, *(option.removeprefix("--") for option in self._names)]
            raise UsageError(f"no section or key {name!r}; the nearest is {nearest(name, known)!r}")
        print(shown, end="")
        self.exit()

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """Words with `--batch-size` as `--batch_size` and a switch alone as true.

        Raises:
            UsageError: an unknown option.
        """
        switches = {p.label for p in self._parameters if p.kind is bool}
        spelled: list[str] = []
        faults = Faults()
        for number, word in enumerate(words):
            if word == "--":
                spelled += [_AS_WORD + word for word in words[number + 1 :]]
                break
            match = re.fullmatch(r"--([\w.-]+)(=.*)?", word, re.DOTALL)
            if match is not None:
                word, value = "--" + match[1].replace("-", "_"), match[2]
                if word not in self._names:
                    near = nearest(word, self._names)
                    faults.add(UsageError(f"no option {word!r}; the nearest is {near!r}"))
                word += value or ("=true" if word in switches else "")
            spelled.append(word)
        faults.raise_all()
        return spelled

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as UsageError."""
        option = re.match(r"argument (?:-\w/)?(\S+): expected one argument", message)
        if option is not None:
            message = f"{option[1]} needs a value; one that begins with - is written {option[1]}=VALUE"
        raise UsageError(message)

    def _usage(self) -> str:
        parts = [self.prog]
        for parameter in self._parameters:
            if parameter.is_word and parameter.kind is not Settings:
                word = parameter.label + " ..." * (parameter.item is not None)
                parts.append(word if parameter.default is MISSING else f"[{word}]")
            elif parameter.default is MISSING and parameter.kind is not Settings:
                parts.append(f"{parameter.label} {placeholder(parameter.kind)}")
        has_settings = any(parameter.kind is Settings for parameter in self._parameters)
        return " ".join([*parts, "[options]", *["[--key.path VALUE ...]"] * has_settings])

    def _add_parameters(self) -> None:
        words, options = self.add_argument_group("arguments"), self.add_argument_group("options")
        options.add_argument("-h", "--help", action="help", help="show this help")
        for parameter in self._parameters:
            label, doc = parameter.label, _help(parameter)
            kind = parameter.kind if parameter.item is None else parameter.item
            repeated = {} if parameter.item is None else {"action": "append"}
            if kind is Settings:
                self._add_settings()
            elif parameter.is_word:
                whole = {"nargs": "?"} if parameter.item is None else {"nargs": "*", "action": "extend"}
                self._add(words, kind, parameter.name, metavar=label, help=doc, **whole)
                self._add(words, kind, f"--{parameter.name}", help=argparse.SUPPRESS, **repeated)
            else:
                short = [SHORT[parameter.name]] if parameter.name in SHORT else []
                metavar = "" if kind is bool else placeholder(kind)
                self._add(options, kind, *short, label, metavar=metavar, help=doc, **repeated)

    def _add_settings(self) -> None:
        from owl2.train.config import TrainConfig

        groups = {"": self.add_argument_group("settings of the stage")}
        config = Key(
            "config", Path, "YAML file of settings, laid over those before it; may be repeated.", None, ""
        )
        items = set()
        for key in (config, *keys_of(TrainConfig)):
            group = groups[key.name.rpartition(".")[0]]
            doc = _help(key)
            if key.group is not None:  # its members have a section of their own
                groups[key.name] = self.add_argument_group(key.name, _doc(key.group).partition("\n")[0])
                is_optional = NoneType in get_args(key.kind)
                doc = f"{key.doc} `null` switches it off." if is_optional else argparse.SUPPRESS
            self._add(
                group, key.kind, f"--{key.name}", action=_Setting, metavar=placeholder(key.kind), help=doc
            )
            if isinstance(key.item, type) and is_dataclass(key.item) and key.item not in items:
                items.add(key.item)
                fields = [f"{k.name} ({placeholder(k.kind)}): {explained(k)}" for k in keys_of(key.item)]
                lines = [textwrap.fill(field, 76, subsequent_indent="    ") for field in fields]
                self.add_argument_group(f"{ITEM}{key.name}", "\n".join(lines))
        self._sections = [name for name in groups if name]
        self.epilog = (
            f"{self.prog} --help SECTION shows one of {', '.join(self._sections)}, or one key.\n{self.epilog}"
        )

    def _add(self, group: Any, kind: Any, *names: str, **settings: Any) -> None:
        self._names += [name for name in names if name.startswith("--")]
        self.kinds.append((group.add_argument(*names, default=argparse.SUPPRESS, **settings), kind))


class _Setting(argparse.Action):
    """Collects (key, text) of settings in their order."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.settings = [*getattr(namespace, "settings", []), (self.option_strings[0][2:], values)]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """`-m, --message TEXT` in place of argparse's `-m TEXT, --message TEXT`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        return f"{', '.join(action.option_strings)} {action.metavar}".strip()


def placeholder(kind: Any) -> str:
    """Placeholder of a value in help."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return placeholder(members[0])
    if origin is Literal:
        return "|".join(members)
    if origin in (list, tuple):
        shown = [placeholder(member) for member in members if member is not ...]
        return f"[{', '.join(shown)}{', ...' * (origin is list or ... in members)}]"
    if members:
        return "|".join(dict.fromkeys(placeholder(member) for member in members if member is not NoneType))
    return {str: "TEXT", Path: "PATH", int: "N", float: "X", bool: "true|false"}.get(kind, "{...}")


def explained(key: Key) -> str:
    """The text of an option or a key, what it is when it is not given, and its bounds."""
    facts = [key.bounds] if key.bounds else []
    if key.default is MISSING:
        facts.insert(0, "required")
    elif key.default not in (None, "", []) and not is_dataclass(key.default) and not _is_switch(key):
        facts.insert(0, f"default: {_shown(key.default)}")
    return f"{key.doc.rstrip('.')} ({'; '.join(facts)})".strip() if facts else key.doc


def _is_switch(key: Key) -> bool:
    """Whether it is an option without a value, which is off."""
    return isinstance(key, Parameter) and key.default is False


def _shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def _help(key: Key) -> str:
    """As `explained`, for argparse, to which % is a placeholder."""
    return explained(key).replace("%", "%%")
