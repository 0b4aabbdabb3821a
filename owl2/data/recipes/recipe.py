"""What a corpus is: which official files it has, and how they become samples.

A recipe is a file in `corpora/`, a class found by the decorator `@recipe`. It only reads: it turns official
records into rows of the LLaVA format, or names the shards that have them, in an order and with choices that
depend on nothing but the files. What is the same for all corpora is in `convert.py`: checking images, working
in parallel, restarting, and counting what cannot be used. The corpora and their sizes are those of the paper
(sections 3.4 and 4.1, Table 14, appendix B.1).
"""

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from owl2.data.sample import DataError
from owl2.registry import Registry

Row = dict[str, Any]
"""`id`, `image` (a path, or absent) and `conversations`: a line of the LLaVA format."""


@dataclass(frozen=True)
class Rejected:
    """A record that gives no sample."""

    key: str
    reason: str
    """One of a few short phrases, by which rejected records are counted."""
    detail: str = ""
    """What is wrong with this record in particular."""


@dataclass(frozen=True)
class CorpusFile:
    """A file or folder as it is after downloading and unpacking."""

    path: str
    """Name as unpacked; `*` stands for several files."""
    origin: str
    """Where to get it."""
    folder: str = ""
    """Another folder it may be in: one that corpora share (`coco`), or one that its own script makes."""

    def candidates(self, source: Path, recipe_name: str) -> list[Path]:
        """Return where to look for it: the recipe's folder first, then `source` itself and a shared
        folder."""
        own = source / recipe_name
        return [folder / self.path for folder in (own, own / self.folder, source, source / self.folder)]


class FilesMissing(DataError):
    """Official files of a corpus are missing."""

    def __init__(self, recipe_name: str, source: Path, missing: Sequence[CorpusFile]):
        wanted = "\n".join(f"  {file.path}  from {file.origin}" for file in missing)
        super().__init__(
            f"{recipe_name}: {len(missing)} of its files are neither in {source} nor in "
            f"{source / recipe_name}:\n{wanted}\n`owl2 data list --source {source}` shows all corpora"
        )
        self.missing = tuple(missing)


class Files:
    """The files of a recipe that were found, by the path they were declared with."""

    def __init__(self, recipe_name: str, source: Path, found: Mapping[str, Path]):
        self.recipe_name = recipe_name
        self.source = source
        self.found = found

    def __getitem__(self, path: str) -> Path:
        return self.found[path]

    def name_of(self, path: str, *parts: str) -> str:
        """Return the path of a file in a declared folder, relative to the source: a row's `image`."""
        return self.found[path].joinpath(*parts).relative_to(self.source).as_posix()

    def read_json(self, path: str, slim: Callable[[dict[str, Any]], Any] | None = None) -> Any:
        """Read a declared JSON file.

        Args:
            slim: returns what to keep of each object, while reading, so that large files fit into memory.

        Raises:
            DataError: not UTF-8 or not JSON; names the file and the place.
        """
        file = self.found[path]
        try:
            return json.loads(file.read_text(encoding="utf-8"), object_hook=slim)
        except ValueError as error:
            raise DataError(f"{self.recipe_name}: {file} cannot be read as JSON: {error}") from error


class Recipe(ABC):
    """A corpus; see `ConversationRecipe` and `owl2.data.recipes.img2dataset.ShardRecipe`."""

    name: ClassVar[str]
    title: ClassVar[str]
    stage: ClassVar[Literal["pretrain", "instruct"]]
    licence: ClassVar[str]
    size: ClassVar[str]
    """What the official files hold, in words."""
    weight: ClassVar[float]
    """Share of the draws: thousands of samples in Table 14; for pre-training the size in millions."""
    files: ClassVar[tuple[CorpusFile, ...]]
    in_paper: ClassVar[bool] = False
    """Whether it belongs to the paper's mixture of its stage, as the stage's name means in `find_recipes`."""
    augment: ClassVar[str] = "none"
    """The source's `augment` in the mixture file; stage 1 of the paper crops and flips."""

    def at(self, source: Path) -> "Recipe":
        """Return the recipe for the files that are in `source`; most corpora come in one layout."""
        return self

    def locate(self, source: Path) -> tuple[dict[str, Path], list[CorpusFile]]:
        """Return the files that exist, by declared path, and those that are missing."""
        found: dict[str, Path] = {}
        for file in self.files:
            for path in file.candidates(source, self.name):
                if any(path.parent.glob(path.name)) if "*" in path.name else path.exists():
                    found[file.path] = path
                    break
        return found, [file for file in self.files if file.path not in found]

    def find(self, source: Path) -> Files:
        """Return all files.

        Raises:
            FilesMissing: the message has every missing file and where to get it.
        """
        found, missing = self.locate(source)
        if missing:
            raise FilesMissing(self.name, source, missing)
        return Files(self.name, source, found)


class ConversationRecipe(Recipe):
    """A corpus that becomes a JSONL file in the LLaVA format."""

    @abstractmethod
    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        """Read the official files; image paths are relative to `files.source`.

        Raises:
            DataError: a file as a whole is not in the official format.
        """


def read_records(
    name: str, records: Sequence[Any] | Mapping[str, Any], read: Callable[[str, Any], Row | Rejected | None]
) -> Iterator[Row | Rejected]:
    """Turn records into rows one by one; one that lacks a field is rejected, not an error.

    Args:
        records: a list, whose keys are then positions, or a dictionary.
        read: turns key and record into a row; None for records of another split.
    """
    pairs = records.items() if isinstance(records, Mapping) else ((str(n), r) for n, r in enumerate(records))
    for key, record in pairs:
        try:
            row = read(key, record)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            yield Rejected(f"{name}:{key}", "not a record of the official format", repr(error))
            continue
        if row is not None:
            yield row


RECIPES: Registry[Recipe] = Registry("recipe", "owl2.data.recipes.corpora", "owl2.recipes")
recipe = RECIPES.add
"""Register a corpus under its name; the decorator of its class."""


def all_recipes() -> dict[str, type[Recipe]]:
    """Return every corpus by name: pre-training first, each stage in alphabetical order."""
    return dict(sorted(RECIPES.all().items(), key=lambda item: (item[1].stage != "pretrain", item[0])))


def find_recipes(names: str) -> list[Recipe]:
    """Return recipes by `name`, `name,name`, or the paper's mixture of a stage: `pretrain` or `instruct`.

    Raises:
        DataError: no such recipe; the message has the nearest one.
    """
    recipes = all_recipes()
    chosen: dict[str, Recipe] = {}
    for name in names.split(","):
        members = [r for r in recipes.values() if name == r.name or (r.in_paper and name == r.stage)]
        if not members:
            known = ["pretrain", "instruct", *recipes]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise DataError(
                f"no recipe {name!r}; nearest is {near[0]!r} of {', '.join(known)}; one of your own needs "
                f"--include FILE.py"
            )
        chosen.update({member.name: member() for member in members})
    return list(chosen.values())
