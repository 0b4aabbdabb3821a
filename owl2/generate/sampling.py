"""Choice of the next token: greedy, or sampled after temperature, top-k, top-p and min-p, in that order.

A token is sampled from one uniform number by the inverse of the cumulative distribution. Each row has a
random generator of its own, so the answer of a seeded row depends neither on the other rows of the batch, nor
on when they end, nor on the device.

Shapes: B rows, V vocabulary, C candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from owl2.generate.config import GenerationConfig


class Chooser:
    """Chooses the next token of each row of a batch."""

    def __init__(self, config: GenerationConfig, num_rows: int, seeds: Sequence[int | None] = ()):
        """Begin with the seed of each row; default: the configuration's plus the row's number."""
        self.config = config
        seeds = seeds or [None if config.seed is None else config.seed + row for row in range(num_rows)]
        self.generators = [] if config.is_greedy else [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, logits: Tensor, rows: list[int]) -> Tensor:
        """Choose from float32 logits (B, V) for the rows with these numbers -> (B,) int64."""
        if self.config.is_greedy:
            return logits.argmax(dim=-1)
        uniform = torch.tensor([self.generators[row].random() for row in rows], dtype=torch.float64)
        return sample(logits, uniform.to(logits.device), self.config)


def sample(logits: Tensor, uniform: Tensor, config: GenerationConfig) -> Tensor:
    """Sample from logits (B, V) with uniform numbers (B,) float64 in [0, 1) -> (B,) int64."""
    probabilities, tokens = candidates(logits, config)
    cumulative = probabilities.double().cumsum(dim=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    # Rounding may lift the threshold to the last sum: then the last candidate with any probability is chosen.
    chosen = torch.searchsorted(cumulative, threshold, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    chosen = torch.minimum(chosen, last)
    return (chosen if tokens is None else tokens.gather(1, chosen)).squeeze(1)


def candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor | None]:
    """Probabilities (B, C) of the tokens that may be sampled, and their ids; None for all V in order.

    Tokens that top-p and min-p exclude keep their column with probability 0. The others need not sum to 1.
    """
    logits = logits / config.temperature
    vocab_size = logits.shape[-1]
    tokens: Tensor | None = None
    if 0 < config.top_k < vocab_size:
        logits, tokens = logits.topk(config.top_k, dim=-1)
    elif config.top_p < 1:
        logits, tokens = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = logits.softmax(dim=-1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0)
    if config.min_p > 0:
        least = config.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities, tokens
