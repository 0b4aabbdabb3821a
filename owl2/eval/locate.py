"""Official files under the spellings in which they are found on disk.

Downloads, mirrors and unpackers change names in harmless ways: `Dev` for `dev`, `.jsonl` for `.json` (readers
tell the two apart by content), a file left compressed. The exact name always comes first.
"""

import os
from pathlib import Path

OTHER_SUFFIXES = {".json": ".jsonl", ".jsonl": ".json"}


def locate(root: Path, path: str) -> Path | None:
    """A file or folder below `root`: the exact path, then any case, then .json for .jsonl or a .gz file."""
    if (root / path).exists():
        return root / path
    folder: Path | None = root
    *parents, name = path.split("/")
    for parent in parents:
        folder = folder and _in_any_case(folder, parent)
    if folder is None:
        return None
    stem, suffix = os.path.splitext(name)
    names = [name, *([stem + OTHER_SUFFIXES[suffix]] if suffix in OTHER_SUFFIXES else [])]
    for wanted in (*names, *(f"{name}.gz" for name in names if suffix)):
        if found := _in_any_case(folder, wanted):
            return found
    return None


def _in_any_case(folder: Path, name: str) -> Path | None:
    if (folder / name).exists():
        return folder / name
    if not folder.is_dir():
        return None
    return next((folder / n for n in sorted(os.listdir(folder)) if n.lower() == name.lower()), None)
