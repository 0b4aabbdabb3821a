"""The tiny corpora in tables, as the Hugging Face hub and `datasets` have them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc, parquet

from owl2.data.readers.base import Source
from owl2.data.sample import StoredImage

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""What `datasets` keeps an image as."""
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


def embedded(folder: Path, name: str | None) -> dict[str, Any] | None:
    """An image with its bytes, as `push_to_hub` leaves it."""
    return None if name is None else {"bytes": (folder / name).read_bytes(), "path": name}


def chat_table(corpora: Path, *, embed: bool = True) -> pa.Table:
    """The rows of `chat.jsonl`, with their images or with paths to them."""
    rows = [json.loads(line) for line in (corpora / "chat.jsonl").read_text().splitlines()]
    images = [row.get("image") for row in rows]
    return pa.table(
        {
            "id": [row["id"] for row in rows],
            "image": pa.array([embedded(corpora, name) for name in images], IMAGE) if embed else images,
            "conversations": pa.array([row["conversations"] for row in rows], TURNS),
        }
    )


def write_parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    parquet.write_table(table, path, **options)
    return path


def write_arrow(path: Path, table: pa.Table, rows: int = 7, **options: Any) -> Path:
    """Write an Arrow file in batches of `rows` rows."""
    with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return path


def write_stream(path: Path, table: pa.Table, rows: int = 7) -> Path:
    """Write an Arrow stream in batches of `rows` rows, as `save_to_disk` does."""
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, rows)
    return path


def write_folder(folder: Path, table: pa.Table, sizes: Sequence[int]) -> Path:
    """Write rows as the Parquet files of a split, each with its own number of them and of its row groups."""
    folder.mkdir()
    begin = 0
    for number, size in enumerate(sizes):
        path = folder / f"train-{number:05d}-of-{len(sizes):05d}.parquet"
        write_parquet(path, table.slice(begin, size), row_group_size=number + 2)
        begin += size
    return folder


def read_rows(source: Source) -> list[tuple[str, str, list[bytes]]]:
    """Key, text and images of every sample; here, where a process that is spawned imports little."""
    rows = []
    for sample in map(source.__getitem__, range(len(source))):
        parts = [part for message in sample.messages for part in message["content"] if isinstance(part, dict)]
        images = [part["image"].read() for part in parts if isinstance(part.get("image"), StoredImage)]
        rows.append((sample.key, sample.text, images))
    return rows
