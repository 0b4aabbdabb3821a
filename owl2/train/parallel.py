"""Parallel training: the only file that names FSDP, DTensor and activation checkpointing.

Every layer is a unit of FSDP2 over the ranks that read different samples; the rest of the model is the root's
unit. Tensor parallelism splits the linear layers whose module has a plan (`owl2/model/parts.py`): heads and
FFNs of decoder and vision encoder. Everything else is computed by all ranks of a sample alike. Gradients are
summed, never averaged: the loss is divided by the targets of the whole step (loop.py).

Ranks call each layer's collectives in the same order only if all of them run the same layers. So a
micro-batch without an image gets one more sample, a blank image without targets.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers the operation that selective checkpointing keeps
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from owl2.data.loader import Batch
from owl2.model import Owl2Config, Owl2Model, Targets, packed_layout
from owl2.model.parts import HasUncompiled, tensor_parallel_plan
from owl2.train.config import ParallelConfig, TrainConfigError
from owl2.train.ranks import Ranks

KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.torch_attn._varlen_attn.default,  # of packed tokens on a GPU
)
"""Operations whose results selective checkpointing keeps; it computes the others again."""

STYLES = {"columns": ColwiseParallel, "rows": RowwiseParallel}

Fill = Callable[[nn.Module], None]
"""Allocates the parameters of a module and gives them their values."""


@dataclass(frozen=True)
class Sharding:
    """Which ranks hold which part of the model."""

    data: DeviceMesh
    """Ranks that read different samples: (shard,) or (replicate, shard)."""
    tensor: DeviceMesh | None
    """Ranks that compute one sample together, if more than one."""
    precision: MixedPrecisionPolicy

    @classmethod
    def over(cls, ranks: Ranks, config: ParallelConfig, device: str, dtype: torch.dtype) -> "Sharding":
        """Arrange the ranks: neighbours share a sample, the next a model; copies of it are farthest apart."""
        shape = (config.replicate, ranks.data_size // config.replicate, config.tensor)
        mesh = init_device_mesh(device.split(":")[0], shape, mesh_dim_names=("replicate", "shard", "tensor"))
        return cls(
            data=mesh["replicate", "shard"] if config.replicate > 1 else mesh["shard"],
            tensor=mesh["tensor"] if config.tensor > 1 else None,
            precision=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        )


class Objective(nn.Module):
    """The objective as a module: its forward pass is a micro-batch, and it is the root of what is sharded."""

    def __init__(self, model: Owl2Model, function: Callable[[Owl2Model, Batch], Tensor], is_static: bool):
        super().__init__()
        self.model = model
        self.function = function
        self.is_static = is_static

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of each target of a micro-batch (L,)."""
        if self.is_static:
            batch = replace(batch, layout=replace(batch.layout, is_static=True))
        return self.function(self.model, batch)


def layers_of(model: Owl2Model) -> Iterator[nn.Module]:
    """The repeated layers, in the order of the forward pass."""
    for stack in model.layer_stacks():
        yield from stack


# -- sharding --------------------------------------------------------------------------------------------


def shard_layers(model: Owl2Model, sharding: Sharding, fill: Fill) -> None:
    """Distribute a model without storage, layer by layer; no rank ever holds more than one whole layer.

    The parameters outside the layers are filled but not sharded yet; `shard_root` does that, after the last
    change to them (the image size).

    Raises:
        TrainConfigError: heads or FFN channels cannot be divided by the ranks.
    """
    if sharding.tensor is not None:
        check_tensor_parallel(model, sharding.tensor.size())
    for layer in layers_of(model):
        if sharding.tensor is not None:
            for name, split in tensor_parallel_plan(layer).items():
                parallelize_module(layer.get_submodule(name), sharding.tensor, STYLES[split.by]())
        fill(layer)
        fully_shard(layer, mesh=sharding.data, mp_policy=sharding.precision)
    fill(model)


def shard_root(objective: Objective, sharding: Sharding) -> None:
    """Shard what is outside the layers, and make every gradient a sum over the ranks."""
    fully_shard(objective, mesh=sharding.data, mp_policy=sharding.precision)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the only factor of 1 that gloo has
    for buffer in objective.buffers():
        buffer.data = buffer.data.to(sharding.precision.param_dtype)


