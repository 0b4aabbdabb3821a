"""Held-out samples are answered while a run trains, as `owl2 chat` would; the training does not notice."""

import io
import json
from html import escape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import owl2
from owl2.processor import load_image
from owl2.train import loop, report
from owl2.train.config import (
    LoraConfig,
    ParallelConfig,
    SourceConfig,
    TrainConfig,
    TrainConfigError,
    ValidationConfig,
)
from owl2.train.report import RunFiles, page, write_report
from owl2.train.rules import Rule
from tests.markup import check_that_text_stays_text
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import losses, run_until, run_whole, stage, weights


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
        pytest.param({"parallel": ParallelConfig(compile="aot_eager")}, marks=pytest.mark.slow),
    ],
    ids=["all", "lora", "bfloat16", "activation checkpointing", "compiled"],
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


def test_answers_are_on_the_console_and_in_the_report_with_their_images(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    config = asked(tmp_path, checkpoint, corpora)
    console = Console(file=io.StringIO(), width=300)
    loop.train(config, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("  held-out:chat-1  what is in the picture?  ->  ") == 4
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == ["1-0.jpg", "2-0.jpg"]
    html = page(RunFiles.read(tmp_path))
    section = html[html.index("<h2>Sample answers</h2>") :].partition("</section>")[0]
    assert section.count("<img alt=") == 2, "the first sample is text alone"
    check_that_text_stays_text(report, lambda: write_report(tmp_path), monkeypatch)
    for row in rows(tmp_path):
        assert escape(row["expected"]) in section
        assert escape(row["answer"] or "(nothing)") in section
    assert "held out: " in html


def test_a_resumed_run_has_every_answer_once_and_none_before_its_first_step(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(tmp_path / "cut", checkpoint, corpora)
    run_until(config, 3, monkeypatch)
    run_whole(config)
    whole = asked(tmp_path / "whole", checkpoint, corpora)
    run_whole(whole)
    assert rows(config.run) == rows(whole.run)
    assert losses(config.run) == losses(whole.run)


def test_trackers_get_the_answers_as_a_table_of_text(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "wandb"):
        pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    console = Console(file=io.StringIO(), width=300)
    loop.train(asked(tmp_path, checkpoint, corpora, trackers=["tensorboard", "wandb"]), console)
    assert "failed" not in console.file.getvalue()  # type: ignore[attr-defined]
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"| held-out:chat-1 | what is in the picture? |" in events
    (table,) = [file for file in (tmp_path / "wandb").rglob("samples_5_*.table.json")]
    data = json.loads(table.read_text())
    assert data["columns"] == ["key", "question", "expected", "answer"]
    assert [row[0] for row in data["data"]] == [f"held-out:chat-{n}" for n in range(3)]


def test_samples_of_a_model_that_is_split_by_tensors_are_refused(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = asked(tmp_path, checkpoint, corpora, parallel=ParallelConfig(tensor=2))
    with pytest.raises(TrainConfigError, match=r"validation.samples cannot be answered .* parallel.tensor 2"):
        config.check(2)
    asked(tmp_path, checkpoint, corpora, None, parallel=ParallelConfig(tensor=2)).check(2)
