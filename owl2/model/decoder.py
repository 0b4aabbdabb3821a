"""A LLaMA-family decoder whose norms, keys and values may differ by modality.

Pre-norm layers with rotary positions, grouped-query attention and a SwiGLU. With MAM off this is LLaMA; with
it, `mam.py` chooses the weights of each token. Visual tokens are causal and take consecutive positions like
text.

Shapes: N packed tokens (layout.py), L rows asked for, D width, H query heads, G key-value heads, E head
dimension.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.model.attention import Rotary, SharedInputs, attend
from owl2.model.cache import KVCache
from owl2.model.config import DecoderConfig, MamConfig
from owl2.model.layout import Layout
from owl2.model.mam import RMSNorm, make_norm, make_projection, project
from owl2.model.parts import LayerStack, Split, Work


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
    """Rotate (N, heads, E) by position.

    Channel i is paired with channel i + E / 2, as in LLaMA's Hugging Face weights; Meta's own pair 2i with
    2i + 1.
    """
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
    uncompiled = ("attend",)
    """Packed samples are split by lengths that differ from batch to batch, so no graph fits two batches."""

    def __init__(self, config: DecoderConfig, mam: MamConfig, layer: int):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.layer = layer
        """Number of the layer, by which the cache is indexed."""
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = make_projection(width, kv_width, mam.key)
        self.v_proj = make_projection(width, kv_width, mam.value)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)
        self.rotary_emb = RotaryEmbedding(config)

    def tensor_parallel_plan(self) -> dict[str, Split]:
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        return {
            "q_proj": Split("columns", heads),
            "k_proj": Split("columns", kv_heads),
            "v_proj": Split("columns", kv_heads),
            "o_proj": Split("rows", heads),
        }

    def forward(self, x: Tensor, shared: SharedInputs, rows: Tensor | None = None) -> Tensor:
        """(N, D) -> (N, D), or (L, D) if only `rows` (L,) are asked for."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # N H E
        k, v = project(x, shared.layout, self.k_proj, self.v_proj)
        k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (k, v))  # N G E
        attended = self.attend(rotate(q, shared.rotary), rotate(k, shared.rotary), v, shared).flatten(1)
        return self.o_proj(attended if rows is None else attended.index_select(0, rows))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, shared: SharedInputs) -> Tensor:
        return attend(q, k, v, shared, self.layer)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, whose backward pass keeps gate and up, but not silu(gate) as PyTorch would."""

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

    def tensor_parallel_plan(self) -> dict[str, Split]:
        channels = self.gate_proj.out_features
        columns, rows = Split("columns", channels), Split("rows", channels)
        return {"gate_proj": columns, "up_proj": columns, "down_proj": rows}

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(cast(Tensor, SwiGLU.apply(self.gate_proj(x), self.up_proj(x))))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, mam: MamConfig, layer: int = 0):
        super().__init__()
        self.self_attn = Attention(config, mam, layer)
        self.mlp = MLP(config)
        self.input_layernorm = make_norm(config.hidden_size, config.rms_norm_eps, mam.norm)
        self.post_attention_layernorm = make_norm(config.hidden_size, config.rms_norm_eps, mam.norm)

    def forward(self, x: Tensor, shared: SharedInputs, rows: Tensor | None = None) -> Tensor:
        """(N, D) -> (N, D), or (L, D) if only `rows` (L,) are asked for: the others give keys and values."""
        is_visual = None if shared.layout.is_plain else shared.layout.is_visual
        attended = self.self_attn(self.input_layernorm(x, is_visual), shared, rows)
        if rows is not None:
            x = x.index_select(0, rows)
            is_visual = None if is_visual is None else is_visual.index_select(0, rows)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, is_visual))


class DecoderLayers(LayerStack):
    """The layers of the decoder, which know what they and the head behind them cost."""

    def __init__(self, config: DecoderConfig, mam: MamConfig):
        super().__init__(DecoderLayer(config, mam, layer) for layer in range(config.num_hidden_layers))
        self.config = config

    def flops(self, work: Work) -> float:
        """Operations of a forward pass with the head: a token uses one branch of MAM and sees half a square.

        After the last layer's attention only targets go on.
        """
        config = self.config
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        key_values = 2 * config.num_key_value_heads * config.head_dim
        before, behind = width * (heads + key_values), width * (heads + 3 * config.intermediate_size)
        layers = config.num_hidden_layers * (work.tokens * (before + behind) + work.squares * heads)
        saved = (work.tokens - work.targets) * behind
        return 2.0 * (layers - saved + work.targets * width * config.vocab_size)


class Decoder(nn.Module):
    """Embeddings, layers and the shared final norm."""

    def __init__(self, config: DecoderConfig, mam: MamConfig):
        super().__init__()
        self.decoder_config = config
        # Not initialised here: random numbers on `meta` import PyTorch's compiler, which takes two seconds.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty, freeze=False)
        self.layers = DecoderLayers(config, mam)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def decode(
        self, x: Tensor, layout: Layout, cache: KVCache | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Run the layers on embeddings (N, D) -> (N, D) after the final norm, or (L, D) of `rows` (L,).

        Other rows end with the last layer's keys and values, so its output projection and FFN skip them.
        """
        if cache is not None:
            cache.check(layout)
        shared = SharedInputs(layout, rotary_tables(self.decoder_config, layout.positions, x.dtype), cache)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            x = layer(x, shared, rows if is_last else None)
        x = self.norm(x)
        if cache is not None:
            cache.advance(layout)
        return x
