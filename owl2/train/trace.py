"""One micro-batch on one rank of many, in a process that has neither the ranks nor the memory.

Model, sharding and layers are those of a run (parallel.py). The process group is fake, so exchanges return at
once, and so are the tensors: shapes without contents (`FakeTensorMode`). Every allocation, every release and
every exchange that a real step would make still happens, and is counted.

On a GPU, RMSNorm is one kernel that keeps its input; this process would compute it in parts and keep them
all. So its allocations there are given by hand.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from owl2.checkpoint.tensors import dtype_of
from owl2.data.loader import Batch
from owl2.model import Owl2Config, Owl2Model, Targets, build, packed_layout
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.lora import add_adapters, check_rules
from owl2.train.objectives import OBJECTIVES
from owl2.train.parallel import (
    Objective,
    Sharding,
    local_part,
    rewrite_layers,
    set_last_micro_batch,
    shard_blocks,
    shard_root,
)
from owl2.train.ranks import ALONE, Ranks
from owl2.train.rules import apply_freeze, assign_rules

GATHER = torch.ops.c10d._allgather_base_.default
SCATTER = torch.ops.c10d._reduce_scatter_base_.default
COPIES = torch.ops.c10d.allreduce_.default
TENSOR = torch.ops._c10d_functional.all_reduce.default
WAIT = torch.ops._c10d_functional.wait_tensor.default
DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class Trace:
    """What one rank holds, and what it receives from others, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass of a micro-batch leaves for its backward pass, gathered parameters included."""
    peak: int
    """Most that is held at once in a step."""
    gathered: float
    """Parameters of other ranks, for one micro-batch."""
    reduced: float
    """Gradients of other ranks, for one micro-batch."""
    copies: float
    """Gradients of the copies of the model, once a step."""
    tensor: float
    """Sums of tensor parallelism, for one micro-batch."""

    @property
    def temporary(self) -> int:
        """What the peak has besides: gathered layers, logits, layers computed again."""
        held = self.parameters + self.gradients + self.optimizer + self.activations
        return max(0, self.peak - held)

    def received(self, accumulation: int) -> float:
        """All that comes in during a step."""
        return accumulation * (self.gathered + self.reduced + self.tensor) + self.copies


@contextmanager
def fake_ranks(config: TrainConfig, size: int) -> Iterator[Ranks]:
    """Be the first of `size` ranks, none of which exists."""
    if size == 1 and config.dtype == "float32":  # as in a run: no group
        yield ALONE
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield Ranks(0, size, config.parallel.tensor, dist.HashStore())
    finally:
        dist.destroy_process_group()


def without_storage(config: TrainConfig, model_config: Owl2Config) -> Owl2Model:
    """The model of a stage: its adapters are in it, and what the rules freeze is frozen.

    Raises:
        RuleError, TrainConfigError: rules or adapters that do not fit it.
    """
    model = build(model_config, device="meta")
    if config.lora is not None:
        add_adapters(model, config.lora)
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    if config.lora is not None:
        check_rules(assignments)
    apply_freeze(model, assignments)
    return model


def shard_without_storage(config: TrainConfig, model_config: Owl2Config, ranks: Ranks) -> Objective:
    """Arrange the model over the ranks as `prepare.load_stage` does, with nothing in it.

    Raises:
        TrainConfigError: the ranks cannot split it.
        RuleError, TrainConfigError: rules or adapters that do not fit it.
    """
    model = without_storage(config, model_config)
    is_static = bool(config.parallel.compile)
    sharding = None
    if ranks.store is not None:
        sharding = Sharding.over(ranks, config.parallel, "cpu", dtype_of(config.dtype))
        shard_blocks(model, sharding, fill=lambda _: None)
    rewrite_layers(model, replace(config.parallel, compile=None))  # compiled code allocates less, not more
    objective = Objective(model, OBJECTIVES[config.objective], is_static=is_static)
    if sharding is not None:
        shard_root(objective, sharding)
    return objective


def full_batch(config: Owl2Config, samples: int, tokens: int, images: int) -> Batch:
    """A micro-batch of samples of `tokens` tokens, those of `images` pictures among them, all text learnt.

    Raises:
        TrainConfigError: the pictures leave no room for text.
    """
    visual = images * config.tokens_per_image
    if visual >= tokens:
        raise TrainConfigError(
            f"{images} picture(s) of {config.tokens_per_image} tokens leave no room for text in a sample of "
            f"{tokens} tokens"
        )
    picture = torch.full((visual,), config.image_token_id, dtype=torch.int64)
    ids = torch.cat((picture, torch.zeros(tokens - visual, dtype=torch.int64))).repeat(samples)
    layout = packed_layout(ids, (tokens,) * samples, config.image_token_id)
    side = config.vision.image_size
    return Batch(
        input_ids=ids,
        layout=layout,
        targets=Targets(rows=layout.text_rows, ids=ids[layout.text_rows]),
        pixel_values=torch.empty(samples * images, config.vision.num_channels, side, side, device="meta"),
        keys=("plan:sample",) * samples,
    )


def trace_micro_batch(objective: Objective, config: TrainConfig, batch: Batch) -> Trace:
    """Run the last micro-batch of a step that is not the first and count."""
    with _counted(objective, config, batch) as (counts, empty):
        before = counts.live
        losses = objective(empty)
        activations = counts.live - before
        if losses.requires_grad:
            losses.sum().backward()
    held = [local_part(p) for p in objective.parameters()]
    learns = [local_part(p) for p in objective.parameters() if p.requires_grad]
    parameters, learnt = _bytes(held), _bytes(learns)
    optimizer = 2 * learnt + 4 * len(learns)  # two moments, and a count of steps
    return Trace(
        parameters=parameters,
        gradients=learnt,
        optimizer=optimizer,
        activations=activations,
        peak=max(counts.peak, parameters + learnt) + optimizer,
        gathered=counts.received[GATHER],
        reduced=counts.received[SCATTER],
        copies=counts.received[COPIES] * _ring(config.parallel.replicate),
        tensor=counts.received[TENSOR] * _ring(config.parallel.tensor),
    )


def trace_activations(objective: Objective, config: TrainConfig, batch: Batch) -> tuple[int, dict[str, int]]:
    """Run a forward pass and return what it keeps: in all, and the last layer of each part."""
    backbone, kept = objective.model.model, {}
    last = {
        "vision": backbone.vision_model.encoder.layers[-1],
        "abstractor": backbone.visual_abstractor.encoder.layers[-1],
        "decoder": backbone.layers[-1],
    }
    with _counted(objective, config, batch) as (counts, empty):
        before = counts.live

        def begin(part: str, *_: object) -> None:
            kept[part] = -counts.live

        def end(part: str, *_: object) -> None:
            kept[part] += counts.live

        for part, layer in last.items():  # outermost, so that the layer is not gathered at either
            layer.register_forward_pre_hook(partial(begin, part), prepend=True)
            layer.register_forward_hook(partial(end, part))
        losses = objective(empty)
        return counts.live - before - losses.nbytes, kept


@contextmanager
def _counted(objective: Objective, config: TrainConfig, batch: Batch) -> Iterator[tuple["Counts", Batch]]:
    """Give model and micro-batch tensors without contents, and count what is done with them."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        objective.to_empty(device="cpu")
        if config.accumulation > 1:  # the micro-batches before have left their gradients
            for parameter in objective.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    batch = _without_contents(batch, fake)
    held = [local_part(p) for p in objective.parameters()]
    gradients = [local_part(p.grad) for p in objective.parameters() if p.grad is not None]
    counts = Counts()
    counts.know([*held, *objective.buffers(), *gradients, *_tensors(batch)])
    set_last_micro_batch(objective, True)
    with fake, counts, _fused_norm() if config.device.startswith("cuda") else nullcontext():
        yield counts, batch


