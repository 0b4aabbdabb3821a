"""A preallocated key-value cache: one row a sequence, all layers, written in place.

The released code concatenates a new cache for every token and layer. Here the buffers are allocated once, for
the longest sequence to come. `lengths` holds on the host how much of each row is filled, so rows of different
length share a batch and no slot beyond a row's length is ever used.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from owl2.model.config import DecoderConfig
from owl2.model.layout import Layout


class KVCache:
    """Keys and values of `batch` sequences of at most `capacity` tokens.

    Shapes: keys and values of a layer are (batch, capacity, key-value heads, head dim).
    """

    def __init__(
        self, config: DecoderConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ):
        shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        # Zeros, not empty: a masked slot that held NaN would still turn its row's attention into NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.capacity = capacity
        self.lengths = [0] * batch

    def write(self, layer: int, key: Tensor, value: Tensor, layout: Layout) -> None:
        """Store (N, heads, head dim) keys and values of the new tokens after what each row holds."""
        if is_decode_step(layout):
            rows = torch.arange(len(layout.past), device=key.device)
            self.keys[layer][rows, layout.positions] = key
            self.values[layer][rows, layout.positions] = value
            return
        begin = 0
        for row, (past, length) in enumerate(zip(layout.past, layout.lengths, strict=True)):
            self.keys[layer][row, past : past + length] = key[begin : begin + length]
            self.values[layer][row, past : past + length] = value[begin : begin + length]
            begin += length

    def check(self, layout: Layout) -> None:
        """Raise ValueError if the layout does not continue this cache or would overflow it."""
        if list(layout.past) != self.lengths:
            raise ValueError(
                f"the cache holds {self.lengths} tokens a row, but the batch continues {layout.past}"
            )
        longest = max(p + n for p, n in zip(layout.past, layout.lengths, strict=True))
        if longest > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens a row, but {longest} are needed")

    def advance(self, layout: Layout) -> None:
        """Count the tokens of a finished forward pass."""
        self.lengths = [p + n for p, n in zip(layout.past, layout.lengths, strict=True)]

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row, at least as many as now; what the rows hold stays."""
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                buffers[layer] = old.new_zeros(old.shape[0], capacity, *old.shape[2:])
                buffers[layer][:, : old.shape[1]] = old
        self.capacity = capacity

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order, each as often as it is named; drop all others."""
        kept = self.copy_rows(rows)
        self.keys, self.values, self.lengths = kept.keys, kept.values, kept.lengths

    def copy_rows(self, rows: Sequence[int]) -> "KVCache":
        """A cache with copies of these rows in this order, each as often as it is named."""
        index = torch.tensor(rows, device=self.keys[0].device)
        copied = copy(self)
        copied.keys = [k.index_select(0, index) for k in self.keys]
        copied.values = [v.index_select(0, index) for v in self.values]
        copied.lengths = [self.lengths[row] for row in rows]
        return copied

    def move_rows(self, rows: Sequence[int], begin: int = 0) -> None:
        """Give row i the tokens from number `begin` on of row `rows[i]`; those before are the same already.

        All rows hold as many tokens as the row that they take them from.
        """
        if list(rows) == list(range(len(self.lengths))):
            return
        index, end = torch.tensor(rows, device=self.keys[0].device), max(self.lengths)
        for buffer in (*self.keys, *self.values):
            buffer[:, begin:end] = buffer[:, begin:end].index_select(0, index)


def is_decode_step(layout: Layout) -> bool:
    """Whether every row continues its cache by one token, so that all rows can be attended at once."""
    return all(n == 1 for n in layout.lengths) and all(layout.past)
