"""What a step costs in floating-point operations, counted from what its batch holds.

The parts of the model say what their forward pass costs: images pay for the vision encoder and the
abstractor, tokens for the decoder, targets for the head. (Parameters times tokens would charge the vision
encoder for every word.) Two operations a multiply-add; matrix products and attention only. Utilisation is
relative to the device's dense bfloat16 peak.
"""

import resource
from functools import cached_property
from typing import cast

import torch
from torch import nn

from owl2.model import Owl2Model, Work
from owl2.train.adapters.qlora import coded_layers

PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165, "V100": 125}
"""Part of a device's name -> its dense bfloat16 peak (float16 for V100), from the vendor's data sheets."""


class StepCost:
    """Operations of training steps of a model with these frozen parameters.

    A backward pass costs one forward pass for the gradients that flow on to the input, and one for those of
    trainable weights; below the lowest trainable part there is none.
    """

    def __init__(self, model: Owl2Model, num_devices: int):
        self.num_devices = num_devices
        self.parts = model.costed_parts()
        shares = [_trainable_share(cast(nn.Module, part)) for part in self.parts]
        self.factors = [2 + share if any(shares[: i + 1]) else 1 for i, share in enumerate(shares)]
        """Forward passes that a training step of each part is worth."""
        self.device = model.device

    @cached_property
    def peak(self) -> float | None:
        """Peak of one device in operations per second, if it is known."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

    def flops(self, work: Work) -> float:
        """Operations of a step."""
        return sum(factor * part.flops(work) for factor, part in zip(self.factors, self.parts, strict=True))

    def rates(self, work: Work, seconds: float) -> dict[str, float]:
        """`tflops` per second and device, and `mfu`, their share of the peak, if that is known."""
        rate = self.flops(work) / seconds / self.num_devices
        return {"tflops": rate / 1e12, **({"mfu": rate / self.peak} if self.peak else {})}


def _trainable_share(part: nn.Module) -> float:
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    coded = sum(layer.num_weights for layer in coded_layers(part))
    return trainable / (coded + sum(p.numel() for p in part.parameters()))


def peak_memory(device: str) -> int:
    """Most bytes that this process has held so far: on its GPU, or in main memory if it runs on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
