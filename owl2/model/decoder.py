"""A LLaMA-family decoder whose norms, keys and values may differ by modality.

Pre-norm blocks with rotary positions, grouped-query attention and a SwiGLU. With MAM off this is LLaMA;
with it, `mam.py` decides per token. Visual tokens are causal and take consecutive positions like text.

Shapes: N packed tokens (layout.py), D width, H query heads, G key-value heads, E head dimension.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.model.attention import attend
from owl2.model.cache import KVCache
from owl2.model.config import DecoderConfig, MamConfig
from owl2.model.layout import Layout
from owl2.model.mam import RMSNorm, make_norm, make_projection, project

Rotary = tuple[Tensor, Tensor]


def rotary_frequencies(config: DecoderConfig) -> Tensor:
    """Return (E / 2,) float32 inverse frequencies, rescaled as Llama 3 if the configuration says so."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def rotary_tables(config: DecoderConfig, positions: Tensor, dtype: torch.dtype) -> Rotary:
    """Cosines and sines (N, 1, E) of the tokens' positions, computed in float32 once a forward pass."""
    angles = positions.float()[:, None] * rotary_frequencies(config).to(positions.device)
    angles = torch.cat((angles, angles), dim=1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (N, heads, E) by position; the halves of E are the pairs, as in LLaMA's Hugging Face layout."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RotaryEmbedding(nn.Module):
    """Holds `inv_freq`, which released checkpoints carry; the forward pass computes it from the config."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", torch.empty(config.head_dim // 2))

    def reset_buffers(self) -> None:
        self.inv_freq.copy_(rotary_frequencies(self.config))


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, mam: MamConfig):
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = make_projection(width, kv_width, mam.key)
        self.v_proj = make_projection(width, kv_width, mam.value)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: Rotary,
        cache: KVCache | None,
        layer: int,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(N, D) -> (N, D), or (L, D) if only `rows` (L,) are asked for."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # N H E
        k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in project(x, layout, self.k_proj, self.v_proj))
        attended = attend(rotate(q, rotary), rotate(k, rotary), v, layout, cache, layer).flatten(1)
        return self.o_proj(attended if rows is None else attended.index_select(0, rows))


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, of which the backward pass keeps gate and up, not silu(gate) as PyTorch would."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(cast(Tensor, SwiGLU.apply(self.gate_proj(x), self.up_proj(x))))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, mam: MamConfig):
        super().__init__()
        self.self_attn = Attention(config, mam)
        self.mlp = MLP(config)
        self.input_layernorm = make_norm(config.hidden_size, config.rms_norm_eps, mam.norm)
        self.post_attention_layernorm = make_norm(config.hidden_size, config.rms_norm_eps, mam.norm)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: Rotary,
        cache: KVCache | None,
        layer: int,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(N, D) -> (N, D), or (L, D) if only `rows` (L,) are asked for: the others give keys and values."""
        is_visual = None if layout.is_plain else layout.is_visual
        attended = self.self_attn(self.input_layernorm(x, is_visual), layout, rotary, cache, layer, rows)
        if rows is not None:
            x = x.index_select(0, rows)
            is_visual = None if is_visual is None else is_visual.index_select(0, rows)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, is_visual))


class Decoder(nn.Module):
    """Embeddings, blocks and the shared final norm."""

    def __init__(self, config: DecoderConfig, mam: MamConfig):
        super().__init__()
        self.decoder_config = config
        # Not drawn here: a draw on `meta` imports PyTorch's compiler, two seconds of every start.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, mam) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def decode(
        self,
        x: Tensor,
        layout: Layout,
        cache: KVCache | None = None,
        collect: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks on embeddings (N, D) -> (N, D) after the final norm, or (L, D) of `rows` (L,).

        No other row leaves the last block, so its output projection and FFN are spared.

        `collect`, if given, receives the embeddings, each block's output and, in place of the last block's,
        the normalised result: what `transformers` calls `hidden_states`.
        """
        if cache is not None:
            cache.check(layout)
        rotary = rotary_tables(self.decoder_config, layout.positions, x.dtype)
        for index, layer in enumerate(self.layers):
            if collect is not None:
                collect.append(x)
            is_last = index == len(self.layers) - 1
            x = layer(x, layout, rotary, cache, index, rows if is_last else None)
        x = self.norm(x)
        if collect is not None:
            collect.append(x)
        if cache is not None:
            cache.advance(layout)
        return x
