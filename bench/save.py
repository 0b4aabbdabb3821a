"""How long a save interrupts training: written between two steps, or in the background.

    python -m bench.save [--width 512] [--layers 8] [--steps 8] [--rounds 5] [--out save.json]

A model is trained in float32, all of it. Each round takes the same steps without a save, after a save that
waits for the disk, and after a save in the background; a first round is not counted, because it allocates the
memory of the copy. `call` is the time until the loop goes on. `all` is the whole cost until the state is on
the disk: the call, the slowdown of the steps, and the final wait. Wall clock, because the disk is part of it;
medians over the rounds.
"""

import dataclasses
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jsonargparse
import torch
from rich.console import Console
from rich.table import Table

from bench.lora import CONFIGS, STAGES, loss_of, prepare, small_config
from owl2.cli.train import read_config
from owl2.files import write_file
from owl2.model import Owl2Model, build
from owl2.train.optim import make_optimizer
from owl2.train.ranks import ALONE
from owl2.train.state.saver import Saver
from owl2.train.state.state import StateRecord, tensors_of

KINDS = {"between steps": False, "in the background": True}


def take_steps(model: Owl2Model, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Train for some steps and return their seconds."""
    began = time.perf_counter()
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def measure(width: int, layers: int, steps: int, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds for each kind of save, and the size of a state."""
    torch.set_num_threads(1)
    config = read_config([str(CONFIGS / STAGES["full fine-tuning"])])
    model = build(small_config(width, layers))
    optimizer = make_optimizer(model, prepare(model, "full fine-tuning"), config.optim)
    take_steps(model, optimizer, 2)
    savers = {}
    for kind, in_background in KINDS.items():
        own = dataclasses.replace(
            config, run=folder / kind, device="cpu", save_in_background=in_background, keep_last=1
        )
        savers[kind] = Saver(own, ALONE, Console(file=io.StringIO()))
    seconds: dict[str, dict[str, list[float]]] = {kind: {"call": [], "all": []} for kind in KINDS}
    for number in range(rounds + 1):
        plain = take_steps(model, optimizer, steps)
        for kind, saver in savers.items():
            began = time.perf_counter()
            saver.save(StateRecord(number), tensors_of(model, optimizer))
            called = time.perf_counter()
            take_steps(model, optimizer, steps)
            saver.wait()
            if number:
                seconds[kind]["call"].append(called - began)
                seconds[kind]["all"].append(time.perf_counter() - began - plain)
    size = sum(tensor.nbytes for tensor in tensors_of(model, optimizer).values())
    medians = {k: {name: statistics.median(s) for name, s in parts.items()} for k, parts in seconds.items()}
    return {**medians, "state": {"bytes": size}, "steps": {"seconds": plain}}


def main(width: int = 512, layers: int = 8, steps: int = 8, rounds: int = 5, out: Path | None = None) -> None:
    """Measure both kinds of save with a small model.

    Args:
        width: hidden size of the decoder; heads of 64.
        layers: of the decoder.
        steps: between two saves.
        rounds: saves of each kind that are counted.
        out: JSON file for the results.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(width, layers, steps, rounds, Path(folder))
    table = Table(
        title=f"a state of {figures['state']['bytes'] / 1e6:,.0f} MB, seconds", title_justify="left"
    )
    for column in ("written", "call", "all"):
        table.add_column(column, justify="left" if column == "written" else "right")
    for kind in KINDS:
        table.add_row(kind, *(f"{figures[kind][name]:.2f}" for name in ("call", "all")))
    Console().print(table)
    print(f"{steps} steps without a save: {figures['steps']['seconds']:.2f} s")
    if out is not None:
        settings = {"width": width, "layers": layers, "steps": steps, "rounds": rounds}
        record = {**settings, "torch": torch.__version__, "machine": platform.machine(), "results": figures}
        write_file(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
