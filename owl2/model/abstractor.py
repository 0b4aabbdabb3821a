"""The visual abstractor: K learnable queries read an image and become K + 1 tokens of the decoder.

Equations 1 and 2 with the released details (docs/fidelity.md): each layer normalises queries and image
features, attends from the queries over [queries; features] with sine-cosine positions added to queries and
keys but not to values, adds the result to the *normalised* queries, and feeds it through a SwiGLU whose
product is normalised once more. The features are the same for every layer. A projection to the decoder's
width and one learned end-of-image vector (`vit_eos`) close the sequence.

Shapes: B images, Q queries, S image tokens, D width, H heads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.model.config import AbstractorConfig, VisionConfig
from owl2.model.parts import LayerStack, Work

NORM_EPS = 1e-5
"""The released model leaves these norms at PyTorch's default; only `ffn_ln` follows the configuration."""


class AbstractorAttention(nn.Module):
    def __init__(self, config: AbstractorConfig, vision: VisionConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.grid_size = vision.grid_size
        self.has_cls = vision.use_cls_token
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.q_pos_embed: Tensor
        self.k_pos_embed: Tensor
        self.register_buffer("q_pos_embed", torch.empty(config.num_learnable_queries, width))
        self.register_buffer("k_pos_embed", torch.empty(vision.grid_size**2 + self.has_cls, width))

    def reset_buffers(self) -> None:
        """Compute the position tables, which the released checkpoint lacks."""
        queries, width = self.q_pos_embed.shape
        self.q_pos_embed.copy_(sincos_1d(torch.arange(queries), width))
        self.k_pos_embed.copy_(sincos_2d((self.grid_size, self.grid_size), width, has_cls=self.has_cls))

    def set_vision(self, vision: VisionConfig) -> None:
        """Make room for the key positions of another image size."""
        self.grid_size = vision.grid_size
        self.k_pos_embed = self.k_pos_embed.new_empty(
            vision.grid_size**2 + self.has_cls, self.k_pos_embed.shape[1]
        )

    def forward(self, queries: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries (B, Q, D) read [queries; features (B, S, D)] -> (B, Q, D)."""
        k_pos = self.k_pos_embed
        if grid != (self.grid_size, self.grid_size):
            k_pos = sincos_2d(grid, k_pos.shape[1], has_cls=self.has_cls).to(k_pos)
        keys_values = torch.cat((queries, features), dim=1)
        q = self.query(queries + self.q_pos_embed)
        k = self.key(keys_values + torch.cat((self.q_pos_embed, k_pos)))
        v = self.value(keys_values)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # B H . hd
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class AbstractorMLP(nn.Module):
    """SwiGLU with a norm on the product: w2(ffn_ln(silu(w1 x) * w3 x))."""

    def __init__(self, config: AbstractorConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(inner, width)
        self.w3 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(F.silu(self.w1(x)) * self.w3(x)))


class AbstractorOutput(nn.Module):
    def __init__(self, config: AbstractorConfig):
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.mlp = AbstractorMLP(config)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        x = queries + self.out_proj(context)
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    def __init__(self, config: AbstractorConfig, vision: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.normk = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.attention = AbstractorAttention(config, vision)
        self.output = AbstractorOutput(config)

    def forward(self, queries: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        queries = self.norm1(queries)
        return self.output(queries, self.attention(queries, self.normk(features), grid))


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig, vision: VisionConfig):
        super().__init__()
        self.crossattention = CrossAttention(config, vision)

    def forward(self, queries: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.crossattention(queries, features, grid)


class AbstractorLayers(nn.Module):
    """Gives the layers their released name, `encoder.layers`."""

    def __init__(self, config: AbstractorConfig, vision: VisionConfig):
        super().__init__()
        self.layers = LayerStack(AbstractorLayer(config, vision) for _ in range(config.num_hidden_layers))


class VisualAbstractor(nn.Module):
    """Image features (B, S, D) -> visual tokens (B, Q + 1, decoder width)."""

    def __init__(self, config: AbstractorConfig, vision: VisionConfig, decoder_width: int):
        super().__init__()
        self.config, self.vision, self.decoder_width = config, vision, decoder_width
        self.query_embeds = nn.Parameter(torch.empty(1, config.num_learnable_queries, config.hidden_size))
        self.encoder = AbstractorLayers(config, vision)
        self.visual_fc = nn.Linear(config.hidden_size, decoder_width)
        self.vit_eos = nn.Parameter(torch.empty(1, 1, decoder_width))

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """`grid` is the number of patch rows and columns behind `features`."""
        queries = self.query_embeds.expand(len(features), -1, -1)
        for layer in self.encoder.layers:
            queries = layer(queries, features, grid)
        return torch.cat((self.visual_fc(queries), self.vit_eos.expand(len(features), -1, -1)), dim=1)

    def set_vision(self, vision: VisionConfig) -> None:
        self.vision = vision

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    def flops(self, work: Work) -> float:
        """Operations of a forward pass over the images."""
        config, width = self.config, self.config.hidden_size
        queries = config.num_learnable_queries
        keys = queries + self.vision.grid_size**2 + self.vision.use_cls_token
        projections = 2 * queries * width**2 + 2 * keys * width**2
        ffn = 3 * queries * width * config.intermediate_size
        layer = projections + 2 * queries * keys * width + ffn
        image = 2.0 * (config.num_hidden_layers * layer + queries * width * self.decoder_width)
        return work.images * image


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """[sin | cos] of positions (n,) at width / 2 frequencies 10000^(-2i/width) -> (n, width) float32."""
    omega = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def sincos_2d(grid: tuple[int, int], width: int, *, has_cls: bool) -> Tensor:
    """MAE's 2-D table: the column in the first half, the row in the second; zeros for the class token."""
    rows, columns = grid
    column, row = torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)
    table = torch.cat((sincos_1d(column, width // 2), sincos_1d(row, width // 2)), dim=1)
    return torch.cat((torch.zeros(int(has_cls), width), table))
