"""mPLUG-Owl2 put together: images and token ids in, logits or a loss out.

The path of a batch: ids are packed end to end without padding (layout.py); images go through the vision
encoder and the abstractor and replace `image_token_id`; the decoder runs; the head computes only the rows
that are asked for. Module names are those of the released checkpoint.

A new part is built here, in `Backbone`; everything else finds it by its methods (parts.py).

Shapes: B rows, T slots, N tokens, I images, Q queries, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from owl2.model.abstractor import VisualAbstractor
from owl2.model.cache import KVCache
from owl2.model.config import Owl2Config, preset
from owl2.model.decoder import Decoder
from owl2.model.layout import Layout, Targets, padded_layout
from owl2.model.mam import Multiway, RMSNorm
from owl2.model.parts import (
    CostsFlops,
    FollowsImageSize,
    HasLayerGroups,
    HasVisualParameters,
    LayerStack,
    reset_buffers,
)
from owl2.model.vision import VisionEncoder

LOSS_CHUNK_ELEMENTS = 1 << 24
"""Logits held at once by the loss: 64 MiB in float32."""


class Backbone(Decoder):
    """Everything under the released prefix `model.`."""

    def __init__(self, config: Owl2Config):
        super().__init__(config.decoder, config.mam)
        self.vision_model = VisionEncoder(config.vision)
        self.visual_abstractor = VisualAbstractor(
            config.abstractor, config.vision, config.decoder.hidden_size
        )


class Owl2Model(nn.Module):
    """The model as a plain `nn.Module`; it knows nothing about training, devices or files."""

    def __init__(self, config: Owl2Config):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.decoder.tie_word_embeddings:
            self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the output head, or the embedding if they are tied."""
        tied = self.config.decoder.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    # -- forward -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """Return float32 logits (B, T, V); masked slots get zeros.

        Args:
            input_ids: (B, T) int64 with `config.image_token_id` at every visual position.
            attention_mask: (B, T) bool, True at real tokens; padding may be on either side.
            pixel_values: (I, 3, H, W), images in the order of their places in the batch.

        Raises:
            ValueError: shapes that do not fit, or places for images that do not match their number.
        """
        layout = padded_layout(input_ids, attention_mask, self.config.image_token_id)
        hidden = self.hidden(self.embed(input_ids, layout, pixel_values), layout)
        logits = self.logits(hidden)
        if layout.tokens is None:
            return logits.unflatten(0, input_ids.shape)
        slots = logits.new_zeros(input_ids.numel(), logits.shape[1])
        return slots.index_copy(0, layout.tokens, logits).unflatten(0, input_ids.shape)

    def embed(
        self,
        input_ids: Tensor,
        layout: Layout,
        pixel_values: Tensor | None = None,
        *,
        visual_tokens: Tensor | None = None,
        image_of: Tensor | None = None,
    ) -> Tensor:
        """Embed the ids of `layout` -> (N, D), images in their places.

        Args:
            input_ids: (B, T) or (N,) int64, what `layout` was made of.
            layout: where its tokens are.
            pixel_values: (I, 3, H, W), images in the order of their places.
            visual_tokens: (I, Q + 1, D) instead of `pixel_values`, if the images are encoded already.
            image_of: (P,) int64, the image in each of P places, if some images have several places.
        """
        flat = input_ids.flatten()
        ids = flat if layout.tokens is None else flat.index_select(0, layout.tokens)
        if layout.num_visual:
            ids = ids.masked_fill(layout.is_visual[:, 0], 0)  # not a row of the embedding; overwritten below
        x = self.model.embed_tokens(ids)
        images = pixel_values if visual_tokens is None else visual_tokens
        num_images = 0 if images is None else len(images) if image_of is None else len(image_of)
        if layout.num_visual != num_images * self.config.tokens_per_image:
            raise ValueError(
                f"{layout.num_visual} visual positions in input_ids, but {num_images} image(s) fill "
                f"{num_images * self.config.tokens_per_image} ({self.config.tokens_per_image} each)"
            )
        if not num_images:
            return x
        if visual_tokens is None:
            assert pixel_values is not None
            visual_tokens = self.encode_images(pixel_values)
        if image_of is not None:
            visual_tokens = visual_tokens.index_select(0, image_of)
        return x.index_copy(0, layout.visual_rows, visual_tokens.flatten(0, 1).to(x.dtype))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Turn images (I, 3, H, W) into visual tokens (I, Q + 1, D)."""
        patch = self.config.vision.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        features = self.model.vision_model(pixel_values.to(self.dtype))
        return self.model.visual_abstractor(features, grid)

    def hidden(
        self, embeddings: Tensor, layout: Layout, cache: KVCache | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Run the decoder on (N, D) -> (N, D) after the final norm, or (L, D) of the `rows` asked for."""
        return self.model.decode(embeddings, layout, cache, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project (..., D) -> (..., V) float32."""
        return F.linear(hidden, self.head_weight).float()

    def token_losses(
        self,
        input_ids: Tensor,
        layout: Layout,
        targets: Targets,
        pixel_values: Tensor | None = None,
        *,
        image_of: Tensor | None = None,
    ) -> Tensor:
        """Return the cross-entropy of each target (L,), float32. For the arguments see `embed`.

        Divide their sum by the number of targets of the optimizer step: a mean of means would give tokens of
        short micro-batches more weight.

        Only target rows leave the last layer and reach the head, in chunks that are computed again in the
        backward pass, so the logits of a whole batch never exist at once.
        """
        embeddings = self.embed(input_ids, layout, pixel_values, image_of=image_of)
        hidden = self.hidden(embeddings, layout, rows=targets.rows)
        rows = max(1, LOSS_CHUNK_ELEMENTS // self.config.decoder.vocab_size)
        if len(hidden) <= rows:
            return self._cross_entropy(hidden, targets.ids)
        chunks = zip(hidden.split(rows), targets.ids.split(rows), strict=True)
        losses = [checkpoint(self._cross_entropy, chunk, ids, use_reentrant=False) for chunk, ids in chunks]
        return torch.cat(losses)

    def _cross_entropy(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(hidden), ids, reduction="none")

    # -- parts -------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[nn.Module]:
        """All modules inside the model, the decoder's layers last, as in the forward pass."""
        last = set(self.model.layers.modules())
        yield from (module for module in self.modules() if module is not self and module not in last)
        yield from self.model.layers.modules()

    def layer_stacks(self) -> list[LayerStack]:
        """The stacks of repeated layers, in the order of the forward pass."""
        return [part for part in self.parts() if isinstance(part, LayerStack)]

    def costed_parts(self) -> list[CostsFlops]:
        """The parts that say what their forward pass costs, in its order."""
        return [part for part in self.parts() if isinstance(part, CostsFlops)]

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that get a gradient from images only."""
        for part in self.parts():
            if isinstance(part, HasVisualParameters):
                yield from part.visual_parameters()

    def layer_depths(self) -> dict[str, int]:
        """Parameter name -> groups of layers between it and the output of its part, where a part has them."""
        depths: dict[str, int] = {}
        for prefix, part in self.named_modules():
            if isinstance(part, HasLayerGroups):
                for depth, names in enumerate(reversed(part.layer_groups())):
                    depths |= {f"{prefix}.{name}": depth for name in names}
        return depths

    @torch.no_grad()
    def set_image_size(self, image_size: int) -> None:
        """Make `image_size` the model's own: interpolate the vision positions, recompute the abstractor's.

        Raises:
            ConfigError: the patch does not divide it.
        """
        if image_size == self.config.vision.image_size:
            return
        vision = replace(self.config.vision, image_size=image_size)
        self.config = self.config.replace(vision=vision)
        for part in self.parts():
            if isinstance(part, FollowsImageSize):
                part.set_vision(vision)
        reset_buffers(self.parts())

    # -- weights -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Initialise all parameters: projections with a deviation of fan_in ** -0.5, others with 0.02.

        That is the usual 0.02 at a width of 2,500; with 0.02 the attention of a small model would start
        almost uniform. Norms start at 1, biases at 0.

        The visual weights of MAM start as copies of the text weights, as in stage 1 of the paper. (The
        released class leaves queries, class token and `vit_eos` at normal(0, 1), an oversight: see
        docs/fidelity.md.)
        """
        generator = torch.Generator(device=self.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif "layer_scale" in name or _is_norm_weight(self, name):
                parameter.fill_(1.0)
            else:
                is_projection = name.endswith(".weight") and parameter.ndim == 2 and "embed" not in name
                deviation = parameter.shape[1] ** -0.5 if is_projection else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
        self.copy_text_to_vision()
        reset_buffers(self.parts())

    def copy_text_to_vision(self) -> None:
        """Copy the text weights of MAM to its visual weights."""
        for part in self.parts():
            if isinstance(part, Multiway):
                part.copy_text_to_vision()


def build(
    config: Owl2Config | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Owl2Model:
    """Build a preset or configuration with newly initialised weights; on `meta`, without any storage."""
    config = preset(config) if isinstance(config, str) else config
    with torch.device("meta"):
        model = Owl2Model(config).to(dtype)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.init_weights(seed)
    return model


def _is_norm_weight(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), RMSNorm | nn.LayerNorm)
