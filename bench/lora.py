"""The memory of LoRA and of full fine-tuning: weights, gradients and moments counted, and the peak measured.

    python -m bench.lora [--width 512] [--layers 8] [--rank 8] [--steps 3] [--out lora.json]

Both take the same steps on the same samples, float32, with the rules of `configs/lora.yaml` and
`configs/instruct.yaml` and the optimizer of the engine. Each has a process of its own, because a peak never
falls; `peak` is how far it rose from before the model was there, activations included. What is counted on
the small model by looking at every tensor is what the same formula gives; the formula is then put to
mPLUG-Owl2-7B, which has no storage here.
"""

import dataclasses
import json
import multiprocessing
import os
import platform
from pathlib import Path
from typing import Any

import jsonargparse
import peft  # noqa: F401  (in both processes, before the first measure)
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from owl2.cli.train import read_config
from owl2.model import Owl2Config, Owl2Model, Targets, build, packed_layout, preset
from owl2.train.adapters.lora import add_adapters, check_rules
from owl2.train.flops import peak_memory
from owl2.train.optim import make_optimizer
from owl2.train.rules import Assignment, apply_freeze, assign_rules

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = {"full fine-tuning": "instruct.yaml", "LoRA": "lora.yaml"}
ROWS, TEXT = 2, 60
"""Samples a step, each an image and so many tokens of text."""
FLOAT32 = 4

Figures = dict[str, float]


def small_config(width: int, layers: int) -> Owl2Config:
    """The tiny preset with a decoder that outweighs the rest, as that of the released model does."""
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
    """Let a model learn as a shipped stage does; `rank` in place of the stage's."""
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
    """Bytes in float32: weights, and a gradient and two moments for what learns."""
    total = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    figures: Figures = {"share": learns / total}
    figures |= {"weights": FLOAT32 * total, "gradients": FLOAT32 * learns, "moments": 2 * FLOAT32 * learns}
    return {**figures, "sum": FLOAT32 * (total + 3 * learns)}


def measure(stage: str, width: int, layers: int, rank: int, steps: int) -> Figures:
    """Take steps and return bytes: what the formula says, after it was held against every tensor, and `peak`.

    Raises:
        AssertionError: the tensors are not what the formula says.
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
    """The mean loss of drawn samples, each an image followed by text that is to be predicted."""
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
    """What the shipped stage keeps for mPLUG-Owl2-7B, from its shapes."""
    model = build("owl2_7b", device="meta")
    prepare(model, stage)
    return formula(model)


def show(results: dict[str, dict[str, Figures]]) -> None:
    """Print one table a model."""
    for model, stages in results.items():
        table = Table(title=f"{model}, MB", title_justify="left")
        columns = [name for name in next(iter(stages.values())) if name != "share"]
        table.add_column("")
        for column in ("learns", *columns):
            table.add_column(column, justify="right")
        for stage, figures in stages.items():
            sizes = [f"{figures[name] / 1e6:,.1f}" for name in columns]
            table.add_row(stage, f"{figures['share']:.2%}", *sizes)
        full, lora = (stages[stage] for stage in STAGES)
        # A model so small that the process need not grow for it has no ratio of peaks.
        ratios = [f"{lora[name] / full[name]:.3f}" if full[name] else "-" for name in columns]
        table.add_row("LoRA / full", "", *ratios)
        Console(width=110).print(table)


def main(width: int = 512, layers: int = 8, rank: int = 8, steps: int = 3, out: Path | None = None) -> None:
    """Measure both on a small model and count both for the released one.

    Args:
        width: hidden size of the decoder; heads of 64.
        layers: of the decoder.
        rank: of the adapters of the small model; the released one has that of the configuration.
        steps: optimizer steps to take.
        out: JSON file for the figures.
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
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        os.replace(temporary, out)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
