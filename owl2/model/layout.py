"""The layout of a batch: where its tokens are. Computed once a batch on the host and used by every layer.

Token-wise work (norms, projections, FFN, head) runs on the N real tokens of a batch, packed end to end. So
padding costs nothing, its side cannot matter, and a padded batch is computed as a packed one. Only attention
looks at segments: one segment is one sample, and no query ever sees another segment. For rows "a b I I" and
"c", padded to five slots (`I` is visual):

    input (B, T)      a b I I _ / c _ _ _ _
    packed (N,)       a b I I c          lengths (4, 1), boundaries [0 4 5], tokens [0 1 2 3 5]
    positions         0 1 2 3 0
    rows              text [0 1 4], visual [2 3]; text rows followed by visual rows: a b c I I
    unsort            [0 1 3 4 2], the place of each token in that order

The row lists of each modality have their counts as Python ints, so the forward pass never asks the device how
many visual tokens there are (the released code does so 256 times a forward pass).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The tokens of one forward pass. N tokens in S segments, V of them visual."""

    lengths: tuple[int, ...]
    """New tokens of each segment, in packed order; they sum to N."""
    past: tuple[int, ...]
    """Tokens of each segment that are already in the KV cache; zeros without a cache."""
    positions: Tensor
    """(N,) int64: position of each token in its own sample."""
    tokens: Tensor | None
    """(N,) int64: index of each token in the flattened (B, T) input; None if every slot is a token."""
    is_visual: Tensor
    """(N, 1) bool."""
    text_rows: Tensor
    """(N - V,) int64."""
    visual_rows: Tensor
    """(V,) int64."""
    unsort: Tensor
    """(N,) int64: indices that bring [text rows; visual rows] back into token order."""
    boundaries: Tensor
    """(S + 1,) int32: the first row of each segment, and N."""
    num_visual: int
    is_static: bool = False
    """Compute both branches of MAM for all tokens and select: fixed shapes, for compiled graphs."""

    @property
    def is_plain(self) -> bool:
        """Whether the plain decoder is enough: all tokens are text, and shapes need not be static."""
        return self.num_visual == 0 and not self.is_static

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "Layout":
        """Move the index tensors; the counts stay on the host."""
        move = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Layout(**{**vars(self), **move})


def padded_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int,
    past: Sequence[int] | None = None,
) -> Layout:
    """Return the layout of a (B, T) batch in which each row is one sample; masked slots are not tokens.

    Raises:
        ValueError: wrong shapes, a row without any token, or a negative id that is not the image token.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be (B, T); got shape {tuple(input_ids.shape)}")
    ids = input_ids.cpu()
    if attention_mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    elif attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} differ"
        )
    else:
        mask = attention_mask.cpu().bool()
    lengths = mask.sum(1).tolist()
    if not all(lengths):
        raise ValueError(f"row {lengths.index(0)} of the batch has no token: its mask is all False")
    tokens = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
    return _layout(ids[mask], lengths, tokens, image_token_id, past).to(input_ids.device)


def packed_layout(input_ids: Tensor, lengths: Sequence[int], image_token_id: int) -> Layout:
    """Return the layout of (N,) tokens that are packed already: samples end to end, `lengths` tokens each.

    Raises:
        ValueError: the lengths do not sum to N, one is zero, or an id is negative and not the image token.
    """
    if input_ids.ndim != 1 or sum(lengths) != len(input_ids) or min(lengths, default=0) < 1:
        raise ValueError(f"lengths {list(lengths)[:8]} do not divide {tuple(input_ids.shape)} tokens")
    return _layout(input_ids.cpu(), lengths, None, image_token_id, None).to(input_ids.device)


def decode_layout(past: Sequence[int], device: torch.device) -> Layout:
    """Return the layout of one new text token for each row of a cache that holds `past` tokens a row."""
    one_a_row = torch.arange(len(past), device=device)
    none = one_a_row[:0]
    return Layout(
        lengths=(1,) * len(past),
        past=tuple(past),
        positions=torch.tensor(past).to(device, non_blocking=True),
        tokens=None,
        is_visual=torch.zeros(len(past), 1, dtype=torch.bool, device=device),
        text_rows=one_a_row,
        visual_rows=none,
        unsort=one_a_row,
        boundaries=torch.arange(len(past) + 1, dtype=torch.int32, device=device),
        num_visual=0,
    )


def _layout(
    ids: Tensor,
    lengths: Sequence[int],
    tokens: Tensor | None,
    image_token_id: int,
    past: Sequence[int] | None,
) -> Layout:
    past = tuple(past) if past is not None else (0,) * len(lengths)
    is_visual = ids == image_token_id
    stray = (ids < 0) & ~is_visual
    if stray.any():
        raise ValueError(f"id {int(ids[stray][0])} is neither a token nor the image token, {image_token_id}")
    text_rows, visual_rows = (~is_visual).nonzero().squeeze(1), is_visual.nonzero().squeeze(1)
    return Layout(
        lengths=tuple(lengths),
        past=past,
        positions=torch.cat([torch.arange(p, p + n) for p, n in zip(past, lengths, strict=True)]),
        tokens=tokens,
        is_visual=is_visual[:, None],
        text_rows=text_rows,
        visual_rows=visual_rows,
        unsort=torch.argsort(torch.cat((text_rows, visual_rows))),
        boundaries=torch.tensor([0, *lengths]).cumsum(0).int(),
        num_visual=len(visual_rows),
    )


@dataclass(frozen=True)
class Targets:
    """The tokens with a label to predict; only those reach the head."""

    rows: Tensor
    """(L,) int64: packed rows whose next token is labelled."""
    ids: Tensor
    """(L,) int64: the labels."""

    @property
    def count(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(self.rows.to(device, non_blocking=True), self.ids.to(device, non_blocking=True))


IGNORE = -100


def targets_of(labels: Tensor, layout: Layout) -> Targets:
    """Shift labels by one within each segment. `labels` has the shape of `input_ids`; -100 is no label.

    A segment's first token is never a target, so no sample has to predict the beginning of the next.
    """
    flat = labels.flatten()
    packed = flat if layout.tokens is None else flat[layout.tokens]
    following = torch.full_like(packed, IGNORE)
    following[:-1] = packed[1:]
    ends = torch.tensor(layout.lengths).cumsum(0) - 1
    following[ends] = IGNORE
    rows = (following != IGNORE).nonzero().squeeze(1)
    return Targets(rows=rows, ids=following[rows])