def set_last_micro_batch(objective: Objective, is_last: bool) -> None:
    """Let copies of the model exchange gradients only once a step, after its last micro-batch."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_all_reduce(is_last)


def reshard(objective: Objective) -> None:
    """Shard again what a forward pass without a backward pass left whole on every rank.

    Until then the root's parameters are not the tensors that the optimizer knows.
    """
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def inference(objective: Objective) -> Iterator[None]:
    """Let the model be called part by part, as generation does; on every rank, for the same inputs.

    The layers gather themselves; what is outside of them is gathered here. Nothing is compiled for the shapes
    of generation.
    """
    if isinstance(objective, FSDPModule):
        objective.unshard()
    try:
        with torch.compiler.set_stance("force_eager") if objective.is_static else nullcontext():
            yield
    finally:
        reshard(objective)


def check_tensor_parallel(model: Owl2Model, size: int) -> None:
    """Raise TrainConfigError where `size` ranks cannot split the layers of a model."""
    for layer in layers_of(model):
        for name, split in tensor_parallel_plan(layer).items():
            if split.units % size:
                raise TrainConfigError(
                    f"parallel.tensor {size} does not divide the {split.units} heads or channels of {name} "
                    f"({type(layer).__name__}); take a divisor of {most_tensor_ranks(model)}"
                )


def most_tensor_ranks(model: Owl2Model) -> int:
    """The largest number of ranks that can split the layers of a model; its divisors can as well."""
    plans = [tensor_parallel_plan(layer) for layer in layers_of(model)]
    return math.gcd(*(split.units for plan in plans for split in plan.values()))


@torch.no_grad()
def set_parameter(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter; this rank may hold only a part of it."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        value = distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
    parameter.copy_(value)


def gather_whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; a collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# -- layers ----------------------------------------------------------------------------------------------


def rewrite_layers(model: Owl2Model, config: ParallelConfig) -> None:
    """Compile the layers, and compute them again in the backward pass, as the configuration says.

    Only `forward` of each layer is replaced, so that parameters keep their names.
    """
    for layer in layers_of(model):
        if config.compile:
            for module in layer.modules():
                if isinstance(module, HasUncompiled):
                    for name in module.uncompiled:
                        setattr(module, name, torch.compiler.disable(getattr(module, name)))
            layer.forward = torch.compile(layer.forward, backend=config.compile, dynamic=True)
        if config.activation_checkpointing != "none":
            keep: dict[str, Any] = {}
            if config.activation_checkpointing == "selective":
                keep = {"context_fn": partial(create_selective_checkpoint_contexts, keep_products)}
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **keep)


def keep_products(_: object, operation: object, *__: object, **___: object) -> CheckpointPolicy:
    """What selective checkpointing does with the result of an operation."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


# -- micro-batches ---------------------------------------------------------------------------------------


def with_image(batch: Batch | None, config: Owl2Config) -> Batch:
    """A micro-batch in which every layer has work: if it has no image, a blank one is added.

    It is a sample of its own, seen by no other and without targets, so its gradients are exactly zero.
    """
    if batch is not None and len(batch.pixel_values):
        return batch
    image = torch.full((config.tokens_per_image,), config.image_token_id, dtype=torch.int64)
    ids = image if batch is None else torch.cat((batch.input_ids, image))
    lengths = (*(() if batch is None else batch.layout.lengths), config.tokens_per_image)
    none = torch.zeros(0, dtype=torch.int64)
    size = config.vision.image_size
    return Batch(
        input_ids=ids,
        layout=packed_layout(ids, lengths, config.image_token_id),
        targets=Targets(rows=none, ids=none) if batch is None else batch.targets,
        pixel_values=torch.zeros(1, config.vision.num_channels, size, size),
        keys=() if batch is None else batch.keys,
        num_samples=0 if batch is None else batch.num_samples,
    )


def drop_blank_gradients(model: Owl2Model) -> None:
    """Drop the zero gradients of a step in which no rank had an image.

    Without a gradient the optimizer leaves a parameter and its moments alone, as in a run of one process.
    """
    for parameter in model.visual_parameters():
        parameter.grad = None


# -- gradients -------------------------------------------------------------------------------------------


@torch.no_grad()
def finish_gradients(
    parameters: Iterable[nn.Parameter], num_targets: float, max_norm: float, ranks: Ranks
) -> float:
    """Divide sums of gradients by the number of targets, clip them, and return the norm before clipping.

    Parameters may be whole or sharded over different meshes. Each rank adds up the squares of what it holds,
    divided by the number of ranks that hold the same, so one sum over all ranks is the squared norm.
    """
    held: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            copies = ranks.size // num_shards(parameter.grad)
            held.setdefault(copies, []).append(local_part(parameter.grad))
    square = sum(torch.nn.utils.get_total_norm(parts).double().item() ** 2 / n for n, parts in held.items())
    norm = ranks.sum([square])[0] ** 0.5 / max(1, num_targets)
    scale = min(1.0, max_norm / (norm + 1e-6)) / max(1, num_targets)
    for parts in held.values():
        torch._foreach_mul_(parts, scale)
    return norm


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: a view of it, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_shards(tensor: Tensor) -> int:
    """The number of different parts that a tensor is split into."""
    if not isinstance(tensor, DTensor):
        return 1
    shards = 1
    for dimension, placement in enumerate(tensor.placements):
        if not isinstance(placement, Replicate):
            shards *= tensor.device_mesh.size(dimension)
    return shards
