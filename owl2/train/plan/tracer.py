"""Tracer: one micro-batch on one rank of many, in a process that has neither the ranks nor the memory.

Model, sharding and layers are those of a run (parallel.py). The process group is fake, so exchanges return at
once, and so are the tensors: they have shapes but no contents (`FakeTensorMode`). Everything that a real step
would allocate, free and exchange still is, and is counted (memory.py). In a stack of like layers only four
are run; the third counts for all that are left out (`shorten`).

On a GPU, RMSNorm is one kernel that keeps its input; on a CPU it consists of several operations whose results
are all kept. So for a GPU it is replaced by an operation that allocates what that kernel does.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from owl2.checkpoint.tensors import dtype_of
from owl2.data.loader import Batch
from owl2.data.packing import Size
from owl2.model import Owl2Config, Owl2Model, Targets, build, packed_layout
from owl2.train.adapters.lora import add_adapters, check_rules
from owl2.train.adapters.qlora import coded_layers, quantize_bases
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.objectives import OBJECTIVES
from owl2.train.parallel import (
    Objective,
    Sharding,
    layers_of,
    local_part,
    rewrite_layers,
    set_last_micro_batch,
    shard_layers,
    shard_root,
)
from owl2.train.plan.memory import COPIES, GATHER, SCATTER, TENSOR, Counts, counting
from owl2.train.ranks import ALONE, Ranks
from owl2.train.rules import apply_freeze, assign_rules

Times = Mapping[nn.Module, int]
"""Number of layers of the model that a remaining layer counts for; 1 for those not in it."""


@dataclass(frozen=True)
class Trace:
    """Bytes that one rank holds and receives from others."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    """Moving average of the weights, if the stage has one."""
    activations: int
    """What the forward pass of a micro-batch keeps for its backward pass, including gathered parameters."""
    peak: int
    """The most that is held at once in a step."""
    gathered: float
    """Parameters received from other ranks, per micro-batch."""
    reduced: float
    """Gradients received from other ranks, per micro-batch."""
    copies: float
    """Gradients received from other copies of the model, once a step."""
    tensor: float
    """Sums of tensor parallelism, per micro-batch."""

    @property
    def temporary(self) -> int:
        """The rest of the peak: gathered layers, logits, layers computed again."""
        return max(0, self.peak - self.parameters - self.saved - self.activations)

    @property
    def saved(self) -> int:
        """A rank's part of a saved state: trainable parameters (as large as gradients), moments, average."""
        return self.gradients + self.optimizer + self.average

    def received(self, micro_batches: int) -> float:
        """Everything that is received in a step."""
        return micro_batches * (self.gathered + self.reduced + self.tensor) + self.copies


@contextmanager
def fake_ranks(config: TrainConfig, size: int) -> Iterator[Ranks]:
    """Act as the first of `size` ranks, none of which exists."""
    if size == 1 and config.dtype == "float32":  # as in a run: no process group
        yield ALONE
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield Ranks(0, size, config.parallel.tensor, dist.HashStore())
    finally:
        dist.destroy_process_group()


def without_storage(config: TrainConfig, model_config: Owl2Config) -> Owl2Model:
    """Build the model of a stage with its adapters; parameters are frozen as the rules say.

    Raises:
        RuleError, TrainConfigError: rules or adapters that do not fit the model.
    """
    model = build(model_config, device="meta")
    if config.lora is not None:
        add_adapters(model, config.lora)
        if config.lora.base_dtype == "nf4":
            quantize_bases(model)
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    if config.lora is not None:
        check_rules(assignments)
    apply_freeze(model, assignments)
    return model


