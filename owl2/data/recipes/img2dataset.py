"""Web corpora as img2dataset leaves them: tar shards of jpg, txt and json, each with a parquet file.

    00000.tar: 000000000.jpg 000000000.txt 000000000.json 000000001.jpg ...    00000.parquet

That is already what training reads, so a shard without a fault is linked, not copied. Of a shard with faults
every usable pair is written again and the others are counted by reason; a shard that is cut or damaged gives
nothing until it is fetched again. The parquet file has a row for each address, with `key` and `status`: every
success must be in the shard.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from owl2.data.readers.rows import decoded
from owl2.data.readers.shards import IMAGE_SUFFIXES, members
from owl2.data.recipes.recipe import CorpusFile, Recipe, Rejected
from owl2.data.sample import DataError
from owl2.processor.images import MAX_PIXELS

SHARDS = "*.tar"


class ShardRecipe(Recipe):
    """A corpus of tar shards in img2dataset's layout."""

    stage = "pretrain"
    augment = "crop_flip"

    def shards(self, source: Path) -> list[Path]:
        """All shards, in order."""
        return sorted(self.find(source)[SHARDS].parent.glob(SHARDS))


def shard_files(origin: str, folder: str = "") -> tuple[CorpusFile, ...]:
    """Return the files of a corpus of shards; `origin` has the list of addresses."""
    return (CorpusFile(SHARDS, f"{origin}; fetched by img2dataset --output_format webdataset", folder),)


@dataclass(frozen=True)
class Pair:
    """An image and its caption in a shard."""

    key: str
    image_name: str
    image: bytes
    caption: bytes


class ShardDamaged(Exception):
    """A shard ends early or is no tar."""


def convert_shard(shard: Path, out: Path) -> tuple[int, list[Rejected], int]:
    """Write the usable pairs of a shard to `out`.

    Returns:
        Number of pairs written; what was left out and why; number of addresses that were never fetched.

    Raises:
        ShardDamaged: the shard is cut or no tar; nothing is written.
        DataError: its metadata cannot be read.
    """
    good, rejected = [], []
    for pair in read_pairs(shard):
        problem = pair if isinstance(pair, Rejected) else check_pair(pair)
        if problem is not None:
            rejected.append(problem)
        elif isinstance(pair, Pair):
            good.append(pair.key)
    known = {*good, *(problem.key for problem in rejected)}
    fetched, num_not_fetched = read_metadata(shard.with_suffix(".parquet"))
    rejected += [Rejected(key, "in the metadata but not in the shard") for key in fetched if key not in known]
    if not rejected:
        _link(shard, out)
    elif good:
        _write_pairs(shard, set(good), out)
    else:
        out.unlink(missing_ok=True)
    return len(good), rejected, num_not_fetched


def read_pairs(shard: Path) -> Iterator[Pair | Rejected]:
    """Read the pairs of a shard in the order of their keys' first members, one in memory at a time.

    Raises:
        ShardDamaged: the shard is cut or no tar.
    """
    try:
        with shard.open("rb") as file:
            found: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
            for archive, info in members(file, str(shard), shard.stat().st_size):
                if not info.isfile():
                    continue
                key, suffix = os.path.splitext(info.name)
                key += f"-{archive}" if archive else ""  # archives in one file may share keys
                found.setdefault(key, []).append((suffix.lower(), info))
            for key, parts in found.items():
                images = [info for suffix, info in parts if suffix in IMAGE_SUFFIXES]
                texts = [info for suffix, info in parts if suffix == ".txt"]
                if not images:
                    yield Rejected(key, "no image")
                elif not texts:
                    yield Rejected(key, "no caption")
                elif len(images) + len(texts) > 2:
                    yield Rejected(key, "key occurs twice")
                else:
                    image_name = key + os.path.splitext(images[0].name)[1]
                    yield Pair(key, image_name, _content(file, images[0]), _content(file, texts[0]))
    except (DataError, OSError) as error:
        raise ShardDamaged(f"{type(error).__name__}: {error}") from error


def check_pair(pair: Pair) -> Rejected | None:
    """Return why a pair cannot be used; images are judged by their headers."""
    try:
        caption = decoded(pair.caption, "the caption")
    except DataError as error:
        return Rejected(pair.key, "caption is not UTF-8", str(error))
    if not caption.strip():
        return Rejected(pair.key, "caption is blank")
    problem = check_image(io.BytesIO(pair.image))
    return problem and Rejected(pair.key, *problem)


def check_image(file: io.BytesIO | Path) -> tuple[str, str] | None:
    """Return (reason, detail) why an image cannot be used, from its header alone; None if it can.

    Images that end early are not found here: decoding everything once before training decodes it again would
    double the cost, and training leaves them out and counts them.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
    except FileNotFoundError:
        return "image is missing", str(file)
    except Image.DecompressionBombError as error:
        return "image is too large", str(error)
    except Exception as error:  # decoders fail with OSError, SyntaxError, struct.error, ...
        return "not an image", f"{type(error).__name__}: {error}"
    if width * height > MAX_PIXELS:
        return "image is too large", f"{width:,} x {height:,} pixels"
    return None


def read_metadata(path: Path) -> tuple[list[str], int]:
    """Return the keys that were fetched, and how many were not, from a shard's parquet file if there is one.

    Raises:
        DataError: pyarrow is not installed, or the file is not img2dataset's.
    """
    if not path.exists():
        return [], 0
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise DataError(f"{path} is Parquet: `pip install pyarrow` to read it") from error
    try:
        table = pyarrow.parquet.read_table(path, columns=["key", "status"])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} has no readable columns `key` and `status`: {error}") from error
    rows = table.to_pylist()
    fetched = [row["key"] for row in rows if row["status"] == "success"]
    return fetched, len(rows) - len(fetched)


def _content(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(info.size)


def _link(shard: Path, out: Path) -> None:
    temporary = out.with_name(out.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(shard, temporary)
    except OSError:  # another file system
        shutil.copyfile(shard, temporary)
    temporary.replace(out)


def _write_pairs(shard: Path, keys: set[str], out: Path) -> None:
    temporary = out.with_name(out.name + ".tmp")
    with tarfile.open(temporary, "w") as tar:
        for pair in read_pairs(shard):
            if isinstance(pair, Pair) and pair.key in keys:
                for name, data in ((pair.image_name, pair.image), (f"{pair.key}.txt", pair.caption)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    temporary.replace(out)
