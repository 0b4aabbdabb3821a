"""A tiny real checkpoint and a small VQAv2 in the official format, for everything around the tasks."""

from pathlib import Path

import pytest

import owl2
from owl2.api import Owl2
from owl2.checkpoint import save_checkpoint
from owl2.eval.engines.local import OwlEngine
from owl2.processor import ImageTransform, Processor, SentencePieceTokenizer
from tests.eval.small import CONTEXT, NUM_QUESTIONS, write_vqa
from tests.model.tiny import tiny_model
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    sentencepiece_tokenizer: SentencePieceTokenizer,  # noqa: F811
) -> Path:
    """The folder of a tiny model with lively weights."""
    folder = tmp_path_factory.mktemp("eval") / "checkpoint"
    tokenizer = sentencepiece_tokenizer
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT)
    processor = Processor(
        tokenizer,
        ImageTransform(size=56),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
        max_tokens=CONTEXT,
    )
    save_checkpoint(model, folder, processor=processor)
    return folder


@pytest.fixture(scope="session")
def owl(checkpoint: Path) -> Owl2:
    return owl2.load(checkpoint, progress=False)


@pytest.fixture(scope="session")
def engine(owl: Owl2, checkpoint: Path) -> OwlEngine:
    return OwlEngine(owl, str(checkpoint))


@pytest.fixture(scope="session")
def vqa_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen questions on eight images; not to be changed."""
    return write_vqa(tmp_path_factory.mktemp("data"), num_questions=NUM_QUESTIONS)
