"""A whole training run in small: a tiny checkpoint and seven steps.

`stage` makes a configuration of either stage; `run_until` stops a run after a step by the real signal, so
that what is tested is what happens.
"""

import dataclasses
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from owl2.checkpoint import save_checkpoint
from owl2.model import Owl2Config, build, preset
from owl2.processor import ImageTransform, Processor, Tokenizer
from owl2.train import loop
from owl2.train.config import DataConfig, OptimConfig, SourceConfig, TrainConfig
from owl2.train.metrics import Metrics, read_metrics
from owl2.train.rules import Rule

STEPS = 7
STAGE_1 = [
    Rule(match="model.vision_model.*", layer_decay=0.9),
    Rule(match="model.visual_abstractor.*"),
    Rule(match="*.multiway.1.*"),
    Rule(match="*", frozen=True),
]
STAGE_2 = [Rule(match="model.vision_model.*", layer_decay=0.9), Rule(match="*")]


def write_checkpoint(folder: Path, tokenizer: Tokenizer) -> Path:
    """Write the tiny preset with the tokenizer's vocabulary."""
    decoder = dataclasses.replace(preset("tiny").decoder, vocab_size=tokenizer.vocab_size)
    config: Owl2Config = preset("tiny").replace(decoder=decoder)
    processor = Processor(
        tokenizer,
        ImageTransform(config.vision.image_size),
        image_token_id=config.image_token_id,
        tokens_per_image=config.tokens_per_image,
        max_tokens=decoder.max_position_embeddings,
    )
    save_checkpoint(build(config, seed=3), folder, processor=processor)
    return folder


def stage(run: Path, checkpoint: Path, corpora: Path, **changes: Any) -> TrainConfig:
    """A configuration of seven steps over both corpora, all of it learning; `changes` replace its fields."""
    sources = [
        SourceConfig(name="captions", path=corpora / "captions", augment="crop_flip"),
        SourceConfig(name="chat", path=corpora / "chat.jsonl", weight=2),
    ]
    config = TrainConfig(
        run=run,
        model=checkpoint,
        data=DataConfig(sources=sources, max_tokens=512),
        rules=STAGE_2,
        steps=STEPS,
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        global_batch_size=4,
        micro_batch_size=2,
        accumulation=2,
        save_every=1000,
    )
    return dataclasses.replace(config, **changes)


def quiet() -> Console:
    """A console whose output nobody reads."""
    return Console(file=io.StringIO(), width=200)


def run_whole(config: TrainConfig) -> Path:
    """Run a stage to its end."""
    return loop.train(config, quiet())


def run_until(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage and ask it to stop after `step`, as a scheduler does."""

    class Stopping(Metrics):
        def update(self, row: dict[str, float]) -> None:
            super().update(row)
            if row["step"] == step:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Metrics", Stopping)
        with pytest.raises(loop.Interrupted, match=f"after step {step} of"):
            loop.train(config, quiet())


def losses(run: Path) -> list[float]:
    """The loss of every step, in order; the steps are checked to be 1, 2, 3, ..."""
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, or the weights in a state that one process wrote."""
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    (file,) = folder.glob("*.safetensors")
    return {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(file).items()
        if name.startswith("model.")
    }