def shorten(model: Owl2Model) -> Times:
    """Keep four layers of every run of like layers in a stack: the first three and the last.

    The third counts for itself and those left out. The first two cannot: FSDP gathers layers ahead of their
    backward pass, two below the current one, so a layer's step looks like that of its neighbours only if two
    layers of its kind are below it. The last cannot either: what follows it is different.
    """
    times: dict[nn.Module, int] = {}
    for stack in model.layer_stacks():
        kept: list[nn.Module] = []
        for _, alike in groupby(stack, _kind):
            layers = list(alike)
            left_out = len(layers) - 4
            if left_out > 0:
                layers = [*layers[:3], layers[-1]]
                times[layers[2]] = 1 + left_out
            kept += layers
        del stack[:]
        stack.extend(kept)
    return times


def _kind(layer: nn.Module) -> Hashable:
    """Equal for layers that allocate and exchange the same."""
    return tuple((name, p.shape, p.requires_grad) for name, p in layer.named_parameters())


def shard_without_storage(config: TrainConfig, model: Owl2Model, ranks: Ranks) -> Objective:
    """Shard a model over the ranks as `prepare.load_stage` does, but without values.

    Raises:
        TrainConfigError: the ranks cannot split it.
    """
    is_static = bool(config.parallel.compile)
    sharding = None
    if ranks.store is not None:
        sharding = Sharding.over(ranks, config.parallel, "cpu", dtype_of(config.dtype))
        shard_layers(model, sharding, fill=lambda _: None)
    rewrite_layers(model, replace(config.parallel, compile=None))  # compiled code allocates less
    objective = Objective(model, OBJECTIVES[config.objective], is_static=is_static)
    if sharding is not None:
        shard_root(objective, sharding)
    return objective


def full_batch(config: Owl2Config, samples: Sequence[Size]) -> Batch:
    """A micro-batch of samples of these sizes, each with its images first; all text tokens are targets.

    Raises:
        TrainConfigError: the images leave no room for text.
    """
    ids = []
    for tokens, images in samples:
        visual = images * config.tokens_per_image
        if visual >= tokens:
            raise TrainConfigError(
                f"{images} image(s) of {config.tokens_per_image} tokens leave no room for text in a sample "
                f"of {tokens} tokens"
            )
        ids += [config.image_token_id] * visual + [0] * (tokens - visual)
    input_ids = torch.tensor(ids, dtype=torch.int64)
    layout = packed_layout(input_ids, [size.tokens for size in samples], config.image_token_id)
    side, num_images = config.vision.image_size, sum(size.images for size in samples)
    return Batch(
        input_ids=input_ids,
        layout=layout,
        targets=Targets(rows=layout.text_rows, ids=input_ids[layout.text_rows]),
        pixel_values=torch.empty(num_images, config.vision.num_channels, side, side, device="meta"),
        keys=("plan:sample",) * len(samples),
        num_samples=len(samples),
    )


def trace_micro_batch(objective: Objective, config: TrainConfig, batch: Batch, times: Times) -> Trace:
    """Run the last micro-batch of a step, which is not the run's first step, and count.

    Args:
        objective: has no storage; see `shard_without_storage`.
        config: the stage.
        batch: see `full_batch`.
        times: see `shorten`; if empty, every layer counts once.
    """
    with _counted(objective, config, batch, times) as (counts, empty):
        before = counts.live
        losses = objective(empty)
        activations = counts.live - before
        if losses.requires_grad:
            losses.sum().backward()
    alike = {id(p): n for layer, n in times.items() for p in layer.parameters()}
    held = [(local_part(p).nbytes, alike.get(id(p), 1), p.requires_grad) for p in objective.parameters()]
    parameters = sum(size * n for size, n, _ in held) + _coded_bytes(objective.model, times)
    gradients = sum(size * n for size, n, is_trainable in held if is_trainable)
    counters = sum(4 * n for _, n, is_trainable in held if is_trainable)  # the optimizer's count of steps
    optimizer = 2 * gradients + counters  # two moments
    average = gradients if config.ema is not None else 0
    return Trace(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        activations=activations,
        peak=max(counts.peak, parameters + gradients) + optimizer + average,
        gathered=counts.received[GATHER],
        reduced=counts.received[SCATTER],
        copies=counts.received[COPIES] * _ring(config.parallel.replicate),
        tensor=counts.received[TENSOR] * _ring(config.parallel.tensor),
    )


