"""Files: written whole or not at all, and read with an error that says what a damaged one seems to be."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

WRONG_CONTENT = {
    b"version https://git-lfs": "is a Git LFS pointer: run `git lfs pull` in its folder",
    b"<!doctype html": "is an HTML page, such as a server answers with: download the file again",
    b"<html": "is an HTML page, such as a server answers with: download the file again",
    b"<?xml": "is an XML page, such as a server answers with: download the file again",
}
"""What a download leaves in place of a file, by how it begins."""


def write_file(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():  # /dev/null or a pipe is written to, never replaced
            path.write_bytes(data)
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def cache_folder() -> Path:
    """`$OWL2_CACHE`, by default `~/.cache/owl2`: what can be made or fetched again."""
    return Path(os.environ.get("OWL2_CACHE", Path.home() / ".cache" / "owl2"))


def seems_to_be(start: bytes) -> str | None:
    """What a file is that begins with these bytes, as `is ...`, if it can be neither JSON nor weights."""
    text = start.removeprefix(BYTE_ORDER_MARK).strip()
    if not text.strip(b"\0"):
        return "holds nothing but zeros: download it again" if text else "is empty: download it again"
    begins = text[:32].lower()
    return next((found for mark, found in WRONG_CONTENT.items() if begins.startswith(mark)), None)


def read_bytes(file: Path, error: type[Owl2Error]) -> bytes:
    """Read a file.

    Raises:
        error: it does not exist or cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise error(f"{file} does not exist") from None
    except OSError as reason:
        raise error(f"{file} cannot be read: {reason.strerror}") from reason


def read_json(file: Path, error: type[Owl2Error]) -> dict[str, Any]:
    """Read a file that holds one JSON object; a byte order mark in front of it is skipped.

    Raises:
        error: missing, damaged, not JSON or no object; the message names the file and what it seems to be.
    """
    return parse_json(read_bytes(file, error), str(file), error)


def parse_json(data: bytes, where: str, error: type[Owl2Error]) -> dict[str, Any]:
    """The JSON object in the bytes of the file that `where` names; see `read_json`."""
    found = seems_to_be(data)
    if found is not None:
        raise error(f"{where} {found}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise error(f"{where} is UTF-16 text: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text)
    except UnicodeDecodeError as reason:
        byte, place = data[reason.start], reason.start
        raise error(f"{where} is not UTF-8 text (byte {byte:#x} at {place:,}): save it as UTF-8") from None
    except json.JSONDecodeError as reason:
        if reason.pos >= len(text.rstrip()) or reason.msg.startswith("Unterminated"):
            raise error(f"{where} is cut short at line {reason.lineno}: download it again") from None
        raise error(f"{where} is not JSON: {reason}") from None
    except (ValueError, RecursionError) as reason:  # a number of 5,000 digits, lists nested 1,000 deep
        raise error(f"{where} is not JSON that can be read: {reason}") from None
    if not isinstance(content, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(content), "a value")
        raise error(f"{where} holds {kind}, expected an object")
    return content


def in_short(value: Any) -> str:
    """A JSON value as text of at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
