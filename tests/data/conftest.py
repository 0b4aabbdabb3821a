"""The tiny corpora, and the processor of a tiny checkpoint."""

from pathlib import Path

import pytest

from owl2.processor import ImageTransform, Processor, SentencePieceTokenizer
from tests.data.small import write_corpora
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def processor(sentencepiece_tokenizer: SentencePieceTokenizer) -> Processor:  # noqa: F811
    """Five tokens an image of 28 px, no limit of tokens."""
    return Processor(sentencepiece_tokenizer, ImageTransform(28), image_token_id=-200, tokens_per_image=5)
