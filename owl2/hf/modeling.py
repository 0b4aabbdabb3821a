"""The model as a `PreTrainedModel`, around the modules of `owl2.model`.

`Owl2Model` does the computing, and this class shows its modules under the same names, so every checkpoint,
adapter and rule fits both. Rows are packed without padding inside, so padding may be on either side.

Shapes: B rows, T slots, N tokens, I images, D width, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from owl2.hf.configuration import Owl2HfConfig
from owl2.model import KVCache, Owl2Model, padded_layout
from owl2.model.layout import Layout, targets_of
from owl2.model.parts import ComputesBuffers

CACHE = (
    "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
)
"""What this version of the library calls the cache."""


class HfCache:
    """Our cache of keys and values with what `generate` asks of one; it grows, or has its size at once."""

    is_compileable = False
    is_croppable = True
    is_linear = (False,)
    layers: tuple[()] = ()

    def __init__(self, capacity: int = 0):
        """Begin empty; `capacity` is the number of tokens a row that are expected, 0 if that is unknown."""
        self.capacity = capacity
        self.kv: KVCache | None = None
        self.num_slots = 0
        """Columns of `input_ids` that were read, padding included."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_slots

    def get_max_length(self) -> int:
        return self.capacity or -1

    def room(self, model: Owl2Model, batch: int, new: int) -> KVCache:
        """Return the cache with room for `new` more tokens in each of `batch` rows."""
        if self.kv is None:
            capacity = max(self.capacity, new)
            self.kv = KVCache(model.config.decoder, batch, capacity, model.device, model.dtype)
        needed = max(self.kv.lengths) + new
        if needed > self.kv.capacity:
            self.kv.grow(max(needed, 2 * self.kv.capacity))
        return self.kv

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.kv is not None:
            self.kv.keep_rows(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.kv is not None:
            self.kv.keep_rows([row for row in range(len(self.kv.lengths)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def crop(self, tokens: int) -> None:
        """Remove `-tokens` tokens of each row; a positive number is a length to keep (older versions)."""
        removed = -tokens if tokens <= 0 else max(0, self.num_slots - tokens)
        self.num_slots -= removed
        if self.kv is not None:
            self.kv.lengths = [max(0, length - removed) for length in self.kv.lengths]

    def activate_past_recording(self) -> None:
        """Nothing to record: removed tokens are overwritten."""


class MPLUGOwl2LlamaForCausalLM(PreTrainedModel, GenerationMixin):
    """mPLUG-Owl2 for `generate`, `pipeline`, `Trainer`, PEFT and TRL."""

    config_class = Owl2HfConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  (the library's form)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _is_stateful = False
    _no_split_modules = ["DecoderLayer", "VisionLayer", "AbstractorLayer"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (the library's form)

    def __init__(self, config: Owl2HfConfig):
        super().__init__(config)
        core = Owl2Model(config.own)
        self.model = core.model
        decoder = core.config.decoder
        self.lm_head = (
            nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
            if decoder.tie_word_embeddings
            else core.lm_head
        )
        self._core = (core,)  # in a tuple, so that its modules are registered once
        self.post_init()

    @property
    def core(self) -> Owl2Model:
        """The same modules as an `Owl2Model`."""
        return self._core[0]

    @property
    def base_model(self) -> Any:
        """The decoder with everything below, without the head."""
        return BaseModel(self)

    # -- forward -----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) in float32, and the loss if `labels` are given.

        Args:
            input_ids: (B, T) int64; a visual position has the configuration's `image_token_id`.
            attention_mask: (B, T), or longer by what the cache holds; zeros at padding of either side.
            pixel_values: (I, 3, H, W), images in the order of their places.
            labels: (B, T) int64, -100 where nothing is predicted; shifted here.
            logits_to_keep: the last so many slots, or these; 0 for all.
            num_items_in_batch: what the sum of losses is divided by; default: the number of labels here.

        Raises:
            ValueError: images that do not match their places, or an input that this model does not take.
        """
        refused = [name for name in ("inputs_embeds", "output_attentions") if others.get(name) is not None]
        if input_ids is None or refused or output_attentions:
            raise ValueError(
                f"mPLUG-Owl2 takes input_ids, and neither {' nor '.join(refused or ['output_attentions'])}: "
                f"image tokens are put into their places inside, and attention is never held as a matrix"
            )
        cache = others.get("cache", others.get("past_key_values"))
        if cache is None and use_cache and not torch.is_grad_enabled():
            cache = HfCache()
        hidden, layout, states = self._hidden(
            input_ids, attention_mask, pixel_values, cache, bool(output_hidden_states)
        )
        loss = None if labels is None else self._loss(hidden, layout, labels, num_items_in_batch)
        last_only = isinstance(logits_to_keep, int) and logits_to_keep == 1
        if last_only:  # the last token of each row, wherever its padding is
            logits = self._logits(hidden.index_select(0, layout.boundaries[1:].to(hidden.device) - 1))[
                :, None
            ]
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(_in_slots(hidden, layout, input_ids)[:, kept])
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states, **{CACHE: cache})

    def _hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None,
        cache: HfCache | None,
        keeps_states: bool = False,
    ) -> tuple[Tensor, Layout, tuple[Tensor, ...] | None]:
        """Run all below the head -> (N, D), the layout, and (B, T, D) before each layer and at the end."""
        core = self.core
        own_id = core.config.image_token_id
        ids = input_ids.masked_fill(input_ids == self.config.image_token_id, own_id)
        mask = None if attention_mask is None else attention_mask[:, -ids.shape[1] :].bool()
        past = None if cache is None or cache.kv is None else cache.kv.lengths
        layout = padded_layout(ids, mask, own_id, **({} if past is None else {"past": past})).to(ids.device)
        if pixel_values is not None and not pixel_values.numel():
            pixel_values = None
        kv = None
        if cache is not None:
            kv = cache.room(core, len(ids), max(layout.lengths))
            cache.num_slots += ids.shape[1]
        states: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: states.append(args[0]))
            for layer in (self.model.layers if keeps_states else ())
        ]
        try:
            hidden = core.hidden(core.embed(ids, layout, pixel_values), layout, kv)
        finally:
            for hook in hooks:
                hook.remove()
        shown = tuple(_in_slots(state, layout, ids) for state in (*states, hidden)) if keeps_states else None
        return hidden, layout, shown

    def _logits(self, hidden: Tensor) -> Tensor:
        """Project (..., D) -> (..., V + 1); the last column, of the image's id, can never be chosen."""
        logits = self.lm_head(hidden).float()
        return nn.functional.pad(logits, (0, 1), value=torch.finfo(torch.float32).min)

    def _loss(self, hidden: Tensor, layout: Layout, labels: Tensor, count: int | Tensor | None) -> Tensor:
        targets = targets_of(labels, layout)
        logits = self.lm_head(hidden.index_select(0, targets.rows)).float()
        total = nn.functional.cross_entropy(logits, targets.ids, reduction="sum")
        return total / (max(1, len(targets.ids)) if count is None else count)

    # -- what the library asks for -----------------------------------------------------------------------

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Take what the cache has not read, and images at the first step alone."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        read = 0 if cache is None else cache.get_seq_length()
        new = input_ids[:, kwargs.get("prompt_slots", input_ids.shape[1]) :]
        if new.numel():  # assisted decoding may guess the image's id, which the head then refuses
            new = new.masked_fill(new == self.config.image_token_id, 0)
            input_ids = torch.cat((input_ids[:, : -new.shape[1]], new), dim=1)
        return {
            "input_ids": input_ids[:, read:] if kwargs.get("use_cache", True) else input_ids,
            "attention_mask": kwargs.get("attention_mask"),
            "pixel_values": None if read else kwargs.get("pixel_values"),
            "use_cache": kwargs.get("use_cache", True),
            "logits_to_keep": kwargs.get("logits_to_keep") or 1,
            "output_hidden_states": kwargs.get("output_hidden_states"),
            "output_attentions": kwargs.get("output_attentions"),
            **({} if cache is None else {CACHE: cache}),
        }

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """A cache that grows, or for `cache_implementation="static"` one of the whole length."""
        given = model_kwargs.get("cache", model_kwargs.get("past_key_values"))
        if given is None and generation_config.use_cache is not False:
            is_static = generation_config.cache_implementation is not None
            model_kwargs[CACHE] = HfCache(generation_config.max_length if is_static else 0)

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each row with its own images; repeating the list of images would mix rows of several."""
        pixels = kwargs.pop("pixel_values", None)
        shown = input_ids
        ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=cast(Any, input_ids),
            **kwargs,
        )
        if pixels is not None and shown is not None and expand_size > 1:
            own = self.core.config
            visual = (shown == self.config.image_token_id) | (shown == own.image_token_id)
            counts = (visual.sum(1) // own.tokens_per_image).tolist()
            pixels = torch.cat([part for part in pixels.split(counts) for _ in range(expand_size)])
        if shown is not None:
            kwargs["prompt_slots"] = shown.shape[1]
        return ids, kwargs if pixels is None else {**kwargs, "pixel_values": pixels}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ComputesBuffers):
            module.reset_buffers()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def activation_checkpointing_enable(self, *given: Any, **named: Any) -> None:
        """Compute the layers of each stack again in the backward pass; options are `checkpoint`'s."""
        options = {"use_reentrant": False}
        for found in (*given, *named.values()):
            options |= found if isinstance(found, dict) else {}
        for stack in self.core.layer_stacks():
            for layer in stack:
                layer.forward = partial(_again, type(layer).forward.__get__(layer), options)

    def activation_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        for stack in self.core.layer_stacks():
            for layer in stack:
                layer.__dict__.pop("forward", None)

    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any("forward" in vars(layer) for stack in self.core.layer_stacks() for layer in stack)


class BaseModel:
    """The model without its head, as trainers call it that compute the loss themselves."""

    def __init__(self, whole: MPLUGOwl2LlamaForCausalLM):
        self._whole = whole

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Return `last_hidden_state` (B, T, D)."""
        hidden, layout, _ = self._whole._hidden(input_ids, attention_mask, pixel_values, None)
        return BaseModelOutputWithPast(last_hidden_state=_in_slots(hidden, layout, input_ids))

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole.model, name)


def _in_slots(packed: Tensor, layout: Layout, input_ids: Tensor) -> Tensor:
    """Lay (N, D) out as (B, T, D), zeros in padding."""
    if layout.tokens is not None:
        packed = packed.new_zeros(input_ids.numel(), packed.shape[1]).index_copy(0, layout.tokens, packed)
    return packed.unflatten(0, input_ids.shape)


def _again(forward: Any, options: dict[str, Any], *args: Any) -> Any:
    return checkpoint(forward, *args, **options) if torch.is_grad_enabled() else forward(*args)
