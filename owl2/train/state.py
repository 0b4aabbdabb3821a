"""A run's state on disk: model, optimizer and step, complete or absent.

`state/step-N/` is written under another name, brought to the disk and renamed, so a folder with the final
name is whole; it loses that name before it is removed. Each rank writes its own part with PyTorch's
distributed checkpoint, as safetensors and never as pickle, and any other number of ranks can read it. The
data position is the step itself (data/order.py), so nothing else is needed to go on with the losses of the
uninterrupted run.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.errors import first_few
from owl2.checkpoint.write import new_folder
from owl2.model import Owl2Model
from owl2.train.ranks import ALONE, Ranks

STEP = "step.json"
"""`step`, the `order` of the samples, and the size of every other file."""

Order = Mapping[str, Any]
"""What the order of samples depends on; it must be the same when a run goes on."""


def save_state(
    run: Path,
    step: int,
    model: Owl2Model,
    optimizer: torch.optim.Optimizer,
    *,
    keep_last: int,
    keep_every: int | None = None,
    order: Order | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `run/state/step-N` after N finished steps; called by every rank.

    All but the newest `keep_last` states are dropped then, and those after a multiple of `keep_every` steps.

    Raises:
        CheckpointError: a disk has too little room; the earlier states stand.
    """
    folder = run / "state" / f"step-{step:07d}"
    ranks.on_first(lambda: _clear_unfinished(folder.parent))
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = _with_dimension(value)
    with ExitStack() as stack:
        size = sum(tensor.nbytes for tensor in tensors.values())
        ranks.on_first(lambda: stack.enter_context(new_folder(folder, need_bytes=size)))
        partial = folder.with_name(f".{folder.name}.partial")
        _write(partial, tensors, {"step": step, "order": order or {}}, ranks)
        ranks.on_first(stack.close)
    ranks.on_first(lambda: _drop_old(run, keep_last, keep_every))
    return folder


def _write(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any], ranks: Ranks) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            dcp.save(tensors, storage_writer=writer, no_dist=ranks.store is None)
    except CheckpointException as error:
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        rank, failure = next(iter(failures.items()))
        name = folder.name.removeprefix(".").removesuffix(".partial")
        raise CheckpointError(
            f"{folder.with_name(name)} could not be written on {len(failures)} of {ranks.size} rank(s): "
            f"{failure} on rank {rank}. Nothing was left behind, and the states before stand"
        ) from error
    if ranks.is_first:
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
        (folder / STEP).write_text(json.dumps({**record, "files": sizes}, indent=1))


def _clear_unfinished(states: Path) -> None:
    for unfinished in states.glob(".step-*"):  # of a run that was killed while saving
        shutil.rmtree(unfinished)


def _drop_old(run: Path, keep_last: int, keep_every: int | None) -> None:
    for old in saved_states(run)[:-keep_last]:
        if keep_every is None or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))


def saved_states(run: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    return sorted((run / "state").glob("step-*[0-9]"))


def resume(
    run: Path,
    model: Owl2Model,
    optimizer: torch.optim.Optimizer,
    order: Order,
    ranks: Ranks,
    console: Console,
) -> int:
    """Restore the newest state that can be read and return the number of finished steps, 0 without any.

    A damaged one is set aside as `step-N.damaged`, with a warning, and the one before is taken.

    Raises:
        CheckpointError: all are damaged, or one is of another model.
        StateError: a state is of another order of samples.
    """
    states = ranks.gather(saved_states(run))[0]  # one list for all: file systems may show it to each later
    for folder in reversed(states):
        try:
            return load_state(folder, model, optimizer, order=order, ranks=ranks)
        except DamagedError as error:
            ranks.wait_for_all()
            aside = folder.with_name(f"{folder.name}.damaged")
            if ranks.is_first:
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                console.print(f"[bold red]{error}[/]", soft_wrap=True)
                console.print(f"It is now {aside}; trying the state before", soft_wrap=True)
    if states:
        raise CheckpointError(
            f"all {len(states)} states of {run} are damaged; they are kept in {run / 'state'}. Remove that "
            f"folder to begin anew"
        )
    return 0


class DamagedError(CheckpointError):
    """A state that cannot be read."""


class StateError(CheckpointError):
    """A state that belongs to another run than the one that wants to go on."""


@torch.no_grad()
def load_state(
    folder: Path,
    model: Owl2Model,
    optimizer: torch.optim.Optimizer,
    *,
    order: Order | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """Restore model and optimizer in place and return the number of finished steps; called by every rank.

    Raises:
        DamagedError: something of it is missing or cannot be read.
        StateError: it is of another model or order of samples.
    """
    with _damage_named(folder, ranks):
        record = _read_record(folder)
        reader = HuggingFaceStorageReader(str(folder))
        entries = reader.read_metadata().state_dict_metadata
        found = {name: tuple(entry.size) for name, entry in entries.items() if hasattr(entry, "size")}
    _check_fit(folder, model, found)
    if order is not None and record["order"] != json.loads(json.dumps(order)):
        changed = [key for key in order if record["order"].get(key) != order[key]]
        raise StateError(
            f"{folder} is of another order of samples ({first_few(changed)} changed: "
            f"{ {key: record['order'].get(key) for key in changed} } became "
            f"{ {key: order[key] for key in changed} }), so the run would see some samples again and others "
            f"never; restore the data, or choose another folder for this run"
        )
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        prefix = f"optimizer.{name}."
        for key in [full.removeprefix(prefix) for full in found if full.startswith(prefix)]:
            # The step count too: the fused AdamW keeps it beside the parameter.
            is_count = key == "step"
            slot = torch.zeros((), device=parameter.device) if is_count else torch.zeros_like(parameter)
            optimizer.state[parameter][key] = slot.detach()
            tensors[prefix + key] = _with_dimension(slot.detach())
    with _damage_named(folder, ranks), _alone_is_meant():
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.store is None)
    return int(record["step"])


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Silence the warning that there is only one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _with_dimension(tensor: Tensor) -> Tensor:
    """The same storage with at least one dimension: slices of safetensors have no scalars."""
    return tensor.view(1) if tensor.ndim == 0 else tensor


def _read_record(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / STEP).read_text())
    for name, size in record["files"].items():
        actual = (folder / name).stat().st_size
        if actual != size:
            raise OSError(f"{name} has {actual:,} bytes of {size:,}")
    return record


@contextmanager
def _damage_named(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Turn what goes wrong when a state is read, on any rank, into one DamagedError on all of them."""
    reason = ""
    try:
        yield
    except (OSError, KeyError, ValueError, SafetensorError, CheckpointException) as error:
        reason = str(error) or type(error).__name__
    if ranks.any(bool(reason)):
        raise DamagedError(f"{folder} is damaged: {reason or 'another rank cannot read it'}")


def _check_fit(folder: Path, model: Owl2Model, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {f"model.{name}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = {name: shape for name, shape in found.items() if name.startswith("model.")}
    wrong = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
    if wrong:
        raise StateError(
            f"{folder} is the state of another model: {len(wrong)} parameters are missing, too many or of "
            f"another shape ({first_few([name.removeprefix('model.') for name in wrong])}); choose another "
            f"folder for this run"
        )
