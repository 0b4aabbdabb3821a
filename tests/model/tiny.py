"""Tiny models with weights large enough to matter, and samples to feed them.

Initial weights of 0.02 make attention nearly uniform, and a wrong mask would hide below any tolerance.
`lively` chooses them so that every token, branch and position changes the logits by about one.

Shapes: B rows, T slots, I images.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from owl2.model import Layout, Owl2Config, Owl2Model, build, preset
from owl2.model.config import MamConfig

IMAGE = -200
VOCABULARY = 128
NO_MAM = MamConfig(norm=False, key=False, value=False)


def assert_near(
    ours: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-5, name: str = ""
) -> None:
    """Raise AssertionError unless equal up to float32 rounding of values around one."""
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


@torch.no_grad()
def lively(model: Owl2Model, seed: int = 0) -> Owl2Model:
    """Randomise every parameter: matrices keep the variance of their input, vectors stay near their start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        elif "embed_tokens" in name or parameter.shape[0] == 1:
            parameter.normal_(0.0, 0.5, generator=generator)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    return model


def tiny_config(mam: MamConfig | None = None, **decoder: Any) -> Owl2Config:
    """Change the tiny preset's MAM and decoder fields."""
    config = preset("tiny")
    mam = config.mam if mam is None else mam
    return config.replace(decoder=dataclasses.replace(config.decoder, **decoder), mam=mam)


def tiny_model(mam: MamConfig | None = None, **decoder: Any) -> Owl2Model:
    return lively(build(tiny_config(mam, **decoder)))


@dataclass(frozen=True)
class Sample:
    """One unpadded sample: (T,) ids, (T,) labels for its text, (I, 3, 56, 56) images."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor

    @property
    def images(self) -> Tensor | None:
        return self.pixels if len(self.pixels) else None


@dataclass(frozen=True)
class Batch:
    """Padded samples: (B, T) each, and all their images in order."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    pixel_values: Tensor | None


def random_samples(*specs: str, seed: int = 1) -> list[Sample]:
    """A random sample for each spec: "3 I 5" is 3 text tokens, an image, 5 text tokens."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for spec in specs:
        ids: list[int] = []
        for part in spec.split():
            if part == "I":
                ids += [IMAGE] * preset("tiny").tokens_per_image
            else:
                ids += torch.randint(3, VOCABULARY, (int(part),), generator=generator).tolist()
        row = torch.tensor(ids)
        pixels = torch.randn(spec.count("I"), 3, 56, 56, generator=generator)
        samples.append(Sample(row, torch.where(row == IMAGE, -100, row), pixels))
    return samples


def pad(samples: Sequence[Sample], side: str = "right", extra: int = 0, pad_id: int = 0) -> Batch:
    """Put samples into the rows of one batch, as wide as the longest and `extra` slots."""
    width = max(len(s.ids) for s in samples) + extra
    ids = torch.full((len(samples), width), pad_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        slots = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, slots], labels[row, slots], mask[row, slots] = sample.ids, sample.labels, True
    return Batch(ids, mask, labels, images_of(samples))


def images_of(samples: Sequence[Sample]) -> Tensor | None:
    """All images of the samples in order; None if there are none."""
    pixels = torch.cat([s.pixels for s in samples])
    return pixels if len(pixels) else None


def hidden_states(model: Owl2Model, embeddings: Tensor, layout: Layout) -> list[Tensor]:
    """What `transformers` calls so: the embeddings, each layer's output, and the normalised last of them."""
    states: list[Tensor] = []
    layers = [
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        for layer in model.model.layers
    ]
    norm = model.model.norm.register_forward_hook(lambda _, args, output: states.append(output))
    try:
        model.hidden(embeddings, layout)
    finally:
        for hook in (*layers, norm):
            hook.remove()
    return states
