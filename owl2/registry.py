"""Classes that are found by name: our own, those of installed packages, and those of a user's file.

A decorator registers a class. Ours are one benchmark or corpus a file of a package; an installed package
names its modules as entry points of the group `owl2.tasks`, `owl2.recipes`, `owl2.sources` or `owl2.metrics`;
a file is named with `--include`. All are imported when a name is looked up, not before. A broken package
costs itself, with a warning; two classes of one name are an error that says where both are.
"""

import hashlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_origin

from owl2.errors import Owl2Error, Owl2Warning

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])

_packages: dict[type, str] = {}
"""Class from an installed package -> the package's name and version."""
included: list[Path] = []
"""Files that were given with `--include`."""
_loading: list[str] = []
"""The installed package whose entry point is being imported."""


class RegistryError(Owl2Error, ValueError):
    """A class that cannot be registered, or a file that cannot be included; the message says why."""


class Registry(Generic[T]):
    """The classes of a kind by name."""

    def __init__(self, kind: str, package: str, group: str, key: str = "name"):
        """Begin without any.

        Args:
            kind: for messages, as in "two tasks are called mme".
            package: ours, whose modules each have some of the classes.
            group: the entry points of other packages.
            key: the class attribute by which a class is found.
        """
        self.kind, self.package, self.group, self.key = kind, package, group, key
        self._classes: dict[str, type[T]] = {}

    def add(self, cls: C) -> C:
        """Register a class; use as a decorator. The same class again, from a reloaded file, replaces itself.

        Raises:
            RegistryError: it lacks something that this kind has, or another one has its name.
        """
        if not cls.__module__.startswith("owl2."):
            import_modules(
                self.package
            )  # ours come first, so that a name that is taken is the newcomer's error
        if lacking := _lacking(cls, self.key):
            raise RegistryError(f"{self.kind} {cls.__name__} of {_place(cls)} lacks {', '.join(lacking)}")
        name = getattr(cls, self.key)
        known = self._classes.get(name)
        if known is not None and (_place(known), known.__name__) != (_place(cls), cls.__name__):
            both = " and ".join(f"{one.__name__} of {_place(one)}" for one in (known, cls))
            raise RegistryError(
                f"two {self.kind}s are called {name!r}: {both}; give one of them another {self.key}"
            )
        self._classes[name] = cls
        if _loading:
            _packages[cls] = _loading[-1]
        return cls

    def all(self) -> dict[str, type[T]]:
        """Every class by name: ours in the order of their modules, then those from outside."""
        import_modules(self.package)
        _load_entry_points(self.group)
        return dict(self._classes)

    def origin(self, name: str) -> dict[str, str]:
        """Where a class from outside comes from, so that `find_again` can find it; empty for our own."""
        cls = self.all()[name]
        if cls.__module__.startswith("owl2."):
            return {}
        file = Path(_place(cls))
        found = {"package": _packages[cls]} if cls in _packages else {}
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        return {**found, "file": str(file), "sha256": digest}

    def find_again(self, name: str, origin: Mapping[str, str], user: str) -> None:
        """Make a class known that `user`, a folder, was made with; warn if its file has changed since.

        Raises:
            RegistryError: it cannot be found any more; names the package or file.
        """
        if not origin:
            return
        if name not in self.all():
            wanted = f"{user} was made with the {self.kind} {name!r} of"
            if "package" in origin:
                raise RegistryError(
                    f"{wanted} the package {origin['package']}, which is not installed or offers it no more "
                    f"as an entry point of {self.group}; install it again"
                )
            if not Path(origin["file"]).is_file():
                raise RegistryError(
                    f"{wanted} {origin['file']}, which does not exist; give the file with --include FILE.py"
                )
            include(Path(origin["file"]))
        if name not in self.all():
            raise RegistryError(
                f"{user} was made with the {self.kind} {name!r} of {origin['file']}, which has none of this "
                f"name any more; give a file that has it with --include FILE.py"
            )
        now = self.origin(name)
        if now.get("sha256") != origin["sha256"]:
            warnings.warn(
                f"{self.kind} {name}: {now.get('file', 'our own')} differs from the file that {user} was "
                f"made with",
                Owl2Warning,
                stacklevel=2,
            )


def include(path: Path) -> None:
    """Import a user's Python file, so that its classes register; files next to it can be imported from it.

    Raises:
        RegistryError: no such file, a module of its name exists, or it cannot be imported; has the line.
    """
    file = path.expanduser().resolve()
    if file.suffix != ".py" or not file.is_file():
        raise RegistryError(f"--include {path}: {'not a .py file' if file.exists() else 'does not exist'}")
    name = re.sub(r"\W", "_", file.stem)
    taken = _taken(name, file)
    if Path(taken).is_file() and file.samefile(taken):
        return  # included before, or imported by another one
    if taken:
        raise RegistryError(
            f"--include {path}: the name {name!r} is taken by {taken}; give the file another name"
        )
    if str(file.parent) not in sys.path:  # at the end, so that a file of the user hides nothing
        sys.path.append(str(file.parent))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RegistryError(f"--include {path}{fault_of(error, str(file))}") from error
    included.append(file)


def fault_of(error: BaseException, file: str) -> str:
    """What went wrong in a file of a user, as `, line 7: KeyError: 'id'`."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    what = str(error) if isinstance(error, Owl2Error) else f"{type(error).__name__}: {error}"
    return f"{f', line {line}' if line else ''}: {what}"


def _taken(name: str, file: Path) -> str:
    """What a module of this name is already, so that another file cannot be; empty if there is none."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) or f"Python's {name}"
    if name in sys.stdlib_module_names:
        return f"Python's {name}"
    folders = (Path(entry).resolve() for entry in sys.path)  # of the user's own folders any may have the name
    installed = [str(folder) for folder in folders if folder not in (Path.cwd(), file.parent)]
    spec = PathFinder.find_spec(name, installed)
    return "" if spec is None else str(spec.origin)


@cache
def import_modules(package_name: str) -> None:
    """Import every module of a package, in the order of their names, so that their classes register."""
    package = importlib.import_module(package_name)
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package_name}.{module}")


@cache
def _load_entry_points(group: str) -> None:
    """Import what installed packages offer; what cannot be imported is a warning."""
    for point in importlib.metadata.entry_points(group=group):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        _loading.append(package)
        try:
            point.load()
        except (Exception, SystemExit) as error:
            what = str(error) if isinstance(error, Owl2Error) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the installed package {package} is left out: its entry point {point.name!r} of {group} "
                f"cannot be imported: {what}",
                Owl2Warning,
                stacklevel=2,
            )
        finally:
            _loading.pop()


def _place(cls: type) -> str:
    """The file of a class, or its module where it has none."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__


def _lacking(cls: type, key: str) -> list[str]:
    """The methods and attributes that the bases of a class declare and nothing defines, and its key."""
    declared = [pair for base in cls.__mro__ for pair in inspect.get_annotations(base).items()]
    absent = [name for name, kind in declared if get_origin(kind) is ClassVar and not hasattr(cls, name)]
    absent += [] if hasattr(cls, key) else [key]
    return list(dict.fromkeys([*sorted(getattr(cls, "__abstractmethods__", ())), *absent]))
