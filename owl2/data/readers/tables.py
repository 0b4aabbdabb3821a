"""Parquet and Arrow files as the Hugging Face hub has them: a folder of them, one file, or a pattern.

A row is a conversation, with or without images, or an image with its caption; which column is what stands
in columns.py, how a single row is reached in arrow.py. Images may lie in the table, as `datasets` keeps
them, or beside it; either way their bytes stay where they are until an image is opened.
"""

import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from owl2.data.readers.arrow import SUFFIXES, open_table, unprepared
from owl2.data.readers.bad_files import open_whole
from owl2.data.readers.columns import is_bytes, is_list, layout_of
from owl2.data.readers.rows import find_row
from owl2.data.readers.storage import Location, Stored, is_url, join, list_files, look_at, read_bytes
from owl2.data.sample import (
    DataError,
    Sample,
    StoredImage,
    not_a_llava_row,
    sample_from_caption,
    sample_from_llava,
)

SET_APART = ("cache", "dev", "eval", "test", "val", "valid", "validation")
"""How names of files begin that lie beside those to train on: held-out splits, and `cache`, which `datasets`
leaves of a `map`."""
_FROM = {"user": "human", "assistant": "gpt"}
_MARKS = {"image": "<image>", "video": "<video>"}


class TableSource:
    """Rows of Parquet and Arrow files: conversations, or images with captions.

    Paths of images are relative to `image_root` (default: the folder of the files).
    """

    num_incomplete = 0

    def __init__(
        self, name: str, path: Location, image_root: Location | None = None, *, in_slices: bool = False
    ):
        if find_spec("pyarrow") is None:
            raise DataError(f"{name}: {path} needs pyarrow: pip install 'owl2[data]'")
        self.name = name
        self.in_slices = in_slices
        folder, stored = _files(name, path)
        self.image_root = image_root or folder
        if todo := unprepared(stored):
            size = sum(file.size for file in todo) / 1e6
            what = f"{len(todo):,} of {len(stored):,} files ({size:,.1f} MB) of {path}"
            print(f"{name}: preparing {what}, once", file=sys.stderr, flush=True)
        plan = partial(layout_of, name)
        self.tables, self.damaged = open_whole(name, stored, partial(open_table, plan=plan))
        self.firsts = [0, *accumulate(table.num_rows for table in self.tables)]
        """Index of each table's first row, and of none after the last."""
        if not len(self):
            raise DataError(f"{name}: {path} has no rows")

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Sample:
        number, row = find_row(self.name, self.firsts, index)
        table = self.tables[number]
        by_column = table.cells(row, table.layout.values())
        cells = {role: by_column[column] for role, column in table.layout.items()}
        place = f"{table.name}:{row}"
        return (self._talk if "conversation" in cells else self._caption)(place, cells)

    def _talk(self, place: str, cells: Mapping[str, Any]) -> Sample:
        try:
            row = {
                "id": _key(place, cells),
                "image": _media(cells.get("image")),
                "video": _media(cells.get("video")),
                "conversations": [_turn(turn) for turn in cells["conversation"].as_py()],
            }
            return sample_from_llava(self.name, row, partial(self._image, place))
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise not_a_llava_row(f"{self.name}: row {place}", error) from error

    def _caption(self, place: str, cells: Mapping[str, Any]) -> Sample:
        images = _media(cells["image"])
        if len(images) != 1:
            kind = "several images with one caption" if images else "image is missing"
            raise DataError(f"{self.name}: row {place} has a caption and {len(images)} images", kind)
        try:
            key, caption = _key(place, cells), cells["caption"].as_py() or ""
        except UnicodeDecodeError as error:
            message = f"{self.name}: the caption of row {place} is not UTF-8: {error}"
            raise DataError(message, "text is not UTF-8") from error
        return sample_from_caption(self.name, key, caption, self._image(place, images[0]))

    def _image(self, place: str, cell: Any) -> StoredImage:
        data, path = _data_and_path(cell)
        if data is not None:
            return StoredImage(f"{place} ({path})" if path else place, data.as_py)
        if not path:
            raise DataError(f"{self.name}: an image of row {place} is missing", "image is missing")
        return StoredImage(path, partial(read_bytes, join(self.image_root, path)))


def _files(name: str, path: Location) -> tuple[str, list[Stored]]:
    """The folder and the files of a source.

    Raises:
        DataError: there are none, or some that would be trained on by mistake.
        FileNotFoundError: `path` does not exist.
    """
    is_folder = not str(path).endswith(SUFFIXES) or (not is_url(path) and Path(path).is_dir())
    folder, _, pattern = (str(path), "", "*") if is_folder else str(path).rpartition("/")
    folder = folder or "."
    if "*" not in pattern:
        return folder, [look_at(path)]
    found = {file.path.rpartition("/")[2]: file for file in list_files(folder, *SUFFIXES)}
    names = [name for name in found if fnmatch(name, pattern)]
    if not names:
        raise DataError(f"{name}: none of {len(found)} *.parquet and *.arrow in {folder} matches {pattern}")
    splits = {re.split("[^a-z]", name.lower())[0]: name for name in names}
    if len(splits) > 1 and splits.keys() & set(SET_APART):
        raise DataError(
            f"{name}: {path} has {' and '.join(splits.values())}, of which some may not be meant; say which "
            f"are, for instance path: {folder}/train*.parquet"
        )
    return folder, [found[name] for name in names]


def _key(place: str, cells: Mapping[str, Any]) -> str:
    key = cells["key"].as_py() if "key" in cells else None
    return place if key is None else str(key)


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn of a chat, {role, content}, as one of LLaVA's; its content is a text or a list of parts."""
    if "role" not in turn:
        return turn
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join(_MARKS.get(part["type"]) or part["text"] for part in content)
    return {"from": _FROM.get(turn["role"], turn["role"]), "value": content}


def _media(cell: Any) -> list[Any]:
    """The images or clips in a cell, none opened: those of a list, or one if it has bytes or a path."""
    if cell is None or not cell.is_valid:
        return []
    if is_list(cell.type):
        return list(cell.values)
    return [cell] if _data_and_path(cell) != (None, "") else []


def _data_and_path(cell: Any) -> tuple[Any, str]:
    """The cell of an image's bytes, which are not copied yet, or None; and its path or nothing."""
    from pyarrow import types

    parts = [cell]
    if types.is_struct(cell.type):
        parts = [cell[field.name] for field in cell.type if field.name in ("bytes", "path")]
    data, path = None, ""
    for part in parts:
        if part.is_valid and is_bytes(part.type):
            data = part
        elif part.is_valid:
            path = part.as_py()
    return data, path
