"""Settings of a training stage: YAML files and `--key.path value`, laid over each other in their order.

Mappings are merged key by key. Everything else replaces what was there before: a later list never inherits
from the items of an earlier one. The result is read into `TrainConfig`, whose fields say what a value is.
"""

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from owl2.cli.values import UsageError, at_home, is_required, nearest, parse_yaml, read
from owl2.errors import Faults
from owl2.fields import bounds_in_words

if TYPE_CHECKING:
    from owl2.train.config import TrainConfig

SHIPPED = Path(__file__).parents[1] / "configs"
"""The stages that come with the package, and `launch/`, files that start them on a cluster."""


class Settings(list[tuple[str, str]]):
    """(key, text) of each setting on the command line, in this order; the key `config` is a file of them."""


@dataclass(frozen=True)
class Key:
    """A setting, as `optim.lr`."""

    name: str
    kind: Any
    doc: str
    default: Any
    """`dataclasses.MISSING` if it is required."""
    bounds: str
    """Of a number, in words."""

    @property
    def item(self) -> Any:
        """The kind of the items of a list, also of one that may be left out; None if this is no list."""
        lists = [kind for kind in (self.kind, *get_args(self.kind)) if get_origin(kind) is list]
        return get_args(lists[0])[0] if lists else None

    @property
    def group(self) -> Any:
        """The dataclass of a group of settings, as that of `optim`; None if this is no group."""
        kinds = [] if self.item is not None else [self.kind, *get_args(self.kind)]
        return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def keys_of(config: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a configuration, a group before its members."""
    kinds, docs = get_type_hints(config, include_extras=True), field_docs(config)
    for field in dataclasses.fields(config):
        default = dataclasses.MISSING if is_required(field) else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        bounds = bounds_in_words(field.metadata)
        key = Key(prefix + field.name, kinds[field.name], docs.get(field.name, ""), default, bounds)
        yield key
        if key.group is not None:
            yield from keys_of(key.group, f"{key.name}.")


@cache
def field_docs(config: type) -> dict[str, str]:
    """The string below each field of a dataclass, where it is documented."""
    (body,) = (
        node.body for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef)
    )
    return {
        field.target.id: inspect.cleandoc(str(below.value.value)).replace("\n", " ")
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def shipped_stages() -> dict[str, Path]:
    """The stages that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def stage_file(typed: Path) -> Path:
    """The file that was typed; for a name without a suffix that is no file, the shipped stage of this name.

    Raises:
        UsageError: there is no shipped stage of this name.
    """
    stages = shipped_stages()
    if typed.exists() and not (typed.is_dir() and str(typed) in stages):
        return typed
    if typed.suffix in (".yaml", ".yml") and typed.stem in stages:
        raise UsageError(f"{typed} does not exist; the stage that comes with owl2 is called {typed.stem!r}")
    if typed.suffix or len(typed.parts) != 1:
        return typed  # reading it says why it cannot be read
    if str(typed) not in stages:
        near = nearest(str(typed), list(stages))
        raise UsageError(
            f"{typed}: neither a file nor a stage that comes with owl2; the nearest is {near!r} of "
            f"{', '.join(stages)}"
        )
    return stages[str(typed)]


def stage_config(file: Path | None, settings: Settings, faults: Faults | None = None) -> "TrainConfig":
    """Read a stage's file, or the shipped stage of this name, and lay the settings over it.

    Args:
        file: the stage.
        settings: of the command line.
        faults: gets all that is wrong in place of an exception, see `read`.

    Raises:
        UsageError: settings on the command line are wrong.
        TrainConfigError: a file is wrong, or what all of them make together.
        OSError: a file cannot be read.
    """
    from owl2.train.config import TrainConfig, TrainConfigError

    keys = {key.name: key for key in keys_of(TrainConfig)}
    first = [] if file is None else [("config", str(file))]
    own = Faults() if faults is None else faults
    tree: dict[str, Any] = {}
    for name, text in [*first, *settings]:
        if name == "config":
            try:
                tree = _merged(tree, read_yaml(stage_file(Path(text))))
            except UsageError as error:
                raise TrainConfigError(str(error)) from None
        else:
            with own.collect(name):
                tree = _merged(tree, _branch(keys[name], text))
    files = ", ".join(text for name, text in [*first, *settings] if name == "config")
    found = Faults()
    config = read(tree, TrainConfig, "", found)
    for wrong in found.errors:
        own.add(TrainConfigError(f"{files or 'no CONFIG.yaml is given'}: {wrong}"), *found.keys)
    if faults is None:
        own.raise_all()
    return config


def _branch(key: Key, text: str) -> dict[str, Any]:
    """The tree of this setting alone. A wrong value is an error here, where the option can be named."""
    option = f"--{key.name}"
    value: Any = text
    if key.group is None:
        read(text, key.kind, option)
    elif not isinstance(value := parse_yaml(text, option), dict | NoneType):
        read(text, key.kind, option)  # no group of settings: this says so
    for part in reversed(key.name.split(".")):
        value = {part: value}
    return value


def _merged(tree: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """`later` laid over `tree`: mappings key by key, anything else as a whole."""
    both = {
        key: _merged(tree[key], value)
        if isinstance(value, dict) and isinstance(tree.get(key), dict)
        else value
        for key, value in later.items()
    }
    return {**tree, **both}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, or those in the `run.json` of a run; see `parse_yaml`.

    Raises:
        UsageError: it is not UTF-8, not YAML, or no mapping; names file and line.
        OSError: it cannot be read.
    """
    try:
        text = at_home(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); "
            f"save it as UTF-8"
        ) from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path} has no settings; expected lines such as `steps: 100`")
    made = tree.get("config")
    return made if isinstance(made, dict) and "attempts" in tree else tree
