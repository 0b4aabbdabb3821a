"""Official files under the spellings in which they are found on disk.

Downloads, mirrors and unpackers change names in harmless ways: `Dev` for `dev`, `.jsonl` for `.json` (readers
tell the two apart by content), a file left compressed. The exact name always comes first.
"""

import os
from collections.abc import Iterator
from pathlib import Path

OTHER_SUFFIXES = {".json": ".jsonl", ".jsonl": ".json"}


def locate(root: Path, path: str) -> Path | None:
    """A file or folder below `root`: the exact path, then any case, then .json for .jsonl or a .gz file.

    None if there is none that may be looked at.
    """
    try:
        return _locate(root, path)
    except OSError:  # a folder without permission
        return None


def _locate(root: Path, path: str) -> Path | None:
    if (root / path).exists():
        return root / path
    *parents, name = path.split("/")
    folders = [root]
    for parent in parents:
        folders = [found for folder in folders for found in _in_any_case(folder, parent)]
    stem, suffix = os.path.splitext(name)
    names = [name, *([stem + OTHER_SUFFIXES[suffix]] if suffix in OTHER_SUFFIXES else [])]
    spellings = [*names, *(f"{name}.gz" for name in names if suffix)]
    return next(
        (found for name in spellings for folder in folders for found in _in_any_case(folder, name)), None
    )


def _in_any_case(folder: Path, name: str) -> Iterator[Path]:
    """Entries of a folder with this name, that of the same case first."""
    entries = os.listdir(folder) if folder.is_dir() else []
    same = [entry for entry in entries if entry.lower() == name.lower()]
    for entry in sorted(same, key=lambda entry: (entry != name, entry)):
        yield folder / entry
