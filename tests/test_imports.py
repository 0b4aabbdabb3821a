"""Every module imports with the core dependencies alone, and imports go one way only.

The first is run in a subprocess whose import system refuses whatever the core requirements do not bring in:
optional packages, and packages that only happen to be installed. The second reads the sources: packages have
ranks; rooms (the modules and sub-packages of a package) and modules import each other without a circle.
"""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "owl2").rglob("*.py"))

RANKS = {
    "model": 0,
    "devices": 0,
    "errors": 0,
    "fields": 0,
    "files": 0,
    "jsonl": 0,
    "pages": 0,
    "registry": 0,
    "processor": 1,
    "checkpoint": 1,
    "provenance": 0,
    "generate": 2,
    "data": 2,
    "train": 3,
    "owl2": 3,  # the package itself: load() and Owl2
    "eval": 3,
    "analysis": 3,
    "serve": 3,
    "hf": 3,
    "demo": 4,
    "cli": 4,
    "__main__": 5,
}
"""A package imports those of lower rank, and of its own rank if nothing imports it back."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """`owl2.train.loop` -> `train`; `owl2` and names in it -> `owl2`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else "owl2"


def imports_of(file: Path) -> set[str]:
    """Full names of our modules that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            # `from owl2 import train` imports a package, `from owl2 import load` a name of owl2 itself.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "owl2" else {str(node.module)}
    return {name for name in found if name.split(".")[0] == "owl2"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def core_distributions() -> set[str]:
    """Canonical names of everything that `pip install owl2` brings in, extras left out."""
    todo = [
        Requirement(r)
        for r in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            if (canonical(requirement.name), extra) in seen:
                continue
            seen.add((canonical(requirement.name), extra))
            try:
                needed = importlib.metadata.requires(requirement.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            parsed = [Requirement(text) for text in needed]
            todo += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def forbidden_modules() -> set[str]:
    core = core_distributions()
    installed = importlib.metadata.packages_distributions()
    return {
        module for module, owners in installed.items() if not {canonical(o) for o in owners} & {*core, "owl2"}
    }


IMPORT_ALL = """
import importlib, importlib.util, sys
forbidden = set(sys.argv[1].split(","))
look = importlib.util.find_spec
# Asking whether a package is there is allowed, and answered as on a machine without it.
importlib.util.find_spec = lambda name, *a: None if name.partition(".")[0] in forbidden else look(name, *a)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)", name=name)
sys.meta_path.insert(0, Refuse())
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    forbidden = forbidden_modules()
    assert {"pytest", "transformers"} & forbidden
    assert not {"torch", "numpy", "PIL", "yaml", "rich"} & forbidden
    modules = [name for file in SOURCES if package_of(name := module_name(file)) != "hf"]
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(sorted(forbidden)), *modules]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "", "importing prints something"


def test_the_package_for_transformers_says_what_to_install() -> None:
    command = [sys.executable, "-c", IMPORT_ALL, "transformers", "owl2.hf"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "pip install 'owl2[hf]'" in result.stderr


@pytest.mark.parametrize("file", SOURCES, ids=module_name)
def test_a_module_imports_only_packages_below_or_beside_its_own(file: Path) -> None:
    own = package_of(module_name(file))
    above = {name for name in imports_of(file) if RANKS[package_of(name)] > RANKS[own]}
    assert not above, f"{module_name(file)} ({own}) imports {sorted(above)}, which build on it"


def room_of(module: str) -> str:
    """`owl2.eval.tasks.pope` -> `owl2.eval.tasks`, `owl2.eval.runner` -> itself, `owl2.files` -> itself."""
    return ".".join(module.split(".")[:3])


MODULES = {module_name(file) for file in SOURCES}


def module_of(name: str) -> str:
    """The module that an imported name lives in: `owl2.model.build` -> `owl2.model`."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("level", [package_of, room_of, str], ids=["packages", "rooms", "modules"])
def test_nothing_imports_in_a_circle(level: Callable[[str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for file in SOURCES:
        own = level(module_name(file))
        graph.setdefault(own, set()).update({level(module_of(name)) for name in imports_of(file)} - {own})
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_every_module_says_what_it_is_for() -> None:
    silent = [module_name(file) for file in SOURCES if not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent, f"no docstring in {silent}"


def test_every_package_has_its_rank() -> None:
    packages = {path.parent.name for path in (ROOT / "owl2").glob("*/__init__.py")}
    assert packages <= RANKS.keys(), f"give {sorted(packages - RANKS.keys())} a rank in {Path(__file__).name}"


def test_the_model_needs_nothing_but_torch() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "owl2"}
    for file in (ROOT / "owl2" / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, f"{file.name} imports {names}"
