"""Frozen matrices in four bits, so that adapters train on a small GPU (QLoRA, arXiv:2305.14314).

`bitsandbytes` turns a matrix into NF4 codes with scales that are coded in turn, and back; on CPUs as well.
What is here is the layer around them: its matrix exists during a product, forward or backward, and is kept
by neither. The codes are no parameters and no buffers, so nothing trains, shards, casts or saves them. Every
rank holds them whole, and a run that goes on makes them again from its checkpoint, whose fingerprint tells
whether it is still the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.checkpoint.fingerprint import fingerprint
from owl2.train.config import TrainConfigError

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one."""


def import_bitsandbytes() -> Any:
    """Return the package's functions, or raise TrainConfigError if it is missing."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise TrainConfigError(
            f"lora.base_dtype nf4 needs the package bitsandbytes ({error}): pip install 'owl2[qlora]'"
        ) from error
    return bitsandbytes.functional


class FourBitLinear(nn.Module):
    """A frozen linear layer that keeps its matrix as NF4 codes, where that matrix was; none on `meta`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        self.is_planned = linear.weight.is_meta
        if not self.is_planned:
            self.functions = import_bitsandbytes()
            self.fingerprint = fingerprint(linear.weight)
            self.codes, self.scales = self.functions.quantize_4bit(
                linear.weight.detach(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
            )

    @property
    def num_weights(self) -> int:
        """Of the matrix."""
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, the tables of 16 and 256 values left out."""
        scales = -(-self.num_weights // BLOCK)
        return -(-self.num_weights // 2) + scales + 4 * -(-scales // NESTED_BLOCK)

    def matrix(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The matrix (out, in) that the codes stand for."""
        if self.is_planned:
            return torch.empty(self.out_features, self.in_features, dtype=dtype, device=device)
        self.scales.dtype = dtype
        whole: Tensor = self.functions.dequantize_4bit(self.codes, self.scales)
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        product: Tensor = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias

    @torch.no_grad()
    def restored(self) -> nn.Linear:
        """An ordinary layer with this matrix, in float32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.matrix(torch.float32, self.codes.device), requires_grad=False)
        linear.bias = self.bias
        return linear


class _Product(torch.autograd.Function):
    """x @ matrix.T without keeping the matrix; the codes get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.matrix(x.dtype, x.device))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.matrix(gradient.dtype, gradient.device), None


def quantize_bases(part: nn.Module) -> None:
    """Put codes in the place of every matrix of the part that has an adapter beside it.

    Raises:
        TrainConfigError: `bitsandbytes` is missing.
    """
    from peft.tuners.lora import LoraLayer

    for layer in list(part.modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, nn.Linear):
            layer.base_layer = FourBitLinear(layer.base_layer)


def coded_layers(part: nn.Module) -> list[FourBitLinear]:
    """The layers of a part that have codes."""
    return [module for module in part.modules() if isinstance(module, FourBitLinear)]
