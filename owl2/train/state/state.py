"""A run's state on disk: model, optimizer and step, complete or absent.

`state/step-N/` is written under another name, brought to the disk and renamed, so a folder with the final
name is whole; it loses that name before it is removed. Each rank writes its own part with PyTorch's
distributed checkpoint, as safetensors and never as pickle, and any other number of ranks can read it. The
data position is the step itself (data/order.py). Frozen weights are those of the model that the run starts
from: a state has their fingerprint alone, and goes on from no others.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    SavePlan,
    SavePlanner,
)
from torch.futures import Future

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.errors import first_few
from owl2.checkpoint.write import new_folder
from owl2.model import Owl2Model
from owl2.train.ranks import ALONE, Ranks

STEP = "step.json"
"""A `Record` and the size of every other file."""

Order = Mapping[str, Any]
"""What the order of samples depends on; it must be the same when a run goes on."""


@dataclass(frozen=True)
class Seen:
    """What one reader of samples has drawn since the run began, and how many it could not use, by source."""

    drawn: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a state is beside its tensors."""

    step: int = 0
    """Finished steps."""
    skipped: int = 0
    """Of them those that changed nothing because they were not finite."""
    seen: list[Seen] = field(default_factory=list)
    """Of each rank that reads other samples."""
    order: Order = field(default_factory=dict)
    frozen: Mapping[str, int] = field(default_factory=dict)
    """Fingerprints of the parameters that do not learn (identity.py)."""


