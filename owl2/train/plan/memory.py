"""Memory and communication of a step: bytes allocated, freed and received, counted operation by operation.

Tensors are fake (`FakeTensorMode`): each has a storage of a certain size, but no contents. A dispatch mode
sees every operation; it counts a storage when it first appears and subtracts it when the last tensor frees
it. FSDP grows and shrinks storages by `UntypedStorage.resize_`, which is not an operation and is counted
separately.

A section of the step may stand for several alike (tracer.py); what it allocated, freed and received is then
counted that many times.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GATHER = torch.ops.c10d._allgather_base_.default
SCATTER = torch.ops.c10d._reduce_scatter_base_.default
COPIES = torch.ops.c10d.allreduce_.default
TENSOR = torch.ops._c10d_functional.all_reduce.default
WAIT = torch.ops._c10d_functional.wait_tensor.default
DEVICE = torch.ops.prim.device.default


class Counts(TorchDispatchMode):
    """Bytes allocated and received by the operations that run while the mode is active, on fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.received: Counter[Any] = Counter()
        self.storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._begin()

    def end_section(self, times: int = 1) -> None:
        """End a section of the step that stands for `times` alike in a row, and begin the next one.

        Each of them adds the same number of bytes, so the first or the last has the highest peak.
        """
        more = (times - 1) * (self.live - self.began)
        self.peak = max(self.peak, self.highest, self.highest + more)
        self.live += more
        for operation, size in self.received.items():
            self.received[operation] = size + (times - 1) * (size - self.before[operation])
        self._begin()

    def _begin(self) -> None:
        self.began = self.highest = self.live
        self.before = self.received.copy()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Count the storages of tensors, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.storages:
                reference = weakref.ref(storage, partial(self._freed, key))
                self._set(key, reference, storage.nbytes())

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Count the new size of a storage."""
        known = self.storages.get(storage._cdata)
        if known is not None:
            self._set(storage._cdata, known[0], storage.nbytes())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(kind is not FakeTensor for kind in types):
            return (
                NotImplemented  # a sharded tensor: the operations on its local part arrive here on their own
            )
        if func is DEVICE:  # half of all calls
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.add([result])
        elif isinstance(result, list | tuple):
            self.add([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        if func.namespace in ("c10d", "_c10d_functional") and func is not WAIT:
            self.received[func] += _received(func, args)
        return result

    def _set(self, key: int, reference: "weakref.ref[torch.UntypedStorage]", size: int) -> None:
        before = self.storages[key][1] if key in self.storages else 0
        self.storages[key] = (reference, size)
        self.live += size - before
        self.highest = max(self.highest, self.live)

    def _freed(self, key: int, _: object) -> None:
        self.live -= self.storages.pop(key)[1]


@contextmanager
def counting(counts: Counts) -> Iterator[None]:
    """Count what happens inside the block.

    `UntypedStorage.resize_` is replaced meanwhile: FSDP allocates and frees gathered parameters with it, and
    neither modes nor hooks see its calls.
    """
    resize = torch.UntypedStorage.resize_

    def resize_and_count(storage: torch.UntypedStorage, size: int) -> None:
        resize(storage, size)
        counts.resized(storage)

    torch.UntypedStorage.resize_ = resize_and_count  # type: ignore[method-assign, assignment]
    try:
        with counts:
            yield
        counts.end_section()
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]


def _received(func: Any, args: Sequence[Any]) -> int:
    """Bytes that a rank receives; for a sum over ranks without the factor of a ring."""
    if func in (GATHER, SCATTER):
        return abs(args[0].nbytes - args[1].nbytes)
    if func is COPIES:
        return sum(tensor.nbytes for tensor in args[0])
    if func is TENSOR:
        return args[0].nbytes
    raise NotImplementedError(f"the plan does not know what {func} exchanges; add it to {__name__}")