class Counts(TorchDispatchMode):
    """Bytes held and received by the operations that run within, on tensors without contents."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.received: Counter[Any] = Counter()
        self.storages: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def know(self, tensors: Sequence[Tensor]) -> None:
        """Count the storages of tensors, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.storages:
                reference = weakref.ref(storage, partial(self._forget, key))
                self._set(key, reference, storage.nbytes())

    def __enter__(self) -> "Counts":
        # FSDP takes and gives the memory of gathered parameters by this method, which is not an operation.
        self.resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> None:
            self.resize(storage, size)
            known = self.storages.get(storage._cdata)
            if known is not None:
                self._set(storage._cdata, known[0], storage.nbytes())

        torch.UntypedStorage.resize_ = resize_and_count  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *arguments: Any) -> None:
        super().__exit__(*arguments)
        torch.UntypedStorage.resize_ = self.resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(kind is not FakeTensor for kind in types):
            return NotImplemented  # a sharded tensor: what it does with its local part comes here by itself
        if func is DEVICE:  # half of all calls
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.know([result])
        elif isinstance(result, list | tuple):
            self.know([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        if func.namespace in ("c10d", "_c10d_functional") and func is not WAIT:
            self.received[func] += _received(func, args)
        return result

    def _set(self, key: int, reference: "weakref.ref[torch.UntypedStorage]", size: int) -> None:
        before = self.storages[key][1] if key in self.storages else 0
        self.storages[key] = (reference, size)
        self.live += size - before
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, _: object) -> None:
        self.live -= self.storages.pop(key)[1]


def _received(func: Any, args: Sequence[Any]) -> int:
    """Bytes that a rank receives, up to the factor of a ring for sums over all."""
    if func in (GATHER, SCATTER):
        return abs(args[0].nbytes - args[1].nbytes)
    if func is COPIES:
        return _bytes(args[0])
    if func is TENSOR:
        return args[0].nbytes
    raise NotImplementedError(f"the plan does not know what {func} exchanges; add it to {__name__}")


def _ring(ranks: int) -> float:
    """How many times its size a rank receives of a tensor that is summed over `ranks` in a ring."""
    return 2 * (ranks - 1) / ranks


@contextmanager
def _fused_norm() -> Iterator[None]:
    """RMSNorm with the allocations of a GPU's kernel."""
    norm = F.rms_norm
    F.rms_norm = lambda x, shape, weight=None, eps=None: _NormShapes.apply(x, weight)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.rms_norm = norm


class _NormShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def _without_contents(batch: Batch, fake: FakeTensorMode) -> Batch:
    """The batch as fake tensors on the CPU; its counts stay."""

    def empty_like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    with fake:
        layout: dict[str, Any] = {
            name: empty_like(t) for name, t in vars(batch.layout).items() if isinstance(t, Tensor)
        }
        return Batch(
            input_ids=empty_like(batch.input_ids),
            layout=replace(batch.layout, **layout),
            targets=Targets(rows=empty_like(batch.targets.rows), ids=empty_like(batch.targets.ids)),
            pixel_values=empty_like(batch.pixel_values),
            keys=batch.keys,
        )


def _tensors(batch: Batch) -> list[Tensor]:
    layout = [tensor for tensor in vars(batch.layout).values() if isinstance(tensor, Tensor)]
    return [batch.input_ids, batch.pixel_values, batch.targets.rows, batch.targets.ids, *layout]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
