"""One tiny checkpoint, its corpora and one uninterrupted run for all tests of training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from owl2.processor import SentencePieceTokenizer
from owl2.train.config import TrainConfig
from tests.data.small import write_corpora
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)
from tests.train.ranks import Pool
from tests.train.splits import OPTIM, RULES, Reference
from tests.train.tiny import run_whole, stage, write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on several threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(
    sentencepiece_tokenizer: SentencePieceTokenizer,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "base", sentencepiece_tokenizer)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def whole(checkpoint: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run that nothing interrupted; read it only."""
    config = stage(tmp_path_factory.mktemp("runs") / "whole", checkpoint, corpora)
    run_whole(config)
    return config


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four ranks for all distributed tests."""
    pool = Pool(4)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def reference(checkpoint: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Steps of each stage on one process, five where nobody says how many."""
    done: dict[tuple[str, int], TrainConfig] = {}

    def run(name: str, steps: int = 5) -> TrainConfig:
        if (name, steps) not in done:
            folder = tmp_path_factory.mktemp("reference")
            settings = {"global_batch_size": 4, "micro_batch_size": 4, "accumulation": 1, "optim": OPTIM}
            config = stage(folder, checkpoint, corpora, rules=RULES[name], steps=steps, **settings)
            run_whole(config)
            done[name, steps] = config
        return done[name, steps]

    return run
