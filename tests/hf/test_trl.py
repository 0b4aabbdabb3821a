"""TRL's trainers take the model as it comes. TRL is not part of `dev`; with it installed these run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hf.test_transformers import IMAGES, folder  # noqa: F401  (fixture)
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
pytest.importorskip("owl2.hf")


def settings(out: Path) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_length": None,
        "learning_rate": 3e-3,
    }


def load(folder: Path) -> Any:  # noqa: F811
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def test_supervised_fine_tuning_lowers_the_loss(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [
        {
            "images": [IMAGES[number % 3]],
            "prompt": [{"role": "user", "content": "What is this?"}],
            "completion": [{"role": "assistant", "content": "a red cat"}],
        }
        for number in range(8)
    ]
    trainer = trl.SFTTrainer(
        model=load(folder),
        args=trl.SFTConfig(**settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert float(losses[-1]) < 0.8 * float(losses[0])


def test_preferences_widen_the_margin(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [
        {
            "images": [IMAGES[number % 3]],
            "prompt": [{"role": "user", "content": [{"type": "image"}, *text("What is this?")]}],
            "chosen": [{"role": "assistant", "content": text("a red cat")}],
            "rejected": [{"role": "assistant", "content": text("a blue dog")}],
        }
        for number in range(8)
    ]
    trainer = trl.DPOTrainer(
        model=load(folder),
        ref_model=load(folder),
        args=trl.DPOConfig(**settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoProcessor.from_pretrained(folder),
    )
    trainer.train()
    margins = [row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row]
    assert float(margins[0]) == pytest.approx(0, abs=1e-4)
    assert float(margins[-1]) > 0.5