def _coded_bytes(model: Owl2Model, times: Times) -> int:
    """Bytes of four-bit matrices; each rank holds all of them."""
    left_out = sum((n - 1) * code.nbytes for layer, n in times.items() for code in coded_layers(layer))
    return left_out + sum(code.nbytes for code in coded_layers(model))


def _end_sections(model: Owl2Model, counts: Counts, times: Times) -> None:
    """Make the forward pass and the backward pass of every layer a section of the step."""
    layers = list(layers_of(model))
    after = dict(pairwise(layers))

    def end(layer: nn.Module, _: object, output: Tensor) -> None:
        counts.end_section(times.get(layer, 1))
        if output.requires_grad:  # its gradient is complete when the backward pass of the next layer ends
            next_times = times.get(after.get(layer, model), 1)
            output.register_hook(lambda _: counts.end_section(next_times))

    for layer in layers:
        layer.register_forward_hook(end)


@contextmanager
def _counted(
    objective: Objective, config: TrainConfig, batch: Batch, times: Times
) -> Iterator[tuple[Counts, Batch]]:
    """Give model and micro-batch fake tensors, and count what is done with them inside the block."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        objective.to_empty(device="cpu")
        # Gradients of the step's earlier micro-batches; with packs any step may have more than one.
        if config.accumulation > 1 or config.data.pack_tokens is not None:
            for parameter in objective.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    batch = _without_contents(batch, fake)
    held = [local_part(p) for p in objective.parameters()]
    gradients = [local_part(p.grad) for p in objective.parameters() if p.grad is not None]
    counts = Counts()
    counts.add([*held, *objective.buffers(), *gradients, *_tensors(batch)])
    for layer, n in times.items():
        tensors = [tensor for p in layer.parameters() for tensor in (p, p.grad) if tensor is not None]
        counts.live += (n - 1) * sum(local_part(tensor).untyped_storage().nbytes() for tensor in tensors)
    counts.live += _coded_bytes(objective.model, times)
    counts.end_section()
    _end_sections(objective.model, counts, times)
    set_last_micro_batch(objective, True)
    with fake, counting(counts), _fused_norm() if config.device.startswith("cuda") else nullcontext():
        yield counts, batch


def _ring(ranks: int) -> float:
    """Bytes that a rank receives per byte of a tensor that `ranks` ranks sum in a ring."""
    return 2 * (ranks - 1) / ranks


@contextmanager
def _fused_norm() -> Iterator[None]:
    """Make RMSNorm allocate what a GPU's kernel does.

    `F.rms_norm` is replaced meanwhile. A `TorchFunctionMode` would not do: PyTorch leaves it for `backward`,
    and so for layers that are computed again.
    """
    norm = F.rms_norm
    F.rms_norm = lambda x, shape, weight=None, eps=None: _NormShapes.apply(x, weight)  # type: ignore[assignment]
    try:
        yield
    finally:
        F.rms_norm = norm


class _NormShapes(torch.autograd.Function):
    """Keeps the input and a float32 scale for each token; the results have no values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def _without_contents(batch: Batch, fake: FakeTensorMode) -> Batch:
    """The batch with fake tensors on the CPU; its counts stay the same."""

    def empty_like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    with fake:
        layout: dict[str, Any] = {
            name: empty_like(t) for name, t in vars(batch.layout).items() if isinstance(t, Tensor)
        }
        return replace(
            batch,
            input_ids=empty_like(batch.input_ids),
            layout=replace(batch.layout, **layout),
            targets=Targets(rows=empty_like(batch.targets.rows), ids=empty_like(batch.targets.ids)),
            pixel_values=empty_like(batch.pixel_values),
        )


def _tensors(batch: Batch) -> list[Tensor]:
    layout = [tensor for tensor in vars(batch.layout).values() if isinstance(tensor, Tensor)]
    return [batch.input_ids, batch.pixel_values, batch.targets.rows, batch.targets.ids, *layout]
