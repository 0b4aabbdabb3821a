"""Images and clips of a benchmark: files of a folder, or cells of its table.

Files are looked for before the model runs and opened when they are shown. A missing file costs the questions
that show it; `Task.load` refuses a download that lacks too many.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import NoReturn

from owl2.data.sample import StoredImage
from owl2.eval.formats.records import Record
from owl2.eval.locate import locate
from owl2.eval.task import DataMissing
from owl2.processor.images import ImageError

CLIP_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")


class MediaFolder:
    """A folder of images or clips."""

    def __init__(self, task: str, data: Path, folder: str):
        """Find the folder.

        Raises:
            DataMissing: it is not there.
        """
        place = locate(data, folder)
        if place is None or not place.is_dir():
            raise DataMissing(task, [folder])
        self.folder = folder
        self.path = place
        self._images: dict[str, StoredImage] = {}
        self._files: dict[str, Path | None] = {}
        self._names: dict[Path, dict[str, str]] = {}
        """Name in lower case -> name, by folder."""
        self._stems: dict[str, Path] | None = None

    def image(self, record: Record, name: str) -> StoredImage:
        """The image of this name; RecordError if it is missing."""
        if name not in self._images:
            self._images[name] = StoredImage(f"{self.folder}/{name}", self.file(record, name).read_bytes)
        return self._images[name]

    def file(self, record: Record, name: str) -> Path:
        """The file of this name; RecordError if it is missing."""
        if name not in self._files:
            self._files[name] = self._find(name)
        return self._files[name] or self._miss(record, name)

    def clip(self, record: Record, *names: str) -> Path:
        """The clip or GIF with one of these names, whatever its suffix; RecordError if it is missing."""
        if self._stems is None:
            self._stems = {}
            for name in sorted(os.listdir(self.path)):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in CLIP_SUFFIXES:
                    self._stems[stem] = self.path / name
        found = next((self._stems[name] for name in names if name in self._stems), None)
        return found or self._miss(record, f"{' or '.join(names)} ({', '.join(CLIP_SUFFIXES)})")

    def _find(self, name: str) -> Path | None:
        """The file of this name, in the same case if there is one."""
        path = self.path / name
        try:
            if path.is_file():
                return path
            if path.parent not in self._names:
                self._names[path.parent] = {other.lower(): other for other in os.listdir(path.parent)}
        except (OSError, ValueError):  # no such folder, a name too long or with NUL
            return None
        other = path.parent / self._names[path.parent].get(path.name.lower(), path.name)
        return other if other.is_file() else None

    def _miss(self, record: Record, name: str) -> NoReturn:
        record.fail(f"{name} is not in {self.path}", lacks_file=True)


def base64_image(name: str, text: str) -> StoredImage:
    """An image that is in the table itself."""

    def read() -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ImageError(f"not base64: {error}") from error

    return StoredImage(name, read)


def parquet_image(record: Record, column: str, name: str) -> StoredImage:
    """An image in a parquet file, in the layout of `datasets`: `{"bytes": ..., "path": ...}`."""
    cell = record[column]
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        record.fail(f"{column} has no bytes")
    return StoredImage(name, lambda: content)
