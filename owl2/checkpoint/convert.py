"""Conversion of a checkpoint folder of any readable layout to ours: safetensors, bit for bit.

Tensors go from file to file without a model in between; a model is built only without storage, to check names
and shapes. Everything in the source is kept: position buffers if it has them, unknown fields of its
configuration, tokenizer and preprocessor files as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl2.checkpoint.card import model_card
from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.folder import fit, skeleton
from owl2.checkpoint.llama import read_tokenizer_files
from owl2.checkpoint.progress import bytes_bar
from owl2.checkpoint.tensors import TensorFolder, dtype_of
from owl2.checkpoint.write import MAX_SHARD_BYTES, default_generation, new_folder, write_json, write_shards
from owl2.files import read_json
from owl2.model import Owl2Config

COMPANIONS = ("preprocessor_config.json", "generation_config.json")


@dataclass(frozen=True)
class Conversion:
    """A summary of what was read and written."""

    read_files: list[str]
    written_files: list[str]
    copied_files: list[str]
    num_tensors: int
    num_bytes: int
    dtypes: list[str]


def convert(
    source: Path,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
) -> Conversion:
    """Write `source`, a folder in the released layout or ours, as a folder of ours.

    Args:
        source: an existing folder.
        out: the new folder; an older checkpoint there is replaced.
        dtype: convert all weights to this type; kept if not given, and then every tensor stays bit-equal.
        max_shard_bytes: size above which weights are split into shards.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: the source cannot be read or does not fit its configuration, or `out` cannot be
            written.
    """
    if out.resolve() == source.resolve():
        raise CheckpointError(f"{out} is the source itself; write to another folder")
    model = skeleton(source, torch.float32)
    config = model.config
    files = TensorFolder(source)
    fit(model, files)
    target = dtype_of(dtype) if dtype is not None else None
    types = {name: target or files.dtypes[name] for name in files.files}
    sizes = _sizes(files, types, config)

    def read(name: str) -> Tensor:
        return files.read(name, dtype=types[name])

    companions = read_tokenizer_files(source)
    companions |= {n: (source / n).read_bytes() for n in COMPANIONS if (source / n).is_file()}
    used_types = sorted({str(types[name]).removeprefix("torch.") for name in sizes})
    raw = _merged(read_json(source / "config.json", CheckpointError), config.to_dict())
    if target is not None:
        raw["torch_dtype"] = used_types[0]
    total = sum(sizes.values())
    with (
        new_folder(out, need_bytes=total) as temporary,
        bytes_bar(f"Writing {out.name}", total, enabled=progress) as advance,
    ):
        written = write_shards(temporary, sizes, read, max_shard_bytes, advance)
        write_json(temporary / "config.json", raw)
        write_json(temporary / "generation_config.json", default_generation(config))
        for name, content in companions.items():
            (temporary / name).write_bytes(content)
        (temporary / "README.md").write_text(model_card(config, sizes, out.name), "utf-8")
    return Conversion(
        read_files=sorted({file.name for file in files.files.values()}),
        written_files=written,
        copied_files=sorted(companions),
        num_tensors=len(sizes),
        num_bytes=total,
        dtypes=used_types,
    )


def _sizes(files: TensorFolder, types: Mapping[str, torch.dtype], config: Owl2Config) -> dict[str, int]:
    """Return the bytes of each tensor that is written, in its new type."""
    sizes = {
        name: files.num_bytes(name) // files.dtypes[name].itemsize * types[name].itemsize for name in types
    }
    if config.decoder.tie_word_embeddings:
        sizes.pop("lm_head.weight", None)  # stored once, as the embedding
    return sizes


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return their configuration updated with our fields, at every level."""
    merged = {**theirs, **ours}
    for key, value in merged.items():
        if isinstance(value, dict) and isinstance(theirs.get(key), dict):
            merged[key] = _merged(theirs[key], value)
    return merged
