"""Inputs of a plan: what a micro-batch holds at most, for its memory, and on average, for its time.

Without packs a micro-batch consists of samples of the greatest length. A pack is planned full: samples of the
greatest length and one that fills the rest, with as many images as samples of average length would bring,
because packing spreads images as evenly as tokens (data/packing.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from owl2.data.packing import Size
from owl2.model import Owl2Config, Work
from owl2.train.config import TrainConfig, TrainConfigError

PACKED_TOKENS = 380
"""Tokens of an average sample, if packs are planned and nothing else is known: the mixture of Table 14 as
`bench/packing.py` estimates it."""
FILL = 0.97
"""Share of a pack that is used (docs/numbers.md, "Packs")."""


@dataclass(frozen=True)
class Averages:
    """What a sample holds on average. It decides operations, time, and the images of a pack."""

    tokens: float
    images: float

    @classmethod
    def assumed(cls, config: TrainConfig) -> "Averages":
        """Defaults when no average is given: samples of the greatest length, in packs those of Table 14."""
        longest = config.data.max_tokens
        return cls(longest if config.data.pack_tokens is None else min(PACKED_TOKENS, longest), 1.0)

    def most_images(self, samples: float = 1) -> int:
        """Images of this many samples, as memory is planned for them: rounded up, at least one."""
        return max(1, math.ceil(samples * self.images))


def most_tokens(config: TrainConfig) -> int:
    """Tokens of the longest micro-batch."""
    return config.data.pack_tokens or config.micro_batch_size * config.data.max_tokens


def longest_micro_batch(config: TrainConfig, model: Owl2Config, averages: Averages) -> Sequence[Size]:
    """The samples of the longest micro-batch, for which there must be memory.

    Raises:
        TrainConfigError: an objective that has no such samples.
    """
    longest, capacity = config.data.max_tokens, config.data.pack_tokens
    if capacity is None:
        return [Size(longest, averages.most_images())] * config.micro_batch_size
    if config.objective == "bag_of_words":
        raise TrainConfigError(
            f"objective bag_of_words has one image a sample, so a full pack of {capacity} tokens is not "
            f"planned for it; plan with --data.pack_tokens null"
        )
    whole, rest = divmod(capacity, longest)
    left, samples = averages.most_images(capacity / averages.tokens), []
    for tokens in [longest] * whole + [rest] * (rest > 0):
        images = min(left, (tokens - 1) // model.tokens_per_image)
        left -= images
        samples.append(Size(tokens, images))
    if left:
        raise TrainConfigError(
            f"samples of {averages.tokens:g} tokens and {averages.images:g} image(s) on average have no "
            f"room for text: an image is {model.tokens_per_image} tokens; take other --tokens or --images"
        )
    return samples


def num_micro_batches(config: TrainConfig, gpus: int, averages: Averages) -> int:
    """Micro-batches that a rank computes in a step; for packs the average, rounded up."""
    if config.data.pack_tokens is None:
        return config.accumulation
    tokens = config.global_batch_size * averages.tokens
    return math.ceil(tokens / (FILL * config.data.pack_tokens * config.parallel.data_ranks(gpus)))


def average_work(config: TrainConfig, model: Owl2Config, averages: Averages) -> Work:
    """What the samples of an average step hold."""
    samples = config.global_batch_size
    return Work(
        images=samples * averages.images,
        tokens=samples * averages.tokens,
        targets=samples * max(0.0, averages.tokens - averages.images * model.tokens_per_image),
        squares=samples * averages.tokens**2,
    )
