"""QLoRA: frozen matrices in four bits, so that adapters train on a small GPU (arXiv:2305.14314).

`bitsandbytes` turns a matrix into NF4 codes with quantised scales, and back; on CPUs as well. The layer here
restores its matrix for each product, forward or backward, and keeps it for neither. The codes are neither
parameters nor buffers, so nothing trains, shards, casts or saves them. Every rank holds all of them, and a
resumed run makes them again from its starting checkpoint, whose fingerprint tells whether it is the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.checkpoint.fingerprint import fingerprint
from owl2.train.config import TrainConfigError

BLOCK, NESTED_BLOCK = 64, 256
"""Weights per scale, and scales per scale of the second level."""


def import_bitsandbytes() -> Any:
    """Return the package's functions; TrainConfigError if it is missing."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise TrainConfigError(
            f"lora.base_dtype nf4 needs the package bitsandbytes ({error}): pip install 'owl2[qlora]'"
        ) from error
    return bitsandbytes.functional


def base_fingerprint(values: Tensor) -> int:
    """The fingerprint of values rounded to bfloat16, the same for a float32 model and its bfloat16 copy."""
    return fingerprint(values.detach().to(torch.bfloat16).float())


class FourBitLinear(nn.Module):
    """A frozen linear layer whose matrix is kept as NF4 codes on the same device; without codes on `meta`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        self.is_planned = linear.weight.is_meta
        if not self.is_planned:
            self.functions = import_bitsandbytes()
            self.fingerprint = fingerprint(linear.weight)
            self.base_fingerprint = base_fingerprint(linear.weight)
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
        """The matrix (out, in), restored from the codes."""
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
    """Replace every matrix of the part that has an adapter by its codes.

    Raises:
        TrainConfigError: `bitsandbytes` is missing.
    """
    from peft.tuners.lora import LoraLayer

    for layer in list(part.modules()):
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, nn.Linear):
            layer.base_layer = FourBitLinear(layer.base_layer)


def coded_layers(part: nn.Module) -> list[FourBitLinear]:
    """The layers of a part that have codes instead of a matrix."""
    return [module for module in part.modules() if isinstance(module, FourBitLinear)]
