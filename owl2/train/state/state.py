"""A run's state on disk: trainable parameters, optimizer and step; a state is complete or absent.

`state/step-N/` is written under another name, synced to the disk and renamed, so a folder with the final name
is complete; it loses that name before it is deleted. Each rank writes its own part with PyTorch's distributed
checkpoint, as safetensors and never as pickle, and any number of ranks can read it. The position in the data
is the step itself (data/order.py). Frozen weights are not saved, because the run's starting model has them;
a state has their fingerprints, and is not loaded next to other weights.
"""

import json
import os
import shutil
import warnings
import zlib
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
"""The file of a `StateRecord`, and of the sizes and checksums of all other files."""

Order = Mapping[str, Any]
"""What samples and their order depend on, see `order_of` in prepare.py; it must not change during a run."""

DATA_KEYS = ("samples", "quotas", "content")
"""The part of `Order` that edited corpora change; `data.accept_edits` allows it."""


@dataclass(frozen=True)
class Seen:
    """What one data rank has drawn since the run began, and how many samples it could not use, by source."""

    drawn: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StateRecord:
    """What a state has apart from its tensors."""

    step: int = 0
    """Finished steps."""
    skipped: int = 0
    """How many of them changed nothing because they were not finite."""
    seen: list[Seen] = field(default_factory=list)
    """One per data rank."""
    order: Order = field(default_factory=dict)
    frozen: Mapping[str, int] = field(default_factory=dict)
    """Fingerprints of the frozen parameters (train/fingerprints.py)."""


def save_state(
    run: Path,
    record: StateRecord,
    tensors: Mapping[str, Tensor],
    *,
    keep_last: int,
    keep_every: int | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write `run/state/step-N` after N finished steps; called by every rank.

    Then older states are deleted, except the newest `keep_last` and those after a multiple of `keep_every`
    steps.

    Raises:
        CheckpointError: a disk has too little room; earlier states are kept.
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
    model: Owl2Model, optimizer: torch.optim.Optimizer, extra: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of a state: trainable parameters, their optimizer state, and `extra` ones by name."""
    tensors = dict(extra or {})
    for name, parameter in _trainable(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = _with_dimension(value)
    return tensors


def _trainable(model: Owl2Model) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class RankFile(HuggingFaceStorageWriter):
    """Writes this rank's file directly from its tensors.

    Its base class first builds one `bytes` object of all tensors, which is five times slower, takes twice the
    memory, and blocks every other thread of the process.
    """

    written: Path | None = None
    """The file, if this rank has one."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        """Write this rank's part of the plan and sync it to the disk."""
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
            self.written = path
        done: Future[list[Any]] = Future()
        done.set_result([])
        return done


def _write(folder: Path, tensors: Mapping[str, Tensor], record: StateRecord, ranks: Ranks) -> None:
    writer = RankFile(str(folder), save_distributed=True)
    try:
        _silence_single_process_warning()
        dcp.save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.store is None)
    except CheckpointException as error:
        failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        rank, failure = next(iter(failures.items()))
        name = folder.name.removeprefix(".").removesuffix(".partial")
        raise CheckpointError(
            f"{folder.with_name(name)} could not be written on {len(failures)} of {ranks.size} rank(s): "
            f"{failure} on rank {rank}. Earlier states are kept; free room on the disk, then run the same "
            f"command again"
        ) from error
    mine = {writer.written.name: checksum(writer.written)} if writer.written is not None else {}
    checksums = {name: number for share in ranks.gather(mine) for name, number in share.items()}
    if ranks.is_first:
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}
        content = {**asdict(record), "files": sizes, "checksums": checksums}
        (folder / STEP).write_text(json.dumps(content, indent=1))


def checksum(file: Path) -> int:
    """CRC-32 of a file: about a second for a gigabyte, and other threads go on meanwhile."""
    number = 0
    with file.open("rb") as content:
        while chunk := content.read(2**24):
            number = zlib.crc32(chunk, number)
    return number


