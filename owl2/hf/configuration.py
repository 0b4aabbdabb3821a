"""Our configuration as one of `transformers`.

`config.json` is the same file for both. What `transformers` adds to it when it saves is ignored by owl2, and
what owl2 has is kept as it is.

The id of an image in `input_ids` has to be one that logits processors and trainers can look up, which -200 is
not. Here it is the first id behind the vocabulary, with one more column of logits, which is never chosen. The
model still accepts the id of `config.json`.
"""

from typing import Any

from transformers import PretrainedConfig

from owl2.model.config import Owl2Config

DECODER = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Fields of the decoder that tools of the library look up."""


class Owl2HfConfig(PretrainedConfig):
    """A `config.json` of mPLUG-Owl2, released or ours."""

    model_type = "mplug_owl2"
    has_no_defaults_at_init = False

    def __init__(self, **raw: Any):
        own = Owl2Config.from_dict({"model_type": self.model_type, **raw}).to_dict()
        rest = {name: value for name, value in raw.items() if name not in own}
        rest |= {name: own[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        for name in (
            "image_token_id",
            "rope_scaling",
            "rope_parameters",
            "rope_theta",
            "architectures",
            "model_type",
        ):
            rest.pop(name, None)
        super().__init__(**rest)
        self.tie_word_embeddings = own["tie_word_embeddings"]
        object.__setattr__(self, "_own", own)
        for name in DECODER:
            setattr(self, name, own[name])
        self.vocab_size = own["vocab_size"] + 1  # columns of the logits; the files have the embedding's rows

    @property
    def own(self) -> Owl2Config:
        """The configuration of the model."""
        return Owl2Config.from_dict(self._own)

    @property
    def image_token_id(self) -> int:
        """The id of a visual position in `input_ids`, one behind the vocabulary."""
        return int(self._own["vocab_size"])

    def to_dict(self) -> dict[str, Any]:
        """Return `config.json`: ours, with what the library adds."""
        found = super().to_dict()
        found.pop("_own", None)
        return found | self._own
