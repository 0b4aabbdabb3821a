"""Loading a checkpoint folder, in the released layout or ours, as a model.

Both have the same `config.json` fields and tensor names, so there is one loader. They differ in the file
format (tensors.py) and in the abstractor's position buffers, which the release lacks: they are computed, and
replaced by the file's where it has them. `rotary_emb.inv_freq` in a file is ignored: the configuration
determines it. Weights that already have the requested type stay mapped to the file; others are converted one
at a time, so loading never needs more memory than the weights themselves.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl2.checkpoint.ends import with_generation_ends
from owl2.checkpoint.errors import CheckpointError, Shape, check_fit, first_few
from owl2.checkpoint.progress import bytes_bar
from owl2.checkpoint.settings import warn_of_ignored_settings
from owl2.checkpoint.tensors import TensorFolder, dtype_of
from owl2.files import read_json
from owl2.model import ConfigError, Owl2Config, Owl2Model, build, reset_buffers

OPTIONAL = (".q_pos_embed", ".k_pos_embed")
"""Computed buffers that a file may have."""

IGNORED = (".rotary_emb.inv_freq",)
"""Computed buffers whose values in a file are not used."""

FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt", "README.md")
"""What is downloaded from a hub repository."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_model(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype = "float32",
    progress: bool = True,
) -> Owl2Model:
    """Load a model from a folder in the released layout or ours.

    Args:
        folder: holds `config.json` and the weights: safetensors or pickled shards.
        device: where the weights go.
        dtype: the type of all weights in memory: float32, bfloat16 or float16.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: not a checkpoint, a file is missing or damaged, or names or shapes do not fit.
    """
    folder, dtype = Path(folder), dtype_of(dtype)
    model = skeleton(folder, dtype)
    files = TensorFolder(folder)
    names = fit(model, files)
    for module in model.modules():
        if next(module.buffers(recurse=False), None) is not None:
            module.to_empty(device=device, recurse=False)
    reset_buffers(model.parts())
    state: dict[str, Tensor] = {}
    total = sum(files.num_bytes(name) for name in names)
    with bytes_bar(f"Loading {folder.name}", total, enabled=progress) as advance:
        for name in names:
            state[name] = files.read(name, dtype=dtype, device=device)
            advance(files.num_bytes(name))
    model.load_state_dict(state, strict=False, assign=True)  # names were checked by `fit`
    return model.eval()


def read_config(folder: Path) -> Owl2Config:
    """Read the `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: no such folder, no configuration in it, or that of another kind of model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    file = folder / "config.json"
    if not file.exists():
        present = first_few(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise CheckpointError(
            f"{folder} is not a checkpoint: looked for config.json and weights (model.safetensors or "
            f"pytorch_model.bin, or their shards); it holds {present}"
        )
    raw = read_json(file, CheckpointError)
    try:
        config = Owl2Config.from_dict(raw)
        return config.replace(decoder=with_generation_ends(config.decoder, folder))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}{_other_kind(raw)}") from error


def skeleton(folder: Path, dtype: torch.dtype) -> Owl2Model:
    """Build the model that a folder's `config.json` describes, without storage; name settings it ignores.

    Raises:
        CheckpointError: see `read_config`; or its numbers make no model.
    """
    config = read_config(folder)
    warn_of_ignored_settings(folder)
    try:
        return build(config, device="meta", dtype=dtype)
    except (TypeError, ArithmeticError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / 'config.json'} describes no model that can be built: {reason}"
        ) from error


def fit(model: Owl2Model, files: TensorFolder) -> list[str]:
    """Return the tensors of `files` to load into `model`, in the order of the files.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes are wrong.
    """
    expected: dict[str, Shape] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: shape for name, shape in files.shapes.items() if not name.endswith(IGNORED)}
    if model.config.decoder.tie_word_embeddings:
        _drop_tied_head(found, files)
    wanted = {
        name: shape
        for name, shape in expected.items()
        if not name.endswith(IGNORED) and not (name.endswith(OPTIONAL) and name not in found)
    }
    check_fit(wanted, found, str(files.folder))
    integers = [name for name in found if not files.dtypes[name].is_floating_point]
    if integers:
        raise CheckpointError(
            f"{files.folder}: {len(integers)} tensors hold no floating-point numbers but "
            f"{files.dtypes[integers[0]]}: {first_few(integers)}; quantised checkpoints are not supported"
        )
    return list(found)


def _drop_tied_head(found: dict[str, Shape], files: TensorFolder) -> None:
    """Accept a stored copy of the tied embedding as the head, and nothing else."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in found or embedding not in found:
        return
    if not torch.equal(files.read(head), files.read(embedding)):
        raise CheckpointError(
            f"{files.folder}: tie_word_embeddings is true but {head} differs from {embedding}; "
            "set tie_word_embeddings to false in config.json"
        )
    del found[head]


def resolve(folder_or_hub_id: str | Path) -> Path:
    """Return a local folder: the given one, or a hub repository (`owner/name`), downloaded if necessary.

    Raises:
        CheckpointError: no such folder, no such repository, or the hub cannot be reached.
    """
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    given = str(folder_or_hub_id)
    if folder.exists():
        raise CheckpointError(f"{given} is a file; expected the checkpoint folder that holds it")
    if not _HUB_ID.fullmatch(given):
        raise CheckpointError(f"{given} does not exist; expected a folder, or a hub id such as owner/name")
    if folder.parent.is_dir():
        raise CheckpointError(f"{given} does not exist, though the folder {folder.parent} does")
    return _fetch(given)


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(FILES), ignore_patterns=["*.bin"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise CheckpointError(f"{hub_id} is not a local folder, and no hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} is not a local folder, the hub cannot be reached, and its cache does not have it. "
            f"On a connected machine run `hf download {hub_id} --local-dir DIR`, then give the path of DIR"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub has no {hub_id} that you may read: {error}") from error
    return folder


def _other_kind(raw: dict[str, Any]) -> str:
    kind = raw.get("model_type")
    if kind == "llama":
        return ". It is a language model: use it as `owl2 init --language`"
    if kind in ("clip", "clip_vision_model", "dinov2"):
        return ". It is a vision encoder: use it as `owl2 init --vision`"
    return ""
