"""Held-out samples are answered while a run trains, as `owl2 chat` would; the training does not notice."""

import json
from pathlib import Path
from typing import Any

import pytest

import owl2
from owl2.processor import load_image
from owl2.train.config import (
    LoraConfig,
    ParallelConfig,
    SourceConfig,
    TrainConfig,
    ValidationConfig,
)
from owl2.train.rules import Rule
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import losses, run_whole, stage, weights


def asked(run: Path, checkpoint: Path, corpora: Path, samples: int | None = 3, **changes: Any) -> TrainConfig:
    """A run that answers three samples of the chats before it, after every second step, and at its end."""
    chat = SourceConfig(name="held-out", path=corpora / "chat.jsonl")
    held_out = ValidationConfig(sources=[chat], every=2, max_samples=3, samples=samples)
    return stage(run, checkpoint, corpora, **{"steps": 5, "validation": held_out, **changes})


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def answers(run: Path) -> list[tuple[int, str, str]]:
    return [(row["step"], row["key"], row["answer"]) for row in rows(run)]


def test_held_out_samples_are_answered_as_a_chat_with_the_checkpoint_would(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = asked(tmp_path, checkpoint, corpora)
    run_whole(config)
    assert sorted({row["step"] for row in rows(tmp_path)}) == [0, 2, 4, 5]
    last = rows(tmp_path)[-3:]
    assert [row["key"] for row in last] == [f"held-out:chat-{n}" for n in range(3)]
    owl = owl2.load(tmp_path / "checkpoint", progress=False)
    data = [json.loads(line) for line in (corpora / "chat.jsonl").read_text().splitlines()[:3]]
    for row, sample in zip(last, data, strict=True):
        *before, answer = sample["conversations"]
        assert row["expected"] == answer["value"]
        messages: list[dict[str, Any]] = [
            {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
            for turn in before
        ]
        if "image" in sample:
            text = {"type": "text", "text": messages[0]["content"].removeprefix("<image>")}
            image = {"type": "image", "image": load_image(corpora / sample["image"])}
            messages[0]["content"] = [image, text]
        said = owl.chat(
            messages, max_new_tokens=len(owl.processor.tokenizer.encode(answer["value"], space=True)) + 16
        )
        assert row["answer"].removesuffix(" ...") == said


LORA: dict[str, Any] = {
    "lora": LoraConfig(rank=4, alpha=8),
    "rules": [Rule(match="*.lora_*"), Rule(match="*", frozen=True)],
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        LORA,
        {"dtype": "bfloat16"},
        {"parallel": ParallelConfig(activation_checkpointing="full")},
    ],
    ids=["all", "lora", "bfloat16", "activation checkpointing"],
)
def test_the_training_is_the_same_to_the_last_bit_with_sample_answers(
    changes: dict[str, Any], checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    if "lora" in changes:
        pytest.importorskip("peft")
    found = []
    for samples in (None, 3):
        run = tmp_path / str(samples)
        run_whole(asked(run, checkpoint, corpora, samples, **changes))
        found.append((losses(run), weights(run / "checkpoint")))
    (plain_losses, plain), (with_losses, with_answers) = found
    assert plain_losses == with_losses
    assert all(tensor.equal(with_answers[name]) for name, tensor in plain.items())


def test_two_ranks_give_the_answers_of_one(
    checkpoint: Path, corpora: Path, tmp_path: Path, pool: Pool
) -> None:
    config = asked(tmp_path / "one", checkpoint, corpora)
    run_whole(config)
    many = split(config, tmp_path / "many", 2)
    all_returned(pool.run(2, train_on_rank, many))
    assert answers(many.run)[:3] == answers(config.run)[:3]
    assert [row[:2] for row in answers(many.run)] == [row[:2] for row in answers(config.run)]
    quiet = split(asked(tmp_path / "quiet", checkpoint, corpora, None), tmp_path / "quiet", 2)
    all_returned(pool.run(2, train_on_rank, quiet))
    assert losses(quiet.run) == losses(many.run)
