"""Repetition penalty: tokens that a text has already become less probable (CTRL, arXiv:1909.05858)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Repetition:
    """Which tokens each row has, prompt included, and the penalty on their scores.

    A negative score of such a token is multiplied by the penalty, a positive one divided by it, as in
    `transformers`. Visual tokens and padding are no tokens of a text.
    """

    def __init__(
        self, penalty: float, prompts: Iterable[Sequence[int]], vocab_size: int, device: torch.device
    ):
        """Begin with the ids of each prompt; those outside of the vocabulary, as of images, do not count."""
        self.penalty = penalty
        self.seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        if penalty == 1:
            return
        rows = list(prompts)
        self.seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
        for row, ids in enumerate(rows):
            text = sorted({token for token in ids if 0 <= token < vocab_size})
            self.seen[row, torch.tensor(text, dtype=torch.int64, device=device)] = True

    def apply(self, scores: Tensor) -> Tensor:
        """Return scores (B, V), logits or log-probabilities, after the penalty."""
        if self.penalty == 1:
            return scores
        changed = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(self.seen, changed, scores)

    def add(self, tokens: Tensor) -> None:
        """Add a token (B,) to each row."""
        if self.penalty != 1:
            self.seen[torch.arange(len(tokens), device=tokens.device), tokens] = True

    def take(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may be taken several times."""
        if self.penalty != 1:
            self.seen = self.seen[list(rows)]
