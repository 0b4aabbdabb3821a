"""What a step costs in floating-point operations, counted from what its batch holds.

Images cost what the vision encoder and the abstractor do, tokens what the decoder does, targets what the
head does: a count of parameters times tokens would bill the vision encoder for every word. Two operations a
multiply-add; matrix products and attention only. Utilisation is against the device's dense bfloat16 peak.
"""

import resource
from dataclasses import dataclass
from functools import cached_property

import torch

from owl2.model import Owl2Config, Owl2Model
from owl2.train.adapters.qlora import coded_layers

PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165, "V100": 125}
"""Part of a device's name -> its dense bfloat16 peak (float16 for V100), from the vendor's data sheets."""


@dataclass(frozen=True)
class Work:
    """What the samples of a step hold, over all ranks."""

    images: float
    tokens: float
    targets: float
    squares: float
    """Sum over samples of the square of their tokens: attention's share."""


def vision_flops(config: Owl2Config) -> float:
    """Forward pass of the vision encoder for one image."""
    vision = config.vision
    width, patches = vision.hidden_size, vision.grid_size**2
    tokens = patches + vision.use_cls_token
    layer = tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * tokens**2 * width
    embedding = patches * vision.num_channels * vision.patch_size**2 * width
    return 2.0 * (embedding + vision.num_hidden_layers * layer)


def abstractor_flops(config: Owl2Config) -> float:
    """Forward pass of the abstractor for one image."""
    abstractor, width = config.abstractor, config.abstractor.hidden_size
    queries = abstractor.num_learnable_queries
    keys = queries + config.vision.grid_size**2 + config.vision.use_cls_token
    projections = 2 * queries * width**2 + 2 * keys * width**2
    ffn = 3 * queries * width * abstractor.intermediate_size
    layer = projections + 2 * queries * keys * width + ffn
    return 2.0 * (abstractor.num_hidden_layers * layer + queries * width * config.decoder.hidden_size)


def decoder_flops(config: Owl2Config, work: Work) -> float:
    """Forward pass of the decoder and its head; each token takes one way of MAM, each sees half a square.

    Behind the last layer's attention only targets go on.
    """
    decoder = config.decoder
    width, heads = decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim
    key_values = 2 * decoder.num_key_value_heads * decoder.head_dim
    before, behind = width * (heads + key_values), width * (heads + 3 * decoder.intermediate_size)
    layers = decoder.num_hidden_layers * (work.tokens * (before + behind) + work.squares * heads)
    saved = (work.tokens - work.targets) * behind
    return 2.0 * (layers - saved + work.targets * width * decoder.vocab_size)


class StepCost:
    """Operations of training steps of a model with these frozen parameters.

    A backward pass costs one forward pass for what goes on to the input and one for the weights that learn;
    below the lowest part that learns there is none.
    """

    def __init__(self, model: Owl2Model, num_devices: int):
        self.config = model.config
        self.num_devices = num_devices
        backbone = model.model
        parts = [backbone.vision_model, backbone.visual_abstractor, backbone.layers]
        shares = []
        for part in parts:
            learns = sum(p.numel() for p in part.parameters() if p.requires_grad)
            coded = sum(layer.num_weights for layer in coded_layers(part))
            shares.append(learns / (coded + sum(p.numel() for p in part.parameters())))
        self.factors = [2 + share if any(shares[: i + 1]) else 1 for i, share in enumerate(shares)]
        """Forward passes that a training step of vision encoder, abstractor and decoder is worth."""
        self.device = model.device

    @cached_property
    def peak(self) -> float | None:
        """Peak of one device in operations a second, if it is known."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)

    def flops(self, work: Work) -> float:
        """Operations of a step."""
        vision, abstractor, decoder = self.factors
        images = vision * vision_flops(self.config) + abstractor * abstractor_flops(self.config)
        return work.images * images + decoder * decoder_flops(self.config, work)

    def rates(self, work: Work, seconds: float) -> dict[str, float]:
        """`tflops` a second and device, and `mfu`, their share of the peak, where that is known."""
        rate = self.flops(work) / seconds / self.num_devices
        return {"tflops": rate / 1e12, **({"mfu": rate / self.peak} if self.peak else {})}


def peak_memory(device: str) -> int:
    """Most bytes that this process has held so far: on its GPU, or on a CPU of main memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