def _clear_unfinished(states: Path) -> None:
    for unfinished in states.glob(".step-*"):  # left by a run that was killed while saving
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
    expected: StateRecord,
    *,
    ranks: Ranks,
    console: Console,
    extra: Mapping[str, Tensor] | None = None,
    accept_edits: bool = False,
) -> StateRecord:
    """Restore the newest readable state and return its record; `expected`, which is of step 0, without any.

    A damaged state is renamed to `step-N.damaged`, with a warning, and the one before it is loaded.

    Args:
        run: the run's folder.
        model: gets the trainable parameters.
        optimizer: gets its moments.
        expected: order of samples and frozen weights as they are now.
        ranks: all of them call this.
        console: for warnings.
        extra: further tensors of the state, filled in place.
        accept_edits: go on if corpora changed since the state was written, after saying so.

    Raises:
        CheckpointError: all states are damaged.
        StateError: the state is of another model, other data or other frozen weights.
    """
    states = ranks.gather(saved_states(run))[0]  # one list for all: file systems show changes with a delay
    for number, folder in reversed(list(enumerate(states))):
        try:
            record = load_state(
                folder,
                model,
                optimizer,
                expected=expected,
                extra=extra,
                ranks=ranks,
                accept_edits=accept_edits,
            )
            if edits := _order_lines(record, expected):
                console.print(f"{run}: the data changed after step {record.step}:\n{edits}", highlight=False)
            return record
        except DamagedError as error:
            ranks.wait_for_all()
            aside = folder.with_name(f"{folder.name}.damaged")
            if ranks.is_first:
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                console.print(f"[bold red]{error}[/]", soft_wrap=True)
                earlier = (
                    f"trying the state before it, {states[number - 1]}" if number else "it was the only one"
                )
                console.print(f"It is now {aside}; {earlier}", soft_wrap=True)
    if states:
        raise CheckpointError(
            f"all {len(states)} states of {run} are damaged; they are kept in {run / 'state'}. Remove that "
            f"folder to start from step 0"
        )
    return expected


class DamagedError(CheckpointError):
    """A state that cannot be read."""


class StateError(CheckpointError):
    """A state that belongs to another run than the one that resumes."""


