"""The base of every error that a user can cause, their collection, and the category of our warnings.

An error's message names the file, option or record, says what is wrong with numbers, and ends with what to
do. The command line prints that message and exits with 1; a program catches `owl2.Owl2Error`. Any other
exception is a defect of ours.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


class Owl2Error(Exception):
    """Something a user can put right; the message says how."""

    errors: "list[Owl2Error]"
    """Where several were raised as one."""


class Owl2Warning(UserWarning):
    """Something that works but may not do what the user expects; the message says what to change."""


OS_ERRORS = {
    errno.EACCES: "permission denied",
    errno.EEXIST: "exists already, and is not a folder",
    errno.EISDIR: "is a folder, where a file is needed",
    errno.ENOENT: "does not exist",
    errno.ENOSPC: "no space left on the device",
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed",
    errno.EROFS: "the file system is read-only",
}


def sentence(error: BaseException) -> str | None:
    """The message of an error that a user can put right; None for a defect of ours."""
    if isinstance(error, Owl2Error):
        return str(error)
    if isinstance(error, OSError):
        if error.errno is None:
            return " ".join(str(error).split())
        what = OS_ERRORS.get(error.errno, error.strerror or str(error))
        name = error.filename
        return f"{os.fsdecode(name)}: {what}" if isinstance(name, str | bytes) else what
    if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        near = error.object[max(0, error.start - 20) : error.end + 20]
        return f"text of a file, a name or the input is not {error.encoding.upper()}, near {near!r}"
    if isinstance(error, ImportError) and "pip install" in str(error):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("owl2"):
        package = str(error.name).partition(".")[0]
        return f"the package {package} is not installed; `pip install {package}`, or the extra that has it"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory. {str(error).partition(chr(10))[0]}".strip()
    return None


class Faults:
    """Errors that are collected, so that a user sees all of them at once.

    faults = Faults()
    with faults.collect("steps"):
        check_steps(config)
    faults.raise_all()
    """

    def __init__(self) -> None:
        self.errors: list[Owl2Error] = []
        self.keys: set[str] = set()
        """Keys of the configuration whose value is wrong or missing."""

    def add(self, error: Owl2Error, *keys: str) -> None:
        """Add an error, or each of those that `raise_all` put into it."""
        self.errors += getattr(error, "errors", [error])
        self.keys.update(keys)

    @contextmanager
    def collect(self, *keys: str) -> Iterator[None]:
        """Add an error that is raised inside and that a user can put right; `keys` are then at fault."""
        try:
            yield
        except Owl2Error as error:
            self.add(error, *keys)
        except Exception as error:
            if (said := sentence(error)) is None:
                raise
            self.add(Owl2Error(said), *keys)

    @contextmanager
    def collect_new(self, *keys: str) -> Iterator[None]:
        """As `collect`, for values that may be at fault already: what is a consequence of that is left out.

        Consequences are a message that names a key at fault, and any exception that is not an `Owl2Error`.
        """
        try:
            yield
        except Owl2Error as error:
            words = set(re.findall(r"[\w.\[\]]*\w\]?", str(error)))
            if not any(key in words or key.partition("[")[0] in words for key in self.keys):
                self.add(error, *keys)
        except Exception:
            if not self.errors:
                raise

    def numbered(self) -> str:
        """How many errors there are, and each of them under its number."""
        lines = [f"  {number}. {error}" for number, error in enumerate(self.errors, start=1)]
        head = f"{len(self.errors)} error{'s' * (len(self.errors) > 1)}:"
        return "\n".join([head, *(line.replace("\n", "\n     ") for line in lines)])

    def raise_all(self) -> None:
        """Raise the only error as it is; several as one, of the class of the first."""
        if len(self.errors) < 2:
            for error in self.errors:
                raise error
            return
        together = type(self.errors[0])(self.numbered())
        together.errors = self.errors
        raise together
