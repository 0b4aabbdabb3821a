"""Small real tokenizers for the processor's tests: a sentencepiece BPE with LLaMA's options, the same
vocabulary as a `tokenizer.json`, and a byte-level BPE as SmolLM2 and Llama 3 have it.
"""

import io
import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from owl2.processor import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from tests.processor.small import LLAMA_CONFIG, WORDS, llama_json


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randrange(4, 12))) + "." for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_model: bytes) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(sentencepiece_model)


@pytest.fixture(scope="session")
def llama_json_tokenizer(sentencepiece_model: bytes) -> JsonTokenizer:
    return JsonTokenizer(llama_json(sentencepiece_model), LLAMA_CONFIG)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> JsonTokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator((" ".join(rng.choices(WORDS, k=9)) for _ in range(400)), trainer)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return JsonTokenizer(tokenizer.to_str(), config)


@pytest.fixture(params=["sentencepiece", "llama_json", "byte_level"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the three kinds in turn."""
    return request.getfixturevalue(f"{request.param}_tokenizer")
