"""What a module of the model can tell the rest of the program, found by having the method.

Nothing lists classes. A new part has those methods of this file that it needs, is built in owl2.py, and is
then initialised, loaded, sharded, compiled, planned and trained like the others. Layers that repeat are kept
in a `LayerStack`; what is outside of one is never split.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import nn

from owl2.model.config import VisionConfig


class LayerStack(nn.ModuleList):
    """Layers that run one after the other; each is sharded, compiled and recomputed by itself."""


@runtime_checkable
class ComputesBuffers(Protocol):
    """Has buffers that no checkpoint needs to hold. Every module with buffers must be one."""

    def reset_buffers(self) -> None:
        """Fill the module's own buffers; parameters and other modules may not have values yet."""


@runtime_checkable
class FollowsImageSize(Protocol):
    """Holds something whose size or values depend on the resolution."""

    def set_vision(self, vision: VisionConfig) -> None:
        """Adapt to another image size. Buffers are reset afterwards."""


@runtime_checkable
class HasVisualParameters(Protocol):
    """Has parameters that no text reaches: without an image they have no gradient."""

    def visual_parameters(self) -> Iterator[nn.Parameter]: ...


class Split(NamedTuple):
    """How ranks that compute one sample together divide a linear layer."""

    by: Literal["columns", "rows"]
    """`columns`: of the output; `rows`: of the input, after which one sum joins the ranks."""
    units: int
    """Heads or channels, which stay whole: the number of ranks must divide it."""


@runtime_checkable
class HasTensorParallelPlan(Protocol):
    """Can be divided within the layer (Megatron-LM, arXiv:1909.08053)."""

    def tensor_parallel_plan(self) -> dict[str, Split]:
        """Name of a submodule, all of whose linear layers are divided -> how."""
        ...


@runtime_checkable
class HasUncompiled(Protocol):
    """Has methods that stay outside of compiled graphs."""

    uncompiled: tuple[str, ...]


@runtime_checkable
class HasLayerGroups(Protocol):
    """Can learn at a rate that decays from its output to its input."""

    def layer_groups(self) -> list[list[str]]:
        """Names of its parameters, group by group from input to output."""
        ...


@dataclass(frozen=True)
class Work:
    """What a batch, or the samples of a training step, hold."""

    images: float
    tokens: float
    targets: float
    squares: float
    """Sum over samples of the square of their tokens: attention's share."""


@runtime_checkable
class CostsFlops(Protocol):
    """A part whose forward pass is counted; two operations a multiply-add."""

    def flops(self, work: Work) -> float:
        """Floating-point operations of a forward pass: matrix products and attention."""
        ...


def reset_buffers(modules: Iterable[nn.Module]) -> None:
    """Fill the buffers of these modules, each by its own `reset_buffers()`.

    Raises:
        TypeError: a module has buffers but no such method, so they would stay uninitialised memory.
    """
    for module in modules:
        if isinstance(module, ComputesBuffers):
            module.reset_buffers()
        elif names := [name for name, _ in module.named_buffers(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} has the buffers {', '.join(names)} but no method reset_buffers() "
                f"that fills them"
            )


def tensor_parallel_plan(layer: nn.Module) -> dict[str, Split]:
    """Name of each linear layer inside `layer` that can be divided -> how."""
    plan = {}
    for prefix, module in layer.named_modules():
        if isinstance(module, HasTensorParallelPlan):
            for name, split in module.tensor_parallel_plan().items():
                path = f"{prefix}.{name}".lstrip(".")
                for inner, linear in layer.get_submodule(path).named_modules(prefix=path):
                    if isinstance(linear, nn.Linear):
                        plan[inner] = split
    return plan
