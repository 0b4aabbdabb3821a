"""Writing a model as a checkpoint folder: whole, or not at all.

Everything is written into a temporary folder next to the target, which is renamed when it is complete; the
free disk space is checked first. Only safetensors are written, under the released names, so the released code
reads them too. A target that holds anything other than a checkpoint is never replaced.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from owl2.checkpoint.card import model_card
from owl2.checkpoint.errors import CheckpointError, first_few, gigabytes
from owl2.checkpoint.folder import FILES
from owl2.model import Owl2Config, Owl2Model

MAX_SHARD_BYTES = 5_000_000_000

SPARE_BYTES = 16 * 2**20
"""Disk space reserved in addition to the weights: tokenizer, JSON files, file system overhead."""


class Savable(Protocol):
    """Anything that writes its files into a folder, such as the processor."""

    def save(self, folder: Path) -> None: ...


def save_checkpoint(
    model: Owl2Model,
    folder: Path | str,
    *,
    processor: Savable | None = None,
    generation_config: dict[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    notes: str = "",
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write a checkpoint folder atomically; an older checkpoint of that name is replaced.

    Args:
        model: the model to write.
        folder: the target; its parent is created if necessary.
        processor: writes tokenizer files and `preprocessor_config.json`.
        generation_config: `generation_config.json`; greedy decoding if not given.
        files: further files, by name, written as they are.
        max_shard_bytes: a larger model is split, at tensors, into shards with an index.
        dtype: the type in the files; the model's if not given.
        notes: Markdown at the end of the model card.
        whole: returns the whole of a tensor of which the model holds a part; called once for each tensor, in
            order.

    Raises:
        CheckpointError: too little disk space, or the target holds something other than a checkpoint.
    """
    state, dtype = model.state_dict(), dtype or model.dtype
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}
    config = {**model.config.to_dict(), "torch_dtype": str(dtype).removeprefix("torch.")}
    with new_folder(Path(folder), need_bytes=sum(sizes.values())) as temporary:
        write_shards(
            temporary, sizes, lambda name: whole(state[name]).to("cpu", dtype).contiguous(), max_shard_bytes
        )
        write_json(temporary / "config.json", config)
        write_json(
            temporary / "generation_config.json", generation_config or default_generation(model.config)
        )
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        if processor is not None:
            processor.save(temporary)
        text = model_card(model.config, sizes, Path(folder).name)
        (temporary / "README.md").write_text(text + notes, "utf-8")


@contextmanager
def new_folder(folder: Path, *, need_bytes: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends, and is removed if it fails.

    Raises:
        CheckpointError: too little disk space for `need_bytes`, the disk became full while writing, or
            `folder` holds files that no checkpoint has.
    """
    folder = folder.absolute()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < need_bytes + SPARE_BYTES:
        raise CheckpointError(
            f"{folder} needs {gigabytes(need_bytes + SPARE_BYTES)}, but the disk has {gigabytes(free)} free; "
            f"free {gigabytes(need_bytes + SPARE_BYTES - free)} or choose another disk. Nothing was written"
        )
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir()
    try:
        yield temporary
        # Some writers create files that only their owner can read; a checkpoint is meant to be shared.
        readable = temporary.stat().st_mode & 0o666
        for file in temporary.iterdir():
            file.chmod(readable)
            _flush(file)
        _swap(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written: {error} ({gigabytes(need_bytes)} of weights, the disk has "
            f"{gigabytes(shutil.disk_usage(folder.parent).free)} free). Nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], Tensor],
    max_shard_bytes: int,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """Write `model.safetensors`, or shards and `model.safetensors.index.json`; return the file names.

    `read` is called once for each tensor, shard after shard, so that only one shard is in memory at a time.
    """
    shards = plan_shards(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        # `transformers` refuses a file whose metadata has no `format`.
        save_file({name: read(name) for name in names}, folder / file, metadata={"format": "pt"})
        if advance is not None:
            advance(sum(sizes[name] for name in names))
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    return files


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Split tensors, in order, into shards of at most `max_shard_bytes` (or one larger tensor)."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def default_generation(config: Owl2Config) -> dict[str, Any]:
    """Return greedy decoding as `generation_config.json` states it."""
    decoder = config.decoder
    return {
        "bos_token_id": decoder.bos_token_id,
        "eos_token_id": decoder.eos_token_id,
        "pad_token_id": decoder.pad_token_id,
        "do_sample": False,
        "max_new_tokens": 512,
    }


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_absent(folder: Path) -> None:
    """Refuse a target that exists already, for commands that never replace anything.

    Raises:
        CheckpointError: `folder` exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; choose another folder, or remove it yourself")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; choose another name for the checkpoint folder")
    other = [p.name for p in sorted(folder.iterdir()) if p.is_dir() or not any(p.match(f) for f in FILES)]
    if other:
        raise CheckpointError(
            f"{folder} holds files that no checkpoint has ({first_few(other)}) and is not replaced; "
            "choose another folder, or remove it yourself"
        )


def _flush(file: Path) -> None:
    """Write a file through to the disk, so that the rename cannot take effect before its content."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; an older folder is renamed first and removed last."""
    older = folder.with_name(f".{folder.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if folder.exists():
        folder.rename(older)
    try:
        temporary.rename(folder)
    except OSError:
        if older.exists():
            older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)
