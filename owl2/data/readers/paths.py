"""The files that a source's path means: one, those of a folder, or those that match patterns.

    shards/{00000..00012}.tar    {talk,more}.jsonl    data/train-*.parquet    clone/*/train-*.parquet

Braces are written out first, then each part is looked up. A path that exists is never taken for a pattern.
Held-out splits next to others are an error: nobody should train on a test split by mistake.
"""

import glob
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from owl2.data.readers.storage import Location, StoredFile, is_url, list_files, look_at
from owl2.data.sample import DataError

HELD_OUT = ("cache", "dev", "eval", "test", "val", "valid", "validation")
"""How names of files begin that are not to be trained on: held-out splits, and `cache`, which `datasets`
leaves of a `map`."""
MAX_DEPTH = 3
"""Levels of folders in which files are looked for, to name them."""
_MAGIC = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(path: Location) -> list[str]:
    """Write out `{a,b}` and `{000..012}`, which counts with as many digits; a path that exists stays."""
    text = str(path)
    if not is_url(text) and os.path.exists(text):
        return [text]
    pieces = _BRACES.split(text)  # text, braces' content, text, ...
    choices = [_choices(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(parts) for parts in product(*choices)]


def _choices(content: str) -> list[str]:
    if (bounds := _RANGE.fullmatch(content)) is None:
        return content.split(",")
    first, last = (int(bound) for bound in bounds.groups())
    step = 1 if first <= last else -1
    return [f"{number:0{len(bounds[1])}d}" for number in range(first, last + step, step)]


def find_files(name: str, path: Location, suffixes: tuple[str, ...]) -> list[StoredFile]:
    """Return the files that a path means, those of a folder or pattern sorted by name.

    Raises:
        DataError: nothing matches, or some files would be trained on by mistake.
        FileNotFoundError: `path` does not exist.
    """
    found: dict[str, StoredFile] = {}
    for part in expand_braces(path):
        found |= {file.path: file for file in _find(name, part, suffixes)}
    if not found:
        raise DataError(f"{name}: {path} names no file")
    return [*found.values()]


def _find(name: str, path: str, suffixes: tuple[str, ...]) -> list[StoredFile]:
    is_local = not is_url(path)
    if is_local and os.path.isfile(path):
        return [look_at(path)]
    is_folder = os.path.isdir(path) if is_local else not path.endswith(suffixes)
    folder, _, pattern = (path, "", "*") if is_folder else path.rpartition("/")
    if is_local and _MAGIC.search(folder):
        return [look_at(file) for file in sorted(glob.glob(path, recursive=True)) if file.endswith(suffixes)]
    if not _MAGIC.search(pattern):
        return [look_at(path)]
    folder = folder or "."
    listed = {file.path.rpartition("/")[2]: file for file in list_files(folder, *suffixes)}
    names = [file for file in listed if fnmatchcase(file, pattern)]
    kinds = " and ".join(f"*{suffix}" for suffix in suffixes)
    if not names and is_folder:
        raise DataError(f"{name}: no {kinds} in {folder}")
    if not names:
        raise DataError(f"{name}: none of {len(listed)} {kinds} in {folder} matches {pattern}")
    splits = {split_of(file): file for file in names}
    if len(splits) > 1 and splits.keys() & {*HELD_OUT}:
        raise DataError(
            f"{name}: {path} has {' and '.join(splits.values())}, and some may not be meant; say which "
            f"are, for instance path: {folder}/train*{os.path.splitext(names[-1])[1]}"
        )
    return [listed[file] for file in names]


def split_of(file: str) -> str:
    """Return the word that a file's name begins with, in lower case: `train` of `train-00000.parquet`."""
    return re.split("[^a-z]", file.lower())[0]


def nested(folder: Location, suffixes: Iterable[str]) -> list[str]:
    """Return what could be meant by a folder whose files are in folders of its own: paths, or patterns where
    a folder has several splits."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if depth < MAX_DEPTH and not name.startswith("."))
        for suffix in suffixes:
            splits = sorted({split_of(file) for file in files if file.endswith(suffix)})
            found += [place] if len(splits) == 1 else [f"{place}/{split}*{suffix}" for split in splits]
    return found
