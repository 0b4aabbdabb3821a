"""The vision encoder: a ViT that keeps its class token and outputs all tokens.

Released form (CLIP ViT-L/14): no patch bias, LayerNorm before the first and after the last layer, quick
GELU, and a fused query-key-value projection whose rows are ordered head by head, then q/k/v, then dimension
(Megatron's order). DINOv2 form by configuration: patch bias, LayerScale, GELU, no first LayerNorm.

For another resolution than the position table's, the table is interpolated bicubically (224 -> 448 between
the paper's stages; the release has no code for it).

Shapes: B images, P patches, S = P + 1 tokens with the class token, D width, H heads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.model.config import VisionConfig
from owl2.model.parts import LayerStack, Split, Work


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embed = nn.Conv2d(
            config.num_channels, width, kernel_size=patch, stride=patch, bias=config.use_patch_bias
        )
        if config.use_cls_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        tokens = config.grid_size**2 + config.use_cls_token
        self.position_embedding = nn.Parameter(torch.empty(1, tokens, width))
        if config.use_pre_layernorm:
            self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, S, D)."""
        patch = self.config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f"image of {width} x {height} pixels: sides must be multiples of the patch, {patch}"
            )
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)  # B P D
        if self.config.use_cls_token:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)  # B S D
        table: Tensor = self.position_embedding
        grid = (height // patch, width // patch)
        if grid != (self.config.grid_size, self.config.grid_size):
            table = interpolate_positions(table, grid, has_cls=self.config.use_cls_token)
        x = x + table
        return self.pre_layernorm(x) if self.config.use_pre_layernorm else x

    def set_vision(self, vision: VisionConfig) -> None:
        """Interpolate the position table to another image size."""
        old, grid = self.position_embedding, (vision.grid_size, vision.grid_size)
        table = interpolate_positions(old, grid, has_cls=vision.use_cls_token)
        self.position_embedding = nn.Parameter(table, requires_grad=old.requires_grad)
        self.config = vision


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def tensor_parallel_plan(self) -> dict[str, Split]:
        # The rows of `query_key_value` are ordered head by head, so a contiguous part of them is whole heads.
        return {
            "query_key_value": Split("columns", self.num_heads),
            "dense": Split("rows", self.num_heads),
        }

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3, self.head_dim))  # B S H 3 hd; H of this rank
        q, k, v = qkv.unbind(3)  # B S H hd each
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.dense(attended.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.is_quick = config.hidden_act == "quick_gelu"

    def tensor_parallel_plan(self) -> dict[str, Split]:
        channels = self.fc1.out_features
        return {"fc1": Split("columns", channels), "fc2": Split("rows", channels)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.is_quick else F.gelu(x))


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.has_layer_scale = config.use_layer_scale
        if config.use_layer_scale:
            self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size))
            self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x))
        x = x + (attended * self.layer_scale1 if self.has_layer_scale else attended)
        fed = self.mlp(self.post_attention_layernorm(x))
        return x + (fed * self.layer_scale2 if self.has_layer_scale else fed)


class VisionEncoderLayers(nn.Module):
    """Gives the layers their released name, `encoder.layers`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layers = LayerStack(VisionLayer(config) for _ in range(config.num_hidden_layers))


class VisionEncoder(nn.Module):
    """Image to token features, (B, 3, height, width) -> (B, S, D); any size that the patch divides."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoderLayers(config)
        if config.use_post_layernorm:
            self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x) if self.config.use_post_layernorm else x

    def set_vision(self, vision: VisionConfig) -> None:
        self.config = vision

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    def flops(self, work: Work) -> float:
        """Operations of a forward pass over the images."""
        config, width = self.config, self.config.hidden_size
        patches = config.grid_size**2
        tokens = patches + config.use_cls_token
        layer = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
        embedding = patches * config.num_channels * config.patch_size**2 * width
        return work.images * 2.0 * (embedding + config.num_hidden_layers * layer)

    def layer_groups(self) -> list[list[str]]:
        """Parameter names from input to output: embeddings, then each layer, the last with the final norm.

        Layer-wise learning-rate decay multiplies the rate of group i of n by decay ** (n - 1 - i).
        """
        groups = [[f"embeddings.{name}" for name, _ in self.embeddings.named_parameters()]]
        for i, layer in enumerate(self.encoder.layers):
            groups.append([f"encoder.layers.{i}.{name}" for name, _ in layer.named_parameters()])
        if self.config.use_post_layernorm:
            groups[-1] += [f"post_layernorm.{name}" for name, _ in self.post_layernorm.named_parameters()]
        return groups


def interpolate_positions(table: Tensor, grid: tuple[int, int], *, has_cls: bool) -> Tensor:
    """Resize a square position table (1, [1 +] G*G, D) to a grid (rows, columns) of patches, bicubically."""
    cls, patches = table[:, : int(has_cls)], table[:, int(has_cls) :]
    side = round(patches.shape[1] ** 0.5)
    image = patches.transpose(1, 2).unflatten(2, (side, side)).float()
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((cls, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)
