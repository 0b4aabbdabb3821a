"""The memory of LoRA and of full fine-tuning: weights, gradients and moments counted, and the peak measured.

    python -m bench.lora [--width 512] [--layers 8] [--rank 8] [--steps 3] [--out lora.json]

Both take the same steps on the same samples in float32, with the rules of the stages `lora` and
`instruct` and the optimizer of training. Each runs in its own process, because a peak never
falls; `peak` is the rise from before the model existed, activations included. The formula is checked against
every tensor of the small model, then applied to the shapes of mPLUG-Owl2-7B.
"""

import dataclasses
import json
import multiprocessing
import platform
from pathlib import Path
from typing import Any

import jsonargparse
import peft  # noqa: F401  (in both processes, before the first measurement)
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from owl2.cli.train import read_config
from owl2.files import write_file
from owl2.model import Owl2Config, Owl2Model, Targets, build, packed_layout, preset
from owl2.train.adapters.lora import add_adapters, check_rules
from owl2.train.flops import peak_memory
from owl2.train.optim import make_optimizer
from owl2.train.rules import Assignment, apply_freeze, assign_rules

CONFIGS = Path(__file__).parents[1] / "owl2/configs"
STAGES = {"full fine-tuning": "instruct.yaml", "LoRA": "lora.yaml"}
ROWS, TEXT = 2, 60
"""Samples per step, and tokens of text in each, after an image."""
FLOAT32 = 4

Figures = dict[str, float]


def small_config(width: int, layers: int) -> Owl2Config:
    """The tiny preset with a decoder that has most of the parameters, as in the released model."""
    tiny = preset("tiny")
    decoder = dataclasses.replace(
        tiny.decoder,
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
    )
    return tiny.replace(decoder=decoder)


def prepare(model: Owl2Model, stage: str, rank: int | None = None) -> list[Assignment]:
    """Apply the rules of a shipped stage to a model, with adapters of `rank` if given."""
    config = read_config([str(CONFIGS / STAGES[stage])])
    if config.lora is not None:
        rank = config.lora.rank if rank is None else rank
        add_adapters(model, dataclasses.replace(config.lora, rank=rank, alpha=2 * rank))
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    if config.lora is not None:
        check_rules(assignments)
    apply_freeze(model, assignments)
    return assignments


def formula(model: Owl2Model) -> Figures:
    """Bytes in float32: weights, and for trainable parameters a gradient and two moments."""
    total = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    figures: Figures = {"share": learns / total}
    figures |= {"weights": FLOAT32 * total, "gradients": FLOAT32 * learns, "moments": 2 * FLOAT32 * learns}
    return {**figures, "sum": FLOAT32 * (total + 3 * learns)}


def measure(stage: str, width: int, layers: int, rank: int, steps: int) -> Figures:
    """Take steps and return bytes: those of the formula, checked against every tensor, and `peak`.

    Raises:
        AssertionError: the formula is wrong.
    """
    torch.set_num_threads(1)
    before = peak_memory("cpu")
    model = build(small_config(width, layers))
    assignments = prepare(model, stage, rank)
    optimizer = make_optimizer(model, assignments, read_config([str(CONFIGS / STAGES[stage])]).optim)
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        optimizer.zero_grad(set_to_none=True)
    peak = peak_memory("cpu") - before
    figures = formula(model)
    values = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert figures["weights"] == sum(p.nbytes for p in model.parameters())
    assert figures["gradients"] == gradients
    assert figures["moments"] == sum(value.nbytes for value in values)
    return {**figures, "peak": peak}


def loss_of(model: Owl2Model, step: int) -> Tensor:
    """The mean loss of random samples, each an image followed by text to predict."""
    config = model.config
    generator = torch.Generator().manual_seed(step)
    queries, size = config.tokens_per_image, config.vision.image_size
    ids = torch.randint(3, config.decoder.vocab_size, (ROWS, queries + TEXT), generator=generator)
    ids[:, :queries] = config.image_token_id
    places = torch.arange(ids.numel()).view_as(ids)[:, queries - 1 : -1].flatten()
    targets = Targets(rows=places, ids=ids[:, queries:].flatten())
    layout = packed_layout(ids.flatten(), (ids.shape[1],) * ROWS, config.image_token_id)
    pixels = torch.randn(ROWS, config.vision.num_channels, size, size, generator=generator)
    return model.token_losses(ids.flatten(), layout, targets, pixels).sum() / targets.count


def released(stage: str) -> Figures:
    """The bytes of the shipped stage for mPLUG-Owl2-7B, from its shapes."""
    model = build("owl2_7b", device="meta")
    prepare(model, stage)
    return formula(model)


def show(results: dict[str, dict[str, Figures]]) -> None:
    """Print one table per model."""
    for model, stages in results.items():
        table = Table(title=f"{model}, MB", title_justify="left")
        columns = [name for name in next(iter(stages.values())) if name != "share"]
        table.add_column("")
        for column in ("trainable", *columns):
            table.add_column(column, justify="right")
        for stage, figures in stages.items():
            sizes = [f"{figures[name] / 1e6:,.1f}" for name in columns]
            table.add_row(stage, f"{figures['share']:.2%}", *sizes)
        full, lora = (stages[stage] for stage in STAGES)
        # The peak of a very small model may be 0.
        ratios = [f"{lora[name] / full[name]:.3f}" if full[name] else "-" for name in columns]
        table.add_row("LoRA / full", "", *ratios)
        Console(width=110).print(table)


def main(width: int = 512, layers: int = 8, rank: int = 8, steps: int = 3, out: Path | None = None) -> None:
    """Measure both on a small model and compute both for the released one.

    Args:
        width: hidden size of the decoder; heads of 64.
        layers: of the decoder.
        rank: of the small model's adapters; the released model has that of the configuration.
        steps: optimizer steps to take.
        out: JSON file for the results.
    """
    small: dict[str, Figures] = {}
    for stage in STAGES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            small[stage] = pool.apply(measure, (stage, width, layers, rank, steps))
    results = {
        f"width {width}, {layers} layers": small,
        "mPLUG-Owl2-7B": {stage: released(stage) for stage in STAGES},
    }
    show(results)
    if out is not None:
        settings: dict[str, Any] = {"width": width, "layers": layers, "rank": rank, "steps": steps}
        record = {**settings, "torch": torch.__version__, "machine": platform.machine(), "results": results}
        write_file(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
