"""Classes that a decorator finds by name: one benchmark, corpus or format a file of a package."""

import importlib
import pkgutil
from typing import Any


def register(table: dict[str, type[Any]], cls: type[Any], kind: str) -> None:
    """Put a class into its table under its `name`.

    Raises:
        ValueError: another one has that name.
    """
    name = cls.name
    if name in table:
        raise ValueError(f"two {kind}s are called {name}: {table[name].__module__}, {cls.__module__}")
    table[name] = cls


def import_modules(package_name: str) -> None:
    """Import every module of a package, in the order of their names, so that their classes register."""
    package = importlib.import_module(package_name)
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package_name}.{module}")
