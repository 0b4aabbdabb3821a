"""`run.json`: how a folder was made, so that the same can be made again.

It has the configuration, seeds and fingerprints of model and data, and an attempt for each start: command,
host, versions, git commit of the working directory, exit reason. Training and evaluation write it alike.
Environment variables are not recorded, and keys in addresses and options are replaced by ***.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from owl2.errors import Owl2Error
from owl2.files import read_json, write_file

FILE = "run.json"
KILLED = "killed: the end was not recorded"

_SECRET = r"(?:key|token|secret|password|passwd|credentials?|signature)"
_SECRET_NAME = re.compile(rf".*{_SECRET}", re.IGNORECASE)
_IN_ADDRESS = (
    (re.compile(r"(://)[^/@\s]+@"), r"\1***@"),
    (re.compile(rf"([?&][\w.-]*{_SECRET}=)[^&\s]+", re.IGNORECASE), r"\1***"),
)


class ProvenanceError(Owl2Error, ValueError):
    """A `run.json` that cannot be read."""


class Record:
    """The record of a folder, with the attempt that is running."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        self.path = folder / FILE
        self.content: dict[str, Any] = read_record(folder) or {"attempts": []}
        for before in self.content["attempts"]:
            before.setdefault("exit", KILLED)
        self.attempt: dict[str, Any] = {
            "started": _now(),
            "command": _command(),
            "working_directory": os.getcwd(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "owl2": sys.modules["owl2"].__version__,
            "packages": _packages(),
            "git": _commit(),
        }
        self.content = {**self.content, **facts, "attempts": [*self.content["attempts"], self.attempt]}
        if self.path.exists():
            self.update()

    def update(self, facts: Mapping[str, Any] | None = None, **attempt: Any) -> None:
        """Write further facts about the folder, and about this attempt."""
        self.content = {**self.content, **(facts or {})}
        self.attempt.update(attempt)
        text = json.dumps(_without_secrets(self.content), indent=1, ensure_ascii=False, default=str)
        write_file(self.path, f"{text}\n".encode(errors="backslashreplace"))

    def end(self, reason: str) -> None:
        """Write why the attempt ended, unless it failed before anything else was written."""
        if self.path.exists():
            self.update(ended=_now(), exit=reason)


@contextmanager
def recorded(folder: Path, facts: Mapping[str, Any]) -> Iterator[Record]:
    """A record with a further attempt, whose exit reason is written at the end of the block.

    A new folder gets its file with the first `update`, so a start that fails before leaves nothing behind.

    Args:
        folder: exists.
        facts: what is known at the start: the configuration.
    """
    record, reason = Record(folder, facts), "finished"
    try:
        yield record
    except BaseException as error:
        kind = "" if isinstance(error, Owl2Error | SystemExit) else f"{type(error).__name__}: "
        begin = "" if isinstance(error, SystemExit) else "error: "
        reason = "stopped by the user" if isinstance(error, KeyboardInterrupt) else f"{begin}{kind}{error}"
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk has its own message
            record.end(reason)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None if it has none.

    Raises:
        ProvenanceError: it is damaged.
    """
    if not (folder / FILE).exists():
        return None
    content = read_json(folder / FILE, ProvenanceError)
    attempts = content.get("attempts")
    if not isinstance(attempts, list) or not all(isinstance(attempt, dict) for attempt in attempts):
        raise ProvenanceError(f"{folder / FILE} has no list of attempts; move it away to go on")
    return content


ATTEMPT_HEAD = ("started (UTC)", "ended", "exit", "host", "processes", "owl2", "commit")


def attempt_rows(record: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """One row for each attempt, under `ATTEMPT_HEAD`."""
    return [
        (
            _shown(attempt.get("started")),
            _shown(attempt.get("ended")),
            *(str(attempt.get(name, "")) for name in ("exit", "host", "processes", "owl2")),
            _commit_of(attempt),
        )
        for attempt in (record or {}).get("attempts", [])
    ]


def command_of(record: Mapping[str, Any] | None) -> str:
    """The command of the newest attempt, as it is typed."""
    attempts = (record or {}).get("attempts", [])
    return shlex.join(map(str, attempts[-1].get("command", []))) if attempts else ""


def lines(folder: Path) -> list[str]:
    """The attempts of a folder, one line each, and the newest command; none without a record."""
    record = read_record(folder)
    rows = attempt_rows(record)
    told = ["; ".join(f"{name} {cell}" for name, cell in zip(ATTEMPT_HEAD, row, strict=True)) for row in rows]
    return [*told, *([f"command: {command_of(record)}"] if rows else [])]


def card(record: Mapping[str, Any]) -> str:
    """A section of the model card, from the newest attempt; without the host."""
    attempt, marks = record["attempts"][-1], record.get("fingerprints", {})
    data = ", ".join(f"{name} `{mark}`" for name, mark in marks.get("data", {}).items())
    config = yaml.safe_dump(_without_secrets(record["config"]), sort_keys=False, allow_unicode=True)
    return f"""
## How it was made

| | |
|---|---|
| command | `{_without_secrets(command_of(record))}` |
| started | {_shown(attempt["started"])} UTC |
| version | owl2 {attempt["owl2"]}, torch {attempt["packages"].get("torch", "")}, Python {attempt["python"]} |
| commit of the working directory | {_commit_of(attempt)} |
| processes | {attempt.get("processes", "")} |
| fingerprint of the starting model | `{marks.get("model", "")}` |
| fingerprints of the data | {data} |

```yaml
{config}```
"""


def stamp() -> str:
    """When a page was made, by what, as its last line."""
    commit, command = _commit(), _command()
    parts = [f"Made {_shown(_now())} with owl2 {sys.modules['owl2'].__version__}"]
    parts += [f"commit {_commit_of({'git': commit})}"] if commit else []
    shown = shlex.join(_without_secrets(command))
    return ", ".join(parts) + (f": {shown}" if command[0] == "owl2" else "")


def _command() -> list[str]:
    return [Path(sys.argv[0]).name.replace("__main__.py", "owl2"), *sys.argv[1:]]


def _shown(time: str | None) -> str:
    return (time or "").replace("T", " ").removesuffix("+00:00")


def _commit_of(attempt: Mapping[str, Any]) -> str:
    git = attempt.get("git")
    return f"{git['commit'][:10]}{'' if git['clean'] else ', with changes'}" if git else "none"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _packages() -> dict[str, str]:
    """Versions of the packages that this one can use, as far as they are installed."""
    try:
        wanted = importlib.metadata.requires("owl2") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = ["torch", "numpy", "pillow", "safetensors", "tokenizers", "sentencepiece"]
    found = {}
    for name in sorted({re.split(r"[^\w.-]", requirement)[0] for requirement in wanted} - {"owl2"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> dict[str, Any] | None:
    """Commit of the working directory, and whether its tracked files are as committed; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "clean": not changed}
    except (OSError, subprocess.SubprocessError):
        return None


def _without_secrets(value: Any) -> Any:
    """Replace keys and passwords in addresses, in options and of environment variables by ***."""
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [
            "***" if _is_secret_option(before) else _without_secrets(item)
            for before, item in zip([None, *value], value, strict=False)
        ]
    if not isinstance(value, str):
        return value
    option, is_one_word, _ = value.partition("=")
    if is_one_word and _is_secret_option(option):
        return f"{option}=***"
    for pattern, replaced in _IN_ADDRESS:
        value = pattern.sub(replaced, value)
    for name, secret in os.environ.items():
        if len(secret.strip()) >= 8 and _SECRET_NAME.fullmatch(name):
            value = value.replace(secret.strip(), "***")
    return value


def _is_secret_option(word: Any) -> bool:
    return isinstance(word, str) and word.startswith("--") and _SECRET_NAME.fullmatch(word) is not None
