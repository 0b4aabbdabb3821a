"""The value of batching in evaluation: 500 open questions on images, one at a time and together.

    python -m bench.eval runs/demo/checkpoint [--questions 500] [--per_image 5] [--rounds 3]

Both go through the whole runner: images are decoded and resized, prompts encoded, answers generated and kept.
One at a time is the runner with batches of one, which opens and encodes an image for every question, as a
loop of `owl.chat` would. A batch encodes each of its images once, so questions that share images, as in
VQAv2, gain more; `--per_image 1` shows the gain without that.

A round asks every question in both variants, in alternating order, so that other work on the machine affects
both; a ratio is taken within a round, and the median over rounds is reported. The answers must be identical,
or there is nothing to compare.
"""

import io
import json
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

import owl2
from owl2.data.sample import StoredImage
from owl2.eval.answers.predictions import read_task
from owl2.eval.engines.local import OwlEngine
from owl2.eval.runner import Batching, Plan, run_plan
from owl2.eval.task import Item, Items, find_task

WORDS = (
    "what",
    "colour",
    "is",
    "the",
    "large",
    "thing",
    "on",
    "left",
    "of",
    "this",
    "image",
    "behind",
    "how",
)
SIDE = 320
ONE = "one at a time"


def questions(count: int, per_image: int) -> list[Item]:
    """Questions of 3 to 20 words, neighbours on one image."""
    rng = random.Random(0)
    images = [image(number, rng) for number in range(-(-count // per_image))]
    return [
        Item(
            id=str(number),
            question=f"{' '.join(rng.choices(WORDS, k=rng.randrange(3, 21))).capitalize()}?",
            images=(images[number // per_image],),
        )
        for number in range(count)
    ]


def image(number: int, rng: random.Random) -> StoredImage:
    """A JPEG with some coloured shapes."""
    image = Image.new("RGB", (SIDE, SIDE * 3 // 4), tuple(rng.choices(range(256), k=3)))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        draw.ellipse((x - 40, y - 30, x + 40, y + 30), fill=tuple(rng.choices(range(256), k=3)))
    stream = io.BytesIO()
    image.save(stream, format="JPEG")
    data = stream.getvalue()
    return StoredImage(f"{number}.jpg", lambda: data)


def answers_of(folder: Path) -> dict[str, str]:
    found = read_task(folder, "vqav2")
    assert found is not None
    return {name: row.output for name, row in found.by_id.items()}


def measure(checkpoint: str, count: int, per_image: int, rounds: int, batch_size: int) -> dict[str, Any]:
    """Questions per second, process CPU seconds and the ratios of each variant."""
    engine = OwlEngine(owl2.load(checkpoint, progress=False), checkpoint)
    task = find_task("vqav2")
    items = questions(count, per_image)
    template = next(iter(task.templates))
    plan = Plan(
        task=task,
        template=template,
        decoding=task.decoding_of(template),
        items=items,
        num_items=count,
        loaded=Items(items, []),
    )
    variants = {ONE: Batching(max_rows=1), f"batches of {batch_size}": Batching(max_rows=batch_size)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    said: dict[str, dict[str, str]] = {}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                wall, process = time.perf_counter(), time.process_time()
                run_plan(engine, plan, Path(folder), Path(folder), batching=variants[name])
                seconds[name].append(time.perf_counter() - wall)
                cpu[name].append(time.process_time() - process)
                said[name] = answers_of(Path(folder))
    if any(answers != said[ONE] for answers in said.values()):
        raise AssertionError("answers differ between batch sizes: the figures would compare different work")
    return {
        name: {
            "questions_per_s": count / statistics.median(seconds[name]),
            "cpu_s": statistics.median(cpu[name]),
            "speed_ratio": statistics.median(a / b for a, b in zip(seconds[ONE], seconds[name], strict=True)),
            "cpu_ratio": statistics.median(a / b for a, b in zip(cpu[ONE], cpu[name], strict=True)),
        }
        for name in variants
    }


def main(
    checkpoint: str,
    questions: int = 500,
    per_image: int = 5,
    rounds: int = 3,
    batch_size: int = 32,
    out: Path | None = None,
) -> None:
    """Measure and print a table.

    Args:
        checkpoint: checkpoint folder or hub id.
        questions: number of questions in each round and variant.
        per_image: questions on one image; VQAv2 has about five.
        rounds: each variant is timed once a round; medians are printed.
        batch_size: questions answered together.
        out: also write the figures here as JSON.
    """
    figures = measure(checkpoint, questions, per_image, rounds, batch_size)
    asked = f"{questions} questions, {per_image} an image"
    title = f"{asked}, {torch.get_num_threads()} threads, {rounds} rounds; answers identical"
    table = Table("", "questions/s", "times as fast", "CPU s", "times less CPU", title=title)
    for name, row in figures.items():
        cells = (row["questions_per_s"], row["speed_ratio"], row["cpu_s"], row["cpu_ratio"])
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    Console().print(table)
    if out is not None:
        machine = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        settings = {
            "checkpoint": checkpoint,
            "questions": questions,
            "per_image": per_image,
            "rounds": rounds,
        }
        out.write_text(json.dumps({**machine, **settings, "results": figures}, indent=1) + "\n")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
