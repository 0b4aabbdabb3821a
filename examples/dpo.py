"""Preference tuning against hallucination with TRL's DPO, on pairs that are true by construction.

    python examples/dpo.py runs/demo/checkpoint runs/demo/world/instruct/train.jsonl runs/dpo --seed 0

Each pair is a question of the training data. Chosen is its answer; rejected is what is not in the image: the
other of yes and no, another colour, another count. `owl2 eval run runs/dpo --tasks pope` then measures it.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from PIL import Image

import owl2.hf  # noqa: F401  (registers the model)

KINDS = (
    ("yes", "no"),
    ("red", "blue", "green", "yellow", "orange", "purple", "pink", "gray"),
    tuple("12345"),
)


def pairs(file: Path, count: int, seed: int) -> datasets.Dataset:
    """Questions on one image with a right and a wrong answer."""
    found: list[tuple[Path, str, str, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = [turn["value"].replace("<|image|>", "").strip() for turn in row["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            for kind in KINDS:
                if "image" in row and answer in kind:
                    wrong = random.Random(f"{seed} {question}").choice([w for w in kind if w != answer])
                    found.append((file.parent / row["image"], question, answer, wrong))
    return datasets.Dataset.from_list([pair(*one) for one in random.Random(seed).sample(found, count)])


def pair(image: Path, question: str, right: str, wrong: str) -> dict[str, Any]:
    def turn(role: str, text: str, *parts: dict[str, str]) -> list[dict[str, Any]]:
        return [{"role": role, "content": [*parts, {"type": "text", "text": text}]}]

    return {
        "images": [Image.open(image).convert("RGB")],
        "prompt": turn("user", question, {"type": "image"}),
        "chosen": turn("assistant", right),
        "rejected": turn("assistant", wrong),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO on the demo's world")
    for name in ("checkpoint", "data", "out"):
        parser.add_argument(name, type=Path)
    for option, default in (("seed", 0), ("steps", 150), ("batch", 16)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=5e-5)
    given = parser.parse_args()
    load = transformers.AutoModelForImageTextToText.from_pretrained
    model, reference = (load(given.checkpoint, dtype=torch.float32) for _ in range(2))
    processor = transformers.AutoProcessor.from_pretrained(given.checkpoint)
    config = trl.DPOConfig(
        output_dir=str(given.out / "trainer"), seed=given.seed, max_steps=given.steps, learning_rate=given.lr,
        per_device_train_batch_size=given.batch, max_length=None, save_strategy="no", logging_steps=10,
        report_to=[], use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available(),
    )  # fmt: skip
    rows = pairs(given.data, given.steps * given.batch, given.seed)
    trl.DPOTrainer(model, reference, config, train_dataset=rows, processing_class=processor).train()
    model.save_pretrained(given.out)
    processor.save_pretrained(given.out)


if __name__ == "__main__":
    main()
