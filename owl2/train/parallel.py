"""How the work of a step is split: the only file that names FSDP, DTensor and activation checkpointing.

Every layer is a unit of FSDP2 over the ranks that read different samples; what is left of the model is the
root's unit. Tensor parallelism splits attention heads and FFNs of the decoder (both ways of MAM) and of the
vision encoder (Megatron-LM, arXiv:1909.08053); the rest is computed by all ranks of a sample alike.
Gradients are summed, never averaged: the loss is divided by the targets of the whole step (loop.py).

Ranks call each layer's collectives in the same order only if all of them run the same layers. So a
micro-batch without an image gets one more sample, a blank image from which nothing is learnt.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers the operation that selective checkpointing keeps
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from owl2.data.loader import Batch
from owl2.model import Owl2Config, Owl2Model, Targets, decoder, packed_layout
from owl2.model.attention import attend
from owl2.model.decoder import DecoderLayer
from owl2.model.mam import VISION, Multiway
from owl2.model.vision import VisionLayer
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
"""What selective checkpointing does not compute again."""

Fill = Callable[[nn.Module], None]
"""Gives the parameters of a module their storage and values."""


@dataclass(frozen=True)
class Sharding:
    """Where each part of the model lives."""

    data: DeviceMesh
    """Ranks that read different samples: (shard,) or (replicate, shard)."""
    tensor: DeviceMesh | None
    """Ranks that compute one sample together, if more than one."""
    precision: MixedPrecisionPolicy

    @classmethod
    def over(cls, ranks: Ranks, config: ParallelConfig, device: str, dtype: torch.dtype) -> "Sharding":
        """Arrange the ranks: neighbours share a sample, then a model, and copies are farthest apart."""
        shape = (config.replicate, ranks.data_size // config.replicate, config.tensor)
        mesh = init_device_mesh(device.split(":")[0], shape, mesh_dim_names=("replicate", "shard", "tensor"))
        return cls(
            data=mesh["replicate", "shard"] if config.replicate > 1 else mesh["shard"],
            tensor=mesh["tensor"] if config.tensor > 1 else None,
            precision=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        )


class Objective(nn.Module):
    """What is minimised, as the module whose forward pass is a micro-batch; the root of what is sharded."""

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


def blocks(model: Owl2Model) -> Iterator[nn.Module]:
    """The repeated layers, in the order of the forward pass."""
    yield from model.model.vision_model.encoder.layers
    yield from model.model.visual_abstractor.encoder.layers
    yield from model.model.layers


# -- sharding --------------------------------------------------------------------------------------------


def shard_blocks(model: Owl2Model, sharding: Sharding, fill: Fill) -> None:
    """Bring a model without storage to the ranks, layer by layer; no rank ever holds more than one whole.

    The parameters outside the layers are filled but not sharded yet; `shard_root` does that, once nothing
    about them (the image size) changes any more.

    Raises:
        TrainConfigError: heads or FFN cannot be divided by the ranks.
    """
    if sharding.tensor is not None:
        check_tensor_parallel(model.config, sharding.tensor.size())
    for block in blocks(model):
        if sharding.tensor is not None:
            split_over_tensor_ranks(block, sharding.tensor)
        fill(block)
        fully_shard(block, mesh=sharding.data, mp_policy=sharding.precision)
    fill(model)


def shard_root(objective: Objective, sharding: Sharding) -> None:
    """Shard what the layers left over, and let every gradient be a sum over the ranks."""
    fully_shard(objective, mesh=sharding.data, mp_policy=sharding.precision)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to a factor of 1
    for buffer in objective.buffers():
        buffer.data = buffer.data.to(sharding.precision.param_dtype)


def set_last_micro_batch(objective: Objective, is_last: bool) -> None:
    """Let copies of the model exchange gradients once a step, after its last micro-batch."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_all_reduce(is_last)


def reshard(objective: Objective) -> None:
    """Share out again what a forward pass without a backward pass left whole on every rank.

    Until then the root's parameters are other tensors than those that the optimizer knows.
    """
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_tensor_parallel(config: Owl2Config, size: int) -> None:
    """Raise TrainConfigError where `size` ranks cannot split the layers of a model."""
    parts = {
        "decoder heads": config.decoder.num_attention_heads,
        "decoder key-value heads": config.decoder.num_key_value_heads,
        "decoder FFN": config.decoder.intermediate_size,
        "vision heads": config.vision.num_attention_heads,
        "vision FFN": config.vision.intermediate_size,
    }
    for name, count in parts.items():
        if count % size:
            raise TrainConfigError(f"parallel.tensor {size} does not divide the {count} {name} of the model")


