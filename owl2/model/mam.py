"""The modality-adaptive module: norms, keys and values with separate weights for text and visual tokens.

Equations 4, 6 and 7 of the paper. Branch 0 is text and branch 1 is visual, as in the released weights (the
paper numbers them the other way round). There are three paths to the same numbers:

* plain: no visual token in the batch (text only, every decode step); exactly the decoder without MAM;
* split: each branch's projection runs on its own rows, which are found once a batch (`Layout`). No wasted
  FLOPs, no host synchronisation; within 5 % of a decoder without MAM;
* static: both branches for all tokens and a `torch.where`, for graphs that need fixed shapes.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.model.layout import Layout

TEXT, VISUAL = 0, 1


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor, is_visual: Tensor | None = None) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Multiway(nn.Module):
    """The same module twice, under released names: `multiway.0` for text, `multiway.1` for visual tokens."""

    def __init__(self, text: nn.Module, visual: nn.Module):
        super().__init__()
        self.multiway = nn.ModuleList([text, visual])

    @torch.no_grad()
    def copy_text_to_vision(self) -> None:
        """Copy the text weights to the visual weights, as stage 1 of the paper starts."""
        self.multiway[VISUAL].load_state_dict(self.multiway[TEXT].state_dict())

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        return self.multiway[VISUAL].parameters()


class NormByModality(torch.autograd.Function):
    """RMS norm with a gain for each modality, whose backward pass keeps only the input.

    PyTorch would also keep the normalised tokens and each token's gain: two activations as large as x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, text: Tensor, visual: Tensor, is_visual: Tensor, eps: float) -> Tensor:
        """x (N, D), gains (D,), is_visual (N, 1) -> (N, D)."""
        ctx.save_for_backward(x, text, visual, is_visual)
        ctx.eps = eps
        return F.rms_norm(x, text.shape, None, eps) * torch.where(is_visual, visual, text)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, text, visual, is_visual = ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + ctx.eps)
        normal = wide * scale
        text_grad = visual_grad = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            branches = torch.cat((~is_visual, is_visual), dim=1).to(normal.dtype)  # N 2
            text_grad, visual_grad = (branches.t() @ (normal * grad)).to(text.dtype)
        grad = grad * torch.where(is_visual, visual, text)
        inner = (grad * normal).mean(-1, keepdim=True)
        return ((grad - normal * inner) * scale).to(x.dtype), text_grad, visual_grad, None, None


class MultiwayRMSNorm(Multiway):
    """One RMS statistic for all tokens, the gain chosen by modality. Equation 4."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__(RMSNorm(hidden_size, eps), RMSNorm(hidden_size, eps))
        self.eps = eps

    def forward(self, x: Tensor, is_visual: Tensor | None) -> Tensor:
        """(N, D) -> (N, D). `is_visual` (N, 1), or None where all tokens are text."""
        text, visual = (cast(Tensor, branch.weight) for branch in self.multiway)
        if is_visual is None:
            return F.rms_norm(x, text.shape, text, self.eps)
        return cast(Tensor, NormByModality.apply(x, text, visual, is_visual, self.eps))


class MultiwayLinear(Multiway):
    """A key or value projection for each modality. Equations 6 and 7; called through `project`."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, out_features, bias=False), nn.Linear(in_features, out_features, bias=False)
        )


def make_norm(hidden_size: int, eps: float, by_modality: bool) -> nn.Module:
    """Return the norm, with visual weights if the configuration switches them on."""
    return (MultiwayRMSNorm if by_modality else RMSNorm)(hidden_size, eps)


def make_projection(in_features: int, out_features: int, by_modality: bool) -> nn.Module:
    """Return the bias-free projection, with visual weights if the configuration switches them on."""
    if by_modality:
        return MultiwayLinear(in_features, out_features)
    return nn.Linear(in_features, out_features, bias=False)


def project(x: Tensor, layout: Layout, *projections: nn.Module) -> list[Tensor]:
    """Apply key and value projections to (N, D), each row by the branch of its modality.

    The rows are gathered once for all projections.
    """
    pairs = [p.multiway if isinstance(p, Multiway) else (p, p) for p in projections]
    if layout.is_static:
        return [torch.where(layout.is_visual, pair[VISUAL](x), pair[TEXT](x)) for pair in pairs]
    if layout.num_visual == 0 or not any(isinstance(p, Multiway) for p in projections):
        return [pair[TEXT](x) for pair in pairs]
    text, visual = x.index_select(0, layout.text_rows), x.index_select(0, layout.visual_rows)
    # [text rows; visual rows] back into the order of the tokens
    return [
        torch.cat((pair[TEXT](text), pair[VISUAL](visual))).index_select(0, layout.unsort) for pair in pairs
    ]