def save_state(
    run: Path,
    record: Record,
    tensors: Mapping[str, Tensor],
    *,
    keep_last: int,
    keep_every: int | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `run/state/step-N` after N finished steps; called by every rank.

    All but the newest `keep_last` states are dropped then, and those after a multiple of `keep_every` steps.

    Raises:
        CheckpointError: a disk has too little room; the earlier states stand.
    """
    folder = run / "state" / f"step-{record.step:07d}"
    ranks.on_first(lambda: _clear_unfinished(folder.parent))
    with ExitStack() as stack:
        size = sum(tensor.nbytes for tensor in tensors.values())
        ranks.on_first(lambda: stack.enter_context(new_folder(folder, need_bytes=size)))
        partial = folder.with_name(f".{folder.name}.partial")
        _write(partial, tensors, record, ranks)
        ranks.on_first(stack.close)
    ranks.on_first(lambda: _drop_old(run, keep_last, keep_every))
    return folder


def tensors_of(
    model: Owl2Model, optimizer: torch.optim.Optimizer, also: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What is saved: all that learns, what the optimizer remembers of it, and tensors of others by name."""
    tensors = dict(also or {})
    for name, parameter in _learning(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = _with_dimension(value)
    return tensors


def _learning(model: Owl2Model) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class RankFile(HuggingFaceStorageWriter):
    """Writes this rank's file straight from its tensors.

    The class it replaces first makes one object of bytes of them all: five times slower, twice the memory,
    and meanwhile no other thread of the process can run.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        """Write what the plan gives this rank and bring it to the disk."""
        tensors, parts = {}, {}
        for item in plan.items:
            assert item.tensor_data is not None
            data = planner.resolve_data(item)
            assert isinstance(data, Tensor)
            tensors[item.index.fqn] = data.cpu().contiguous()
            parts[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        if tensors:
            path = Path(self.path) / f"rank-{plan.storage_data['shard_index']:05d}.safetensors"
            save_file(tensors, path, metadata={"format": "pt", "DCP_SHARDING_INFO": json.dumps(parts)})
            with path.open("rb") as file:
                os.fsync(file.fileno())
        done: Future[list[Any]] = Future()
        done.set_result([])
        return done


def _write(folder: Path, tensors: Mapping[str, Tensor], record: Record, ranks: Ranks) -> None:
    writer = RankFile(str(folder), save_distributed=True)
    try:
        _expect_to_be_alone()
        dcp.save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.store is None)
    except CheckpointException as error:
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        rank, failure = next(iter(failures.items()))
        name = folder.name.removeprefix(".").removesuffix(".partial")
        raise CheckpointError(
            f"{folder.with_name(name)} could not be written on {len(failures)} of {ranks.size} rank(s): "
            f"{failure} on rank {rank}. Nothing was left behind, and the states before stand; free room and "
            f"run the same command again"
        ) from error
    if ranks.is_first:
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
        (folder / STEP).write_text(json.dumps({**asdict(record), "files": sizes}, indent=1))


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
    expected: Record,
    ranks: Ranks,
    console: Console,
    also: Mapping[str, Tensor] | None = None,
) -> Record:
    """Restore the newest state that can be read and return its record; that of step 0 without any.

    A damaged one is set aside as `step-N.damaged`, with a warning, and the one before is taken.

    Raises:
        CheckpointError: all are damaged, or one is of another model.
        StateError: a state is of another order of samples or other frozen weights than `expected`.
    """
    states = ranks.gather(saved_states(run))[0]  # one list for all: file systems may show it to each later
    for folder in reversed(states):
        try:
            return load_state(folder, model, optimizer, expected=expected, also=also, ranks=ranks)
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
    return expected


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
    expected: Record | None = None,
    also: Mapping[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> Record:
    """Restore in place what learns, the optimizer and `also`, and return the record; called by every rank.

    Raises:
        DamagedError: something of it is missing or cannot be read.
        StateError: it is of another model, or its order or frozen weights are not the `expected`.
    """
    with _damage_named(folder, ranks):
        record = _read_record(folder)
        reader = HuggingFaceStorageReader(str(folder))
        entries = reader.read_metadata().state_dict_metadata
        found = {name: tuple(entry.size) for name, entry in entries.items() if hasattr(entry, "size")}
    _check_fit(folder, {**{f"model.{n}": p for n, p in _learning(model).items()}, **(also or {})}, found)
    if expected is not None:
        _check_record(folder, record, expected)
    tensors = dict(also or {})
    for name, parameter in _learning(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        prefix = f"optimizer.{name}."
        for key in [full.removeprefix(prefix) for full in found if full.startswith(prefix)]:
            # The step count too: the fused AdamW keeps it beside the parameter.
            is_count = key == "step"
            slot = torch.zeros((), device=parameter.device) if is_count else torch.zeros_like(parameter)
            optimizer.state[parameter][key] = slot.detach()
            tensors[prefix + key] = _with_dimension(slot.detach())
    with _damage_named(folder, ranks):
        _expect_to_be_alone()
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.store is None)
    return record


def _expect_to_be_alone() -> None:
    """Silence the warning that there is only one process."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _with_dimension(tensor: Tensor) -> Tensor:
    """The same storage with at least one dimension: slices of safetensors have no scalars."""
    return tensor.view(1) if tensor.ndim == 0 else tensor


def _read_record(folder: Path) -> Record:
    fields = json.loads((folder / STEP).read_text())
    for name, size in fields.pop("files").items():
        actual = (folder / name).stat().st_size
        if actual != size:
            raise OSError(f"{name} has {actual:,} bytes of {size:,}")
    return Record(**{**fields, "seen": [Seen(**seen) for seen in fields["seen"]]})


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


def _check_fit(folder: Path, tensors: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stored = {name: shape for name, shape in found.items() if not name.startswith("optimizer.")}
    wrong = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
    if wrong:
        raise StateError(
            f"{folder} is the state of another model: {len(wrong)} tensors that learn are missing, too many "
            f"or of another shape ({first_few([name.removeprefix('model.') for name in wrong])}); choose "
            f"another folder for this run"
        )


def _check_record(folder: Path, record: Record, expected: Record) -> None:
    order = json.loads(json.dumps(expected.order))
    changed = [key for key in {**record.order, **order} if record.order.get(key) != order.get(key)]
    if changed:
        raise StateError(
            f"{folder} is of another order of samples ({first_few(changed)} changed: "
            f"{ {key: record.order.get(key) for key in changed} } became "
            f"{ {key: order.get(key) for key in changed} }), so the run would see some samples again and "
            f"others never; restore the data, or choose another folder for this run"
        )
    other = [name for name, mark in record.frozen.items() if expected.frozen.get(name) != mark]
    if other:
        raise StateError(
            f"{folder} belongs to other frozen weights: {len(other)} of {len(record.frozen)} parameters that "
            f"do not learn ({first_few(other)}) are not those that the run began with. States do not have "
            f"them; restore the `model` it began with, or choose another folder for this run"
        )