def split_over_tensor_ranks(block: nn.Module, mesh: DeviceMesh) -> None:
    """Give each rank of a sample its heads and its part of the FFN; one sum a sublayer joins them."""
    if isinstance(block, DecoderLayer):
        plan: dict[str, ParallelStyle] = {
            "self_attn.q_proj": ColwiseParallel(),
            "self_attn.o_proj": RowwiseParallel(),
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.up_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(),
        }
        for name in ("k_proj", "v_proj"):
            is_multiway = isinstance(getattr(block.self_attn, name), Multiway)
            for way in (".multiway.0", ".multiway.1") if is_multiway else ("",):
                plan[f"self_attn.{name}{way}"] = ColwiseParallel()
        parallelize_module(block, mesh, plan)
    elif isinstance(block, VisionLayer):
        plan = {
            "self_attn.query_key_value": ColwiseParallel(),  # its rows are ordered head by head
            "self_attn.dense": RowwiseParallel(),
            "mlp.fc1": ColwiseParallel(),
            "mlp.fc2": RowwiseParallel(),
        }
        parallelize_module(block, mesh, plan)
        block.self_attn.num_heads //= mesh.size()


@torch.no_grad()
def set_parameter(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, of which this rank may hold only a part."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        value = distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
    parameter.copy_(value)


def gather_whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; a collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# -- layers ----------------------------------------------------------------------------------------------


def rewrite_layers(model: Owl2Model, config: ParallelConfig) -> None:
    """Compile the layers and compute them again in the backward pass, as the configuration says.

    Only `forward` of each layer is replaced, so that parameters keep their names.
    """
    if config.compile:
        # Samples of a packed batch are split by lengths that change from batch to batch: no graph fits two.
        decoder.attend = torch.compiler.disable(attend)
    for block in blocks(model):
        if config.compile:
            block.forward = torch.compile(block.forward, backend=config.compile, dynamic=True)
        if config.activation_checkpointing != "none":
            keep: dict[str, Any] = {}
            if config.activation_checkpointing == "selective":
                keep = {"context_fn": partial(create_selective_checkpoint_contexts, keep_products)}
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, **keep)


def keep_products(_: object, operation: object, *__: object, **___: object) -> CheckpointPolicy:
    """What selective checkpointing does with the outcome of an operation."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


# -- micro-batches ---------------------------------------------------------------------------------------


def with_image(batch: Batch | None, config: Owl2Config) -> Batch:
    """A micro-batch in which every layer has work: a blank image is added where there is none.

    It is a sample of its own, seen by no other and without targets: its gradients are exactly zero.
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
    """Forget the zeros of a step in which no rank had an image, so that they change nothing.

    Without gradient the optimizer leaves a parameter and its moments alone, as in a run of one process.
    """
    visual: list[nn.Module] = [model.model.vision_model, model.model.visual_abstractor]
    visual += [module.multiway[VISION] for module in model.modules() if isinstance(module, Multiway)]
    for module in visual:
        for parameter in module.parameters():
            parameter.grad = None


# -- gradients -------------------------------------------------------------------------------------------


@torch.no_grad()
def finish_gradients(
    parameters: Iterable[nn.Parameter], num_targets: float, max_norm: float, ranks: Ranks
) -> float:
    """Turn sums of gradients into means a target, clip them, and return the norm before clipping.

    Parameters may be whole or sharded over different meshes. Each rank adds up the squares of what it holds,
    divided by the number of ranks that hold the same, so one sum over all of them is the norm.
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
    """The part of a tensor that this rank holds; changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_shards(tensor: Tensor) -> int:
    """Into how many different parts a tensor is split."""
    if not isinstance(tensor, DTensor):
        return 1
    shards = 1
    for dimension, placement in enumerate(tensor.placements):
        if not isinstance(placement, Replicate):
            shards *= tensor.device_mesh.size(dimension)
    return shards
