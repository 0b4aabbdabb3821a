"""A tiny model that can talk: lively weights and the processor tests' tokenizers."""

import pytest

from owl2.model import Owl2Model
from owl2.processor import ImageTransform, Processor, Tokenizer
from tests.model.tiny import tiny_model
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    llama_json_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    tokenizer,
)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Owl2Model:  # noqa: F811
    """A model with an embedding for each token, and some more, as released ones may have."""
    return tiny_model(vocab_size=tokenizer.vocab_size + 3, max_position_embeddings=256)


@pytest.fixture
def processor(model: Owl2Model, tokenizer: Tokenizer) -> Processor:  # noqa: F811
    return Processor(
        tokenizer,
        ImageTransform(size=model.config.vision.image_size),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
        max_tokens=model.config.decoder.max_position_embeddings,
    )