@torch.no_grad()
def load_state(
    folder: Path,
    model: Owl2Model,
    optimizer: torch.optim.Optimizer,
    *,
    expected: StateRecord | None = None,
    extra: Mapping[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    accept_edits: bool = False,
) -> StateRecord:
    """Restore trainable parameters, optimizer and `extra` in place, and return the record; see `resume`.

    Raises:
        DamagedError: a part is missing or cannot be read.
        StateError: it is of another model, or has not the `expected` data or frozen weights.
    """
    with _damage_named(folder, ranks):
        record = _read_record(folder, ranks)
        reader = HuggingFaceStorageReader(str(folder))
        entries = reader.read_metadata().state_dict_metadata
        found = {name: tuple(entry.size) for name, entry in entries.items() if hasattr(entry, "size")}
    _check_fit(folder, {**{f"model.{n}": p for n, p in _trainable(model).items()}, **(extra or {})}, found)
    if expected is not None:
        _check_order(folder, record, expected, accept_edits)
        _check_frozen(folder, record, expected)
    tensors = dict(extra or {})
    for name, parameter in _trainable(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        prefix = f"optimizer.{name}."
        for key in [full.removeprefix(prefix) for full in found if full.startswith(prefix)]:
            # The step count too: the fused AdamW keeps it on the parameter's device.
            is_count = key == "step"
            slot = torch.zeros((), device=parameter.device) if is_count else torch.zeros_like(parameter)
            optimizer.state[parameter][key] = slot.detach()
            tensors[prefix + key] = _with_dimension(slot.detach())
    with _damage_named(folder, ranks):
        _silence_single_process_warning()
        dcp.load(tensors, storage_reader=reader, no_dist=ranks.store is None)
    return record


def _silence_single_process_warning() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _with_dimension(tensor: Tensor) -> Tensor:
    """A view with at least one dimension: safetensors cannot slice scalars."""
    return tensor.view(1) if tensor.ndim == 0 else tensor


def _read_record(folder: Path, ranks: Ranks) -> StateRecord:
    """Read the record and check the files; the ranks share the checksums among them."""
    record, sizes, checksums = _record_of(folder)
    for name, size in sizes.items():
        actual = (folder / name).stat().st_size
        if actual != size:
            raise OSError(f"{name} has {actual:,} bytes of {size:,}")
    for name in sorted(checksums)[ranks.rank :: ranks.size]:
        if checksum(folder / name) != checksums[name]:
            raise OSError(f"{name} is not as it was written (its checksum differs)")
    return record


def _record_of(folder: Path) -> tuple[StateRecord, dict[str, int], dict[str, int]]:
    """The record, and the sizes and checksums of the files; owl2 0.1 did not record checksums."""
    fields = json.loads((folder / STEP).read_text(encoding="utf-8"))
    sizes, checksums = fields.pop("files"), fields.pop("checksums", {})
    return StateRecord(**{**fields, "seen": [Seen(**seen) for seen in fields["seen"]]}), sizes, checksums


@contextmanager
def _damage_named(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Turn an error in reading a state, on any rank, into a DamagedError on all ranks."""
    reason = ""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, CheckpointException) as error:
        reason = str(error) or type(error).__name__
    reasons = [found for found in ranks.gather(reason) if found]
    if reasons:
        raise DamagedError(f"{folder} is damaged: {reasons[0]}")


def _check_fit(folder: Path, tensors: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stored = {name: shape for name, shape in found.items() if not name.startswith("optimizer.")}
    wrong = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
    if wrong:
        raise StateError(
            f"{folder} is the state of another model: {len(wrong)} trainable tensors are missing, unexpected "
            f"or of another shape ({first_few([name.removeprefix('model.') for name in wrong])}); choose "
            f"another `run`"
        )


def check_order(folder: Path, order: Order, accept_edits: bool) -> None:
    """Raise StateError if a state belongs to other data, and DamagedError if its record cannot be read."""
    with _damage_named(folder, ALONE):
        record = _record_of(folder)[0]
    _check_order(folder, record, StateRecord(order=order), accept_edits)


def _check_order(folder: Path, record: StateRecord, expected: StateRecord, accept_edits: bool) -> None:
    changed = _changed_keys(record.order, expected.order)
    is_edited_data = set(changed) <= set(DATA_KEYS)
    if not changed or (accept_edits and is_edited_data):
        return
    accept = (
        ", or set data.accept_edits to true to go on with the data as it is now" if is_edited_data else ""
    )
    raise StateError(
        f"{folder} belongs to other samples or another order of samples:\n"
        f"{_order_lines(record, expected)}\n"
        f"The run would see some samples again and others never; restore the data{accept}, or choose another "
        f"`run`"
    )


def _changed_keys(before: Order, now: Order) -> list[str]:
    now = json.loads(json.dumps(now))  # tuples and numbers as a file gives them back
    known = {key: now[key] for key in now if key != "content" or key in before}  # owl2 0.1 did not record it
    return [key for key in {**before, **known} if before.get(key) != known.get(key)]


def _order_lines(record: StateRecord, expected: StateRecord) -> str:
    """One line per difference between a state's order of samples and the present one."""
    lines = []
    for key in _changed_keys(record.order, expected.order):
        old, new = record.order.get(key), expected.order.get(key)
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            old, new = {"": old}, {"": new}
        lines += [
            f"  {key}{f' of {name}' if name else ''}: {old.get(name)} -> {new.get(name)}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    return "\n".join(lines)


def _check_frozen(folder: Path, record: StateRecord, expected: StateRecord) -> None:
    other = [name for name, mark in record.frozen.items() if expected.frozen.get(name) != mark]
    if other:
        raise StateError(
            f"{folder} belongs to other frozen weights: {len(other)} of {len(record.frozen)} frozen "
            f"parameters ({first_few(other)}) are not those that the run began with. States do not contain "
            f"them; restore the `model` it began with, or choose another `run`"
        )
